"""The definition in plain torch operations: any dtype, any device, any number of derivatives, fixed shapes.

Nothing depends on values (no ``nonzero``, no synchronisation), so that exporters can follow it, too; every slot is
computed, and an empty one counts with weight zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bevstack.ops.backends.arguments import Arguments
from bevstack.ops.backends.corners import corners


def forward(given: Arguments) -> Tensor:
    """(B, Q, h * c) in float32 at least."""
    value, slots, shapes = given.value, given.slots, given.shapes
    batch, queries, num_slots = slots.shape
    maps, tokens, heads, channels = value.shape
    levels, points = given.offsets.shape[4:6]
    dtype = torch.promote_types(value.dtype, torch.float32)
    occupied = slots >= 0
    share = torch.where(occupied, given.slot_weights.to(dtype), 0.0)
    weights = given.logits.to(dtype).softmax(-1) * share[..., None, None]
    references = torch.where(occupied[..., None, None], given.references.to(dtype), 0.0)
    offsets = given.offsets.to(dtype).expand(-1, -1, num_slots, -1, -1, -1, -1)
    indices, weights = corners(
        shapes,
        references.flatten(0, 2),
        offsets.flatten(0, 2),
        weights.expand(-1, -1, num_slots, -1, -1).flatten(0, 2).unflatten(-1, (levels, points)),
    )  # both (B * Q * S, h, L * P * 4)
    head = torch.arange(heads, device=value.device)[:, None]
    rows = (slots.clamp_min(0).reshape(-1, 1, 1) * tokens + indices) * heads + head
    table = value.to(dtype).reshape(maps * tokens * heads, channels)
    sampled = (table[rows] * weights.unsqueeze(-1)).sum(2)
    return sampled.view(batch, queries, num_slots, heads * channels).sum(2)
