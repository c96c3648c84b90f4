"""A panel of B_t itself: its channels as three colours, by the directions in which they differ most."""

from __future__ import annotations

import cv2
import numpy as np
import torch

from bevstack.registry import VISUALIZERS
from bevstack.structures import BEVDataSample, BEVFeatures, BEVRaster
from bevstack.visualization.bev import BEVWindow, draw_bev
from bevstack.visualization.boxes import DrawnBoxes
from bevstack.visualization.painters import PanelPainter, true_boxes

SPREAD = (2.0, 98.0)
"""Percentiles of a component that become the darkest and the brightest."""


@VISUALIZERS.register_module()
class FeaturesPainter(PanelPainter):
    """``bev_features`` as colours: the first three principal components are red, green and blue.

    Components and their ranges are those of the first sample that the painter sees, so that a colour means the same in
    every picture of a clip and of a run. Signs are fixed by the largest entry of each component, which is positive.

    Args:
        show_truth: whether to draw the true boxes as outlines over it.
        title: written on the panel.
    """

    fields = ("bev_features",)

    def __init__(self, show_truth: bool = True, title: str = "B_t") -> None:
        self.show_truth, self.title = show_truth, title
        self._mean = self._components = self._low = self._high = np.zeros(0)

    def paint(self, sample: BEVDataSample, window: BEVWindow) -> np.ndarray:
        """(height, width, 3) uint8 RGB of the window's shape."""
        bev = sample.bev_features
        image = colors_in_window(self.colors(bev), bev, window)
        truth = true_boxes(sample) if self.show_truth else None
        if truth is not None and len(truth):
            empty = DrawnBoxes(np.zeros((0, 9)), ())
            outlined, plain = draw_bev(window, empty, truth), draw_bev(window, empty)
            image[(outlined != plain).any(-1)] = 255
        return image

    def colors(self, bev: BEVFeatures) -> np.ndarray:
        """(Y, X, 3) in 0..1 of B_t (1, C, Y, X)."""
        cells = bev.features[0].flatten(1).T.double().cpu().numpy()  # (Y * X, C)
        if not len(self._components):
            self._fit(cells)
        values = (cells - self._mean) @ self._components.T
        scaled = (values - self._low) / np.maximum(self._high - self._low, 1e-12)
        return np.clip(scaled, 0, 1).reshape(*bev.grid.shape, -1)

    def _fit(self, cells: np.ndarray) -> None:
        """Take mean, components and ranges of the cells (Q, C); of fewer than three channels the rest is zero."""
        self._mean = cells.mean(0)
        centred = cells - self._mean
        _, vectors = np.linalg.eigh(centred.T @ centred)
        components = np.zeros((3, cells.shape[1]))
        found = vectors.T[::-1][:3]
        largest = np.abs(found).argmax(axis=1)
        components[: len(found)] = found * np.sign(found[np.arange(len(found)), largest])[:, None]
        self._components = components
        self._low, self._high = np.percentile(centred @ components.T, SPREAD, axis=0)


def colors_in_window(colors: np.ndarray, bev: BEVFeatures, window: BEVWindow) -> np.ndarray:
    """Colours (Y, X, 3) of a grid's cells as a picture (height, width, 3) uint8 of a window; white outside the grid."""
    inside = BEVRaster(torch.ones(1, *bev.grid.shape), ("inside",), bev.grid)
    y, x = np.mgrid[0 : window.shape[0], 0 : window.shape[1]]
    corner, right, down = (window.pixels(np.array(place)) for place in ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)))
    metres_from_pixels = np.linalg.inv(np.stack([right - corner, down - corner], axis=1))
    metres = np.stack([x + 0.5 - corner[0], y + 0.5 - corner[1]], axis=-1) @ metres_from_pixels.T
    cells = bev.grid.cells_from_metres(torch.from_numpy(metres)).numpy().astype(np.float32) - 0.5  # as cv2 counts
    shades, edge = (255 * colors).astype(np.float32), cv2.BORDER_REPLICATE
    picture = cv2.remap(shades, cells[..., 0], cells[..., 1], cv2.INTER_LINEAR, borderMode=edge)
    within = window.layer(inside, 0)[..., None] > 0.5
    return np.where(within, picture.round(), 255).astype(np.uint8)
