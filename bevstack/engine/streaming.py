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
        samples: the B samples of the coming batch; each goes on from the slot, whichever it is, whose token is its
            ``prev_token``.

    Returns:
        Memory of B slots, invalid where a slot starts another stream; None where none goes on.
    """
    if memory is None:
        return None
    slot_of = {token: slot for slot, token in enumerate(memory.tokens) if token}
    slots = [slot_of.get(sample.prev_token) for sample in samples]
    if all(slot is None for slot in slots):
        return None
    device = memory.features.device
    rows = torch.tensor([slot or 0 for slot in slots], device=device)
    chosen = replace(
        memory,
        features=memory.features.index_select(0, rows),
        newest_from_frame=memory.newest_from_frame.index_select(0, rows),
        valid=memory.valid.index_select(0, rows),
        seconds=memory.seconds.index_select(0, rows),
    )
    tokens = tuple("" if slot is None else memory.tokens[slot] for slot in slots)
    return replace(chosen.masked(torch.tensor([slot is not None for slot in slots], device=device)), tokens=tokens)


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
