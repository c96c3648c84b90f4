"""Multi-scale deformable attention over any number of value maps, as one function.

Every query looks into up to S of M value maps (its *slots*): for spatial cross-attention the maps are the cameras that
see the query, for temporal self-attention the previous and the current BEV, for a detection decoder the one BEV. The
function takes raw pixel offsets and raw logits, with the softmax inside, so that a fused kernel can stand behind it.

Sources: Deformable DETR (Zhu et al. 2021), eq. 3; BEVFormer (Li et al. 2022), eq. 2-5; and
docs/reference.md 4.5, Deformable attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

BACKENDS = ("embedding_bag", "indexing")


def deformable_attention(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    slots: Tensor,
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    slot_weights: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Weighted sum of bilinear samples around each query's reference points.

    A sample of level l lies at ``reference * (W_l, H_l) + offset - 0.5`` in that level's pixel indices; outside the map
    it is zero. Point p uses reference (anchor) ``p mod Z``. Attention weights are the softmax of the logits over all
    L * P points of one slot; each slot's result is multiplied by its ``slot_weights`` and the slots are summed.

    Args:
        value: (M, sum of H_l * W_l, h, c) value maps: h heads of c channels, levels one after another, row-major.
        shapes: (H_l, W_l) of the L levels.
        slots: (B, Q, S) integer, the value map each slot looks into, -1 for an empty slot.
        references: (B, Q, S, Z, 2) fractions (x, y) of the map; (0, 0) is the outer corner of the first pixel.
        offsets: (B, Q, G, h, L, P, 2) pixels (x, y) of the level; G is S, or 1 when the slots share them.
        logits: (B, Q, G, h, L * P) before the softmax.
        slot_weights: (B, Q, S); ignored where the slot is empty.
        backend: ``auto``, ``embedding_bag`` (fast, first derivatives) or ``indexing`` (plain autograd, any dtype).

    Returns:
        (B, Q, h * c), in the dtype of ``value``; computed in float32 at least.

    Raises:
        ValueError: sizes do not fit each other, or the backend is unknown.
    """
    batch, queries, num_slots = slots.shape
    maps, tokens, heads, channels = value.shape
    groups, levels, points = offsets.shape[2], offsets.shape[4], offsets.shape[5]
    if tokens != sum(h * w for h, w in shapes) or levels != len(shapes):
        raise ValueError(f"value has {tokens} tokens and offsets {levels} levels; shapes say {tuple(shapes)}")
    if groups not in (1, num_slots) or points % references.shape[3]:
        anchors = references.shape[3]
        raise ValueError(f"{groups} offset groups for {num_slots} slots, {points} points for {anchors} anchors")
    if backend == "auto":
        backend = "embedding_bag" if value.dtype != torch.float64 else "indexing"
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}; there are auto, {', '.join(BACKENDS)}")

    if value.is_meta:  # which slots are occupied is not known where there are no values
        return value.new_empty(batch, queries, heads * channels)
    with torch.autocast(value.device.type, enabled=False):
        dtype = torch.promote_types(value.dtype, torch.float32)
        # Ragged list of the occupied slots, in query order: nothing is computed for an empty one.
        pair = (slots.reshape(-1) >= 0).nonzero().squeeze(1)
        query = pair // num_slots
        source = query if groups == 1 else pair
        weights = logits.to(dtype).reshape(-1, heads, levels * points).index_select(0, source).softmax(-1)
        weights = weights * slot_weights.to(dtype).reshape(-1).index_select(0, pair)[:, None, None]
        indices, weights = _corners(
            shapes,
            references.to(dtype).reshape(-1, *references.shape[3:]).index_select(0, pair),
            offsets.to(dtype).reshape(-1, heads, levels, points, 2).index_select(0, source),
            weights.unflatten(-1, (levels, points)),
        )
        row = slots.reshape(-1).index_select(0, pair) * (tokens * heads)
        indices = indices * heads + torch.arange(heads, device=value.device)[:, None] + row[:, None, None]
        table = value.to(dtype).reshape(maps * tokens * heads, channels)
        if backend == "indexing":
            sampled = (table[indices] * weights.unsqueeze(-1)).sum(2)
        else:
            sampled = weighted_rows(table, indices.flatten(0, 1), weights.flatten(0, 1)).unflatten(0, (-1, heads))
        sampled = sampled.flatten(1)
        if len(pair) == batch * queries and num_slots == 1:
            result = sampled
        else:
            result = sampled.new_zeros(batch * queries, heads * channels).index_add(0, query, sampled)
        return result.view(batch, queries, heads * channels).to(value.dtype)


def _corners(shapes, references: Tensor, offsets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """The four pixels around each sample and their share of its weight.

    Args: references (R, Z, 2), offsets (R, h, L, P, 2), weights (R, h, L, P).
    Returns: token indices (R, h, L * P * 4) within a value map and weights of that shape, zero outside the map.
    """
    size, start = _level_tensors(tuple(shapes), references.device)
    points, anchors = offsets.shape[3], references.shape[1]
    anchor = references.repeat(1, points // anchors, 1)[:, None, None]  # (R, 1, 1, P, 2)
    bound = size[:, None].to(offsets.dtype)  # (L, 1, 2) as (W, H)
    where = anchor * bound + offsets - 0.5
    # Far outside is as good as just outside, and keeps the integers small.
    where = torch.minimum(where.clamp_min(-2.0), bound + 1.0)
    low = where.detach().floor()
    high_share = where - low
    low = low.long()
    width, height = size[:, 0, None], size[:, 1, None]
    x0, y0 = low.unbind(-1)
    fx, fy = high_share.unbind(-1)
    indices, shares = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = x0 + dx, y0 + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            share = (fx if dx else 1 - fx) * (fy if dy else 1 - fy) * weights
            indices.append(torch.where(inside, start[:, None] + y * width + x, 0))
            shares.append(share * inside)
    return torch.stack(indices, -1).flatten(2), torch.stack(shares, -1).flatten(2)


@lru_cache(maxsize=64)
def _level_tensors(shapes: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """(L, 2) sizes as (W, H) and (L,) first token of each level."""
    size = torch.tensor([(w, h) for h, w in shapes], device=device)
    start = torch.tensor([0, *(h * w for h, w in shapes)][:-1], device=device).cumsum(0)
    return size, start


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
