"""Temporal self-attention: BEV queries look at the previous BEV and at the current one (BEVFormer, eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from bevstack.models.layers.initialization import SamplingStart, init_sampling_offsets
from bevstack.ops import deformable_attention
from bevstack.ops.linear import Linear, full_precision_linear


@dataclass(frozen=True)
class TemporalContext:
    """What every layer of one frame shares.

    Args:
        previous: (B, Q, C) previous BEV, aligned to the current frame; anything where ``valid`` is False. None: no
            sample has history.
        initial: (B, Q, C) the queries before the first layer, the "current" value of samples with history.
        valid: (B,) bool, which samples have history; None: all of them.
        references: (B, Q, 2, 2) fractions (x, y) of the grid at which to look into (previous, current);
            docs/reference.md 4.5, hybrid_ref_2d.
        position: (B, Q, C) or (1, Q, C) positional encoding.
    """

    previous: Tensor | None
    initial: Tensor
    valid: Tensor | None
    references: Tensor
    position: Tensor

    @cached_property
    def pair(self) -> Tensor:
        """(2 B, Q, C) previous and initial BEV of every sample, where all have history: the same for every layer."""
        if self.previous is None or self.valid is not None:
            raise ValueError("samples without history look at each layer's own query")
        return torch.stack([self.previous.to(self.initial.dtype), self.initial], dim=1).flatten(0, 1)


class TemporalSelfAttention(nn.Module):
    """Deformable attention over the pair (previous BEV, current BEV), averaged.

    Where a sample has no history both entries are the layer's own query, as in the reference. With history the current
    entry is the *initial* query in every layer, and the previous one is the sample's own in a batch, too (4.1 D). The
    reference averages; the paper sums (4.4). Source: docs/reference.md 4.5, TSA, 4.2, Current value.

    Args:
        channels: C; num_heads: divides it; num_points: samples per head; dropout: on the projected output;
            start: where the samples lie at initialisation.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        num_points: int = 4,
        dropout: float = 0.1,
        start: SamplingStart | None = None,
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{channels} channels cannot be split over {num_heads} heads")
        self.num_heads, self.num_points = num_heads, num_points
        self.sampling_offsets = Linear(2 * channels, num_heads * 2 * num_points * 2)
        self.attention_weights = Linear(2 * channels, num_heads * 2 * num_points)
        self.value_proj = Linear(channels, channels)
        self.output_proj = Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.start = start or SamplingStart()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start as rays in ``num_heads`` directions, weights uniform (docs/reference.md 4.5, Init)."""
        init_sampling_offsets(self.sampling_offsets, self.num_heads, 2, self.num_points, self.start.ring_px)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, query: Tensor, context: TemporalContext, shape: tuple[int, int]) -> Tensor:
        """Update of the queries, without residual.

        Args:
            query: (B, Q, C) of this layer.
            context: the frame's history.
            shape: (Y, X) of the grid, Y * X = Q.

        Returns:
            (B, Q, C).
        """
        batch, queries, _ = query.shape
        heads, points = self.num_heads, self.num_points
        sample = torch.arange(batch, device=query.device).view(batch, 1, 1)
        if context.previous is None:  # both entries are one map, projected once
            value = self.value_proj(query)
            maps = sample.expand(-1, queries, 2)
            both = torch.cat([query, query + context.position], dim=-1)
        else:
            if context.valid is None:
                previous, pair = context.previous.to(query.dtype), context.pair.to(query.dtype)
            else:
                valid = context.valid[:, None, None]
                previous = torch.where(valid, context.previous.to(query.dtype), query)
                current = torch.where(valid, context.initial.to(query.dtype), query)
                pair = torch.stack([previous, current], dim=1).flatten(0, 1)
            value = self.value_proj(pair)
            maps = (2 * sample + torch.arange(2, device=query.device)).expand(-1, queries, -1)
            both = torch.cat([previous, query + context.position], dim=-1)
        offsets, logits = full_precision_linear(both, self.sampling_offsets, self.attention_weights)

        def per_entry(raw: Tensor, *sizes: int) -> Tensor:  # heads first in the layer's output, entries first in the op
            return raw.unflatten(-1, (heads, 2, -1)).transpose(2, 3).unflatten(-1, sizes)

        sampled = deformable_attention(
            value.unflatten(-1, (heads, -1)),
            [shape],
            maps,
            context.references.unsqueeze(3),
            per_entry(offsets, 1, points, 2),
            per_entry(logits, points),
            query.new_full((1, 1, 1), 0.5, dtype=torch.float32).expand(batch, queries, 2),
        )
        return self.dropout(self.output_proj(sampled))
