"""Deformable attention by ``grid_sample`` alone, for exported graphs: fixed shapes, no tensor of more than five axes.

All value maps are stacked into one tall map with a row of zeros between them, so that one sampling operation per level
reads any slot of any query: half as much memory as gathering corners, and an operation that every runtime has
(ONNX: GridSample). Differentiable once.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from bevstack.ops.backends.arguments import Arguments


def forward(given: Arguments) -> Tensor:
    """(B, Q, h * c) in float32 at least."""
    value, slots = given.value, given.slots
    batch, queries, num_slots = slots.shape
    maps, _, heads, channels = value.shape
    groups, levels, points = given.offsets.shape[2], given.offsets.shape[4], given.offsets.shape[5]
    rows, anchors = batch * queries, given.references.shape[3]
    dtype = torch.promote_types(value.dtype, torch.float32)
    occupied = slots >= 0
    share = torch.where(occupied, given.slot_weights, 0.0).reshape(1, rows, num_slots, 1)
    place = slots.clamp_min(0).reshape(1, rows, num_slots, 1).to(dtype)
    weights = given.logits.reshape(rows, groups, heads, levels * points).softmax(-1).permute(2, 0, 1, 3)
    weights = (weights * share).reshape(heads, rows * num_slots, levels, points)
    references = given.references.reshape(rows * num_slots, anchors, 2).repeat(1, points // anchors, 1)
    # (h * L, R, G, P * 2): heads and levels first; the levels are told apart by index, so that five axes are enough.
    offsets = given.offsets.reshape(rows * groups, heads * levels, points * 2).transpose(0, 1)
    offsets = offsets.reshape(heads, levels, rows, groups, points * 2)
    value = value.to(dtype).permute(2, 3, 0, 1)  # (h, c, M, tokens)
    result, start = value.new_zeros(()), 0
    for level, (height, width) in enumerate(given.shapes):
        tokens = value[..., start : start + height * width].reshape(heads, channels * maps, height, width)
        tall = F.pad(tokens, (0, 0, 0, 1)).reshape(heads, channels, maps * (height + 1), width)
        moved = offsets[:, level].expand(-1, -1, num_slots, -1).reshape(heads, rows, num_slots * points, 2)
        anchored = references.reshape(1, rows, num_slots * points, 2)
        x = (anchored[..., 0] * width + moved[..., 0]).clamp(-1.0, width + 1.0)
        # Half a pixel above and below a map is all that sees it; beyond, there is the row of zeros.
        y = (anchored[..., 1] * height + moved[..., 1]).clamp(-0.5, height + 0.5)
        y = (y.reshape(heads, rows, num_slots, points) + place * (height + 1)).reshape(x.shape)
        where = torch.stack([x * (2.0 / width) - 1.0, y * (2.0 / (maps * (height + 1))) - 1.0], dim=-1)
        sampled = F.grid_sample(tall, where, mode="bilinear", padding_mode="zeros", align_corners=False)
        weight = weights[:, :, level].reshape(heads, 1, rows, num_slots * points)
        result = result + (sampled * weight).sum(-1)  # (h, c, R)
        start += height * width
    return result.permute(2, 0, 1).reshape(batch, queries, heads * channels).contiguous()
