"""Streams: which sample goes on from which, and the memory that each leaves to the next. Kept outside the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.structures import BEVDataSample, BEVMemory


@dataclass(frozen=True)
class Streams:
    """What a batch of concurrent streams leaves to the next batch: a value, empty at the start.

    Args:
        memory: of the B' samples that came last, one slot each; None where nothing is remembered.
        tokens: their tokens, which the next sample of a stream has as its ``prev_token``.
    """

    memory: BEVMemory | None = None
    tokens: tuple[str, ...] = ()

    def carried(self, samples: Sequence[BEVDataSample]) -> BEVMemory | None:
        """The memory of the coming batch.

        Args:
            samples: the B samples; each goes on from the slot, whichever it is, whose token is its ``prev_token``.

        Returns:
            Memory of B slots, invalid where a slot starts another stream; None where none goes on.
        """
        if self.memory is None:
            return None
        slot_of = {token: slot for slot, token in enumerate(self.tokens) if token}
        slots = [slot_of.get(sample.prev_token) for sample in samples]
        if all(slot is None for slot in slots):
            return None
        device = self.memory.features.device
        rows = torch.tensor([slot or 0 for slot in slots], device=device)
        return self.memory.select(rows).masked(torch.tensor([slot is not None for slot in slots], device=device))

    def step(self, model: nn.Module, data: dict[str, Any], ask: str) -> tuple[Any, Streams]:
        """One step of every stream: the only place where memory goes from one batch to the next.

        Args:
            model: :class:`bevstack.models.BEVPerception`, or its distributed wrapper.
            data: of the preprocessor: ``inputs`` (a Clip) and ``data_samples``.
            ask: ``loss`` or ``predict``.

        Returns:
            What the model answers, and the streams after this batch.
        """
        samples = data["data_samples"]
        clip = replace(data["inputs"], memory=self.carried(samples))
        answer, memory = model(inputs=clip, data_samples=samples, mode=f"stream_{ask}")
        return answer, Streams(memory, tuple(sample.token for sample in samples))

    def plain(self) -> dict[str, Any]:
        """The streams as plain data on the CPU, for a checkpoint."""
        if self.memory is None:
            return {"tokens": list(self.tokens), "memory": None}
        memory = vars(self.memory.to("cpu")) | {"grid": vars(self.memory.grid)}
        return {"tokens": list(self.tokens), "memory": memory}

    @classmethod
    def from_plain(cls, state: dict[str, Any], device: torch.device | str) -> Streams:
        """Counterpart of :meth:`plain`."""
        if state["memory"] is None:
            return cls(None, tuple(state["tokens"]))
        memory = BEVMemory(**{**state["memory"], "grid": BEVGrid.build(state["memory"]["grid"])})
        return cls(memory.to(device), tuple(state["tokens"]))


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
