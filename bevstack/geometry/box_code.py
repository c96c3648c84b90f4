"""The ten numbers that detection heads regress for a box, and back.

Code: (cx, cy, log l, log w, cz, log h, sin yaw, cos yaw, vx, vy), in metres, radians and m/s; (cx, cy, cz) is the
centre of gravity. Boxes are mmdet3d 1.x LiDAR boxes (x, y, z_bottom, l, w, h, yaw, vx, vy). The two sizes pass through
in the order they stand in the box, so boxes of mmdet3d 0.17 (w, l, h) give the reference's code
(docs/reference.md 4.6, Box code).
"""

from __future__ import annotations

import torch
from torch import Tensor

BOX_CODE_SIZE = 10
MIN_SIZE_M = 1e-3
"""Smaller sizes are encoded as this one."""


def encode_boxes(boxes: Tensor) -> Tensor:
    """Boxes (..., 9) in the BEV frame to codes (..., 10); a velocity that is not known (NaN) stays NaN."""
    x, y, bottom, _, _, height, yaw, vx, vy = boxes.unbind(-1)
    length, width, tall = boxes[..., 3:6].clamp_min(MIN_SIZE_M).log().unbind(-1)
    return torch.stack([x, y, length, width, bottom + height / 2, tall, yaw.sin(), yaw.cos(), vx, vy], dim=-1)


def decode_boxes(code: Tensor) -> Tensor:
    """Codes (..., 10) to boxes (..., 9) whose third value is still the height of the centre, not of the bottom.

    Range filters look at the centre; :func:`bottom_centred` then gives the LiDAR box.

    Source: docs/reference.md 4.8, Bottom and centre.
    """
    cx, cy, log_length, log_width, cz, log_height, sin, cos, vx, vy = code.unbind(-1)
    sizes = (log_length.exp(), log_width.exp(), log_height.exp())
    return torch.stack([cx, cy, cz, *sizes, torch.atan2(sin, cos), vx, vy], dim=-1)


def bottom_centred(boxes: Tensor) -> Tensor:
    """Boxes (..., 9) with the centre's height in third place to boxes with the bottom's: z - h / 2."""
    return torch.cat([boxes[..., :2], boxes[..., 2:3] - boxes[..., 5:6] / 2, boxes[..., 3:]], dim=-1)
