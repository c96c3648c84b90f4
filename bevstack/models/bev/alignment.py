"""Bringing past BEVs into the current frame: done once a step, for everybody who reads them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bevstack.geometry import BEVGrid, apply_transform, invert_rigid, sample_bev, se2_from_rigid
from bevstack.registry import MODELS
from bevstack.structures import AlignedHistory, BEVMemory, EgoMotion


def warp_bev(features: Tensor, grid: BEVGrid, source_from_target: Tensor) -> Tensor:
    """Resample a BEV tensor into another pose of the same grid, bilinearly, zero outside.

    Args:
        features: (B, C, Y, X) on ``grid`` in the source frame.
        grid: of the source and of the target.
        source_from_target: (B, 4, 4) metres; only its planar part acts (docs/reference.md 4.1 J).

    Returns:
        (B, C, Y, X) on ``grid`` in the target frame.
    """
    planar = se2_from_rigid(source_from_target.float())
    centers = grid.cell_centers(features.device).flatten(0, 1)
    points = apply_transform(planar, centers).unflatten(1, grid.shape)
    return sample_bev(features, grid, points).to(features.dtype)


@MODELS.register_module()
class WarpAlignment(nn.Module):
    """The corrected alignment: rotation and translation in one bilinear warp, about the true origin, in metres.

    Attributes:
        leaves_shift: whether a shift is left to temporal attention (``reference_shift``), so that the features are not
            where they belong for any other reader.
    """

    leaves_shift = False

    def forward(self, memory: BEVMemory, motion: EgoMotion) -> AlignedHistory:
        """Warp every frame of the memory into the current one.

        Args:
            memory: as the current frame sees it (:meth:`bevstack.structures.BEVMemory.moved`).
            motion: that led to the current frame; here the memory's poses say all.
        """
        frame_from_now = invert_rigid(memory.now_from_frame.float())
        frames = torch.Size(memory.valid.shape)
        warped = warp_bev(memory.features.flatten(0, 1), memory.grid, frame_from_now.flatten(0, 1))
        return AlignedHistory(warped.unflatten(0, frames), memory.grid, memory.valid, memory.seconds)
