"""As fast as plain torch gets without a compiler: a ragged list of samples, summed by ``embedding_bag``.

Float32 and half precision, any device; differentiable once. Which slots are occupied is asked of the device, so that
nothing is computed for an empty one; a graph that must not depend on values takes another backend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bevstack.ops.backends.arguments import Arguments
from bevstack.ops.backends.corners import corners
from bevstack.ops.weighted_rows import weighted_rows


def forward(given: Arguments) -> Tensor:
    """(B, Q, h * c) in float32."""
    value, slots = given.value, given.slots
    batch, queries, num_slots = slots.shape
    maps, tokens, heads, channels = value.shape
    groups, levels, points = given.offsets.shape[2], given.offsets.shape[4], given.offsets.shape[5]
    # Ragged list of the occupied slots, in query order.
    pair = (slots.reshape(-1) >= 0).nonzero().squeeze(1)
    query = pair // num_slots
    source = query if groups == 1 else pair
    weights = given.logits.reshape(-1, heads, levels * points).index_select(0, source).softmax(-1)
    weights = weights * given.slot_weights.reshape(-1).index_select(0, pair)[:, None, None]
    indices, weights = corners(
        given.shapes,
        given.references.reshape(-1, *given.references.shape[3:]).index_select(0, pair),
        given.offsets.reshape(-1, heads, levels, points, 2).index_select(0, source),
        weights.unflatten(-1, (levels, points)),
    )
    row = slots.reshape(-1).index_select(0, pair) * (tokens * heads)
    indices = indices * heads + torch.arange(heads, device=value.device)[:, None] + row[:, None, None]
    table = value.float().reshape(maps * tokens * heads, channels)
    sampled = weighted_rows(table, indices.flatten(0, 1), weights.flatten(0, 1)).unflatten(0, (-1, heads)).flatten(1)
    if len(pair) == batch * queries and num_slots == 1:
        result = sampled
    else:
        result = sampled.new_zeros(batch * queries, heads * channels).index_add(0, query, sampled)
    return result.view(batch, queries, heads * channels)
