"""Bringing the previous BEV into the current frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.geometry import BEVGrid, apply_transform, se2_from_rigid
from bevstack.registry import MODELS
from bevstack.structures import BEVMemory, EgoMotion


@dataclass(frozen=True)
class AlignedHistory:
    """The previous BEV as the encoder uses it.

    Args:
        features: (B, C, Y, X) previous BEV on the current grid.
        valid: (B,) bool, which samples have one.
        reference_shift: (B, 2, 2) fractions (x, y) of the grid still to be added to the references into the previous
            and into the current BEV.
    """

    features: Tensor
    valid: Tensor
    reference_shift: Tensor


def warp_bev(features: Tensor, grid: BEVGrid, source_from_target: Tensor) -> Tensor:
    """Resample a BEV tensor into another pose of the same grid, bilinearly, zero outside.

    Args:
        features: (B, C, Y, X) on ``grid`` in the source frame.
        source_from_target: (B, 4, 4) metres; only its planar part acts (docs/reference.md 4.1 J).

    Returns:
        (B, C, Y, X) on ``grid`` in the target frame.
    """
    planar = se2_from_rigid(source_from_target.float())
    centers = grid.cell_centers(features.device).flatten(0, 1)
    places = grid.sampling_grid(apply_transform(planar, centers)).unflatten(1, grid.shape)
    warped = F.grid_sample(features.float(), places, mode="bilinear", padding_mode="zeros", align_corners=False)
    return warped.to(features.dtype)


@MODELS.register_module()
class WarpAlignment(nn.Module):
    """The corrected alignment: rotation and translation in one bilinear warp, about the true origin, in metres."""

    def forward(self, memory: BEVMemory, motion: EgoMotion, grid: BEVGrid) -> AlignedHistory:
        """Warp the newest memory frame by ``motion.previous_from_current``; nothing is left to shift."""
        valid = memory.valid[:, 0] & motion.has_previous
        features = warp_bev(memory.newest, grid, motion.previous_from_current)
        return AlignedHistory(features, valid, torch.zeros(len(valid), 2, 2, device=features.device))
