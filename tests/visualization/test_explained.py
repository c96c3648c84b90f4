"""Pictures of B_t and of attention: colours that stay, discs where the samples are."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.structures import InstanceData

from bevstack.engine.visualize import Explained
from bevstack.geometry import BEVGrid
from bevstack.structures import BEVDataSample, BEVFeatures
from bevstack.structures.attention import AttendedPlaces
from bevstack.structures.boxes import lidar_boxes
from bevstack.visualization import BEVWindow, CameraAttentionPainter, FeaturesPainter, PastAttentionPainter
from bevstack.visualization.attention import color_of_cell
from tests.visualization.scenes import GREY, view

GRID = BEVGrid((8, 8), (-8.0, 8.0), (-8.0, 8.0))
WINDOW = BEVWindow((-16.0, 16.0), (-16.0, 16.0), 320)


def features(seed: int, scale: float = 1.0) -> BEVFeatures:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(12, 3, generator=torch.Generator().manual_seed(9)) * torch.tensor([8.0, 3.0, 1.0])
    return BEVFeatures(
        torch.einsum("ck,kyx->cyx", mixing, scale * torch.randn(3, 8, 8, generator=generator))[None], GRID
    )


def sample_with(**fields) -> BEVDataSample:
    made = BEVDataSample(metainfo={"classes": ("car",), "token": "t"})
    for name, value in fields.items():
        made.set_field(value, name)
    return made


def test_the_first_component_is_the_largest_difference():
    # Expected: features that differ in one direction only, by a ramp along x: red follows the ramp, green and blue
    # have nothing to show; the direction's largest entry is positive, so that red grows with it.
    ramp = torch.linspace(-1, 1, 8).expand(8, 8)
    direction = torch.tensor([0.2, -2.0, 0.5])
    bev = BEVFeatures((direction[:, None, None] * ramp)[None], GRID)
    colors = FeaturesPainter().colors(bev)
    steps = np.diff(colors[3, :, 0])
    assert (steps < 0).all()  # the largest entry, -2, is made positive: what grows is -ramp
    assert colors[..., 0].min() == 0 and colors[..., 0].max() == 1


def test_colours_mean_the_same_in_every_picture():
    # Expected: the same features have the same colours whatever came between; another painter, begun with others, may
    # differ.
    first, second = features(1), features(2, 3.0)
    painter = FeaturesPainter()
    before = painter.colors(first)
    painter.colors(second)
    np.testing.assert_array_equal(painter.colors(first), before)
    other = FeaturesPainter()
    other.colors(second)
    assert np.abs(other.colors(first) - before).max() > 0.1


def test_the_panel_lies_as_the_window_does():
    # Expected: 10 px a metre; the grid covers the middle 160 px; a cell that alone differs, x 6..8 m and y -8..-6 m, is
    # right and below the car, at columns 220..240 and rows 220..240.
    values = torch.zeros(1, 2, 8, 8)
    values[0, 0, 0, 7] = 5.0
    painter = FeaturesPainter(show_truth=False)
    painted = painter.paint(sample_with(bev_features=BEVFeatures(values, GRID)), WINDOW)
    assert painted.shape == (320, 320, 3) and (painted[10, 10] == 255).all()
    assert (painted[230, 230] != painted[160, 160]).any()
    rows, columns = np.nonzero((painted == painted[230, 230]).all(-1))  # full strength at the centre and to the rim
    np.testing.assert_allclose([rows.min(), rows.max(), columns.min(), columns.max()], [229, 239, 229, 239], atol=1)
    assert (painted[230, 90] == painted[160, 160]).all() and (painted[90, 230] == painted[160, 160]).all()


def attended(past: bool) -> AttendedPlaces:
    """One cell, 10 m ahead; looks at (0, 0) and, a quarter as strongly, (0.5, 0) of the second camera."""
    rays = torch.zeros(1, 2, 2, 2)
    rays[0, 0, 1, 0] = 0.5
    weights = torch.tensor([[[0.8, 0.2], [0.0, 0.0]]])
    back = torch.tensor([[[[0.0, 6.0], [4.0, 10.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    return AttendedPlaces(
        torch.tensor([[0.0, 10.0]]),
        torch.tensor([[1, -1]]),
        rays,
        weights,
        back if past else None,
        torch.tensor([[[0.4, 0.1], [0.3, 0.2]]]) if past else None,
    )


def test_what_is_explained_of_a_sample():
    # Expected: without places given, those of the three likeliest boxes in falling order; a lattice of 2 x 2 has the
    # middles of the grid's quarters; B_t as the record has it.
    asked = []

    class Record:
        bev, grid = features(1), GRID

        def places(self, row, metres):
            asked.append((row, [tuple(place) for place in metres]))
            return attended(False)

    sample = sample_with()
    table = torch.tensor([[x, 5.0, 0, 4, 2, 2, 0, 0, 0] for x in (1.0, 2.0, 3.0, 4.0)])
    sample.pred_instances_3d = InstanceData(bboxes_3d=lidar_boxes(table), scores_3d=torch.tensor([0.2, 0.9, 0.1, 0.5]))
    Explained(features=True, attention=[], lattice=2).explain(sample, Record())
    quarters = [(-4.0, -4.0), (4.0, -4.0), (-4.0, 4.0), (4.0, 4.0)]
    assert asked == [(0, [(2.0, 5.0), (4.0, 5.0), (1.0, 5.0)]), (0, quarters)]
    assert sample.bev_features is Record.bev and "attention_lattice" in sample
    Explained(attention=[(7.0, -1.0)]).explain(sample_with(), Record())
    assert asked[2:] == [(0, [(7.0, -1.0)])]
    Explained(attention=[]).explain(sample_with(), Record())
    assert asked[3:] == [(0, [(0.0, 10.0)])]  # nothing is predicted


def test_discs_lie_where_the_cameras_are_looked_at():
    # Expected: focal length 200 px, principal point (200, 100): the strong sample there, radius 9; the weak one 100 px
    # to the right, half as wide. The other camera is not looked at.
    views = [view(-90, "CAM_BACK"), view()]
    back, front = CameraAttentionPainter().paint(sample_with(attention=attended(False)), views, 200)
    assert (back.image == GREY).all() and (views[1].image == GREY).all()
    assert tuple(front.image[100, 200]) == tuple(front.image[100, 300]) == color_of_cell(0)
    widths = [(front.image[100, middle - 30 : middle + 30] != GREY).any(-1).sum() for middle in (200, 300)]
    np.testing.assert_allclose(widths, [19, 10], atol=3)


def test_discs_lie_where_the_past_is_looked_at():
    # Expected: 20 px a metre, (0, 6) is 120 px above the middle, (4, 10) 80 px right of 200 px above it.
    window = BEVWindow((-16.0, 16.0), (-16.0, 16.0), 640)
    panel = PastAttentionPainter(show_truth=False).paint(sample_with(attention=attended(True)), window)
    assert tuple(panel[200, 320]) == tuple(panel[120, 400]) == color_of_cell(0)
    alone = PastAttentionPainter(show_truth=False).paint(sample_with(attention=attended(False)), window)
    assert tuple(alone[200, 320]) != color_of_cell(0)
    assert (alone[600:, 300:] != panel[600:, 300:]).any()  # it says that there is no history
