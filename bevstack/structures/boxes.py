"""The bridge between box tensors (:mod:`bevstack.geometry.boxes3d`) and mmdet3d's box structure."""

from __future__ import annotations

import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from torch import Tensor

from bevstack.geometry.boxes3d import BOX_SIZE


def lidar_boxes(boxes: Tensor) -> LiDARInstance3DBoxes:
    """(G, 9) boxes of :mod:`bevstack.geometry.boxes3d` as mmdet3d's structure, on the same device; G may be 0."""
    return LiDARInstance3DBoxes(boxes.reshape(-1, BOX_SIZE), box_dim=BOX_SIZE)


def box_tensor(boxes: LiDARInstance3DBoxes) -> Tensor:
    """mmdet3d's boxes as (G, 9); boxes without velocity (7 values) get NaN there.

    Raises:
        ValueError: the structure holds neither 7 nor 9 values a box.
    """
    values = boxes.tensor
    if values.shape[-1] == BOX_SIZE:
        return values
    if values.shape[-1] != 7:
        raise ValueError(f"boxes have {values.shape[-1]} values, expected 7 or {BOX_SIZE}")
    return torch.cat([values, values.new_full((len(values), 2), torch.nan)], dim=-1)
