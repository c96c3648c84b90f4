"""Views and boxes with known geometry for tests of pictures."""

from __future__ import annotations

import numpy as np

from bevstack.visualization import CameraView, DrawnBoxes

GREY = 128


def view(bearing_deg: float = 90.0, name: str = "CAM_FRONT", width: int = 400, height: int = 200) -> CameraView:
    """A level camera at the BEV origin: focal length = half its width, principal point in the middle, grey image."""
    angle = np.radians(bearing_deg)
    right, down, ahead = [np.sin(angle), -np.cos(angle), 0], [0, 0, -1], [np.cos(angle), np.sin(angle), 0]
    camera_from_bev = np.eye(4)
    camera_from_bev[:3, :3] = [right, down, ahead]
    intrinsics = np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1.0]])
    return CameraView(name, np.full((height, width, 3), GREY, np.uint8), intrinsics, camera_from_bev)


def boxes(*rows, names=None, scores=None) -> DrawnBoxes:
    """Rows (x, y, z_bottom, l, w, h, yaw[, vx, vy]) as boxes, cars unless named."""
    table = np.array([[*row, *[0.0] * (9 - len(row))] for row in rows], float).reshape(-1, 9)
    return DrawnBoxes(table, tuple(names or ["car"] * len(rows)), None if scores is None else np.array(scores))


def painted(image: np.ndarray, background) -> np.ndarray:
    """(H, W) bool: pixels that are not the background."""
    return (image != np.asarray(background, np.uint8)).any(-1)
