"""Whether bfloat16 is right on this CPU: the kinds of layers that a model has, forward and backward against float32.

A library may be wrong in one kind of layer, one shape and one number of threads: torch 2.13's ``Conv3d`` gives, with
AVX512-BF16 and one thread, gradients of weights that nobody wrote (:mod:`bevstack.models.layers.time_convolution`).
Nothing says so until a loss is not finite, if ever. So each kind is computed once in both formats, on small inputs, and
what is farther off than rounding can be is named. It takes about a second; results are kept for the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGEST_ERROR = 0.05
"""Relative, in the norm. Rounding of inputs and weights to 8 bits makes 0.003 to 0.006 in every kind of layer."""

_COMPARED = ("output", "gradient of the input", "weights' gradient")
_MOST_CHANNELS, _MOST_KINDS, _FRAMES = 64, 48, (2, 4)
_SIDES = {1: (24,), 2: (12, 16), 3: (12, 16)}


@dataclass(frozen=True)
class LayerKind:
    """A class of layers with the sizes that decide which code computes it; ``sizes`` are arguments of its constructor.

    Channels beyond 64 count as 64. An empty ``layer`` stands for attention, which is a function.
    """

    layer: type[nn.Module] | None
    sizes: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        if self.layer is None:
            return "attention"
        sizes = dict(self.sizes)
        before = sizes.get("in_channels", sizes.get("in_features", sizes.get("num_features")))
        after = sizes.get("out_channels", sizes.get("out_features"))
        parts = [f"{self.layer.__name__} of {before}" + (f" to {after} channels" if after else " channels")]
        if "kernel_size" in sizes:
            parts.append(f"kernel {' x '.join(map(str, sizes['kernel_size']))}")
        parts += [f"{sizes['groups']} groups"] if sizes.get("groups", 1) > 1 else []
        return ", ".join(parts)

    @property
    def dimensions(self) -> int:
        """Of what it slides over: 0 for layers that see one place at a time."""
        return len(dict(self.sizes).get("kernel_size", ()))


@dataclass(frozen=True)
class Fault:
    """A kind of layer that is wrong in bfloat16, and what of it: ``off`` is relative to float32, NaN included."""

    kind: LayerKind
    what: str
    off: float

    def __str__(self) -> str:
        size = "not finite" if not self.off < 100 else f"off by {100 * self.off:.0f} %"
        return f"{self.kind}: its {self.what} is {size}"


def kinds_of(model: nn.Module) -> list[LayerKind]:
    """The kinds of layers of a model that torch itself computes, each once, convolutions over time first.

    A layer with a ``forward`` of its own (:class:`bevstack.models.layers.time_convolution.TimeConvolution`) is none.
    """
    found = dict.fromkeys(kind for module in model.modules() if (kind := _kind_of(module)) is not None)
    ordered = sorted(found, key=lambda kind: -kind.dimensions)
    return [LayerKind(None), *ordered[: _MOST_KINDS - 1]]


USUAL_KINDS = (
    LayerKind(None),
    LayerKind(nn.Linear, (("in_features", 64), ("out_features", 64))),
    *(
        LayerKind(nn.Conv2d, (("in_channels", c), ("out_channels", 64), ("kernel_size", (k, k)), ("stride", (s, s)),
                              ("padding", (k // 2, k // 2)), ("groups", groups)))
        for c, k, s, groups in ((3, 7, 2, 1), (64, 3, 1, 1), (64, 3, 2, 1), (64, 1, 1, 1), (64, 3, 1, 64))
    ),
)  # fmt: skip
"""What nearly every model of this package has; asked where no model is given."""

TIME_KINDS = tuple(
    LayerKind(nn.Conv3d, (("in_channels", 16), ("out_channels", 16), ("kernel_size", kernel), ("stride", (1, 1, 1)),
                          ("padding", tuple(size // 2 for size in kernel)), ("groups", 1)))
    for kernel in ((3, 1, 1), (5, 1, 1), (1, 3, 3))
)  # fmt: skip
"""torch's convolutions over time, which no model of this package has: for the doctor's report alone."""


def _kind_of(module: nn.Module) -> LayerKind | None:
    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for layer in convolutions:
        if isinstance(module, layer) and type(module).forward is layer.forward:
            return LayerKind(layer, tuple(_convolution_sizes(module)))
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        sizes = (("in_features", _few(module.in_features)), ("out_features", _few(module.out_features)))
        return LayerKind(nn.Linear, sizes)
    return None


def _few(channels: int) -> int:
    return min(channels, _MOST_CHANNELS)


def _convolution_sizes(module: Any) -> Iterator[tuple[str, Any]]:
    groups = module.groups
    each = 1 if groups == module.in_channels and groups > 1 else _few(module.in_channels // groups)
    groups = min(groups, max(1, _MOST_CHANNELS // each))
    yield "in_channels", each * groups
    yield "out_channels", max(1, _few(module.out_channels) // groups) * groups
    yield "kernel_size", module.kernel_size
    # Strides of a convolution over time are left at 1: with AMX, torch's own of stride 2 may end the process.
    yield "stride", module.stride if len(module.kernel_size) < 3 else (1, 1, 1)
    yield "padding", tuple(size // 2 for size in module.kernel_size)
    yield "groups", groups


def faults(kinds: tuple[LayerKind, ...]) -> tuple[int, Fault | None]:
    """Check kinds of layers in turn, with the number of threads that torch has now, until one is wrong.

    Returns:
        How many were checked, and the first one that is wrong; None where none is.
    """
    for number, kind in enumerate(kinds, start=1):
        fault = fault_of(kind)
        if fault is not None:
            return number, fault
    return len(kinds), None


def fault_of(kind: LayerKind) -> Fault | None:
    """What is wrong with a kind of layer in bfloat16 on this CPU, with this number of threads; None: nothing."""
    return _fault(kind, torch.get_num_threads())


@cache
def _fault(kind: LayerKind, threads: int) -> Fault | None:
    """:func:`fault_of`; ``threads`` is part of what is remembered."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        torch.manual_seed(0)
        for inputs, weights in _cases(kind):
            given: list[Tensor] = []
            exact = _computed(kind, inputs, weights, given, bfloat16=False)
            rough = _computed(kind, inputs, weights, given, bfloat16=True)
            for what, right, found in zip(_COMPARED, exact, rough, strict=False):  # attention has no weights
                off = float((found - right).norm() / right.norm())
                if not off < LARGEST_ERROR:
                    return Fault(kind, what, off)
    return None


