"""Boxes on camera images: where they land, what is cut, how the cameras are laid out."""

from __future__ import annotations

import numpy as np
import pytest
from mmdet3d.structures import LiDARInstance3DBoxes

from bevstack.geometry.boxes3d import EDGES
from bevstack.visualization import CameraView, draw_camera, draw_cameras
from bevstack.visualization.cameras import camera_rows, clipped_at_near_plane
from bevstack.visualization.palette import CLASS_COLORS
from tests.visualization.scenes import GREY, boxes, painted, view


def test_box_colours_the_pixels_it_projects_to():
    # Expected: pinhole, focal length 200 px, centre (200, 100). A 2 m cube centred 11 m ahead has its near face at
    # 10 m: corners at 200 +- 200 / 10 = 180 and 220, rows 80 and 120; its far face, at 12 m, lies inside.
    image = draw_camera(view(), boxes((0, 11, -1, 2, 2, 2, 0)), width_px=1)
    touched = painted(image, GREY)
    rows, columns = np.nonzero(touched)
    # An antialiased line one pixel wide touches a pixel on either side of where it runs.
    np.testing.assert_allclose(
        [rows.min(), rows.max() + 1, columns.min(), columns.max() + 1], [80, 120, 180, 220], atol=2
    )
    near_left_edge = image[85:116, 178:182].astype(int)
    distance = np.abs(near_left_edge - CLASS_COLORS["car"]).sum(-1).min(axis=1)
    assert (distance < 120).all()
    assert not painted(image[87:113, 190:196], GREY).any()  # between the edges the image shows through


def test_corners_are_those_of_mmdet3d():
    # Expected: mmdet3d's corners of the same boxes, as sets of points.
    table = np.array([[3.0, -5.0, 0.5, 4.0, 2.0, 1.5, 0.7, 0, 0], [0, 1, 2, 3, 4, 5, -2.0, 0, 0]])
    own = boxes(*table).corners
    theirs = LiDARInstance3DBoxes(table, box_dim=9).corners.numpy()
    for mine, other in zip(own, theirs, strict=True):
        np.testing.assert_allclose(sorted(map(tuple, mine.round(4))), sorted(map(tuple, other.round(4))), atol=2e-4)
    # Every edge is as long as one of the sides; the first two corners are in front along the heading.
    for (_, _, _, length, width, height, yaw, _, _), corners in zip(table, own, strict=True):
        lengths = [np.linalg.norm(corners[a] - corners[b]) for a, b in EDGES]
        np.testing.assert_allclose(sorted(lengths), sorted([length, width, height] * 4))
        ahead = (corners[[0, 1]].mean(0) - corners[:4].mean(0))[:2]
        np.testing.assert_allclose(ahead, [length / 2 * np.cos(yaw), length / 2 * np.sin(yaw)], atol=1e-9)


@pytest.mark.parametrize(("yaw", "tinted"), [(0.0, "right"), (np.pi, "left")])
def test_front_face_marks_the_heading(yaw, tinted):
    # Expected: a long box across the view, 10 m ahead; its front face (seen edge-on but for perspective) is at +x for
    # yaw 0, so the tint lies in the right half, and in the left half for the opposite heading.
    image = draw_camera(view(), boxes((0, 10, -1, 8, 2, 2, yaw)), width_px=1)
    outline = draw_camera(view(), boxes((0, 10, -1, 8, 2, 2, yaw + np.pi)), width_px=1)
    differs = np.abs(image.astype(int) - outline).sum(-1) > 0
    tint = np.abs(image.astype(int) - GREY).sum(-1)
    halves = {"left": tint[:, :200].sum(), "right": tint[:, 200:].sum()}
    assert differs.any()
    assert max(halves, key=halves.get) == tinted


def test_segments_are_cut_at_the_near_plane():
    # Expected: the line from (0, 0, -1) to (2, 4, 1) passes depth 0.1 at 55 % of its way.
    cut = clipped_at_near_plane(np.array([[0.0, 0, -1], [2, 4, 1]]), closed=False)
    np.testing.assert_allclose(cut, [[1.1, 2.2, 0.1], [2, 4, 1]])
    assert len(clipped_at_near_plane(np.array([[0.0, 0, -1], [2, 4, 0]]), closed=False)) == 0
    square = np.array([[-1.0, 0, 1], [1, 0, 1], [1, 0, -1], [-1, 0, -1]])
    np.testing.assert_allclose(
        clipped_at_near_plane(square, closed=True), [[-1, 0, 1], [1, 0, 1], [1, 0, 0.1], [-1, 0, 0.1]]
    )


