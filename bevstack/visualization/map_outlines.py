"""The outlines of map layers as the cameras see them: where a map and a calibration do not fit, the eye finds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from bevstack.structures import BEVRaster
from bevstack.visualization.cameras import NEAR_PLANE_M, CameraView
from bevstack.visualization.drawing import draw_segment
from bevstack.visualization.palette import color_of


def layer_outlines(raster: BEVRaster, index: int) -> list[np.ndarray]:
    """Closed lines around the cells of a layer of at least one half, each (P, 2) metres of the BEV frame.

    Lines run along the middles of the outermost cells; what lies on the raster's edge is no outline and left out, so
    that a line may be several, and open.
    """
    cells = (raster.layers[index].detach().cpu().float().numpy() >= 0.5).astype(np.uint8)
    contours, _ = cv2.findContours(cells, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rows, columns = cells.shape
    step = np.array(raster.grid.cell_m)
    low = np.array([raster.grid.x_range_m[0], raster.grid.y_range_m[0]])
    lines = []
    for contour in contours:
        points = np.concatenate([contour[:, 0], contour[:1, 0]])  # (column, row), closed
        inside = (points > 0).all(1) & (points < [columns - 1, rows - 1]).all(1)
        for part in np.split(np.arange(len(points)), np.flatnonzero(~inside)):
            kept = part[inside[part]]
            if len(kept) > 1:
                lines.append(low + (points[kept] + 0.5) * step)
    return lines


def with_map_outlines(
    view: CameraView, rasters: Sequence[BEVRaster], ground_m: float, far_m: float = 40.0, width_px: float | None = None
) -> CameraView:
    """A camera's view with the outlines of map layers on its image, on a flat ground.

    Args:
        view: of the frame that the rasters are in.
        rasters: layers (K, Y, X).
        ground_m: height z of the ground in the BEV frame.
        far_m: what lies farther from the frame's origin is left out, where a ground is seldom flat.
        width_px: of the lines; None for 1 px at 300 rows.
    """
    image = view.image.copy()
    width_px = max(1.0, image.shape[0] / 300) if width_px is None else width_px
    camera_from_bev, intrinsics = np.asarray(view.camera_from_bev), np.asarray(view.pixels_from_camera)
    for raster in rasters:
        for index, name in enumerate(raster.classes):
            for line in layer_outlines(raster, index):
                points = np.concatenate([line, np.full((len(line), 1), ground_m), np.ones((len(line), 1))], axis=1)
                seen = points @ camera_from_bev.T
                near = (seen[:, 2] > max(NEAR_PLANE_M, 0.5)) & (np.hypot(*line.T) < far_m)
                pixels = seen[:, :3] @ intrinsics[:3, :3].T
                pixels = pixels[:, :2] / np.maximum(pixels[:, 2:], NEAR_PLANE_M)
                for n in np.flatnonzero(near[:-1] & near[1:]):
                    draw_segment(image, pixels[n], pixels[n + 1], color_of(name), width_px)
    return replace(view, image=image)
