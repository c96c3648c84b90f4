"""The oracle of image motion: areas by hand, geometry in closed form, the tool on a generated set from end to end."""

from __future__ import annotations

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from bevstack.errors import InputError
from bevstack.experiments import motion_oracle
from bevstack.experiments.motion_oracle import (
    Sighting,
    area_under_curve,
    centre_of,
    facing_camera,
    main,
    motion_beyond,
    table_rows,
    visible_points,
)

FOCAL, SIZE = 200.0, (120, 160)
# The camera stands in the BEV frame's origin, 1.5 m up, and looks along y: x right, z down, y ahead.
CAMERA_FROM_BEV = np.array([[1, 0, 0, 0], [0, 0, -1, 1.5], [0, 1, 0, 0], [0, 0, 0, 1]], float)
PIXELS_FROM_CAMERA = np.array([[FOCAL, 0, 80], [0, FOCAL, 60], [0, 0, 1]], float)


def clip_of(sweep_from_camera: np.ndarray, seconds: float = -0.5) -> SimpleNamespace:
    """One camera with one sweep."""
    cameras = SimpleNamespace(
        pixels_from_camera=PIXELS_FROM_CAMERA[None], camera_from_bev=CAMERA_FROM_BEV[None], image_size_px=[SIZE]
    )
    sweeps = SimpleNamespace(seconds=np.array([[seconds]]), sweep_from_camera=sweep_from_camera[None, None])
    return SimpleNamespace(frames=[SimpleNamespace(cameras=cameras, sweeps=sweeps)])


def box_of(x: float, y: float, speed: float = 0.0) -> np.ndarray:
    """A car of 4 x 2 x 1.5 m that looks along x and moves there."""
    return np.array([x, y, 0, 4, 2, 1.5, 0, speed, 0], float)


def test_areas_by_hand() -> None:
    """Of 2 x 2 pairs three are in order and one is equal: 3.5 / 4. Drawn twice, the first scene alone has one kind."""
    scores, positive = np.array([3.0, 2.0, 2.0, 1.0]), np.array([True, True, False, False])
    scene, times = np.array([0, 1, 1, 1]), np.array([[1, 1], [2, 0], [0, 2]])
    area = area_under_curve(scores, positive, scene, times)
    assert area[0] == pytest.approx(3.5 / 4) and np.isnan(area[1]) and area[2] == pytest.approx(1.5 / 2)
    assert np.isnan(area_under_curve(scores[:0], positive[:0], scene[:0], times)).all()


def test_a_moving_box_moves_by_its_speed() -> None:
    """Closed form: 10 m ahead, 4 m/s to the right for 0.5 s: it came from 2 m left, 200 * 2 / 10 = 40 px, whatever way
    the camera went meanwhile along its axis; nothing of a standing one."""
    ahead = np.eye(4)
    ahead[2, 3] = 3.0  # the sweep was taken 3 m behind, so that points lie 3 m deeper
    no_flow = np.zeros((*SIZE, 2), np.float32)
    for sweep, depth in ((np.eye(4), 10.0), (ahead, 13.0)):
        moved, _ = motion_beyond(clip_of(sweep), 0, box_of(0, 10, 4.0), 160, no_flow)
        assert moved == pytest.approx([-FOCAL * 2 / depth, 0])
        still, _ = motion_beyond(clip_of(sweep), 0, box_of(0, 10), 160, no_flow)
        assert still == pytest.approx([0, 0])
    half, _ = motion_beyond(clip_of(np.eye(4)), 0, box_of(0, 10, 4.0), 80, no_flow[::2, ::2])
    assert half == pytest.approx([-20, 0]), "in images half as wide"


def test_flow_of_standing_points_is_taken_away() -> None:
    """Expected: a flow that is that of a standing point at each pixel leaves nothing, 3 px more leave 3."""
    ahead = np.eye(4)
    ahead[2, 3] = 0.5
    box = box_of(0.5, 8)
    points = visible_points(box, np.array([0, 0, 1.5]))
    now = points @ CAMERA_FROM_BEV[:3, :3].T + CAMERA_FROM_BEV[:3, 3]
    pixels = FOCAL * now[:, :2] / now[:, 2:] + [80, 60]
    then = FOCAL * now[:, :2] / (now[:, 2:] + 0.5) + [80, 60]
    flow = np.zeros((*SIZE, 2), np.float32)
    columns, rows = np.floor(pixels).astype(int).T
    inside = (columns >= 0) & (columns < SIZE[1]) & (rows >= 0) & (rows < SIZE[0])
    flow[rows[inside], columns[inside]] = (then - pixels)[inside]
    _, left = motion_beyond(clip_of(ahead), 0, box, 160, flow)
    assert left == pytest.approx([0, 0], abs=0.05)
    _, left = motion_beyond(clip_of(ahead), 0, box, 160, flow + np.float32([3, 0]))
    assert left == pytest.approx([3, 0], abs=0.05)
    _, left = motion_beyond(clip_of(ahead), 0, box_of(200, 8), 160, flow)
    assert np.isnan(left).all(), "not in the image"


