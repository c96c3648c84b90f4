"""3D boxes as tensors: corners, footprints, and moving boxes between BEV frames.

A box is (x, y, z_bottom, l, w, h, yaw, vx, vy) in a BEV frame (mmdet3d 1.x ``LiDARInstance3DBoxes``): metres, the
centre of its lower face, yaw the angle in radians of the length axis from +x counter-clockwise, velocity in m/s along
the frame's axes, NaN where unknown.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BOX_SIZE = 9

_CORNERS = tuple(
    (along, across, up)
    for up in (0.0, 1.0)
    for along, across in ((0.5, 0.5), (0.5, -0.5), (-0.5, -0.5), (-0.5, 0.5))
)
"""The eight corners of every box, in lengths, widths (to the left) and heights from the middle of its lower face.

The order: front left, front right, rear right, rear left (as :data:`bevstack.geometry.keypoints.KEYPOINT_NAMES`) of the
lower face, then of the upper one. mmdet3d has another order, which nothing here reads.
"""
EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))
"""Pairs of corners: around the lower face, around the upper face, upwards."""
LOWER_FACE = slice(0, 4)
"""The corners of the lower face, clockwise seen from above; the first two are in front."""
FRONT_FACE = (0, 1, 5, 4)
"""The corners of the face that the yaw points out of, around it."""


def gravity_centers(boxes: Tensor) -> Tensor:
    """(..., 9) boxes -> (..., 3) metres, their middles."""
    return torch.stack([boxes[..., 0], boxes[..., 1], boxes[..., 2] + boxes[..., 5] / 2], dim=-1)


def turned(offsets: Tensor, yaw: Tensor) -> Tensor:
    """(..., K, 2) offsets (x, y) turned counter-clockwise by (...) yaw, radians."""
    sin, cos = yaw.sin().unsqueeze(-1), yaw.cos().unsqueeze(-1)
    x, y = offsets.unbind(-1)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1)


def box_corners(boxes: Tensor) -> Tensor:
    """(..., 9) boxes (or 7 values, without velocity) -> (..., 8, 3) metres, in the order of :data:`EDGES`."""
    offsets = boxes.new_tensor(_CORNERS) * boxes[..., None, 3:6]
    horizontal = turned(offsets[..., :2], boxes[..., 6]) + boxes[..., None, :2]
    return torch.cat([horizontal, offsets[..., 2:] + boxes[..., None, 2:3]], dim=-1)


def box_footprints(boxes: Tensor) -> Tensor:
    """(..., 9) boxes -> (..., 4, 2) metres (x, y): the lower face's corners, front left first, then clockwise."""
    return box_corners(boxes)[..., LOWER_FACE, :2]


def points_in_footprint(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points lie on the ground that a box covers.

    Args:
        points: (..., P, 2) metres (x, y); leading dimensions broadcast against those of ``boxes``.
        boxes: (..., 9).

    Returns:
        (..., P) bool; the rear and right edge belong to the footprint, the front and left edge do not, so that boxes
        that touch never share a point.
    """
    local = turned(points - boxes[..., None, :2], -boxes[..., 6])
    half = boxes[..., None, 3:5] / 2
    return ((local >= -half) & (local < half)).all(-1)


class OrientedBoxes(NamedTuple):
    """Boxes in a frame in which they may lean, as in the global frame on a slope.

    Args:
        centers: (..., 3) metres, centres of gravity.
        sizes: (..., 3) metres: length, width, height.
        rotations: (..., 3, 3); the columns are the directions of length, width (to the left) and height.
        velocities: (..., 2) metres per second along the frame's x and y, NaN where unknown.
    """

    centers: Tensor
    sizes: Tensor
    rotations: Tensor
    velocities: Tensor

    def upright(self) -> Tensor:
        """(..., 9) boxes: the lower face level, yaw as the length axis shows it from above."""
        bottom = self.centers[..., 2:] - self.sizes[..., 2:] / 2
        yaw = torch.atan2(self.rotations[..., 1, 0], self.rotations[..., 0, 0]).unsqueeze(-1)
        return torch.cat([self.centers[..., :2], bottom, self.sizes, yaw, self.velocities], dim=-1)


def oriented_boxes(dst_from_src: Tensor, boxes: Tensor) -> OrientedBoxes:
    """Move boxes by a similarity: rotation, uniform scale, reflection, shift.

    Args:
        dst_from_src: (4, 4).
        boxes: (G, 9) in the source frame.

    Returns:
        G boxes in the destination frame; a reflection mirrors their heading, the rotations are rotations.
    """
    matrix = dst_from_src.to(boxes)
    centers, sizes, heading, velocities = _moved(matrix, boxes)
    ahead = heading / heading.norm(dim=-1, keepdim=True)
    up = (matrix[:3, 2] / matrix[:3, 2].norm()).expand_as(ahead)
    rotations = torch.stack([ahead, torch.linalg.cross(up, ahead, dim=-1), up], dim=-1)
    return OrientedBoxes(centers, sizes, rotations, velocities)


def transform_boxes(dst_from_src: Tensor, boxes: Tensor) -> Tensor:
    """Move boxes by a similarity that keeps z upright: rotation about z, uniform scale, reflection in the plane, shift.

    Args:
        dst_from_src: (4, 4); pitch and roll must be small enough to ignore, as yaw is all a box can hold.
        boxes: (G, 9) in the source frame.

    Returns:
        (G, 9) in the destination frame: centre, sizes, heading (mirrored by a reflection) and velocity follow.
    """
    # The centre of gravity moves with the frame; the lower face stays level even where the frame is slightly tilted.
    centers, sizes, heading, velocities = _moved(dst_from_src.to(boxes), boxes)
    bottom = centers[:, 2:] - sizes[:, 2:] / 2
    yaw = torch.atan2(heading[:, 1], heading[:, 0]).unsqueeze(-1)
    return torch.cat([centers[:, :2], bottom, sizes, yaw, velocities], dim=-1)


def _moved(dst_from_src: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centres of gravity (G, 3), sizes (G, 3), length axes (G, 3) of any length, velocities (G, 2) of moved boxes."""
    linear = dst_from_src[:3, :3]
    centers = gravity_centers(boxes) @ linear.T + dst_from_src[:3, 3]
    sizes = boxes[:, 3:6] * torch.det(linear).abs() ** (1 / 3)
    heading = torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin()], dim=-1) @ linear[:, :2].T
    return centers, sizes, heading, boxes[:, 7:9] @ linear[:2, :2].T
