"""Necks: one contract of those on image features, built from a declaration; shapes, grids, closed forms of the rest.

A new neck of this package is tested by being registered and having lines in ``IMAGE_NECKS`` or ``BEV_NECKS``.
"""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch
from torch import nn

import bevstack.models.necks
from bevstack.geometry import BEVGrid
from bevstack.models.backbones.base import FeatureLevels, fitted_config
from bevstack.models.necks import BEVUNet, NeckSequence, SimpleFeaturePyramid, TopDownNeck
from bevstack.registry import MODELS
from bevstack.structures import BEVFeatures

DECLARED = FeatureLevels(channels=(4, 8, 16), strides=(8, 16, 32))
_separable, _grouped = dict(conv="depthwise_separable"), dict(conv=dict(kind="grouped", groups=3))
IMAGE_NECKS = {  # by type as in a config: arguments beside what the declaration gives, and strides of what comes out
    "TopDownNeck": [
        (dict(out_channels=6), (8,)),
        (dict(out_channels=6, out_levels=(0, 2), blocks=1, **_separable), (8, 32)),
        (dict(out_channels=6, upscale=2, **_grouped), (4,)),
    ],
    "SimpleFeaturePyramid": [(dict(out_channels=6, out_strides=(8, 16, 32, 64)), (8, 16, 32, 64))],
    "NeckSequence": [
        (
            dict(
                necks=[dict(type="mmdet.PAFPN", out_channels=6, num_outs=3), dict(type="TopDownNeck", out_channels=6)]
            ),
            (8,),
        )
    ],
    "mmdet.FPN": [(dict(out_channels=6, num_outs=4), (8, 16, 32, 64))],
    "mmdet.PAFPN": [(dict(out_channels=6, num_outs=3), (8, 16, 32))],
    "mmdet.YOLOXPAFPN": [(dict(out_channels=6, num_csp_blocks=1), (8, 16, 32))],
}
BEV_NECKS = {"BEVUNet"}
CASES = [
    pytest.param((kind, n), id=f"{kind}-{n}") for kind, entries in IMAGE_NECKS.items() for n in range(len(entries))
]

GRID = BEVGrid(shape=(6, 10), x_range_m=(-15, 15), y_range_m=(-9, 9))


def levels_of(channels, height=13, width=22, batch=2):
    """Levels of strides 1, 2, 4, rounded up, as strided convolutions leave them."""
    sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(len(channels))]
    return [torch.randn(batch, c, *size) for c, size in zip(channels, sizes, strict=True)]


def build(case, seed=0) -> nn.Module:
    kind, entry = case
    torch.manual_seed(seed)
    neck = MODELS.build(fitted_config(dict(type=kind, **IMAGE_NECKS[kind][entry][0]), DECLARED))
    neck.init_weights()
    return neck.eval() or neck


