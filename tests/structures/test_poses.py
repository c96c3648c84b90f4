"""Where a sample was taken, and its boxes in the global frame."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bevstack.errors import InputError
from bevstack.structures import BEVDataSample
from bevstack.structures.boxes import lidar_boxes
from bevstack.structures.poses import augmented_from_global, bev_from_augmented, boxes_in_global, global_from_augmented

GLOBAL_FROM_BEV = np.array([[0.0, -1, 0, 100], [1, 0, 0, 50], [0, 0, 1, 2], [0, 0, 0, 1]])
MIRRORED = np.diag([-1.1, 1.1, 1.1, 1.0])
INFO = {"token": "t", "global_from_bev": GLOBAL_FROM_BEV, "augmented_from_bev": MIRRORED}


@pytest.mark.parametrize("sample", [INFO, BEVDataSample(metainfo=INFO)], ids=["dict", "sample"])
def test_a_point_on_its_way(sample):
    # By hand: (-2.2, 3.3) of the mirrored and enlarged frame was (2, 3); the car at (100, 50) has turned by 90 degrees.
    point = torch.tensor([-2.2, 3.3, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(bev_from_augmented(sample) @ point, torch.tensor([2.0, 3.0, 0.0, 1.0]).double())
    there = global_from_augmented(sample) @ point
    torch.testing.assert_close(there, torch.tensor([97.0, 52.0, 2.0, 1.0]).double())
    torch.testing.assert_close(augmented_from_global(sample) @ there, point)


def test_a_box_on_its_way():
    # By hand: the box heads along -x of the mirrored frame, which is +x of the BEV frame and +y of the global one.
    boxes = lidar_boxes(torch.tensor([[-2.2, 3.3, -1.1, 4.4, 2.2, 1.1, math.pi, -1.1, 0.0]]))
    moved = boxes_in_global(INFO, boxes)
    expected = torch.tensor([[97.0, 52.0, 1.0, 4.0, 2.0, 1.0, math.pi / 2, 0.0, 1.0]]).double()
    torch.testing.assert_close(moved.upright(), expected, atol=1e-6, rtol=0)


def test_what_is_not_told():
    plain = {"token": "t", "augmented_from_bev": None}
    assert torch.equal(bev_from_augmented(plain), torch.eye(4).double())
    assert torch.equal(bev_from_augmented({}), torch.eye(4).double())
    with pytest.raises(InputError, match="sample t: global_from_bev: the sample does not say where it was taken"):
        global_from_augmented(plain)
