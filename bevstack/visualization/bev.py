"""The scene from above, in metres: map masks, boxes, range rings. Forward is up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from bevstack.structures import BEVRaster
from bevstack.visualization.boxes import DrawnBoxes
from bevstack.visualization.drawing import (
    Text,
    draw_outline,
    draw_polygon,
    draw_segment,
    draw_texts,
    paint,
)
from bevstack.visualization.palette import FAINT, GROUND, INK, LAYER_ALPHA, TRUTH, color_of

EGO_LENGTH_M, EGO_WIDTH_M = 4.1, 1.75


@dataclass(frozen=True)
class BEVWindow:
    """Which piece of ground a picture shows, and where its points fall.

    Args:
        x_range_m, y_range_m: extent in the BEV frame.
        size_px: pixels along the longer side.
        quarter_turns: how often the BEV frame is turned by 90 degrees counter-clockwise so that forward is up: 0 where
            forward is +y (nuScenes), 1 where it is +x.
    """

    x_range_m: tuple[float, float] = (-51.2, 51.2)
    y_range_m: tuple[float, float] = (-51.2, 51.2)
    size_px: int = 640
    quarter_turns: int = 0

    @property
    def pixels_per_metre(self) -> float:
        """How many pixels show a metre of the ground."""
        return self.size_px / max(self.x_range_m[1] - self.x_range_m[0], self.y_range_m[1] - self.y_range_m[0])

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of the picture."""
        across = self.x_range_m[1] - self.x_range_m[0], self.y_range_m[1] - self.y_range_m[0]
        width, height = (round(length * self.pixels_per_metre) for length in across)
        return (height, width) if self.quarter_turns % 2 == 0 else (width, height)

    def pixels(self, xy: np.ndarray) -> np.ndarray:
        """(..., 2) metres of the BEV frame to (..., 2) pixels (u right, v down)."""
        turn = np.round([[np.cos(a := self.quarter_turns * np.pi / 2), -np.sin(a)], [np.sin(a), np.cos(a)]])
        limits = np.array([[x, y] for x in self.x_range_m for y in self.y_range_m]) @ turn.T
        turned = np.asarray(xy, float)[..., :2] @ turn.T
        left, top = limits[:, 0].min(), limits[:, 1].max()
        return np.stack([turned[..., 0] - left, top - turned[..., 1]], axis=-1) * self.pixels_per_metre

    def layer(self, raster: BEVRaster, index: int) -> np.ndarray:
        """A layer (Y, X) as coverage (height, width), 0..1: probabilities cut at 0.5, edges soft over about a pixel."""
        values = raster.layers[index].detach().cpu().float().numpy()
        grid = raster.grid
        step = np.array(grid.cell_m)
        low = np.array([self.x_range_m[0], self.y_range_m[0]])
        origin = np.array([grid.x_range_m[0], grid.y_range_m[0]])
        across = np.array([self.x_range_m[1], self.y_range_m[1]]) - low
        width, height = np.round(across * self.pixels_per_metre).astype(int)
        # Picture before turning, row 0 at y_min: pixel centre -> metres -> cell index (cell centres are integers).
        scale = 1 / (self.pixels_per_metre * step)
        shift = (low - origin) / step + 0.5 * scale - 0.5
        matrix = np.array([[scale[0], 0, shift[0]], [0, scale[1], shift[1]]])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        smooth = cv2.warpAffine(values, matrix, (int(width), int(height)), flags=flags, borderValue=(0.0,))
        sharpness = float(max(1.0, 1 / scale.max()))
        cover = np.clip((smooth - 0.5) * sharpness + 0.5, 0, 1)
        return np.rot90(cover[::-1], self.quarter_turns)


def quarter_turns_of(forward: float) -> int:
    """Quarter turns that bring the bearing ``forward`` (radians counter-clockwise from +x) up in the picture."""
    return round((np.pi / 2 - forward) / (np.pi / 2)) % 4


