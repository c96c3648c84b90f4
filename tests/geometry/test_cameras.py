"""Projection and image changes against the pinhole equation."""

import math

import pytest
import torch

from bevstack.geometry import crop_pixels, flip_pixels, project_points, resize_pixels, visible_points

INTRINSICS = torch.tensor([[1000.0, 0, 800], [0, 1100.0, 450], [0, 0, 1]], dtype=torch.float64)


def camera_looking_forward(yaw=0.0, position=(0.0, 0.0, 0.0)):
    """camera_from_bev of a level camera; yaw turns its view to the left of +y."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    right, down, ahead = [cos, sin, 0], [0, 0, -1], [-sin, cos, 0]
    linear = torch.tensor([right, down, ahead], dtype=torch.float64)
    out = torch.eye(4, dtype=torch.float64)
    out[:3, :3], out[:3, 3] = linear, -linear @ torch.tensor(position, dtype=torch.float64)
    return out


def pixels_from_bev(intrinsics, camera_from_bev):
    padded = torch.eye(4, dtype=torch.float64)
    padded[:3, :3] = intrinsics
    return padded @ camera_from_bev


def test_pinhole_equation():
    # 20 m ahead, 2 m to the right, 1 m up: u = 800 + 1000 * 2 / 20, v = 450 - 1100 * 1 / 20.
    matrix = pixels_from_bev(INTRINSICS, camera_looking_forward())
    uv, depth = project_points(matrix[None], torch.tensor([[2.0, 20.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(uv[0, 0], torch.tensor([900.0, 395.0], dtype=torch.float64))
    assert float(depth) == pytest.approx(20.0)


def test_cameras_and_samples_broadcast():
    rig = torch.stack(
        [pixels_from_bev(INTRINSICS, camera_looking_forward(a, (0.5, 1.0, 1.5))) for a in (0.0, 1.0, 2.0)]
    )
    points = torch.randn(4, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 10
    uv, depth = project_points(rig.expand(4, 3, 4, 4), points)
    assert uv.shape == (4, 3, 7, 2) and depth.shape == (4, 3, 7)
    one_uv, one_depth = project_points(rig[1:2], points[2])
    torch.testing.assert_close(uv[2, 1], one_uv[0])
    torch.testing.assert_close(depth[2, 1], one_depth[0])


def test_points_behind_the_camera_are_not_visible():
    matrix = pixels_from_bev(INTRINSICS, camera_looking_forward())
    points = torch.tensor([[0.0, 10.0, 0.0], [0.0, -10.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    uv, depth = project_points(matrix[None], points)
    seen = visible_points(uv, depth, torch.tensor([[900, 1600]]))
    assert seen.tolist() == [[True, False, False]] and uv.isfinite().all()


def test_visibility_is_strictly_inside_the_unpadded_image():
    uv = torch.tensor([[[0.0, 5.0], [0.1, 5.0], [1599.9, 899.9], [1600.0, 5.0], [5.0, 900.0], [5.0, -0.1]]])
    seen = visible_points(uv, torch.ones(1, 6), torch.tensor([[900, 1600]]))
    assert seen.tolist() == [[False, True, True, False, False, False]]


def test_half_precision_matrices_project_in_float32():
    matrix = pixels_from_bev(INTRINSICS, camera_looking_forward())[None].float()
    with torch.autocast("cpu", torch.bfloat16):
        uv, depth = project_points(matrix, torch.tensor([[2.0, 20.0, 1.0]]))
    assert uv.dtype == depth.dtype == torch.float32
    torch.testing.assert_close(uv[0, 0], torch.tensor([900.0, 395.0]))


def test_pixel_transforms_by_hand():
    point = torch.tensor([100.0, 50.0, 1.0], dtype=torch.float64)
    assert (resize_pixels(0.5, 0.25) @ point).tolist() == [50.0, 12.5, 1.0]
    assert (crop_pixels(30, 20) @ point).tolist() == [70.0, 30.0, 1.0]
    assert (flip_pixels(1600) @ point).tolist() == [1500.0, 50.0, 1.0]


def test_mirroring_twice_is_nothing_and_keeps_borders():
    mirror = flip_pixels(640)
    torch.testing.assert_close(mirror @ mirror, torch.eye(3, dtype=torch.float64))
    # Pixel i covers [i, i + 1): the middle of the first pixel goes to the middle of the last one.
    assert float((mirror @ torch.tensor([0.5, 0.0, 1.0], dtype=torch.float64))[0]) == 639.5
