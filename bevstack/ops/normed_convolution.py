"""A convolution, the norm behind it that no longer changes, a sum and a ReLU, in one pass over memory, with gradients.

A BatchNorm with fixed statistics is one factor and one summand a channel. Multiplied into the convolution's weights, of
which there are a thousandth as many as values of a feature map, it costs neither a pass over the map forward, nor one
backward, nor the map that the norm would have kept for its gradient. The weights stay trainable: their gradient goes
through the factor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from bevstack.ops.packed_layers import onednn_dtype


class NormedConvolution(nn.Module):
    """``relu(norm(convolution(features)) + added)`` with the weights that both modules have at the call.

    While the norm is in training mode, where its statistics are those of the batch, the modules are called one after
    the other. Its own factor and summand may be trained, too.

    Args:
        convolution: an ``nn.Conv2d`` padded with zeros.
        norm: a BatchNorm that keeps statistics.
        relu: whether a ReLU follows.

    Raises:
        ValueError: another convolution, or a norm without statistics; see :meth:`takes`.
    """

    def __init__(self, convolution: nn.Module, norm: nn.Module, relu: bool) -> None:
        super().__init__()
        if not self.takes(convolution, norm):
            kinds = f"{type(convolution).__name__} and {type(norm).__name__}"
            raise ValueError(f"NormedConvolution: no joined form of {kinds}")
        self.convolution: Any = convolution
        self.norm: Any = norm
        self.relu = relu

    @staticmethod
    def takes(convolution: nn.Module, norm: nn.Module) -> bool:
        """Whether the two modules can be joined."""
        if not (type(convolution) is nn.Conv2d and convolution.padding_mode == "zeros"):
            return False
        known = type(norm) in (nn.BatchNorm2d, nn.SyncBatchNorm) and isinstance(norm, _BatchNorm)
        return known and norm.running_mean is not None and not isinstance(convolution.padding, str)

    def folded(self) -> tuple[Tensor, Tensor]:
        """The weight (C', C / groups, k_h, k_w) and bias (C',) of the convolution that equals both modules."""
        norm, convolution = self.norm, self.convolution
        scale = torch.rsqrt(norm.running_var + norm.eps)
        scale = scale if norm.weight is None else scale * norm.weight
        bias = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
        bias = bias * scale if norm.bias is None else torch.addcmul(norm.bias, bias, scale)
        return convolution.weight * scale.view(-1, 1, 1, 1), bias

    def forward(self, features: Tensor, added: Tensor | None = None) -> Tensor:
        """(B, C, H, W) to (B, C', H', W'); ``added`` (B, C', H', W') is summed in before the ReLU."""
        if self.norm.training:
            result = self.norm(self.convolution(features))
            result = result if added is None else result + added
            return F.relu(result) if self.relu else result
        weight, bias = self.folded()
        convolution = self.convolution
        place = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)
        dtype = onednn_dtype(features)
        taken = dtype is not None and weight.dtype in (torch.float32, dtype)
        if not taken or (added is not None and convolution.groups > 1):
            result = F.conv2d(features, weight, bias, *place)
            result = result if added is None else result + added
            return F.relu(result) if self.relu else result
        ordered = [
            None if tensor is None else tensor.to(dtype).contiguous(memory_format=torch.channels_last)
            for tensor in (features, weight, added)
        ]
        return _JoinedConvolution.apply(ordered[0], ordered[1], bias.to(dtype), ordered[2], place, self.relu)


class _JoinedConvolution(torch.autograd.Function):
    """oneDNN's convolution with sum and ReLU; it keeps its input and, for the ReLU, its result."""

    @staticmethod
    def forward(ctx, features: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, place, relu: bool) -> Tensor:
        stride, padding, dilation, groups = place
        order = (padding, stride, dilation, groups)
        convolve = torch.ops.mkldnn._convolution_pointwise
        if added is None:
            result = convolve(features, weight, bias, *order, "relu" if relu else "none", [], "")
        else:
            after = "relu" if relu else None
            result = convolve.binary(features, added, weight, bias, *order, "add", 1.0, after, [], None)
        ctx.place, ctx.relu = place, relu
        ctx.save_for_backward(features, weight, *((result,) if relu else ()))
        return result

    @staticmethod
    def backward(ctx, upstream: Tensor):
        features, weight, *rest = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.place
        if ctx.relu:
            upstream = torch.ops.aten.threshold_backward(upstream, rest[0], 0)
        to_features, to_weight, to_bias = torch.ops.aten.convolution_backward(
            upstream.contiguous(memory_format=torch.channels_last),
            features,
            weight,
            [len(weight)],
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            ctx.needs_input_grad[:3],
        )
        return to_features, to_weight, to_bias, upstream if ctx.needs_input_grad[3] else None, None, None
