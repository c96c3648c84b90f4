"""The four pixels around each sample, as torch operations: what the backends in plain torch share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def corners(
    shapes: Sequence[tuple[int, int]], references: Tensor, offsets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """The four pixels around each sample and their share of its weight.

    Args:
        shapes: (H_l, W_l) of the L levels.
        references: (R, Z, 2) fractions.
        offsets: (R, h, L, P, 2) pixels.
        weights: (R, h, L, P).

    Returns:
        Token indices (R, h, L * P * 4) within a value map, and weights of that shape, zero outside the map.
    """
    size = torch.tensor([(w, h) for h, w in shapes], device=references.device)
    starts = [0]
    for h, w in shapes:
        starts.append(starts[-1] + h * w)
    start = torch.tensor(starts[:-1], device=references.device)
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
