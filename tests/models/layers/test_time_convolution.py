"""Convolution over time: torch's results in float32, and gradients that torch's own lacks in bfloat16 on a CPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from bevstack.models.layers.time_convolution import TimeConvolution


def outcome(layer: nn.Conv3d, forward, frames: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """The output of ``forward(frames)`` and the gradients of a random weighting of it."""
    inputs = {"frames": frames.clone().requires_grad_(), **dict(layer.named_parameters())}
    found = forward(inputs["frames"])
    # Memory that is handed out unwritten next is no zeros.
    torch.full((4 * layer.weight.numel(),), torch.nan), torch.full((layer.weight.numel(),), torch.nan)
    weighting = torch.randn(found.shape, generator=torch.Generator().manual_seed(seed))
    gradients = torch.autograd.grad((found.float() * weighting).sum(), list(inputs.values()))
    return {"output": found.detach().float(), **dict(zip(inputs, gradients, strict=True))}


@st.composite
def layers(draw) -> tuple[TimeConvolution, tuple[int, int, int]]:
    """A layer and the frames, rows and columns of a clip that its kernel fits into."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    channels = [groups * draw(st.integers(1, 3)) for _ in range(2)]
    kernel = tuple(draw(st.sampled_from(sizes)) for sizes in ((1, 2, 3, 5), (1, 3), (1, 3, 7)))
    stride = tuple(draw(st.integers(1, most)) for most in (6, 2, 2))
    padding = tuple(draw(st.integers(0, size // 2)) for size in kernel)
    least = [max(1, size - 2 * pad) for size, pad in zip(kernel, padding, strict=True)]
    lengths = tuple(draw(st.integers(low, low + 7)) for low in least)
    torch.manual_seed(draw(st.integers(0, 99)))
    return TimeConvolution(*channels, kernel, stride, padding, groups, bias=draw(st.booleans())), lengths


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layers(), st.integers(0, 2))
def test_it_is_torchs_convolution(drawn, batch):
    # Expected: nn.Conv3d's own forward with the same weights, and its gradients.
    layer, lengths = drawn
    frames = torch.randn(batch, layer.in_channels, *lengths)
    found = outcome(layer, layer, frames)
    for name, expected in outcome(layer, lambda inputs: nn.Conv3d.forward(layer, inputs), frames).items():
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-5 * max(1.0, _largest(expected)))
    assert layer.state_dict().keys() == nn.Conv3d(1, 1, 1, bias=layer.bias is not None).state_dict().keys()


def _largest(values: Tensor) -> float:
    return float(values.abs().amax()) if values.numel() else 0.0


SHAPES = {  # channels, kernel, stride, padding; those of SlowFast's paths. All but the stems see too few frames.
    "slow bottleneck": (160, 64, (3, 1, 1), 1, (1, 0, 0)),
    "fast bottleneck": (4, 8, (3, 1, 1), 1, (1, 0, 0)),
    "cube": (16, 8, 3, 1, 1),
    "lateral": (8, 16, (5, 1, 1), (6, 1, 1), (2, 0, 0)),
    "fast stem": (3, 2, (5, 7, 7), (1, 2, 2), (2, 3, 3)),
    "slow stem": (3, 16, (1, 7, 7), (1, 2, 2), (0, 3, 3)),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_gradients_in_bfloat16(shape, threads):
    # Expected: those of float32, whatever the threads. Inputs and results are rounded to 8 bits, a relative error of at
    # most 2^-9 each; the root mean square over many is below three of them.
    for seed in range(20):
        torch.manual_seed(seed)
        layer = TimeConvolution(*SHAPES[shape], bias=False)
        frames = torch.randn(1 + seed % 2, layer.in_channels, 2 + seed % 3, 12, 16)
        expected = outcome(layer, layer, frames, seed)
        with torch.autocast("cpu", torch.bfloat16):
            found = outcome(layer, layer, frames, seed)
        for name, exact in expected.items():
            assert found[name].isfinite().all(), (name, seed)
            assert (found[name] - exact).norm() < 3 * 2**-9 * exact.norm(), (name, seed)


def test_a_clip_that_is_too_short_is_refused():
    # Expected: an error as nn.Conv3d's, not an empty clip.
    with pytest.raises(RuntimeError, match="size"):
        TimeConvolution(1, 1, (3, 1, 1))(torch.zeros(1, 1, 2, 4, 4))
