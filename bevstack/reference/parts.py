"""Parts of the model that behave as the published BEVFormer does where it departs from its paper or is wrong.

A config chooses them by name, or all at once through :mod:`bevstack.reference.compat`. The corrected parts know nothing
of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.geometry import yaw_of
from bevstack.interop.reference_keys import code_from_old_code
from bevstack.models.bev import BEVFormerEncoder
from bevstack.models.bev.visibility import VisibilityPlan
from bevstack.models.heads.detection3d_query import QueryDetectionHead
from bevstack.registry import MODELS
from bevstack.structures import AlignedHistory, BEVMemory, CameraRig, EgoMotion

MOTIONS = ("bev", "can_bus")
INTERPOLATIONS = ("nearest", "bilinear")


def rotate_bev(features: Tensor, angle: Tensor, center: tuple[float, float], interpolation: str = "nearest") -> Tensor:
    """``out(p) = features(R(+angle)(p - center) + center)``, zero outside (docs/reference.md 4.5, Rotate prev_bev).

    Args:
        features: (B, C, Y, X).
        angle: (B,) radians; a left turn of the ego is positive, its surroundings turn to the right.
        center: (column, row) in cells, edge coordinates: cell i covers [i, i + 1).
        interpolation: ``nearest`` or ``bilinear``.
    """
    rows, columns = features.shape[-2:]
    row = torch.arange(rows, device=features.device, dtype=torch.float32) + 0.5 - center[1]
    column = torch.arange(columns, device=features.device, dtype=torch.float32) + 0.5 - center[0]
    sin, cos = angle.float().sin().view(-1, 1, 1), angle.float().cos().view(-1, 1, 1)
    x = cos * column - sin * row[:, None] + center[0]
    y = sin * column + cos * row[:, None] + center[1]
    places = torch.stack([x * (2 / columns) - 1, y * (2 / rows) - 1], dim=-1)
    rotated = F.grid_sample(features.float(), places, mode=interpolation, padding_mode="zeros", align_corners=False)
    return rotated.to(features.dtype)


def planar_motion_of_can_bus(can_bus: Tensor) -> tuple[Tensor, Tensor]:
    """What the reference reads from its ``can_bus`` (docs/reference.md 4.5, shift): ego poses, a level car.

    Args:
        can_bus: (B, 18) with translation along global axes in [0:2], absolute heading in radians in [16] and its
            change in degrees in [17].

    Returns:
        (B, 2) metres moved since the previous frame (to the right, forward) in the axes of the current frame, and (B,)
        radians turned to the left.
    """
    dx, dy, heading = can_bus[:, 0], can_bus[:, 1], can_bus[:, 16]
    forward = dx * heading.cos() + dy * heading.sin()
    right = dx * heading.sin() - dy * heading.cos()
    return torch.stack([right, forward], dim=-1), can_bus[:, 17] * (math.pi / 180)


def planar_motion_of_bev(previous_from_current: Tensor) -> tuple[Tensor, Tensor]:
    """The same two values from the BEV frames' own poses (docs/reference.md 4.1 I, 4.5, shift).

    Args:
        previous_from_current: (B, 4, 4) metres.

    Returns:
        (B, 2) metres moved (x, y of the current frame) and (B,) radians turned to the left.
    """
    moved = previous_from_current[:, :3, :3].transpose(1, 2) @ previous_from_current[:, :3, 3:]
    return moved[:, :2, 0], yaw_of(previous_from_current)


@MODELS.register_module()
class ReferenceShiftAlignment(nn.Module):
    """The published alignment: rotate the previous BEV, then shift the references into it.

    For the encoder's temporal attention alone: whoever else reads past frames gets the corrected alignment.

    Args:
        rotate_center: (column, row) in cells about which to rotate; None is where the BEV frame's origin lies. The
            published code says (100, 100) whatever the grid (docs/reference.md 4.1 B).
        interpolation: of the rotation; published: ``nearest`` (4.1 F).
        alias_shift: shift the references into the current BEV, too, as all published weights were trained (4.1 C).
        motion: ``bev``: of the BEV (lidar) frame; ``can_bus``: of the ego frame, as published (4.1 I); this needs
            vectors of :class:`bevstack.reference.can_bus.ReferenceCanBus`, absolute heading and global axes.

    Raises:
        ValueError: unknown interpolation or motion; in use: ``motion="can_bus"`` without ``can_bus`` vectors.
    """

    leaves_shift = True

    def __init__(
        self,
        rotate_center: Sequence[float] | None = None,
        interpolation: str = "bilinear",
        alias_shift: bool = False,
        motion: str = "bev",
    ) -> None:
        super().__init__()
        if interpolation not in INTERPOLATIONS or motion not in MOTIONS:
            raise ValueError(f"interpolation {interpolation!r}, motion {motion!r}: of {INTERPOLATIONS}, {MOTIONS}")
        self.rotate_center: tuple[float, float] | None = None
        if rotate_center is not None:
            column, row = (float(v) for v in rotate_center)
            self.rotate_center = column, row
        self.interpolation, self.alias_shift, self.motion = interpolation, alias_shift, motion

    def forward(self, memory: BEVMemory, motion: EgoMotion) -> AlignedHistory:
        """Rotate the previous frame; the translation is left as a shift of the references.

        Args:
            memory: as the current frame sees it; of its M frames the previous one alone is brought along.
            motion: that led to the current frame.
        """
        moved, turned = self.planar_motion(motion)
        grid, previous = memory.grid, memory.features[:, 0]
        center = self.rotate_center
        if center is None:
            column, row = grid.cells_from_metres(torch.zeros(2)).tolist()
            center = column, row
        features = rotate_bev(previous, turned, center, self.interpolation).unsqueeze(1)
        shift = (moved / moved.new_tensor(grid.size_m)).to(torch.float32)
        still = shift if self.alias_shift else torch.zeros_like(shift)
        shifts = torch.stack([shift, still], dim=1)
        return AlignedHistory(features, grid, memory.valid[:, :1], memory.seconds[:, :1], shifts)

    def planar_motion(self, motion: EgoMotion) -> tuple[Tensor, Tensor]:
        """(B, 2) metres moved (x, y of the current BEV frame) and (B,) radians turned."""
        if self.motion == "bev":
            return planar_motion_of_bev(motion.previous_from_current)
        if motion.can_bus is None:
            raise ValueError("ReferenceShiftAlignment(motion='can_bus') needs can_bus vectors: the data delivers none")
        return planar_motion_of_can_bus(motion.can_bus)


@MODELS.register_module()
class PaddingSeesEncoder(BEVFormerEncoder):
    """A :class:`BEVFormerEncoder` that takes points in an image's padding for visible, as published (4.1 N)."""

    def visibility(self, rig: CameraRig) -> VisibilityPlan:
        """Which cameras see which cell of the grid, and where; images reach over their padding."""
        size = rig.image_size_px.new_tensor(rig.padded_size_px).expand_as(rig.image_size_px)
        return super().visibility(replace(rig, image_size_px=size))


@MODELS.register_module()
class OldBoxesDetectionHead(QueryDetectionHead):
    """A :class:`QueryDetectionHead` whose weights speak mmdet3d 0.17's box convention, as all published ones do.

    What comes out is in today's convention: the branch's answer is turned over before it is read.
    """

    box_convention = "mmdet3d-0.17"

    def _box_code(self, centres: Tensor, update: Tensor) -> Tensor:
        """Centres (..., 3) and the branch's old code (..., 10) to a code (..., 10) of today."""
        return super()._box_code(centres, code_from_old_code(update))
