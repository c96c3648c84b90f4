"""Rigid algebra: closed forms, known ego motion, reflections."""

import math

import pytest
import torch

from bevstack.geometry import (
    apply_transform,
    invert_rigid,
    invert_se2,
    matrix_to_quaternion,
    quaternion_to_matrix,
    rigid_transform,
    se2_from_rigid,
    yaw_of,
)


def turn(yaw, pitch=0.0, roll=0.0):
    (cy, sy), (cp, sp), (cr, sr) = ((math.cos(a), math.sin(a)) for a in (yaw, pitch, roll))
    about_z = torch.tensor([[cy, -sy, 0], [sy, cy, 0], [0, 0, 1]], dtype=torch.float64)
    about_y = torch.tensor([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]], dtype=torch.float64)
    about_x = torch.tensor([[1, 0, 0], [0, cr, -sr], [0, sr, cr]], dtype=torch.float64)
    return about_z @ about_y @ about_x


def pose(yaw, shift, mirrored=False, **tilt):
    linear = turn(yaw, **tilt)
    if mirrored:
        linear = linear @ torch.diag(torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64))
    return rigid_transform(linear, torch.tensor(shift, dtype=torch.float64))


@pytest.mark.parametrize("mirrored", [False, True])
def test_inverse_of_rotations_and_reflections(mirrored):
    moves = torch.stack([pose(a, (a, 2 * a, -a), mirrored, pitch=0.2, roll=-0.1) for a in (0.0, 0.4, -2.0)])
    torch.testing.assert_close(invert_rigid(moves) @ moves, torch.eye(4, dtype=torch.float64).expand(3, 4, 4))


def test_known_ego_motion():
    # The ego drives 5 m forward (its own +y) and turns 90 degrees to the left. A post that stands 7 m ahead of the
    # earlier pose is then 2 m ahead of the new position, seen to the right: (2, 0) in the new frame (x right).
    global_from_previous = pose(0.3, (100.0, 50.0, 0.0))
    previous_from_current = pose(math.pi / 2, (0.0, 5.0, 0.0))
    global_from_current = global_from_previous @ previous_from_current
    motion = invert_rigid(global_from_previous) @ global_from_current
    torch.testing.assert_close(motion, previous_from_current)
    post = apply_transform(invert_rigid(motion), torch.tensor([[0.0, 7.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(post, torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64), atol=1e-12, rtol=0)
    assert float(yaw_of(motion)) == pytest.approx(math.pi / 2)


def test_apply_transform_broadcasts_in_two_and_three_dimensions():
    moves = torch.stack([pose(0.5, (1.0, 2.0, 3.0)), pose(-1.0, (0.0, -4.0, 1.0))])
    points = torch.arange(12, dtype=torch.float64).view(1, 4, 3)
    moved = apply_transform(moves, points)
    homogeneous = torch.cat([points, torch.ones(1, 4, 1, dtype=torch.float64)], -1)
    torch.testing.assert_close(moved, (homogeneous @ moves.transpose(1, 2))[..., :3])
    flat = apply_transform(se2_from_rigid(moves), points[..., :2])
    torch.testing.assert_close(flat, moved[..., :2])  # these moves turn about z alone


def test_quaternions_against_rotations_by_hand():
    half = math.pi / 6  # 60 degrees about z
    matrix = quaternion_to_matrix(torch.tensor([math.cos(half), 0, 0, math.sin(half)], dtype=torch.float64))
    torch.testing.assert_close(matrix, turn(math.pi / 3))
    about_x = torch.tensor([2.0, 2.0, 0.0, 0.0], dtype=torch.float64)  # 90 degrees about x, not of unit length
    torch.testing.assert_close(quaternion_to_matrix(about_x), turn(0, roll=math.pi / 2))
    torch.testing.assert_close(matrix_to_quaternion(turn(0, roll=math.pi / 2)), about_x / math.sqrt(8))


def test_quaternions_of_matrices():
    # Expected: the quaternion that the matrix was made of, its first number not negative; half turns about each axis,
    # at which one of the four numbers alone is large, among them.
    generator = torch.Generator().manual_seed(0)
    quaternions = torch.randn(200, 4, generator=generator, dtype=torch.float64)
    quaternions = torch.cat([quaternions, torch.eye(4).double(), torch.tensor([[1e-9, 1, 1, 0], [1, 0, 1e-9, 0]])])
    quaternions = torch.nn.functional.normalize(quaternions, dim=-1)
    quaternions = torch.where(quaternions[:, :1] < 0, -quaternions, quaternions)
    answer = matrix_to_quaternion(quaternion_to_matrix(quaternions).unflatten(0, (2, 103)))
    assert answer.shape == (2, 103, 4)
    torch.testing.assert_close(answer.flatten(0, 1), quaternions, atol=1e-12, rtol=0)
    assert matrix_to_quaternion(torch.full((3, 3), torch.nan)).isnan().all()


@pytest.mark.parametrize("mirrored", [False, True])
def test_planar_part_is_rigid_and_keeps_reflections(mirrored):
    for yaw in (-3.0, -1.0, 0.0, 0.2, 1.5, 3.1):
        flat = se2_from_rigid(pose(yaw, (1.0, -2.0, 9.0), mirrored))
        expected = pose(yaw, (1.0, -2.0, 9.0), mirrored)[[0, 1, 3]][:, [0, 1, 3]]
        torch.testing.assert_close(flat, expected)
        torch.testing.assert_close(invert_se2(flat) @ flat, torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize("mirrored", [False, True])
def test_planar_part_of_a_tilted_pose_is_exactly_orthogonal(mirrored):
    flat = se2_from_rigid(pose(0.8, (0.0, 0.0, 0.0), mirrored, pitch=0.03, roll=-0.05))[:2, :2]
    torch.testing.assert_close(flat @ flat.T, torch.eye(2, dtype=torch.float64))
    assert float(torch.det(flat)) == pytest.approx(-1.0 if mirrored else 1.0)
    # The nearest orthogonal matrix, independently: U V^T of the singular value decomposition.
    block = pose(0.8, (0.0, 0.0, 0.0), mirrored, pitch=0.03, roll=-0.05)[:2, :2]
    u, _, vh = torch.linalg.svd(block)
    torch.testing.assert_close(flat, u @ vh)
