"""Deformable convolution against conv2d, a loop over its definition, finite differences, and its own pieces."""

import math
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bevstack.interop.deform_conv import ModulatedDeformConv2dPack, register_deform_conv
from bevstack.interop.standins import compiled_mmcv_present
from bevstack.ops.modulated_deform_conv import modulated_deform_conv

# kernel (h, w), stride, padding, dilation, groups, deform groups
SETTINGS = [
    ((3, 3), 1, 1, 1, 1, 1),
    ((3, 3), 2, 1, 1, 2, 1),
    ((3, 3), 1, 2, 2, 1, 4),
    ((2, 3), (2, 1), (0, 1), (1, 2), 4, 2),
    ((1, 1), 1, 0, 1, 1, 2),
]


def _inputs(setting, batch=2, channels=8, outputs=4, size=(7, 6), dtype=torch.float64, scale=1.5):
    kernel, stride, padding, dilation, groups, deform_groups = setting
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    x, weight, bias = draw(batch, channels, *size), draw(outputs, channels // groups, *kernel), draw(outputs)
    out = F.conv2d(x, weight, None, stride, padding, dilation, groups).shape[-2:]
    taps = kernel[0] * kernel[1] * deform_groups
    offset, mask = draw(batch, 2 * taps, *out) * scale, draw(batch, taps, *out).sigmoid()
    settings = dict(stride=stride, padding=padding, dilation=dilation, groups=groups, deform_groups=deform_groups)
    return (x, offset, mask, weight, bias), settings


def _by_definition(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
    """Sum over taps and channels, one number at a time, as the paper's eq. 1 says (docs/reference.md 4.8, DCNv2)."""

    def pair(v):
        return (v, v) if isinstance(v, int) else v

    (sy, sx), (py, px), (dy, dx) = pair(stride), pair(padding), pair(dilation)
    batch, channels, height, width = x.shape
    outputs, per_group, kh, kw = weight.shape
    result = torch.zeros(batch, outputs, *mask.shape[-2:], dtype=x.dtype)

    def pixel(b, c, y, x_):
        return x[b, c, y, x_].item() if 0 <= y < height and 0 <= x_ < width else 0.0

    for b, o, r, s in torch.cartesian_prod(*(torch.arange(n) for n in result.shape)).tolist():
        total = bias[o].item()
        for k in range(per_group):
            c = o // (outputs // groups) * per_group + k
            d = c // (channels // deform_groups)
            for i in range(kh):
                for j in range(kw):
                    tap = d * kh * kw + i * kw + j
                    v = r * sy - py + i * dy + offset[b, 2 * tap, r, s].item()
                    u = s * sx - px + j * dx + offset[b, 2 * tap + 1, r, s].item()
                    y0, x0 = math.floor(v), math.floor(u)
                    sample = sum(
                        (1 - abs(v - y)) * (1 - abs(u - x_)) * pixel(b, c, y, x_)
                        for y in (y0, y0 + 1)
                        for x_ in (x0, x0 + 1)
                    )
                    total += weight[o, k, i, j].item() * mask[b, tap, r, s].item() * sample
        result[b, o, r, s] = total
    return result


@pytest.mark.parametrize("setting", SETTINGS)
def test_without_offsets_it_is_a_convolution(setting):
    (x, offset, mask, weight, bias), settings = _inputs(setting)
    y = modulated_deform_conv(x, offset * 0, mask * 0 + 1, weight, bias, **settings)
    del settings["deform_groups"]
    torch.testing.assert_close(y, F.conv2d(x, weight, bias, **settings))


@pytest.mark.parametrize("setting", SETTINGS)
def test_definition(setting):
    tensors, settings = _inputs(setting, size=(5, 4))
    torch.testing.assert_close(modulated_deform_conv(*tensors, **settings), _by_definition(*tensors, **settings))


@pytest.mark.parametrize("setting", SETTINGS)
def test_gradients_by_finite_differences(setting):
    tensors, settings = _inputs(setting, batch=1, channels=4, size=(4, 4))
    tensors = [tensor.requires_grad_() for tensor in tensors]
    for limit in (2**24, 1):
        settings["max_columns"] = limit
        assert torch.autograd.gradcheck(lambda *t: modulated_deform_conv(*t, **settings), tensors, fast_mode=True)


@pytest.mark.parametrize("setting", SETTINGS)
def test_pieces_make_the_same_whole(setting):
    # One piece, one image a piece, one output row a piece.
    tensors, settings = _inputs(setting, batch=3, dtype=torch.float32)
    results = []
    for limit in (2**24, 7 * 6 * 9 * 8, 1):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        y = modulated_deform_conv(*leaves, **settings, max_columns=limit)
        (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        results.append((y.detach(), [leaf.grad for leaf in leaves]))
    for y, gradients in results[1:]:
        torch.testing.assert_close(y, results[0][0])
        torch.testing.assert_close(gradients, results[0][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("limit", [2**24, 1])
@pytest.mark.parametrize("scale", [1.5, 30.0])
def test_without_gradient_it_is_the_same(setting, limit, scale):
    # Expected: what is computed where a gradient is asked for; many places lie outside, or whole pixels apart.
    tensors, settings = _inputs(setting, batch=3, scale=scale)
    tensors[1][..., ::2] = tensors[1][..., ::2].round()
    expected = modulated_deform_conv(*(tensor.clone().requires_grad_() for tensor in tensors), **settings)
    assert expected.requires_grad
    found = modulated_deform_conv(*tensors, **settings, max_columns=limit)
    torch.testing.assert_close(found, expected.detach())
    with torch.no_grad():
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        assert torch.equal(modulated_deform_conv(*leaves, **settings, max_columns=limit), found)


def test_pieces_without_gradient_stay_in_the_cache(monkeypatch):
    # 3 images of 14 x 10 outputs with 9 * 16 columns each, 1,440 a row: two rows a piece.
    monkeypatch.setattr("bevstack.ops.modulated_deform_conv.CACHED_COLUMNS", 3_000)
    (x, offset, mask, weight, bias), settings = _inputs(SETTINGS[0], 3, 16, 4, (14, 10), torch.float32)
    with _LargestTensor() as largest:
        modulated_deform_conv(x, offset, mask, weight, bias, **settings)
    bordered = 3 * (14 + 3) * (10 + 3) * 16
    assert largest.values == max(bordered, offset.numel())


def test_taps_far_outside_count_nothing():
    (x, offset, mask, weight, bias), settings = _inputs(SETTINGS[0])
    for far in (1e9, -1e9, math.inf, -math.inf):
        y = modulated_deform_conv(x, torch.full_like(offset, far), mask, weight, bias, **settings)
        assert torch.equal(y, bias.view(1, -1, 1, 1).expand_as(y))
    offset = torch.full_like(offset, 1e9).requires_grad_()
    y = modulated_deform_conv(x, offset, mask, weight, bias, **settings)
    y.sum().backward()
    assert torch.equal(y, bias.view(1, -1, 1, 1).expand_as(y)) and not offset.grad.any()


def test_a_nan_offset_is_not_hidden():
    (x, offset, mask, weight, bias), settings = _inputs(SETTINGS[0])
    offset[0, 0, 0, 0] = math.nan
    for asked in (False, True):
        y = modulated_deform_conv(x, offset.requires_grad_(asked), mask, weight, bias, **settings)
        assert y[0, :, 0, 0].isnan().all() and y.isnan().sum() == y.shape[1]


def test_any_memory_layout_and_low_precision():
    tensors, settings = _inputs(SETTINGS[0], dtype=torch.float32)
    expected = modulated_deform_conv(*tensors, **settings)
    strided = tensors[0].contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(modulated_deform_conv(strided, *tensors[1:], **settings), expected)
    with torch.autocast("cpu", torch.bfloat16):
        low = modulated_deform_conv(*tensors, **settings)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), expected, rtol=0.05, atol=0.3)


def test_mistakes_are_named():
    (x, offset, mask, weight, bias), settings = _inputs(SETTINGS[0])
    with pytest.raises(ValueError, match="offset is"):
        modulated_deform_conv(x, offset[:, :-1], mask, weight, bias, **settings)
    with pytest.raises(ValueError, match="mask is"):
        modulated_deform_conv(x, offset, mask[..., 1:], weight, bias, **settings)
    with pytest.raises(ValueError, match="3 groups"):
        modulated_deform_conv(x, offset, mask, weight, bias, 1, 1, 1, 3)


_PEAK = r"""
import re, torch
from bevstack.ops.modulated_deform_conv import modulated_deform_conv
torch.set_num_threads(1)
def run(batch, h, w, limit):
    leaf = lambda *shape: torch.rand(*shape).requires_grad_()
    leaves = leaf(batch, 256, h, w), leaf(batch, 18, h, w), leaf(batch, 9, h, w), leaf(64, 256, 3, 3)
    modulated_deform_conv(*leaves, padding=1, max_columns=limit).sum().backward()
def peak():  # not getrusage: its peak survives exec, so it would be that of the test process
    return int(re.search(r"VmHWM:\s+(\d+) kB", open("/proc/self/status").read())[1]) * 1024
run(1, 8, 8, 2**30)
before = peak()
run(2, 58, 100, 2**20)
small = peak() - before
run(2, 58, 100, 2**30)
print(small, peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peak memory is read from /proc")
def test_memory_is_bounded_by_the_piece():
    # In one piece the backward pass holds the columns, their gradient and index arrays; in small pieces what the
    # inputs and their gradients take (and what the allocator keeps, which varies).
    columns = 2 * 58 * 100 * 9 * 256 * 4
    answer = subprocess.run([sys.executable, "-c", _PEAK], capture_output=True, check=True).stdout.split()
    in_pieces, whole = map(int, answer)
    assert whole < 4 * columns
    assert in_pieces < 2 * columns and in_pieces < 0.75 * whole


class _LargestTensor(TorchDispatchMode):
    """Remembers the largest storage, in values, that any operation inside gives back."""

    values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not tensor.is_mkldnn:  # packed weights have no storage to ask for
                self.values = max(self.values, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("limit", [2**24, 20_000, 4_000])
def test_no_tensor_is_larger_than_a_piece_or_an_input(limit):
    # 3 images of 14 x 10 outputs with 9 * 16 columns each: 60,480 in all, 20,160 an image, 1,440 a row.
    (x, offset, mask, weight, bias), settings = _inputs(SETTINGS[0], 3, 16, 4, (14, 10), torch.float32)
    leaves = [tensor.requires_grad_() for tensor in (x, offset, mask, weight, bias)]
    with _LargestTensor() as largest:
        modulated_deform_conv(*leaves, **settings, max_columns=limit).sum().backward()
    expected = {2**24: 60_480, 20_000: 13 * 1_440, 4_000: offset.numel()}[limit]
    assert largest.values == expected


def test_layer_starts_as_a_halved_convolution():
    # Zero offsets and a mask of sigmoid(0) = 1/2.
    torch.manual_seed(0)
    layer = ModulatedDeformConv2dPack(4, 6, 3, stride=2, padding=1, deform_groups=2)
    x = torch.randn(2, 4, 9, 7)
    torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, 2, 1) / 2)
    shapes = {key: tuple(value.shape) for key, value in layer.state_dict().items()}
    assert shapes == {
        "weight": (6, 4, 3, 3),
        "bias": (6,),
        "conv_offset.weight": (54, 4, 3, 3),
        "conv_offset.bias": (54,),
    }


def test_layer_splits_offsets_and_mask_as_mmcv_does():
    # conv_offset is cut in three; the first two thirds are the offsets, the last the mask before its sigmoid.
    torch.manual_seed(0)
    layer = ModulatedDeformConv2dPack(4, 4, 3, padding=1, bias=False)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.2)
    x = torch.randn(1, 4, 5, 5)
    first, second, mask = layer.conv_offset(x).chunk(3, dim=1)
    expected = modulated_deform_conv(x, torch.cat([first, second], 1), mask.sigmoid(), layer.weight, padding=1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.skipif(compiled_mmcv_present(), reason="compiled mmcv has its own DCNv2")
def test_resnet101_of_the_published_models():
    from bevstack.registry import MODELS

    assert register_deform_conv() and register_deform_conv()
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type="mmdet.ResNet",
            depth=101,
            num_stages=4,
            out_indices=(1, 2, 3),
            frozen_stages=1,
            norm_cfg=dict(type="BN2d", requires_grad=False),
            norm_eval=True,
            style="caffe",
            dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
            stage_with_dcn=(False, False, True, True),
        )
    )
    model.init_weights()
    layers = {name: module for name, module in model.named_modules() if isinstance(module, ModulatedDeformConv2dPack)}
    assert len(layers) == 23 + 3 and all(name.startswith(("layer3.", "layer4.")) for name in layers)
    assert all(not layer.conv_offset.weight.any() and layer.weight.any() for layer in layers.values())
    for module in model.modules():  # the last norm of a block starts at zero, which would stop gradients
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    model.train()
    levels = model(torch.randn(1, 3, 64, 96))
    assert [tuple(level.shape[1:]) for level in levels] == [(512, 8, 12), (1024, 4, 6), (2048, 2, 3)]
    sum(level.square().mean() for level in levels).backward()
    for name, layer in layers.items():
        for key, parameter in layer.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.any(), f"{name}.{key}"
