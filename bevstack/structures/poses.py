"""Where a sample was taken: the transforms between its boxes' frame, its BEV frame and the global frame.

The boxes of a sample, true and predicted, are in its augmented BEV frame. All matrices here are (4, 4) float64 on the
host; a sample is a :class:`bevstack.structures.BEVDataSample` or the dict of its fields and metainfo.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bevstack.errors import InputError
from bevstack.geometry.boxes3d import OrientedBoxes, oriented_boxes
from bevstack.structures.boxes import box_tensor

if TYPE_CHECKING:
    from mmdet3d.structures import LiDARInstance3DBoxes


def bev_from_augmented(sample: Any) -> Tensor:
    """(4, 4): from the augmented BEV frame to the one before augmentation; identity where nothing was augmented."""
    augmented_from_bev = _metainfo(sample).get("augmented_from_bev")
    if augmented_from_bev is None:
        return torch.eye(4, dtype=torch.float64)
    return torch.linalg.inv(torch.as_tensor(augmented_from_bev, dtype=torch.float64))


def global_from_augmented(sample: Any) -> Tensor:
    """(4, 4): from the augmented BEV frame to the global frame.

    Raises:
        InputError: the sample does not say where it was taken.
    """
    info = _metainfo(sample)
    if info.get("global_from_bev") is None:
        reason = "the sample does not say where it was taken"
        raise InputError(f"sample {info.get('token')}", "global_from_bev", reason)
    return torch.as_tensor(info["global_from_bev"], dtype=torch.float64) @ bev_from_augmented(sample)


def augmented_from_global(sample: Any) -> Tensor:
    """(4, 4): from the global frame to the augmented BEV frame; errors as :func:`global_from_augmented`."""
    return torch.linalg.inv(global_from_augmented(sample))


def boxes_in_global(sample: Any, boxes: LiDARInstance3DBoxes) -> OrientedBoxes:
    """Boxes of a sample in the global frame.

    Args:
        sample: says where it was taken.
        boxes: G of the sample's own.

    Returns:
        G boxes in float64 on the host; velocity NaN where unknown, and where ``boxes`` have none (7 values).

    Raises:
        InputError: the sample does not say where it was taken.
    """
    return oriented_boxes(global_from_augmented(sample), box_tensor(boxes).detach().cpu().double())


def _metainfo(sample: Any) -> Mapping[str, Any]:
    return sample if isinstance(sample, Mapping) else sample.metainfo