def test_faces_that_look_here() -> None:
    """From straight ahead and below the roof only the near side is seen, from above the roof, too: 25 points each."""
    points = visible_points(box_of(0, 10), np.array([0, 0, 1.0]))
    assert len(points) == 25 and points[:, 1] == pytest.approx(np.full(25, 9.0))
    points = visible_points(box_of(0, 10), np.array([0, 0, 3.0]))
    assert len(points) == 50 and points[:, 2].max() == pytest.approx(1.5)
    assert centre_of(box_of(1, 2)) == pytest.approx([1, 2, 0.75])


def test_the_camera_that_shows_a_box() -> None:
    assert facing_camera(clip_of(np.eye(4)), box_of(0, 10)) == 0
    for place in ((0, -10), (50, 10), (0, 0.5)):  # behind, beside, too near
        assert facing_camera(clip_of(np.eye(4)), box_of(*place)) is None


def test_rows_by_distance() -> None:
    """Expected: without noise every mover is above every standing one; flow that says nothing gives 0.5 (all equal);
    counts by distance as made."""
    far = [Sighting("b", 25.0, 5.0 * n, np.array([5.0 * n, 0]), np.zeros(2)) for n in range(2)]
    near = [Sighting("a", 7.0, 5.0 * (n % 2), np.array([5.0 * (n % 2), 0]), np.zeros(2)) for n in range(4)]
    pixels, flow = table_rows([*near, *far], 6, [0.0], 10)
    assert pixels["moving"] == [2, 0, 1, 3] and pixels["standing"] == [2, 0, 1, 3] and pixels["milliseconds"] == 500
    assert [one[0] for one in pixels["auc"]] == pytest.approx([1, np.nan, 1, 1], nan_ok=True)
    assert [one[0] for one in flow["auc"]] == pytest.approx([0.5, np.nan, 0.5, 0.5], nan_ok=True)
    with pytest.raises(InputError, match="no vehicle is seen"):
        table_rows([], 1, [0.5], 10)


def test_flow_is_measured_in_small_images(tmp_path) -> None:
    """Expected: a texture shifted by 6 px in images of 320 px is shifted by 3 px in images of 160."""
    rng = np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 255, (240, 400)).astype(np.uint8), (0, 0), 3)
    texture = cv2.normalize(texture, None, 0, 255, cv2.NORM_MINMAX)
    for name, left in (("now", 40), ("then", 34)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), texture[:, left : left + 320])
    cameras = SimpleNamespace(image_paths=[str(tmp_path / "now.png")])
    sweeps = SimpleNamespace(paths=[[str(tmp_path / "then.png")]])
    flow = motion_oracle.measured_flow(
        SimpleNamespace(frames=[SimpleNamespace(cameras=cameras, sweeps=sweeps)]), 0, 160
    )
    assert flow.shape == (120, 160, 2)
    assert np.median(flow[20:-20, 20:-20], axis=(0, 1)) == pytest.approx([3, 0], abs=0.2)


def test_the_tool_from_end_to_end(tmp_path, capsys) -> None:
    """Generated scenes: the ideal reader beats noise, the file holds what is printed."""
    from bevstack.datasets.nuscenes.index_writer import write_index
    from bevstack.synthetic.generate import generate

    root = tmp_path / "set"
    generate(root, 0, 3, seed=2077, image_size=(224, 126), sweeps=True, workers=1, frames=3, progress=False)
    write_index(root, "v1.0-mini", maps=False, progress=lambda text: None)
    arguments = ["--root", str(root), "--width", "224", "--back", "6", "--noise", "0.01", "--draws", "5"]
    assert main([*arguments, "--json", str(tmp_path / "out.json")]) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    ideal, flow = content["rows"]
    assert ideal["moving"][-1] > 0 and ideal["standing"][-1] > 0
    assert ideal["auc"][-1][0] > 0.95 and content["data"]["seed"] == 2077
    assert f"{ideal['auc'][-1][0]:.2f}" in capsys.readouterr().out
    assert flow["moving"][-1] > 0
