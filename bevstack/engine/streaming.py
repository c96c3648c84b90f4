"""Streams: which sample goes on from which, and the memory that each leaves to the next. Kept outside the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.structures import BEVDataSample, BEVMemory

_SAME_FRAME = 1e-6  # largest difference of two entries of ``augmented_from_bev``


@dataclass(frozen=True)
class Streams:
    """What a batch of concurrent streams leaves to the next batch: a value, empty at the start.

    Args:
        memory: of the B' samples that came last, one slot each; None where nothing is remembered.
        tokens: their tokens, which the next sample of a stream has as its ``prev_token``.
        augmented_from_bev: (B', 4, 4) float64 of each, None where unknown: the frame in which its memory lies.
    """

    memory: BEVMemory | None = None
    tokens: tuple[str, ...] = ()
    augmented_from_bev: Tensor | None = None

    def carried(self, samples: Sequence[BEVDataSample]) -> BEVMemory | None:
        """The memory of the coming batch.

        Args:
            samples: the B samples; each goes on from the slot whose token is its ``prev_token``: its own, else any.

        Returns:
            Memory of B slots, invalid where a slot starts another stream, or where the memory lies in a BEV frame that
            was augmented otherwise; None where none goes on.
        """
        slots = self._slots(samples)
        if self.memory is None or all(slot is None for slot in slots):
            return None
        device = self.memory.features.device
        rows = torch.tensor([slot or 0 for slot in slots], device=device)
        return self.memory.select(rows).masked(torch.tensor([slot is not None for slot in slots], device=device))

    def without_memory(self, samples: Sequence[BEVDataSample]) -> list[BEVDataSample]:
        """Those of the coming batch whose predecessor belongs to the set (``prev_token``) but left no memory here."""
        pairs = zip(samples, self._slots(samples), strict=True)
        return [sample for sample, slot in pairs if sample.prev_token and slot is None]

    def newest(self, count: int) -> Streams:
        """The streams with the newest ``count`` frames of each memory alone; the others are no longer valid."""
        if self.memory is None:
            return self
        valid = self.memory.valid.clone()
        valid[:, count:] = False
        return replace(self, memory=replace(self.memory, valid=valid))

    def _slots(self, samples: Sequence[BEVDataSample]) -> list[int | None]:
        """The slot that each sample goes on from. A set that holds a scene twice has one token in two slots."""
        slots_of: dict[str, list[int]] = {}
        for slot, token in enumerate(self.tokens):
            slots_of.setdefault(token, []).append(slot)
        now, before, chosen = frames_of(samples), self.augmented_from_bev, []
        for row, sample in enumerate(samples):
            slots = slots_of.get(sample.prev_token, []) if sample.prev_token else []
            if now is not None and before is not None:
                slots = [slot for slot in slots if (now[row] - before[slot]).abs().max() < _SAME_FRAME]
            chosen.append(row if row in slots else next(iter(slots), None))
        return chosen

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
        return answer, Streams(memory, tuple(sample.token for sample in samples), frames_of(samples))

    def plain(self) -> dict[str, Any]:
        """The streams as plain data on the CPU, for a checkpoint."""
        state = {"tokens": list(self.tokens), "memory": None, "augmented_from_bev": self.augmented_from_bev}
        if self.memory is None:
            return state
        return state | {"memory": vars(self.memory.to("cpu")) | {"grid": vars(self.memory.grid)}}

    @classmethod
    def from_plain(cls, state: dict[str, Any], device: torch.device | str) -> Streams:
        """Counterpart of :meth:`plain`."""
        tokens, frames = tuple(state["tokens"]), state["augmented_from_bev"]
        frames = None if frames is None else frames.cpu()
        if state["memory"] is None:
            return cls(None, tokens, frames)
        memory = BEVMemory(**{**state["memory"], "grid": BEVGrid.build(state["memory"]["grid"])})
        return cls(memory.to(device), tokens, frames)


def frames_of(samples: Sequence[BEVDataSample]) -> Tensor | None:
    """(B, 4, 4) float64 ``augmented_from_bev`` of samples; None where one does not tell."""
    frames = [sample.get("augmented_from_bev") for sample in samples]
    if not frames or any(frame is None for frame in frames):
        return None
    return torch.from_numpy(np.stack(frames).astype(np.float64))


def require_streams(samples: Sequence[BEVDataSample], streams: Streams) -> None:
    """Refuse to predict a sample without the memory of its predecessor, where that belongs to the set.

    Args:
        samples: of the coming batch.
        streams: what the last one left.

    Raises:
        InputError: a batch holds a sample and its predecessor, so that memory cannot pass; the predecessor is not among
            the last batch's samples; it is, but its BEV frame was augmented otherwise. Names the samples.
    """
    tokens = {sample.token for sample in samples}
    for sample in samples:
        if sample.prev_token and sample.prev_token in tokens:
            reason = f"samples {sample.prev_token} and {sample.token} follow each other but lie in one batch"
            raise InputError("dataloader", "sampler", f"{reason}; streaming needs one scene a slot")
    for sample in streams.without_memory(samples):
        reason = f"{sample.prev_token} comes before {sample.token} in the set but was not predicted just before it"
        advice = "use SceneShardedSampler with SceneBatchSampler"
        if sample.prev_token in streams.tokens:
            reason = f"the BEV frames of samples {sample.prev_token} and {sample.token} are augmented differently"
            advice = "leave BEV augmentation out of a test pipeline"
        raise InputError("dataloader", "sampler", f"{reason}, so that it has no memory; {advice}")
