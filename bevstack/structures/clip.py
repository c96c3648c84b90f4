"""Frames of a batch one after another, and what came before them."""

from __future__ import annotations

from dataclasses import dataclass

from bevstack.structures.batched import Batched
from bevstack.structures.bev import BEVMemory
from bevstack.structures.frame import Frame


@dataclass(frozen=True)
class Clip(Batched):
    """T frames of a batch, oldest first, and the memory that came before them.

    Args:
        frames: T moments; the last is the keyframe that labels belong to.
        memory: what earlier clips of the same streams left behind, or None.
    """

    frames: tuple[Frame, ...]
    memory: BEVMemory | None = None

    @property
    def batch_size(self) -> int:
        """How many samples the batch has, B."""
        return self.frames[-1].images.shape[0]
