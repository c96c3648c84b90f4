"""Outlines of map layers in the cameras."""

from __future__ import annotations

import numpy as np
import torch

from bevstack.geometry import BEVGrid
from bevstack.structures import BEVRaster
from bevstack.visualization import CameraView
from bevstack.visualization.map_outlines import layer_outlines, with_map_outlines
from bevstack.visualization.palette import color_of

GRID = BEVGrid((40, 20), (-10.0, 10.0), (-20.0, 20.0))  # cells of 1 m


def raster(rows: slice, columns: slice) -> BEVRaster:
    layers = torch.zeros(1, 40, 20)
    layers[0, rows, columns] = 1
    return BEVRaster(layers, ("drivable_area",), GRID)


def camera() -> CameraView:
    """1.5 m above the frame's origin, looking along +y, 90 degrees wide."""
    pose = np.eye(4)
    pose[:3, :3] = [[1, 0, 0], [0, 0, -1], [0, 1, 0]]
    pose[1, 3] = 1.5
    return CameraView("CAM_FRONT", np.zeros((200, 200, 3), np.uint8),
                      np.array([[100.0, 0, 100], [0, 100, 100], [0, 0, 1]]), pose)  # fmt: skip


def test_an_outline_runs_through_the_outermost_cells():
    # Expected, by hand: cells 25 to 29 are y from 5 to 10 m, their outermost middles 5.5 and 9.5; a closed line.
    (line,) = layer_outlines(raster(slice(25, 30), slice(5, 15)), 0)
    assert line[0].tolist() == line[-1].tolist()
    assert line.min(0).tolist() == [-4.5, 5.5] and line.max(0).tolist() == [4.5, 9.5]


def test_the_edge_of_the_raster_is_no_outline():
    # Expected: a road that leaves the raster at both ends has two sides and no ends.
    lines = layer_outlines(raster(slice(0, 40), slice(5, 15)), 0)
    assert len(lines) >= 2 and {float(x) for line in lines for x in line[:, 0]} == {-4.5, 4.5}
    assert layer_outlines(raster(slice(0, 40), slice(0, 20)), 0) == []


def test_a_line_on_the_ground_is_where_the_camera_sees_it():
    # Expected, by hand: the near side, 5.5 m ahead and 1.5 m below the camera: v = 100 + 100 * 1.5 / 5.5 = 127.3, from
    # u = 100 - 100 * 4.5 / 5.5 = 18.2 to 181.8; the far side at v = 115.8. Nothing else is drawn on, nothing changed.
    view = camera()
    drawn = with_map_outlines(view, [raster(slice(25, 30), slice(5, 15))], 0.0, width_px=1).image
    assert not view.image.any()
    rows, columns = np.nonzero(drawn.max(-1) > max(color_of("drivable_area")) // 2)  # lines are antialiased
    assert 115 <= rows.min() <= 116 and 126 <= rows.max() <= 128
    near = columns[rows >= 126]
    assert 17 <= near.min() <= 19 and 181 <= near.max() <= 183
    assert not with_map_outlines(view, [raster(slice(25, 30), slice(5, 15))], 0.0, far_m=5.0).image.any()
    assert not with_map_outlines(view, [raster(slice(5, 10), slice(5, 15))], 0.0).image.any(), "it lies behind"
