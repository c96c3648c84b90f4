"""Camera images with projected boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bevstack.geometry.boxes3d import EDGES, FRONT_FACE
from bevstack.visualization.boxes import DrawnBoxes
from bevstack.visualization.drawing import Color, Text, draw_polygon, draw_segment, draw_texts, fitted
from bevstack.visualization.palette import color_of

NEAR_PLANE_M = 0.1


@dataclass(frozen=True)
class CameraView:
    """One camera's image and where the BEV frame's points fall in it.

    Args:
        name: as ``CAM_FRONT``.
        image: (H, W, 3) uint8 RGB.
        pixels_from_camera: (3, 3) intrinsics of this very image.
        camera_from_bev: (4, 4) metres; of the frame that the boxes are in.
    """

    name: str
    image: np.ndarray
    pixels_from_camera: np.ndarray
    camera_from_bev: np.ndarray

    @property
    def bearing(self) -> float:
        """Radians, counter-clockwise from the BEV frame's x axis, in which the camera looks."""
        looking = np.asarray(self.camera_from_bev)[2, :2]
        return float(np.arctan2(looking[1], looking[0]))

    def resized(self, width: int, height: int) -> CameraView:
        """The view scaled to fit (height, width), centred, its intrinsics with it."""
        scale = min(height / self.image.shape[0], width / self.image.shape[1])
        size = round(self.image.shape[1] * scale), round(self.image.shape[0] * scale)
        left, top = (width - size[0]) // 2, (height - size[1]) // 2
        change = np.diag([size[0] / self.image.shape[1], size[1] / self.image.shape[0], 1.0])
        change[:2, 2] = left, top
        image = fitted(self.image, height, width)
        return CameraView(self.name, image, change @ np.asarray(self.pixels_from_camera), self.camera_from_bev)

    def narrowed(self, width_px: int) -> CameraView:
        """The view of the same form, at most so wide."""
        height, width = self.image.shape[:2]
        return self.resized(min(width, width_px), round(height * min(width, width_px) / width))


def clipped_at_near_plane(points: np.ndarray, closed: bool, near_m: float = NEAR_PLANE_M) -> np.ndarray:
    """Cut a polygon or a segment (P, 3) in the camera frame at depth ``near_m`` (Sutherland-Hodgman): (P', 3)."""
    inside = points[:, 2] >= near_m
    if inside.all():
        return points
    kept = []
    for index in range(len(points) if closed else len(points) - 1):
        here, there = points[index], points[(index + 1) % len(points)]
        if inside[index]:
            kept.append(here)
        if inside[index] != inside[(index + 1) % len(points)]:
            kept.append(here + (there - here) * (near_m - here[2]) / (there[2] - here[2]))
    if not closed and inside[-1]:
        kept.append(points[-1])
    return np.array(kept).reshape(-1, 3)


def _to_pixels(pixels_from_camera: np.ndarray, points: np.ndarray) -> np.ndarray:
    projected = points @ np.asarray(pixels_from_camera)[:3, :3].T
    return projected[:, :2] / projected[:, 2:]


def draw_camera(view: CameraView, boxes: DrawnBoxes, width_px: float | None = None, color: Color | None = None):
    """One camera's image with the boxes on it, far ones first; the front face is tinted and marks the heading.

    Args:
        view: the image and its calibration.
        boxes: in the BEV frame that ``view.camera_from_bev`` starts from.
        width_px: width of lines; None for 1 px at 500 rows, growing with the image.
        color: one colour for all boxes; None for the class colours.

    Returns:
        (H, W, 3) uint8 RGB, a new image. Edges are cut at 0.1 m in front of the camera.
    """
    image = np.ascontiguousarray(view.image).copy()
    width_px = max(1.0, image.shape[0] / 500) if width_px is None else width_px
    camera_from_bev = np.asarray(view.camera_from_bev, float)
    corners = boxes.corners @ camera_from_bev[:3, :3].T + camera_from_bev[:3, 3]
    for index in np.argsort(-corners[..., 2].mean(axis=1), kind="stable"):
        if (corners[index, :, 2] < NEAR_PLANE_M).all():
            continue
        shade = color_of(boxes.names[index]) if color is None else color
        face = clipped_at_near_plane(corners[index, list(FRONT_FACE)], closed=True)
        if len(face) >= 3:
            draw_polygon(image, _to_pixels(view.pixels_from_camera, face), shade, 0.3)
        for first, second in EDGES:
            edge = clipped_at_near_plane(corners[index, [first, second]], closed=False)
            if len(edge) == 2:
                start, end = _to_pixels(view.pixels_from_camera, edge)
                draw_segment(image, start, end, shade, width_px)
    return image


def draw_cameras(
    views: Sequence[CameraView], boxes: DrawnBoxes, cell_px: tuple[int, int] | None = None, forward: float = np.pi / 2
) -> np.ndarray:
    """All cameras in two rows: those that look forward, left to right, over those that look back, left to right.

    For nuScenes that is FRONT_LEFT, FRONT, FRONT_RIGHT over BACK_LEFT, BACK, BACK_RIGHT; any number of cameras works.

    Args:
        views: cameras with their images.
        boxes: to project.
        cell_px: (height, width) of one camera's cell; None for the first image's own size.
        forward: bearing of straight ahead in the BEV frame, radians counter-clockwise from +x.

    Returns:
        (rows, columns, 3) uint8 RGB.
    """
    height, width = views[0].image.shape[:2] if cell_px is None else cell_px
    gap = max(2, height // 90)
    rows = camera_rows(views, forward)
    columns = max(len(row) for row in rows)
    canvas = np.full((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for row_index, row in enumerate(rows):
        left = (columns - len(row)) * (width + gap) // 2
        for view in row:
            image = draw_camera(view.resized(width, height), boxes)
            size = max(9, height / 20)
            label = Text((size * 0.6, size * 0.5), view.name, size, (255, 255, 255), "lt", True, (20, 20, 20))
            top = row_index * (height + gap)
            canvas[top : top + height, left : left + width] = draw_texts(image, [label])
            left += width + gap
    return canvas


def camera_rows(views: Sequence[CameraView], forward: float = np.pi / 2) -> list[list[CameraView]]:
    """Cameras that look forward and cameras that look back, each from left to right as the driver points at them."""
    turned = [(np.mod(view.bearing - forward, 2 * np.pi), view) for view in views]  # 0 ahead, pi / 2 left
    ahead = [(angle if angle <= np.pi else angle - 2 * np.pi, view) for angle, view in turned if np.cos(angle) > 1e-6]
    behind = [(angle, view) for angle, view in turned if np.cos(angle) <= 1e-6]
    rows = [
        [view for _, view in sorted(ahead, key=lambda pair: -pair[0])],
        [view for _, view in sorted(behind, key=lambda pair: pair[0])],
    ]
    return [row for row in rows if row]