def draw_bev(
    window: BEVWindow,
    predicted: DrawnBoxes | None = None,
    truth: DrawnBoxes | None = None,
    rasters: Sequence[BEVRaster] = (),
) -> np.ndarray:
    """The scene from above.

    Args:
        window: extent and size of the picture.
        predicted: boxes in class colours, the stronger the higher their score.
        truth: boxes drawn under the predicted ones as grey outlines, or in class colours where nothing is predicted.
        rasters: masks (or probabilities, cut at 0.5) to paint below the boxes.

    Returns:
        (height, width, 3) uint8 RGB; forward is up, left is left; range rings every 10 m, a 10 m scale bar.
    """
    image = np.full((*window.shape, 3), GROUND, np.uint8)
    layers = [(name, raster, index) for raster in rasters for index, name in enumerate(raster.classes)]
    order = list(LAYER_ALPHA)
    for name, raster, index in sorted(
        layers, key=lambda item: order.index(item[0]) if item[0] in order else len(order)
    ):
        paint(image, window.layer(raster, index) * LAYER_ALPHA.get(name, 0.9), color_of(name))
    texts = _draw_rings(image, window)
    line = max(1.0, window.size_px / 420)
    if truth is not None:
        _draw_boxes(image, window, truth, line, outline_only=predicted is not None)
    if predicted is not None:
        _draw_boxes(image, window, predicted, line)
    _draw_ego(image, window)
    texts += _draw_scale(image, window)
    return draw_texts(image, texts)


def _draw_rings(image: np.ndarray, window: BEVWindow) -> list[Text]:
    center, texts = window.pixels(np.zeros(2)), []
    reach = max(abs(limit) for limit in (*window.x_range_m, *window.y_range_m))
    size = max(9, window.size_px / 55)
    for radius in range(10, int(reach) + 1, 10):
        rim = np.round((center - 0.5) * 16).astype(int).tolist()
        cv2.circle(image, rim, round(radius * window.pixels_per_metre * 16), FAINT, 1, cv2.LINE_AA, 4)
        if radius % 20 == 0:
            spot = center + np.array([np.cos(np.pi / 4), np.sin(np.pi / 4)]) * radius * window.pixels_per_metre
            texts.append(Text(tuple(spot), f"{radius} m", size, TRUTH, "mm", halo=GROUND))
    return texts


def _draw_scale(image: np.ndarray, window: BEVWindow) -> list[Text]:
    left, bottom = 12.0, image.shape[0] - 12.0
    right = left + 10 * window.pixels_per_metre
    for start, end in (((left, bottom), (right, bottom)), ((left, bottom - 4), (left, bottom + 4))):
        draw_segment(image, np.array(start), np.array(end), INK, 2)
    draw_segment(image, np.array((right, bottom - 4)), np.array((right, bottom + 4)), INK, 2)
    size = max(9, window.size_px / 50)
    return [Text(((left + right) / 2, bottom - 4), "10 m", size, INK, "mb", halo=GROUND)]


def _draw_ego(image: np.ndarray, window: BEVWindow) -> None:
    center, scale = window.pixels(np.zeros(2)), window.pixels_per_metre
    half = np.array([EGO_WIDTH_M, EGO_LENGTH_M]) / 2 * scale
    body = center + half * np.array([[-1, 1], [1, 1], [1, -0.55], [0.45, -1], [-0.45, -1], [-1, -0.55]])
    draw_polygon(image, body, INK, 1.0)
    draw_outline(image, body, (255, 255, 255), 1)


def _draw_boxes(
    image: np.ndarray, window: BEVWindow, boxes: DrawnBoxes, line: float, outline_only: bool = False
) -> None:
    for index, corners in enumerate(window.pixels(boxes.footprints)):
        color = TRUTH if outline_only else color_of(boxes.names[index])
        center, nose = corners.mean(0), corners[:2].mean(0)
        if not outline_only:
            score = 1.0 if boxes.scores is None else float(boxes.scores[index])
            draw_polygon(image, corners, color, 0.25 + 0.45 * min(1.0, score))
        draw_outline(image, corners, color, line)
        draw_segment(image, center, nose, color, line)
        draw_segment(image, corners[0], corners[1], color, line + 1)
        if boxes.boxes.shape[1] >= 9 and not outline_only:
            velocity = boxes.boxes[index, 7:9]
            if np.isfinite(velocity).all() and np.hypot(*velocity) > 0.5:
                head = window.pixels(boxes.boxes[index, :2] + velocity)
                draw_segment(image, nose, nose + head - center, color, max(1.0, line / 2))
