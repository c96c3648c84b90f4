"""The panoptic panel: segments where they lie, instances told apart, stuff in its layer's colour."""

from __future__ import annotations

import numpy as np
import torch

from bevstack.geometry import BEVGrid
from bevstack.registry import VISUALIZERS
from bevstack.structures import BEVDataSample, PanopticMap
from bevstack.visualization import BEVWindow, PanopticPainter, draw_bev, draw_panoptic
from bevstack.visualization.palette import GROUND, legend_color_of
from bevstack.visualization.panoptic import instance_color

GRID = BEVGrid((100, 100), (-50.0, 50.0), (-50.0, 50.0))
WINDOW = BEVWindow((-50.0, 50.0), (-50.0, 50.0), 400)  # 4 px a metre


def panoptic() -> PanopticMap:
    """A car in front on the right, one behind on the left, road on the far left."""
    segments = torch.full(GRID.shape, -1)
    segments[80:90, 70:80] = 0
    segments[10:20, 20:30] = 1
    segments[:, :10] = 2
    labels, ids = torch.tensor([0, 0, 1]), torch.tensor([0, 1, -1])
    return PanopticMap(segments, labels, ids, ("car",), ("drivable_area",), GRID)


def test_segments_lie_where_they_are_in_their_colours():
    # Expected: the cell at (x, y) = (25, 35) m is pixel (300, 60), forward being up; (-25, -35) m is (100, 340).
    picture = draw_panoptic(WINDOW, panoptic())
    assert picture.shape == (400, 400, 3) and picture.dtype == np.uint8
    assert tuple(picture[60, 300]) == instance_color("car", 0)
    assert tuple(picture[340, 100]) == instance_color("car", 1)
    assert tuple(picture[225, 10]) == legend_color_of("drivable_area")
    assert tuple(picture[340, 300]) == GROUND


def test_instances_of_a_class_look_different():
    # Expected: no two of forty neighbours share a colour, and those next to each other differ clearly.
    colors = np.array([instance_color("car", number) for number in range(40)], int)
    assert len(np.unique(colors, axis=0)) == 40
    assert (np.abs(np.diff(colors, axis=0)).max(1) >= 20).all()


def test_rings_lie_above_the_segments():
    everything = PanopticMap(
        torch.zeros(GRID.shape).long(), torch.tensor([0]), torch.tensor([0]), ("car",), (), GRID
    )
    picture, marks = draw_panoptic(WINDOW, everything), draw_bev(WINDOW)
    # Expected: the car's colour, darkened as a ring, the ego or a number darkens the bare ground.
    expected = np.array(instance_color("car", 0)) * np.minimum(marks / np.array(GROUND), 1)
    inner = np.s_[3:-3, 3:-3]  # without the segment's own soft edge
    assert np.abs(picture[inner] - expected[inner]).max() <= 0.51
    assert (marks[inner] < GROUND).any(-1).sum() > 500


def test_painter():
    sample = BEVDataSample(metainfo=dict(token="t"))  # noqa: S106
    painter = VISUALIZERS.build(dict(type="PanopticPainter"))
    assert isinstance(painter, PanopticPainter) and not painter.draws(sample)
    sample.pred_panoptic = panoptic()
    assert painter.draws(sample) and painter.title == "panoptic"
    assert np.array_equal(painter.paint(sample, WINDOW), draw_panoptic(WINDOW, panoptic()))
    assert painter.legend(sample) == ["car", "drivable_area"]
    assert not PanopticPainter("gt_panoptic").draws(sample)
    assert PanopticPainter("gt_panoptic").title == "panoptic ground truth"
