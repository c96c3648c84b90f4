"""Attention of chosen cells: where they look in the cameras, and where they look back in the BEV before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from bevstack.registry import VISUALIZERS
from bevstack.structures import BEVDataSample
from bevstack.visualization.bev import BEVWindow, draw_bev
from bevstack.visualization.boxes import DrawnBoxes
from bevstack.visualization.cameras import CameraView
from bevstack.visualization.drawing import Color, Text, draw_texts
from bevstack.visualization.painters import CameraPainter, PanelPainter, true_boxes
from bevstack.visualization.palette import GROUND, INK
from bevstack.visualization.tracks import color_of_identity

FAINTEST = 0.02
"""Samples that count less than this part of a cell's strongest one are not drawn."""


def color_of_cell(place: int) -> Color:
    """RGB of the cell of a number, the same in every panel."""
    return color_of_identity(place + 1)


@VISUALIZERS.register_module()
class CameraAttentionPainter(CameraPainter):
    """Where the cells of ``attention`` sampled in each image: discs whose area is the sample's weight."""

    fields = ("attention",)

    def paint(self, sample: BEVDataSample, views: Sequence[CameraView], shown_height_px: float) -> list[CameraView]:
        """The views with discs, whatever the size of their images."""
        places = sample.attention
        rays, weights, cameras = (
            part.cpu().double().numpy() for part in (places.rays, places.image_weights, places.cameras)
        )
        painted = []
        for index, view in enumerate(views):
            image = np.ascontiguousarray(view.image).copy()
            matrix, unit = np.asarray(view.pixels_from_camera)[:3, :3], image.shape[0] / shown_height_px
            for cell, slot in np.argwhere(cameras == index):
                pixels = np.pad(rays[cell, slot], ((0, 0), (0, 1)), constant_values=1.0) @ matrix.T
                _draw_samples(image, pixels[:, :2], weights[cell, slot], weights[cell].max(), color_of_cell(cell), unit)
            painted.append(replace(view, image=image))
        return painted


@VISUALIZERS.register_module()
class PastAttentionPainter(PanelPainter):
    """The cells of ``attention`` from above, numbered, and where each looks back in the previous BEV.

    Args:
        show_truth: whether to draw the true boxes as grey outlines.
        title: written on the panel.
    """

    fields = ("attention",)

    def __init__(self, show_truth: bool = True, title: str = "attention: cells, and where they look back") -> None:
        self.show_truth, self.title = show_truth, title

    def paint(self, sample: BEVDataSample, window: BEVWindow) -> np.ndarray:
        """(height, width, 3) uint8 RGB of the window's shape; without temporal attention the cells alone."""
        places = sample.attention
        image = draw_bev(window, DrawnBoxes(np.zeros((0, 9)), ()), true_boxes(sample) if self.show_truth else None)
        texts, size = [], max(11.0, window.size_px / 45)
        for cell, center in enumerate(window.pixels(places.cells.cpu().double().numpy())):
            color = color_of_cell(cell)
            if places.past is not None:
                spots = window.pixels(places.past[cell, 0].cpu().double().numpy())
                weights = places.past_weights[cell, 0].cpu().double().numpy()
                _draw_samples(image, spots, weights, weights.max(), color, window.size_px / 640)
            half = window.size_px / 110
            low, high = (np.round(center + side).astype(int).tolist() for side in (-half, half))
            cv2.rectangle(image, low, high, INK, max(1, round(window.size_px / 400)))
            spot = (float(center[0] + 1.6 * half), float(center[1] - 1.6 * half))
            texts.append(Text(spot, str(cell + 1), size, color, "lb", True, GROUND))
        if places.past is None:
            where = (image.shape[1] - 8.0, image.shape[0] - 8.0)
            texts.append(Text(where, "no history in this layer", 0.8 * size, INK, "rb", halo=GROUND))
        return draw_texts(image, texts)


def _draw_samples(
    image: np.ndarray, pixels: np.ndarray, weights: np.ndarray, strongest: float, color: Color, unit: float
) -> None:
    """Discs at (P, 2) pixels, in place, weakest first; the strongest of a cell has a radius of 9 units."""
    for place in np.argsort(weights, kind="stable"):
        part = weights[place] / max(strongest, 1e-12)
        if part < FAINTEST or np.abs(pixels[place]).max() > 1 << 15:
            continue
        middle = np.round((pixels[place] - 0.5) * 16).astype(int).tolist()  # OpenCV's fixed point
        radius = round(16 * unit * max(1.5, 9 * np.sqrt(part)))
        cv2.circle(image, middle, radius, color, -1, cv2.LINE_AA, 4)
        cv2.circle(image, middle, radius, (255, 255, 255), max(1, round(unit)), cv2.LINE_AA, 4)
