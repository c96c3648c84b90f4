"""The memory that a stream carries from one batch to the next, kept outside the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from bevstack.errors import InputError
from bevstack.structures import BEVDataSample, BEVMemory


def carried_memory(memory: BEVMemory | None, samples: Sequence[BEVDataSample]) -> BEVMemory | None:
    """What the last batch left in each slot, where that slot goes on with the same stream.

    Args:
        memory: of the last batch (B' slots), or None.
        samples: the B samples of the coming batch; slot b goes on where ``prev_token`` is the token that slot b of
            the memory holds.

    Returns:
        Memory of B slots, invalid where a slot starts another stream; None where none goes on.
    """
    if memory is None:
        return None
    before = [*memory.tokens, *[""] * len(samples)]
    keep = [bool(token) and sample.prev_token == token for sample, token in zip(samples, before, strict=False)]
    if not any(keep):
        return None
    device = memory.features.device
    if len(samples) != len(memory.tokens):  # a last batch that is smaller, or the larger one after it
        rows = torch.arange(len(samples), device=device).clamp(max=len(memory.tokens) - 1)
        memory = replace(
            memory,
            features=memory.features.index_select(0, rows),
            newest_from_frame=memory.newest_from_frame.index_select(0, rows),
            valid=memory.valid.index_select(0, rows),
            seconds=memory.seconds.index_select(0, rows),
        )
    tokens = tuple(token if kept else "" for token, kept in zip(before, keep, strict=False))
    return replace(memory.masked(torch.tensor(keep, device=device)), tokens=tokens)


def memory_after(memory: BEVMemory, samples: Sequence[BEVDataSample]) -> BEVMemory:
    """The memory a batch leaves behind: cut from the graph, with the tokens of its samples."""
    return replace(memory.detach(), tokens=tuple(sample.token for sample in samples))


def require_streams(samples: Sequence[BEVDataSample]) -> None:
    """Refuse to predict a batch that holds a sample and its own predecessor: memory cannot pass inside a batch.

    Raises:
        InputError: names the two samples.
    """
    tokens = {sample.token for sample in samples}
    for sample in samples:
        if sample.prev_token and sample.prev_token in tokens:
            reason = f"samples {sample.prev_token} and {sample.token} follow each other but lie in one batch"
            raise InputError("dataloader", "sampler", f"{reason}; streaming needs one scene a slot")
