"""The six keypoints of a box, and the rectangle that fits them."""

from __future__ import annotations

import math

import pytest
import torch

from bevstack.geometry.boxes3d import box_footprints
from bevstack.geometry.keypoints import (
    KEYPOINT_NAMES,
    MIRRORED,
    box_keypoints,
    box_poses,
    fit_poses,
    pose_keypoints,
)


def random_poses(number=50, seed=0):
    values = torch.rand(number, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    scale = torch.tensor([80.0, 80.0, 9.0, 4.0, 2 * math.pi], dtype=torch.float64)
    return values * scale + torch.tensor([-40.0, -40.0, 0.3, 0.3, -math.pi], dtype=torch.float64)


def named(points):
    return dict(zip(KEYPOINT_NAMES, points.tolist(), strict=True))


def test_a_box_that_looks_to_the_left_of_the_picture():
    # Closed form: 4 x 2 m at (10, 20), heading +y (yaw 90 degrees): front at y 22, its left side at x 9.
    box = torch.tensor([[10.0, 20.0, -1.5, 4.0, 2.0, 3.0, math.pi / 2, 0.0, 0.0]])
    points = named(box_keypoints(box)[0])
    expected = {
        "centre": [10, 20, 0],  # its middle: 1.5 m above the lower face
        "front_left": [9, 22, -1.5],
        "front_right": [11, 22, -1.5],
        "rear_right": [11, 18, -1.5],
        "rear_left": [9, 18, -1.5],
        "front": [10, 22, -1.5],
    }
    assert points.keys() == expected.keys()
    for name, place in expected.items():
        assert points[name] == pytest.approx(place, abs=1e-5), name


def test_corners_are_the_footprint():
    # Expected: the corners of box_footprints, whose order is that of the keypoints' names.
    poses = random_poses()
    boxes = torch.cat([poses[:, :2], torch.zeros(50, 1), poses[:, 2:4], torch.ones(50, 1), poses[:, 4:]], dim=1)
    order = [KEYPOINT_NAMES.index(name) for name in ("front_left", "front_right", "rear_right", "rear_left")]
    torch.testing.assert_close(box_keypoints(boxes)[:, order, :2], box_footprints(boxes))
    torch.testing.assert_close(box_poses(boxes), poses)


def test_a_rectangle_fits_its_own_keypoints():
    # Expected: the pose itself, whatever its heading, also when it is wider than long.
    poses = random_poses()
    fitted = fit_poses(pose_keypoints(poses))
    torch.testing.assert_close(fitted[:, :4], poses[:, :4])
    turn = (fitted[:, 4] - poses[:, 4]) / (2 * math.pi)
    torch.testing.assert_close(turn, turn.round())
    assert (fitted[:, 4].abs() <= math.pi + 1e-9).all()


def test_no_other_rectangle_fits_better():
    # Expected: the least-squares optimum, found once more by trying poses around it and all over the turn.
    generator = torch.Generator().manual_seed(1)
    poses = random_poses(20) + torch.tensor([0.0, 0.0, 1.0, 1.0, 0.0])  # no side so small that noise turns it over
    points = pose_keypoints(poses) + 0.2 * torch.randn(20, 6, 2, generator=generator, dtype=torch.float64)
    fitted = fit_poses(points)
    least = (pose_keypoints(fitted) - points).square().sum((1, 2))
    for scale in (1e-3, 1e-2, 1e-1, 1.0):
        for _ in range(200):
            other = fitted + scale * torch.randn(fitted.shape, generator=generator, dtype=torch.float64)
            assert ((pose_keypoints(other) - points).square().sum((1, 2)) >= least - 1e-9).all()


def test_points_on_one_spot_give_a_finite_pose():
    pose = fit_poses(torch.full((1, 6, 2), 3.0))
    torch.testing.assert_close(pose[:, :4], torch.tensor([[3.0, 3.0, 0.0, 0.0]]))
    assert pose.isfinite().all()


def test_a_mirror_swaps_left_and_right():
    # Closed form: mirroring x of a pose that heads along +y gives the same rectangle with sides swapped.
    points = pose_keypoints(torch.tensor([0.0, 5.0, 4.0, 2.0, math.pi / 2]))
    mirrored = points * torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(mirrored[list(MIRRORED)], points)
