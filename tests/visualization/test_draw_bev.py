"""The scene from above: forward is up, right is right, metres are metres."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bevstack.geometry import BEVGrid
from bevstack.structures import BEVRaster
from bevstack.visualization import BEVWindow, draw_bev
from bevstack.visualization.bev import quarter_turns_of
from bevstack.visualization.palette import CLASS_COLORS, LAYER_COLORS, TRUTH
from tests.visualization.scenes import boxes

WINDOW = BEVWindow((-50.0, 50.0), (-50.0, 50.0), 400)  # 4 px a metre


def changed(picture, window=WINDOW):
    return (picture != draw_bev(window)).any(-1)


def center(mask):
    return np.argwhere(mask).mean(0)[::-1] + 0.5


def test_metres_to_pixels():
    # Expected: closed form, u = 4 (x + 50), v = 4 (50 - y).
    points = np.array([[0, 0], [20, 30], [-50, 50], [50, -50]])
    np.testing.assert_allclose(WINDOW.pixels(points), [[200, 200], [280, 80], [0, 0], [400, 400]])
    assert WINDOW.shape == (400, 400)


def test_front_right_object_appears_up_right():
    # Expected: the box centred at (20, 30) is drawn around pixel (280, 80), 8 m x 4 m = 32 px along its heading.
    mask = changed(draw_bev(WINDOW, boxes((20, 30, 0, 8, 4, 2, 0))))
    np.testing.assert_allclose(center(mask), [280, 80], atol=1.5)  # the front edge is thicker
    rows, columns = np.nonzero(mask)
    assert abs(np.ptp(columns) - 32) <= 3 and abs(np.ptp(rows) - 16) <= 3
    assert draw_bev(WINDOW, boxes((20, 30, 0, 8, 4, 2, 0)))[80, 265].tolist() != [246, 246, 243]


@pytest.mark.parametrize(("forward", "at"), [(0.0, (30, -20)), (np.pi, (-30, 20)), (-np.pi / 2, (-20, -30))])
def test_other_frames_are_turned_so_that_forward_is_up(forward, at):
    # Expected: an object 30 m ahead and 20 m to the right lies up-right, whatever axis looks ahead.
    window = BEVWindow(WINDOW.x_range_m, WINDOW.y_range_m, 400, quarter_turns_of(forward))
    mask = changed(draw_bev(window, boxes((*at, 0, 4, 4, 2, 0))), window)
    np.testing.assert_allclose(center(mask), [280, 80], atol=1.5)


@pytest.mark.parametrize(("turns", "shape"), [(0, (400, 200)), (1, (200, 400))])
def test_extent_need_not_be_square(turns, shape):
    window = BEVWindow((-25.0, 25.0), (-20.0, 80.0), 400, turns)
    assert window.shape == shape and draw_bev(window).shape == (*shape, 3)
    low, high = window.pixels(np.array([[-25, -20], [25, 80]]))
    np.testing.assert_allclose(sorted([low[0], high[0]]), [0, shape[1]])
    np.testing.assert_allclose(sorted([low[1], high[1]]), [0, shape[0]])


@pytest.mark.parametrize("turns", [0, 1])
def test_mask_lies_on_its_ground(turns):
    # Expected: the cells of rows 14-16 (y 20..35, ahead) and columns 1-3 (x -45..-30, left) of a grid that is neither
    # square nor that of the window; BEV rows grow with +y, so the picture must turn them over. Corners are rounded.
    grid = BEVGrid((20, 12), (-50.0, 10.0), (-50.0, 50.0))
    layers = torch.zeros(1, 20, 12)
    layers[0, 14:17, 1:4] = 1
    window = BEVWindow(WINDOW.x_range_m, WINDOW.y_range_m, 400, turns)
    mask = changed(draw_bev(window, rasters=[BEVRaster(layers, ("stop_line",), grid)]), window)
    np.testing.assert_allclose(center(mask), window.pixels(np.array([-37.5, 27.5])), atol=1.0)
    assert abs(np.sqrt(mask.sum()) - 60) < 3  # 15 m at 4 px a metre


def test_probabilities_are_cut_at_one_half():
    grid = BEVGrid((10, 10), (-50.0, 50.0), (-50.0, 50.0))
    for probability, shown in ((0.45, False), (0.6, True)):
        raster = BEVRaster(torch.full((1, 10, 10), probability), ("drivable_area",), grid)
        picture = draw_bev(WINDOW, rasters=[raster])
        blue = np.abs(picture[300, 60].astype(int) - LAYER_COLORS["drivable_area"]).sum()
        assert (blue < 120) == shown


def test_small_layers_are_painted_over_large_ones():
    # Expected: the divider's colour prevails where both are, and the order of the layers makes no difference.
    grid = BEVGrid((10, 10), (-50.0, 50.0), (-50.0, 50.0))
    pictures = [
        draw_bev(WINDOW, rasters=[BEVRaster(torch.ones(2, 10, 10), names, grid)])
        for names in (("divider", "drivable_area"), ("drivable_area", "divider"))
    ]
    assert (pictures[0] == pictures[1]).all()
    pixel = pictures[0][300, 60].astype(int)
    divider, ground = (np.abs(pixel - LAYER_COLORS[name]).sum() for name in ("divider", "drivable_area"))
    assert divider < ground


def test_prediction_in_colour_over_truth_in_grey():
    there, beside = (20, 30, 0, 8, 8, 2, 0), (-20, 30, 0, 8, 8, 2, 0)
    picture = draw_bev(WINDOW, boxes(there, scores=[1.0]), boxes(beside))
    filled = picture[80 - 10, 280 - 10].astype(int)
    assert np.abs(filled - CLASS_COLORS["car"]).sum() < 250
    assert picture[80 - 10, 120 - 10].tolist() == draw_bev(WINDOW)[70, 110].tolist()  # only an outline
    outline = picture[60:100, 100:140].astype(int)
    assert (np.abs(outline - TRUTH).sum(-1) < 30).sum() > 60
    # Without predictions the truth takes the class colours.
    alone = draw_bev(WINDOW, None, boxes(beside))[70, 110].astype(int)
    assert np.abs(alone - CLASS_COLORS["car"]).sum() < 250


def test_velocity_points_where_the_box_goes():
    # Expected: 10 m/s to the right is a line of 10 m = 40 px beyond the nose, which is at 20 + 2 m.
    moving = changed(draw_bev(WINDOW, boxes((20, 30, 0, 4, 4, 2, 0, 10, 0))))
    still = changed(draw_bev(WINDOW, boxes((20, 30, 0, 4, 4, 2, 0, 0, 0))))
    unknown = changed(draw_bev(WINDOW, boxes((20, 30, 0, 4, 4, 2, 0, np.nan, np.nan))))
    assert np.nonzero(moving)[1].max() == pytest.approx(4 * (50 + 22 + 10), abs=2)
    assert (unknown == still).all()


def test_range_rings_every_ten_metres():
    # Expected: straight left of the ego the background is broken at 10, 20, 30, 40 and 50 m, and nowhere between.
    row = draw_bev(BEVWindow((-55.0, 55.0), (-55.0, 55.0), 1100))[550, :500]
    broken = np.nonzero((row != row[5]).any(-1))[0]
    metres = np.unique(np.round((550 - (broken + 0.5)) / 10).astype(int))
    assert metres.tolist() == [10, 20, 30, 40, 50]
