"""Necks: shapes and grids for any sizes, closed forms of what they add."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bevstack.geometry import BEVGrid
from bevstack.models.necks import BEVUNet, TopDownNeck
from bevstack.structures import BEVFeatures

GRID = BEVGrid(shape=(6, 10), x_range_m=(-15, 15), y_range_m=(-9, 9))


def levels_of(channels, height=13, width=22, batch=2):
    """Levels of strides 1, 2, 4, rounded up, as strided convolutions leave them."""
    sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(len(channels))]
    return [torch.randn(batch, c, *size) for c, size in zip(channels, sizes, strict=True)]


@pytest.mark.parametrize("out_levels", [(0,), (2,), (0, 1, 2)], ids=str)
def test_top_down_shapes(out_levels):
    levels = levels_of((4, 8, 16))
    neck = TopDownNeck(in_channels=(4, 8, 16), out_channels=12, out_levels=out_levels)
    out = neck(levels)
    assert [tuple(o.shape) for o in out] == [(2, 12, *levels[i].shape[-2:]) for i in out_levels]


def test_top_down_adds_deep_levels_to_shallow_ones():
    # Closed form: with lateral convolutions that copy one channel and output blocks that pass through, constant levels
    # a, b, c come out as a + b + c, b + c, c.
    neck = TopDownNeck(in_channels=(1, 1, 1), out_channels=1, out_levels=(0, 1, 2))
    for lateral in neck.lateral:
        nn.init.ones_(lateral.weight), nn.init.zeros_(lateral.bias)
    neck.output = nn.ModuleList(nn.Identity() for _ in range(3))
    values = (1.0, 10.0, 100.0)
    levels = [torch.full_like(level, value) for level, value in zip(levels_of((1, 1, 1)), values, strict=True)]
    for out, expected in zip(neck(levels), (111.0, 110.0, 100.0), strict=True):
        torch.testing.assert_close(out, torch.full_like(out, expected))


def test_top_down_leaves_its_inputs_alone_and_trains():
    levels = levels_of((4, 8))
    copies = [level.clone() for level in levels]
    neck = TopDownNeck((4, 8), 6, (0,))
    sum(out.square().sum() for out in neck(levels)).backward()
    assert all(torch.equal(level, copy) for level, copy in zip(levels, copies, strict=True))
    assert all(p.grad.isfinite().all() and p.grad.abs().sum() > 0 for p in neck.lateral.parameters())
    with pytest.raises(ValueError):
        neck(levels[:1])


@pytest.mark.parametrize("shape", [(6, 10), (7, 5)], ids=str)
@pytest.mark.parametrize("widths", [(8,), (8, 12), (8, 12, 16)], ids=str)
def test_unet_keeps_the_grid(widths, shape):
    grid = BEVGrid(shape=shape)
    out = BEVUNet(in_channels=4, widths=widths, blocks=2)(BEVFeatures(torch.randn(2, 4, *shape), grid))
    assert out.grid is grid and out.features.shape == (2, 8, *shape)


def test_unet_output_grid():
    finer = dict(shape=(12, 30), x_range_m=(-15, 15), y_range_m=(-9, 9))
    neck = BEVUNet(in_channels=4, widths=(8, 12), blocks=1, out_channels=5, out_grid=finer)
    out = neck(BEVFeatures(torch.randn(2, 4, 6, 10), GRID))
    assert neck.out_channels == 5 and out.features.shape == (2, 5, 12, 30) and out.grid.same_as(BEVGrid.build(finer))
    elsewhere = BEVGrid(shape=(6, 10), x_range_m=(-15, 15), y_range_m=(0, 18))
    with pytest.raises(ValueError, match="out_grid covers .* B_t BEVGrid"):
        neck(BEVFeatures(torch.randn(2, 4, 6, 10), elsewhere))


def test_unet_output_grid_is_resampled_by_place():
    # Closed form: what rises linearly with x and y before the resampling does so after it, away from the border.
    class Place(nn.Module):
        def forward(self, features):
            return GRID.cell_centers().permute(2, 0, 1).unsqueeze(0)

    finer = BEVGrid(shape=(18, 20), x_range_m=GRID.x_range_m, y_range_m=GRID.y_range_m)
    neck = BEVUNet(in_channels=2, widths=(2,), out_channels=2, out_grid=finer)
    neck.stages, neck.output = nn.ModuleList([Place()]), nn.Identity()
    out = neck(BEVFeatures(torch.zeros(1, 2, *GRID.shape), GRID)).features[0]
    x, y = finer.cell_centers().unbind(-1)
    inner = (x.abs() < 15 - 1.5) & (y.abs() < 9 - 1.5)
    torch.testing.assert_close(out[:, inner], torch.stack([x, y])[:, inner])


def test_unet_trains_every_parameter():
    neck = BEVUNet(in_channels=4, widths=(8, 12), blocks=2)
    neck(BEVFeatures(torch.randn(2, 4, 6, 10), GRID)).features.square().sum().backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
