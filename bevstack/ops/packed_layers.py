"""Convolution and linear layer for inference: weights laid out once as oneDNN wants them, channels last.

``nn.Conv2d`` on a CPU copies its weights into oneDNN's order at every call, casts them before that under autocast, and
leaves the activation and a residual's sum to further passes over memory. Here all that is done once, or on the way.
``nn.Linear``, and a 1 x 1 convolution with it, asks MKL for products in float32, which takes its slow way on processors
that are not Intel's: 90 G multiply-adds and additions a second of one core of an EPYC with AVX-512, oneDNN 240.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from bevstack.ops.linear import onednn_takes

_ACTIVATIONS: dict[type[nn.Module], tuple[str, list]] = {
    nn.Identity: ("none", []),
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.SiLU: ("swish", []),
    nn.Hardswish: ("hardswish", []),
    nn.Sigmoid: ("sigmoid", []),
}
FUSED_ACTIVATIONS = tuple(_ACTIVATIONS)
"""Modules that :class:`PackedConvolution` can take in."""


def can_be_packed(convolution: nn.Module) -> bool:
    """Whether it is an ``nn.Conv2d`` padded with zeros, or timm's with TensorFlow's padding."""
    if type(convolution).__name__ == "Conv2dSame":
        return True
    plain = type(convolution) is nn.Conv2d
    return plain and convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)


class PackedConvolution(nn.Module):
    """A convolution and its activation; exactly the two modules one after the other, without a gradient.

    The packed weights are made at the first call in each number format and kept: what is done to ``convolution``'s
    weights afterwards is seen after :meth:`unpack` only. Where oneDNN is not used (another device, a gradient, another
    format than float32 and bfloat16 autocast) the two modules are called.

    Args:
        convolution: one that :func:`can_be_packed`.
        activation: one of :data:`FUSED_ACTIVATIONS`, none by default.

    Raises:
        ValueError: another convolution or activation.
    """

    def __init__(self, convolution: nn.Conv2d, activation: nn.Module | None = None) -> None:
        super().__init__()
        activation = nn.Identity() if activation is None else activation
        if not can_be_packed(convolution) or type(activation) not in _ACTIVATIONS:
            kinds = f"{type(convolution).__name__} with {type(activation).__name__}"
            raise ValueError(f"PackedConvolution: no packed form of {kinds}")
        self.convolution, self.activation = convolution, activation
        self._packed: dict[torch.dtype, tuple[Tensor, Tensor | None]] = {}

    def forward(self, features: Tensor, added: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'); ``added`` (B, C', H', W') is summed in before the activation."""
        dtype = packed_dtype(features, self.convolution.weight)
        if dtype is None:
            result = self.convolution(features)
            return self.activation(result if added is None else result + added)
        convolution = self.convolution
        padding: Any = convolution.padding
        if type(convolution) is not nn.Conv2d:  # timm's convolution with TensorFlow's padding
            from timm.layers.padding import pad_same

            kernel, stride, dilation = map(list, (convolution.kernel_size, convolution.stride, convolution.dilation))
            features, padding = pad_same(features, kernel, stride, dilation), (0, 0)
        features = _last(features, dtype)
        weight, bias = self._weights(dtype, features, padding)
        name, scalars = _ACTIVATIONS[type(self.activation)]
        place = (padding, convolution.stride, convolution.dilation, convolution.groups)
        if added is None:
            return torch.ops.mkldnn._convolution_pointwise(features, weight, bias, *place, name, scalars, "")
        if name not in ("none", "relu") or convolution.groups > 1:  # torch has no such sum inside
            summed = torch.ops.mkldnn._convolution_pointwise(features, weight, bias, *place, "none", [], "")
            return self.activation(summed.add_(added))
        unary = None if name == "none" else name
        added = _last(added, dtype)
        return torch.ops.mkldnn._convolution_pointwise.binary(
            features, added, weight, bias, *place, "add", 1.0, unary, [], None
        )

    def unpack(self) -> None:
        """Forget the packed weights; the next call makes them anew."""
        self._packed = {}

    def _weights(self, dtype: torch.dtype, features: Tensor, padding: tuple) -> tuple[Tensor, Tensor | None]:
        """Weights in oneDNN's own order, and the bias, both in ``dtype``."""
        if dtype not in self._packed:
            convolution = self.convolution
            place = (padding, convolution.stride, convolution.dilation, convolution.groups)
            with torch.no_grad():
                weight = convolution.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
                packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *place, list(features.shape))
                bias = None if convolution.bias is None else convolution.bias.detach().to(dtype)
            self._packed[dtype] = packed, bias
        return self._packed[dtype]

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_packed": {}}  # oneDNN's tensors can be neither copied nor saved


class PackedLinear(nn.Linear):
    """The same linear layer, with its weights packed once in each number format; see :class:`PackedConvolution`.

    Args:
        linear: whose parameters it takes; they keep their names.
    """

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self._packed: dict[torch.dtype, tuple[Tensor, Tensor | None]] = {}

    def forward(self, features: Tensor) -> Tensor:
        """(..., C) to (..., C')."""
        dtype = packed_dtype(features, self.weight)
        if dtype is None:
            return super().forward(features)
        if dtype not in self._packed:
            with torch.no_grad():
                bias = None if self.bias is None else self.bias.detach().to(dtype)
                self._packed[dtype] = packed_matrix(self.weight.detach().to(dtype)), bias
        return torch.ops.mkldnn._linear_pointwise(features.to(dtype), *self._packed[dtype], "none", [], "")

    def unpack(self) -> None:
        """Forget the packed weights; the next call makes them anew."""
        self._packed = {}

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_packed": {}}


def packed_matrix(weight: Tensor) -> Tensor:
    """A (C', C) float32 or bfloat16 matrix in oneDNN's own order, for ``torch.ops.mkldnn._linear_pointwise``."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())


def _last(features: Tensor, dtype: torch.dtype) -> Tensor:
    return features.to(dtype).contiguous(memory_format=torch.channels_last)


def packed_dtype(features: Tensor, weight: Tensor) -> torch.dtype | None:
    """The format in which oneDNN computes on features of any shape with a weight of any; None where it is not asked.

    That is on another device, where a gradient or nothing at all is wanted, in another format than float32 and
    bfloat16 (autocast's counts), while torch.compile looks on, or where torch has no oneDNN.
    """
    if torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad):
        return None
    return onednn_dtype(features)


def onednn_dtype(features: Tensor) -> torch.dtype | None:
    """:func:`packed_dtype`, whether a gradient is wanted or not, of features of any shape."""
    if not onednn_takes(features) or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return None
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else features.dtype
    return dtype if dtype in (torch.float32, torch.bfloat16) else None