def _cases(kind: LayerKind) -> Iterator[tuple[Tensor, nn.Module | None]]:
    """Inputs, and the layer with its weights: one, or one for each number of frames."""
    if kind.layer is None:
        yield torch.randn(3, 2, 4, 48, 16), None  # query, key and value (B, heads, places, channels)
        return
    layer = kind.layer(**dict(kind.sizes))
    sizes = dict(kind.sizes)
    channels: int = sizes["in_channels"] if "in_channels" in sizes else sizes["in_features"]
    if kind.dimensions == 3:
        for frames in _FRAMES:
            yield torch.randn(2, channels, frames, *_SIDES[3]), layer
    elif kind.dimensions:
        yield torch.randn(2, channels, *_SIDES[kind.dimensions]), layer
    else:
        yield torch.randn(2, 96, channels), layer


def _computed(
    kind: LayerKind, inputs: Tensor, layer: nn.Module | None, given: list[Tensor], bfloat16: bool
) -> tuple[Tensor, ...]:
    """Output, gradient of the input, gradient of the weights, in float32; ``given`` keeps the output's gradient."""
    leaf = inputs.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        output = F.scaled_dot_product_attention(*leaf) if layer is None else layer(leaf)
    if not given:
        given.append(torch.randn(output.shape))
    wanted = [leaf, *(parameter for name, parameter in _parameters(layer) if name == "weight")]
    gradients = torch.autograd.grad(output, wanted, given[0].to(output.dtype))
    return (output.detach().float(), *(gradient.float() for gradient in gradients))


def _parameters(layer: nn.Module | None) -> Iterator[tuple[str, nn.Parameter]]:
    return iter(()) if layer is None else layer.named_parameters()
