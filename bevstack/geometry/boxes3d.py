"""3D boxes as tensors: corners, footprints, and moving boxes between BEV frames.

A box is (x, y, z_bottom, l, w, h, yaw, vx, vy) in a BEV frame (mmdet3d 1.x ``LiDARInstance3DBoxes``): metres, the
centre of its lower face, yaw the angle in radians of the length axis from +x counter-clockwise, velocity in m/s along
the frame's axes, NaN where unknown.
"""

from __future__ import annotations

import torch
from torch import Tensor

BOX_SIZE = 9

# Unit corners (length, width, height), in the order of mmdet3d's ``LiDARInstance3DBoxes.corners``.
_CORNERS = (
    (-0.5, -0.5, 0.0), (-0.5, -0.5, 1.0), (-0.5, 0.5, 1.0), (-0.5, 0.5, 0.0),
    (0.5, -0.5, 0.0), (0.5, -0.5, 1.0), (0.5, 0.5, 1.0), (0.5, 0.5, 0.0),
)  # fmt: skip


def gravity_centers(boxes: Tensor) -> Tensor:
    """(..., 9) boxes -> (..., 3) metres, their middles."""
    return torch.stack([boxes[..., 0], boxes[..., 1], boxes[..., 2] + boxes[..., 5] / 2], dim=-1)


def turned(offsets: Tensor, yaw: Tensor) -> Tensor:
    """(..., K, 2) offsets (x, y) turned counter-clockwise by (...) yaw, radians."""
    sin, cos = yaw.sin().unsqueeze(-1), yaw.cos().unsqueeze(-1)
    x, y = offsets.unbind(-1)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], dim=-1)


def box_corners(boxes: Tensor) -> Tensor:
    """(..., 9) boxes -> (..., 8, 3) metres: rear right (bottom, top), rear left (top, bottom), then in front."""
    offsets = boxes.new_tensor(_CORNERS) * boxes[..., None, 3:6]
    horizontal = turned(offsets[..., :2], boxes[..., 6]) + boxes[..., None, :2]
    return torch.cat([horizontal, offsets[..., 2:] + boxes[..., None, 2:3]], dim=-1)


def box_footprints(boxes: Tensor) -> Tensor:
    """(..., 9) boxes -> (..., 4, 2) metres (x, y): rear right, then counter-clockwise."""
    corners = boxes.new_tensor([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    return turned(corners * boxes[..., None, 3:5], boxes[..., 6]) + boxes[..., None, :2]


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


def transform_boxes(dst_from_src: Tensor, boxes: Tensor) -> Tensor:
    """Move boxes by a similarity that keeps z upright: rotation about z, uniform scale, reflection in the plane, shift.

    Args:
        dst_from_src: (4, 4); pitch and roll must be small enough to ignore, as yaw is all a box can hold.
        boxes: (G, 9) in the source frame.

    Returns:
        (G, 9) in the destination frame: centre, sizes, heading (mirrored by a reflection) and velocity follow.
    """
    matrix = dst_from_src.to(boxes)
    linear = matrix[:3, :3]
    scale = torch.det(linear).abs() ** (1 / 3)
    # The centre of gravity moves with the frame; the lower face stays level even where the frame is slightly tilted.
    center = gravity_centers(boxes) @ linear.T + matrix[:3, 3]
    size = boxes[:, 3:6] * scale
    heading = torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin()], dim=-1) @ linear[:2, :2].T
    velocity = boxes[:, 7:9] @ linear[:2, :2].T
    bottom = center[:, 2:] - size[:, 2:] / 2
    yaw = torch.atan2(heading[:, 1], heading[:, 0]).unsqueeze(-1)
    return torch.cat([center[:, :2], bottom, size, yaw, velocity], dim=-1)
