"""Linear layers by oneDNN: on processors that are not Intel's, torch's own float32 product reaches half its speed.

Measured on an AMD EPYC with AVX-512, one thread, 2,500 x 256 x 256: 100 GFLOP/s by ``torch.mm`` (MKL), 245 by oneDNN.
On a CPU in float32 without autocast this is what runs; everywhere else, and while torch traces a graph, it is
``torch.nn.functional.linear``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from bevstack.geometry.transforms import full_precision

ACTIVATIONS = ("none", "relu")


def linear(tokens: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none") -> Tensor:
    """``activation(tokens @ weight.T + bias)``.

    Args:
        tokens: (..., C).
        weight: (D, C).
        bias: (D,), or None.
        activation: ``none`` or ``relu``, fused into the product.

    Returns:
        (..., D); differentiable any number of times.

    Raises:
        ValueError: another activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; there are {', '.join(ACTIVATIONS)}")
    if not _by_onednn(tokens, weight):
        result = F.linear(tokens, weight, bias)
        return F.relu(result) if activation == "relu" else result
    if torch.is_grad_enabled() and (tokens.requires_grad or weight.requires_grad):
        return _OneDNNLinear.apply(tokens, weight, bias, activation)
    return _product(tokens, weight, bias, activation)


def full_precision_linear(tokens: Tensor, *layers: nn.Linear) -> tuple[Tensor, ...]:
    """What linear layers make of the same (..., C) tokens in one product, in float32 at least whatever autocast says.

    For places: an offset of 8 pixels is good to a thirtieth of a pixel only in bfloat16.

    Returns:
        A tensor (..., C_k) a layer: views of the product.
    """
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    with full_precision(tokens):
        weight = torch.cat([layer.weight for layer in layers]).to(dtype)
        bias = torch.cat([layer.bias for layer in layers]).to(dtype)
        return linear(tokens.to(dtype), weight, bias).split([layer.out_features for layer in layers], dim=-1)


class Linear(nn.Linear):
    """``nn.Linear`` by :func:`linear`: (..., C) to (..., D), with the same weights under the same names.

    Args: those of ``nn.Linear``.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., D) of (..., C)."""
        return linear(tokens, self.weight, self.bias)


def _by_onednn(tokens: Tensor, weight: Tensor) -> bool:
    whole = tokens.dtype == weight.dtype == torch.float32
    return whole and not torch.is_autocast_enabled("cpu") and onednn_takes(tokens)


def onednn_takes(tensor: Tensor) -> bool:
    """Whether oneDNN can be asked about a tensor of any shape: on a CPU, not empty, and no graph is being traced."""
    return bool(
        tensor.device.type == "cpu"
        and tensor.numel() > 0
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.enabled
        and torch.backends.mkldnn.is_available()
    )


def _product(tokens: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    tokens = _ordered(tokens) if tokens.dim() == 2 else tokens.contiguous()
    weight = _ordered(weight)
    return torch.ops.mkldnn._linear_pointwise(tokens, weight, bias, activation, [], "")


@register_flop_formula(torch.ops.mkldnn._linear_pointwise)
def _operations(tokens_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    """For torch's counter, which does not know the product: two for each multiply-add."""
    return 2 * torch.Size(tokens_shape).numel() * weight_shape[0]


def _ordered(matrix: Tensor) -> Tensor:
    """The matrix as oneDNN takes it: one block, row after row or column after column."""
    (rows, columns), (down, right) = matrix.shape, matrix.stride()
    block = (down, right) in ((columns, 1), (1, rows))
    return matrix if block and rows > 1 and columns > 1 else matrix.contiguous()


class _OneDNNLinear(torch.autograd.Function):
    """The product with its gradients, which are products, too."""

    @staticmethod
    def forward(ctx, tokens: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
        result = _product(tokens, weight, bias, activation)
        ctx.relu = activation == "relu"
        ctx.save_for_backward(tokens, weight, *((result,) if ctx.relu else ()))
        return result

    @staticmethod
    def backward(ctx, upstream: Tensor):
        tokens, weight, *rest = ctx.saved_tensors
        if ctx.relu:
            upstream = upstream * (rest[0] > 0)
        rows, inputs = upstream.flatten(0, -2), tokens.flatten(0, -2)
        to_tokens = to_weight = to_bias = None
        if torch.is_grad_enabled():  # to be differentiated again
            to_tokens, to_weight = upstream @ weight, rows.t() @ inputs
        else:
            if ctx.needs_input_grad[0]:
                to_tokens = _product(upstream, weight.t(), None)
            if ctx.needs_input_grad[1]:
                to_weight = _product(rows.t(), inputs.t(), None)
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0)
        return to_tokens, to_weight, to_bias, None
