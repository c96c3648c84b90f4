"""Sums of weighted table rows, the operation that plain torch is fastest at."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def weighted_rows(table: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Sum weighted rows of a table: ``out[i] = sum_j weights[i, j] * table[indices[i, j]]``.

    Args:
        table: (R, c); indices: (I, J) integer rows; weights: (I, J).

    Returns:
        (I, c); differentiable once with respect to the table and the weights.
    """
    return _WeightedRows.apply(table, indices, weights)


class _WeightedRows(torch.autograd.Function):
    """The operation behind :func:`weighted_rows`, with a backward that never scatters.

    The gradient of the table is itself a weighted sum of rows: sort the samples by table row, and each row's samples
    become one bag of rows of the incoming gradient.
    """

    @staticmethod
    def forward(ctx, table: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(table, indices, weights)
        return F.embedding_bag(indices, table, mode="sum", per_sample_weights=weights)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor):
        table, indices, weights = ctx.saved_tensors
        grad = grad.contiguous()
        bags, size = indices.shape
        flat = indices.flatten()
        grad_table = grad_weights = None
        if ctx.needs_input_grad[0]:
            keep = weights.flatten() != 0
            kept = keep.nonzero().squeeze(1)
            rows, order = flat[kept].sort()
            kept = kept[order]
            starts = torch.searchsorted(rows, torch.arange(table.shape[0], device=rows.device))
            grad_table = F.embedding_bag(
                kept // size, grad, starts, mode="sum", per_sample_weights=weights.flatten()[kept]
            )
        if ctx.needs_input_grad[2]:
            bag = torch.arange(bags, device=flat.device)
            grad_weights = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                grad, table, flat, bag * size, bag.repeat_interleave(size), 0, -1
            ).view_as(weights)
        return grad_table, None, grad_weights