def test_boxes_behind_and_around_the_camera():
    # Expected: nothing of a box behind; of a box that the camera stands in, only what lies ahead, inside the image.
    assert not painted(draw_camera(view(), boxes((0, -11, -1, 2, 2, 2, 0))), GREY).any()
    around = draw_camera(view(), boxes((0, 0, -1, 4, 30, 2, 0)), width_px=1)
    rows, columns = np.nonzero(painted(around, GREY))
    # Its far end is at 15 m: 4 m wide and 2 m high there, so from 200 - 26.7 to 200 + 26.7 and 100 - 13.3 to + 13.3,
    # and the four long edges run outward from its corners to the image's border.
    assert columns.min() == 0 and columns.max() == 399
    assert not painted(around[95:105, 190:210], GREY).any()


def test_images_are_not_changed_and_size_is_kept():
    camera = view(width=640, height=360)
    image = draw_camera(camera, boxes((0, 11, -1, 2, 2, 2, 0)))
    assert image.shape == (360, 640, 3) and image.dtype == np.uint8
    assert not painted(camera.image, GREY).any() and painted(image, GREY).any()


def test_resized_view_projects_to_the_scaled_pixel():
    # Expected: pixel coordinates scale by 1/2; the 400 x 200 image in a 200 x 200 cell is moved down by 50.
    resized = view().resized(200, 200)
    point = np.array([1.0, 10.0, -1.0, 1.0])
    pixels = [v.pixels_from_camera @ (v.camera_from_bev @ point)[:3] for v in (view(), resized)]
    original, scaled = (p[:2] / p[2] for p in pixels)
    np.testing.assert_allclose(original, [220, 120])
    np.testing.assert_allclose(scaled, [110, 110])
    assert resized.image.shape == (200, 200, 3)


NUSCENES = {"CAM_FRONT": 90, "CAM_FRONT_RIGHT": 35, "CAM_FRONT_LEFT": 145, "CAM_BACK": -90,
            "CAM_BACK_LEFT": 200, "CAM_BACK_RIGHT": -20}  # fmt: skip


def test_layout_of_nuscenes_cameras():
    # Expected: the picture that nuScenes' own tools show.
    rows = camera_rows([view(angle, name) for name, angle in NUSCENES.items()])
    assert [[v.name for v in row] for row in rows] == [
        ["CAM_FRONT_LEFT", "CAM_FRONT", "CAM_FRONT_RIGHT"],
        ["CAM_BACK_LEFT", "CAM_BACK", "CAM_BACK_RIGHT"],
    ]
    # A rig whose BEV frame looks along +x: the same picture.
    turned = camera_rows([view(angle - 90, name) for name, angle in NUSCENES.items()], forward=0.0)
    assert [[v.name for v in row] for row in turned] == [[v.name for v in row] for row in rows]


@pytest.mark.parametrize(("angles", "rows", "columns"), [([90], 1, 1), ([90, -90], 2, 1), ([30, 90, 150, -90], 2, 3)])
def test_any_number_of_cameras(angles, rows, columns):
    picture = draw_cameras([view(a, f"CAM_{a}") for a in angles], boxes((0, 11, -1, 2, 2, 2, 0)), (90, 160))
    assert picture.shape == (rows * 92 - 2, columns * 162 - 2, 3)


def test_box_is_drawn_in_the_camera_that_sees_it():
    # Expected: a box behind the car shows in the lower row only.
    views = [view(90, "A"), view(-90, "B")]
    empty, drawn = (draw_cameras(views, b, (200, 400)) for b in (boxes(), boxes((0, -11, -1, 2, 2, 2, 0))))
    changed = (empty != drawn).any(-1)
    assert not changed[:200].any() and changed[202:].any()


def test_views_are_values():
    assert isinstance(view(), CameraView) and view(35).bearing == pytest.approx(np.radians(35))