def declared_maps(batch=2) -> list[torch.Tensor]:
    """What a backbone of that declaration makes of images of 64 x 96."""
    generator = torch.Generator().manual_seed(0)
    pairs = zip(DECLARED.channels, DECLARED.strides, strict=True)
    return [torch.randn(batch, channels, 64 // s, 96 // s, generator=generator) for channels, s in pairs]


def test_every_registered_neck_is_tested_here():
    # Expected: what the registry says.
    for module in pkgutil.iter_modules(bevstack.models.necks.__path__, "bevstack.models.necks."):
        importlib.import_module(module.name)
    own = {name for name, cls in MODELS.module_dict.items() if cls.__module__.startswith("bevstack.models.necks.")}
    assert own == BEV_NECKS | {kind for kind in IMAGE_NECKS if not kind.startswith("mmdet.")}


@pytest.mark.parametrize("case", CASES)
def test_necks_build_themselves_from_a_declaration(case):
    # Expected: the strides in the table, and 6 channels; mmdet's FPN rounds its additional levels up.
    out = build(case)(declared_maps())
    strides = IMAGE_NECKS[case[0]][case[1]][1]
    shapes = [(2, 6, -(-64 // s), -(-96 // s) if case[0] == "mmdet.FPN" else 96 // s) for s in strides]
    assert [tuple(level.shape) for level in out] == shapes


@pytest.mark.parametrize("case", CASES)
def test_image_necks_train(case):
    neck = build(case)
    neck.train()
    generator = torch.Generator().manual_seed(1)
    sum((o * torch.randn(o.shape, generator=generator)).mean() for o in neck(declared_maps())).backward()
    for name, parameter in neck.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("case", CASES)
def test_image_necks_batches_save_load_bf16(case):
    # Expected: of two samples what each gives alone; with another's weights its output; in bfloat16 nearly float32's.
    neck, other = build(case), build(case, seed=1)
    other.load_state_dict(neck.state_dict())
    maps = declared_maps()
    with torch.no_grad():
        both, loaded = neck(maps), other(maps)
        alone = [neck([m[i : i + 1] for m in maps]) for i in range(2)]
        with torch.autocast("cpu", torch.bfloat16):
            rough = neck(maps)
    for index, one in enumerate(both):
        assert torch.equal(loaded[index], one)
        torch.testing.assert_close(torch.cat([a[index] for a in alone]), one, rtol=1e-4, atol=1e-5)
        assert (rough[index].float() - one).abs().mean() < 0.03 * one.std()


def test_a_config_that_says_more_is_left_alone():
    # Expected: given channels stay; a neck that takes none is asked for none; the backbone need not be measured then.
    given = dict(type="TopDownNeck", in_channels=(1, 2), out_channels=3)
    assert fitted_config(given, nn.Identity()) == given
    assert fitted_config(dict(type=nn.Identity), nn.Identity()) == dict(type=nn.Identity)
    channels = list(DECLARED.channels)
    assert fitted_config(dict(type="SimpleFeaturePyramid", in_channels=channels), DECLARED) == dict(
        type="SimpleFeaturePyramid", in_channels=channels, in_strides=[8, 16, 32]
    )
    with pytest.raises(ValueError, match=r"TopDownNeck: in_channels is \[1, 2\], but .* gives \[4, 8, 16\]"):
        fitted_config(given, DECLARED)


def test_pyramid_refuses_strides_out_of_reach():
    with pytest.raises(ValueError, match=r"out_strides: \[2\] of \[4, 8, 16, 32\] that stride 16 can give"):
        SimpleFeaturePyramid(in_channels=(8,), in_strides=(16,), out_channels=4, out_strides=(2, 8))


def test_pyramid_normalises_channels():
    # Closed form: the last layer is a layer norm at its start, so that each place has mean 0 and variance 1.
    (level,) = SimpleFeaturePyramid((8, 8), (16, 16), 32, (4,))(declared_maps()[1:2] * 2)
    torch.testing.assert_close(level.mean(1), torch.zeros(2, 16, 24), atol=1e-5, rtol=0)
    torch.testing.assert_close(level.var(1, unbiased=False), torch.ones(2, 16, 24), atol=1e-2, rtol=0)


def test_sequence_is_one_after_the_other():
    # Expected: its necks called by hand.
    first, second = (
        dict(type="TopDownNeck", out_channels=6, out_levels=(0, 1)),
        dict(type="TopDownNeck", out_channels=5),
    )
    neck = NeckSequence((4, 8, 16), (8, 16, 32), [first, second]).eval()
    assert neck.necks[1].lateral[0].in_channels == 6 and len(neck.necks[1].lateral) == 2
    expected = neck.necks[1](neck.necks[0](declared_maps()))
    assert torch.equal(neck(declared_maps())[0], expected[0])


OTHERS = {
    "separable": "depthwise_separable",
    "inverted": "inverted_bottleneck",
    "grouped": dict(kind="grouped", groups=4),
}


@pytest.mark.parametrize("conv", OTHERS.values(), ids=list(OTHERS))
def test_unet_of_other_convolutions(conv):
    # Expected: the same shapes, a gradient everywhere, and fewer weights.
    plain = BEVUNet(in_channels=4, widths=(8, 12), blocks=2)
    neck = BEVUNet(in_channels=4, widths=(8, 12), blocks=2, conv=conv)
    out = neck(BEVFeatures(torch.randn(2, 4, 6, 10), GRID)).features
    assert out.shape == (2, 8, 6, 10)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in neck.parameters())
    counts = [sum(p.numel() for p in module.parameters()) for module in (neck, plain)]
    assert counts[0] < 0.7 * counts[1]


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
