"""Boxes: corners, footprints and moves against closed forms; corners also against mmdet3d's own."""

import math

import pytest
import torch

from bevstack.geometry.boxes3d import (
    EDGES,
    FRONT_FACE,
    LOWER_FACE,
    box_corners,
    box_footprints,
    gravity_centers,
    oriented_boxes,
    points_in_footprint,
    transform_boxes,
)
from bevstack.geometry.keypoints import KEYPOINT_NAMES, pose_keypoints
from bevstack.structures.boxes import box_tensor, lidar_boxes

BOX = torch.tensor([10.0, 20.0, -1.0, 4.0, 2.0, 1.5, math.pi / 6, 3.0, -1.0], dtype=torch.float64)

CORNER_NAMES = ("front_left", "front_right", "rear_right", "rear_left")


def random_boxes(count, seed=0):
    g = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 9, generator=g, dtype=torch.float64)
    boxes[:, :3] = boxes[:, :3] * 40 - 20
    boxes[:, 3:6] = boxes[:, 3:6] * 5 + 0.2
    boxes[:, 6] = boxes[:, 6] * 2 * math.pi - math.pi
    boxes[:, 7:] = boxes[:, 7:] * 10 - 5
    return boxes


def similarity(yaw, scale=1.0, mirror_x=False, mirror_y=False, shift=(0.0, 0.0, 0.0)):
    cos, sin = math.cos(yaw), math.sin(yaw)
    turn = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    mirror = torch.diag(torch.tensor([-1.0 if mirror_x else 1.0, -1.0 if mirror_y else 1.0, 1.0], dtype=torch.float64))
    out = torch.eye(4, dtype=torch.float64)
    out[:3, :3], out[:3, 3] = scale * turn @ mirror, torch.tensor(shift, dtype=torch.float64)
    return out


def test_front_right_corner_of_a_turned_box():
    # Closed form: yaw 30 deg; half length 2 ahead, half width 1 to the right (minus the left normal).
    cos, sin = math.cos(math.pi / 6), math.sin(math.pi / 6)
    expected = torch.tensor([10 + 2 * cos + 1 * sin, 20 + 2 * sin - 1 * cos], dtype=torch.float64)
    torch.testing.assert_close(box_footprints(BOX)[1], expected)


def test_footprint_is_clockwise_with_the_area_of_the_box():
    boxes = random_boxes(20)
    x, y = box_footprints(boxes).unbind(-1)
    shoelace = (x * y.roll(-1, 1) - x.roll(-1, 1) * y).sum(1) / 2
    torch.testing.assert_close(shoelace, -boxes[:, 3] * boxes[:, 4])  # negative: clockwise


def test_corners_and_centre_are_those_of_mmdet3d():
    # mmdet3d's own order: rear right, rear left (bottom, top; top, bottom), then the same in front.
    boxes = random_boxes(20).float()
    theirs = lidar_boxes(boxes)
    order = [7, 4, 0, 3, 6, 5, 1, 2]
    torch.testing.assert_close(box_corners(boxes), theirs.corners[:, order], atol=1e-4, rtol=0)
    torch.testing.assert_close(gravity_centers(boxes), theirs.gravity_center)


def test_edges_and_faces_name_the_corners():
    # Closed form, a box along x: four edges along each side's direction; the front is where x is largest, the lower
    # face at the box's own height; the order is that of the keypoints.
    corners = box_corners(torch.tensor([0.0, 0.0, -1.0, 4.0, 2.0, 1.5, 0.0, 0.0, 0.0]))
    directions = torch.stack([(corners[b] - corners[a]).abs() for a, b in EDGES])
    for length, axis in ((4.0, 0), (2.0, 1), (1.5, 2)):
        expected = torch.zeros(3)
        expected[axis] = length
        assert (directions == expected).all(-1).sum() == 4
    assert len({frozenset(edge) for edge in EDGES}) == 12
    assert (corners[list(FRONT_FACE), 0] == 2.0).all() and (corners[LOWER_FACE, 2] == -1.0).all()
    around = torch.cat([corners[list(FRONT_FACE)], corners[list(FRONT_FACE[:1])]]).diff(dim=0)
    assert (around != 0).sum(-1).tolist() == [1] * 4  # each step runs along an edge
    keypoints = pose_keypoints(torch.tensor([0.0, 0.0, 4.0, 2.0, 0.0]))
    assert torch.equal(corners[LOWER_FACE, :2], keypoints[[KEYPOINT_NAMES.index(name) for name in CORNER_NAMES]])


def test_points_in_footprint_are_local_coordinates_within_half_sizes():
    boxes = random_boxes(30)
    g = torch.Generator().manual_seed(1)
    local = (torch.rand(30, 200, 2, generator=g, dtype=torch.float64) - 0.5) * 3 * boxes[:, None, 3:5]
    cos, sin = boxes[:, 6].cos().unsqueeze(1), boxes[:, 6].sin().unsqueeze(1)
    x = local[..., 0] * cos - local[..., 1] * sin + boxes[:, :1]
    y = local[..., 0] * sin + local[..., 1] * cos + boxes[:, 1:2]
    expected = (local.abs() < boxes[:, None, 3:5] / 2).all(-1)
    assert torch.equal(points_in_footprint(torch.stack([x, y], -1), boxes), expected)
    assert 0.05 < expected.double().mean() < 0.3  # one ninth of the area


def test_touching_boxes_share_no_point():
    # Two boxes of length 2 side by side on x: the common edge x = 1 belongs to the front box alone.
    boxes = torch.zeros(2, 9)
    boxes[:, 3:6], boxes[1, 0] = 2.0, 2.0
    inside = points_in_footprint(torch.tensor([[1.0, 0.0]]), boxes)
    assert inside.tolist() == [[False], [True]]


