"""The BEV feature B_t, the memory of earlier ones, and what of it the current frame sees."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bevstack.geometry import BEVGrid
from bevstack.geometry.transforms import full_precision, invert_rigid
from bevstack.structures.batched import Batched
from bevstack.structures.frame import CameraRig, EgoMotion


@dataclass(frozen=True)
class BEVFeatures(Batched):
    """B_t, and what else of the moment a head may read.

    Args:
        features: (B, C, Y, X) on ``grid``; rows grow with +y, columns with +x of the BEV frame.
        grid: extent and cells.
        encoded: what the encoder alone made of this frame, (B, C', Y', X') without gradient, on the encoder's grid:
            what the memory keeps of it, and so what past frames are to be compared with.
        history: the past frames that the memory holds, in the current frame; None where nothing is remembered.
        image_features: levels (B, N, C, h, w) of the frame's cameras.
        rig: of the cameras that they come from.

    The last four are set by :meth:`bevstack.models.BEVPerception.step`, for heads alone.
    """

    features: Tensor
    grid: BEVGrid
    encoded: BEVFeatures | None = None
    history: AlignedHistory | None = None
    image_features: tuple[Tensor, ...] = ()
    rig: CameraRig | None = None

    def __post_init__(self) -> None:
        if tuple(self.features.shape[-2:]) != self.grid.shape:
            raise ValueError(f"features have {tuple(self.features.shape[-2:])} cells, the grid says {self.grid.shape}")


@dataclass(frozen=True)
class AlignedHistory(Batched):
    """The BEV of M past frames, brought into the current frame once for all that read it; index 0 is the previous one.

    Args:
        features: (B, M, C, Y, X) in the current BEV frame; anything where ``valid`` is False.
        grid: of the features, which is the encoder's.
        valid: (B, M) bool; False where a sample has no such frame.
        seconds: (B, M) how long before the current frame each was taken; NaN where unknown.
        reference_shift: (B, 2, 2) fractions (x, y) of the grid that temporal attention still has to add to its
            references into the previous and into the current BEV; None where nothing is left to shift.
    """

    features: Tensor
    grid: BEVGrid
    valid: Tensor
    seconds: Tensor
    reference_shift: Tensor | None = None


@dataclass(frozen=True)
class BEVMemory(Batched):
    """What is remembered of M past frames: a value that goes in and comes out, never hidden in a module.

    Index 0 is the previous frame, before and after a step: the frame that a step has just done is what the next step
    calls previous. Poses and times are told from one frame, "now": right after a step that is the frame of index 0; a
    new frame takes the memory over by :meth:`moved`, after which now is the new frame.

    Args:
        features: (B, M, C, Y, X), each in its own BEV frame.
        grid: of the features.
        now_from_frame: (B, M, 4, 4) metres: each frame's BEV frame to that of now.
        valid: (B, M) bool; False where a sample has no such frame.
        seconds: (B, M) how long before now each was taken; NaN, its default, where unknown.
    """

    features: Tensor
    grid: BEVGrid
    now_from_frame: Tensor
    valid: Tensor
    seconds: Tensor = None  # type: ignore[assignment]  # a tensor as soon as it is built

    def __post_init__(self) -> None:
        if tuple(self.features.shape[-2:]) != self.grid.shape:
            raise ValueError(f"features have {tuple(self.features.shape[-2:])} cells, the grid says {self.grid.shape}")
        if self.seconds is None:
            unknown = torch.full(self.valid.shape, torch.nan, device=self.valid.device)
            object.__setattr__(self, "seconds", unknown)

    def moved(self, motion: EgoMotion) -> BEVMemory:
        """The same frames as a new frame sees them, to which ``motion`` leads from the frame of index 0.

        Poses go through ``motion.previous_from_current``, times grow by ``motion.seconds``, and where
        ``motion.has_previous`` is False the chain is broken: nothing of that sample stays valid.
        """
        now_from_previous = invert_rigid(motion.previous_from_current.float())
        with full_precision(now_from_previous):
            now_from_frame = now_from_previous.unsqueeze(1) @ self.now_from_frame
        return replace(
            self,
            now_from_frame=now_from_frame,
            valid=self.valid & motion.has_previous.unsqueeze(1),
            seconds=self.seconds + motion.seconds.float().unsqueeze(1),
        )

    def masked(self, keep: Tensor) -> BEVMemory:
        """A copy in which the samples with ``keep`` (B,) False have no memory."""
        return replace(self, valid=self.valid & keep.to(self.valid.device).unsqueeze(1))
