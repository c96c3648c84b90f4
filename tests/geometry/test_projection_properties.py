"""What holds of every rig: a place comes back from its pixel, and a world that moves with its rig looks the same."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bevstack.geometry import flip_pixels, invert_rigid, project_points, visible_points

WIDTH, HEIGHT = 320.0, 200.0
angles = st.floats(-math.pi, math.pi)
lengths = st.floats(-20, 20)
numbers = dict(
    yaw=angles, pitch=st.floats(-1.2, 1.2), roll=st.floats(-0.5, 0.5), x=lengths, y=lengths, z=st.floats(-1, 3)
)
focal_lengths = st.floats(80, 2000)
rigs = st.fixed_dictionaries({**numbers, "focal": focal_lengths})
motions = st.fixed_dictionaries(numbers)


def turn(axis: int, angle: float) -> Tensor:
    matrix, (a, b) = torch.eye(4, dtype=torch.float64), [(1, 2), (2, 0), (0, 1)][axis]
    matrix[a, a] = matrix[b, b] = math.cos(angle)
    matrix[b, a], matrix[a, b] = math.sin(angle), -math.sin(angle)
    return matrix


def rigid(yaw: float, pitch: float, roll: float, x: float, y: float, z: float) -> Tensor:
    matrix = turn(2, yaw) @ turn(0, pitch) @ turn(1, roll)
    matrix[:3, 3] = torch.tensor([x, y, z], dtype=torch.float64)
    return matrix


def matrices(focal: float, **mount: float) -> tuple[Tensor, Tensor]:
    """``pixels_from_camera`` (4, 4) and ``camera_from_bev`` (4, 4) of a camera that looks along +y of its mount."""
    axes = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
    intrinsics = torch.eye(4, dtype=torch.float64)
    intrinsics[0, 0] = intrinsics[1, 1] = focal
    intrinsics[0, 2], intrinsics[1, 2] = WIDTH / 2, HEIGHT / 2
    return intrinsics, axes @ invert_rigid(rigid(**mount))


def points_of(seed: int) -> Tensor:
    return torch.randn(64, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 25


def moved(matrix: Tensor, points: Tensor) -> Tensor:
    return points @ matrix[:3, :3].T + matrix[:3, 3]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rig=rigs, seed=st.integers(0, 1000))
def test_a_place_comes_back_from_its_pixel(rig, seed) -> None:
    # Expected: the ray of the pixel, as long as the depth says, ends where the point is.
    intrinsics, camera_from_bev = matrices(**rig)
    points = points_of(seed)
    uv, depth = project_points((intrinsics @ camera_from_bev)[None], points)
    ahead = depth[0] > 0.1
    rays = torch.cat([uv[0], torch.ones(64, 1, dtype=torch.float64)], 1) @ torch.linalg.inv(intrinsics[:3, :3]).T
    back = moved(invert_rigid(camera_from_bev), rays * depth[0, :, None])
    torch.testing.assert_close(back[ahead], points[ahead], rtol=1e-7, atol=1e-7)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rig=rigs, motion=motions, seed=st.integers(0, 1000))
def test_a_world_that_moves_with_its_rig_looks_the_same(rig, motion, seed) -> None:
    intrinsics, camera_from_bev = matrices(**rig)
    points, motion = points_of(seed), rigid(**motion)
    uv, depth = project_points((intrinsics @ camera_from_bev)[None], points)
    own = project_points((intrinsics @ camera_from_bev @ invert_rigid(motion))[None], moved(motion, points))
    ahead = depth[0] > 0.1
    torch.testing.assert_close(own[1], depth, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(own[0][:, ahead], uv[:, ahead], rtol=1e-6, atol=1e-5)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rig=rigs, seed=st.integers(0, 1000))
def test_a_mirrored_world_gives_mirrored_pictures(rig, seed) -> None:
    # Expected: with the world and the image both mirrored, u becomes WIDTH - u, and the same points are seen.
    intrinsics, camera_from_bev = matrices(**rig)
    mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64))
    flip = torch.eye(4, dtype=torch.float64)
    flip[:3, :3] = flip_pixels(WIDTH)
    points, size = points_of(seed), torch.tensor([[HEIGHT, WIDTH]])
    uv, depth = project_points((intrinsics @ camera_from_bev)[None], points)
    mirrored = project_points((flip @ intrinsics @ camera_from_bev @ mirror)[None], moved(mirror, points))
    ahead = depth[0] > 0.1
    wanted = torch.stack([WIDTH - uv[..., 0], uv[..., 1]], -1)
    torch.testing.assert_close(mirrored[0][:, ahead], wanted[:, ahead], rtol=1e-7, atol=1e-7)
    edges = torch.tensor([[WIDTH, HEIGHT]], dtype=torch.float64)
    clear = ((uv[0].abs() > 1e-6) & ((uv[0] - edges).abs() > 1e-6)).all(1)
    same = visible_points(*mirrored, size) == visible_points(uv, depth, size)
    assert same[0][clear].all()