@pytest.mark.parametrize("mirror_x", [False, True])
@pytest.mark.parametrize("mirror_y", [False, True])
def test_moved_box_has_the_moved_corners_sizes_and_velocity(mirror_x, mirror_y):
    boxes = random_boxes(40)
    move = similarity(0.7, 1.3, mirror_x, mirror_y, (3.0, -2.0, 0.5))
    moved = transform_boxes(move, boxes)
    corners = box_corners(boxes) @ move[:3, :3].T + move[:3, 3]
    # A reflection keeps the set of corners and swaps left with right, so compare sets by distance.
    nearest = torch.cdist(box_corners(moved), corners).amin(-1)
    torch.testing.assert_close(nearest, torch.zeros_like(nearest), atol=1e-9, rtol=0)
    torch.testing.assert_close(moved[:, 3:6], boxes[:, 3:6] * 1.3)
    # The middle of the front face stays in front: heading is the moved heading, not turned by half.
    front = gravity_centers(boxes)
    front[:, :2] += torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin()], -1) * boxes[:, 3:4] / 2
    front = front @ move[:3, :3].T + move[:3, 3]
    expected = moved[:, :2] + torch.stack([moved[:, 6].cos(), moved[:, 6].sin()], -1) * moved[:, 3:4] / 2
    torch.testing.assert_close(expected, front[:, :2])
    # Velocity is the change of position in a second.
    later = boxes.clone()
    later[:, :2] += boxes[:, 7:9]
    torch.testing.assert_close(transform_boxes(move, later)[:, :2], moved[:, :2] + moved[:, 7:9])


@pytest.mark.parametrize("mirror, yaw_of", [("x", lambda yaw: math.pi - yaw), ("y", lambda yaw: -yaw)])
def test_mirrored_yaw_in_closed_form(mirror, yaw_of):
    moved = transform_boxes(similarity(0.0, 1.0, mirror == "x", mirror == "y"), BOX.unsqueeze(0))
    difference = moved[0, 6] - yaw_of(float(BOX[6]))
    assert abs(math.remainder(float(difference), 2 * math.pi)) < 1e-12


@pytest.mark.parametrize("mirror_x", [False, True])
def test_leaning_boxes_have_the_corners_that_the_matrix_gives(mirror_x):
    # Expected: every corner of the box through a matrix that tilts, scales and mirrors; the corners of the answer are
    # its centre plus half its sizes along the columns of its rotation, which is a rotation and no reflection.
    boxes = random_boxes(30)
    tilt = torch.linalg.matrix_exp(torch.tensor([[0, -0.3, 0.2], [0.3, 0, 0.1], [-0.2, -0.1, 0]], dtype=torch.float64))
    move = similarity(0.7, 1.3, mirror_x, False, (300.0, -2.0, 0.5))
    move[:3, :3] = tilt @ move[:3, :3]
    moved = oriented_boxes(move, boxes)
    corners = box_corners(boxes) @ move[:3, :3].T + move[:3, 3]
    signs = torch.tensor([[a, b, c] for a in (-0.5, 0.5) for b in (-0.5, 0.5) for c in (-0.5, 0.5)]).double()
    offsets = (signs * moved.sizes.unsqueeze(1)) @ moved.rotations.transpose(1, 2)
    nearest = torch.cdist(moved.centers.unsqueeze(1) + offsets, corners).amin(-1)
    torch.testing.assert_close(nearest, torch.zeros_like(nearest), atol=1e-9, rtol=0)
    torch.testing.assert_close(torch.linalg.det(moved.rotations), torch.ones(30, dtype=torch.float64))
    ahead = torch.stack([boxes[:, 6].cos(), boxes[:, 6].sin(), torch.zeros(30)], -1) @ move[:3, :3].T / 1.3
    torch.testing.assert_close(moved.rotations[..., 0], ahead)
    still = torch.cat([boxes[:, 7:], torch.zeros(30, 1)], dim=1) @ move[:3, :3].T
    torch.testing.assert_close(moved.velocities, still[:, :2])


def test_leaning_boxes_made_upright_are_the_boxes_moved():
    # Expected: transform_boxes, of which oriented_boxes is the other half; by a slightly tilted matrix, too.
    boxes, move = random_boxes(20), similarity(-2.0, 0.9, True, False, (1.0, 2.0, 3.0))
    tilt = torch.tensor([[0, 0, 0.02], [0, 0, -0.01], [-0.02, 0.01, 0]], dtype=torch.float64)
    move[:3, :3] = torch.linalg.matrix_exp(tilt) @ move[:3, :3]
    torch.testing.assert_close(oriented_boxes(move, boxes).upright(), transform_boxes(move, boxes))
    assert oriented_boxes(move, boxes[:0]).upright().shape == (0, 9)


def test_moving_there_and_back():
    boxes, move = random_boxes(10), similarity(-2.0, 0.9, True, False, (1.0, 2.0, 3.0))
    back = transform_boxes(torch.linalg.inv(move), transform_boxes(move, boxes))
    torch.testing.assert_close(back, boxes)


def test_bridge_keeps_values_and_fills_unknown_velocity():
    boxes = random_boxes(3).float()
    assert torch.equal(box_tensor(lidar_boxes(boxes)), boxes)
    assert box_tensor(lidar_boxes(boxes[:0])).shape == (0, 9)
    from mmdet3d.structures import LiDARInstance3DBoxes

    without = box_tensor(LiDARInstance3DBoxes(boxes[:, :7], box_dim=7))
    assert torch.equal(without[:, :7], boxes[:, :7]) and without[:, 7:].isnan().all()
