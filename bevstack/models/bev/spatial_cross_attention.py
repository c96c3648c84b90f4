"""Spatial cross-attention: BEV queries look into the cameras that see them (BEVFormer, eq. 3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevstack.models.bev.visibility import VisibilityPlan
from bevstack.models.layers.initialization import SamplingStart, init_sampling_offsets
from bevstack.ops import deformable_attention
from bevstack.ops.linear import Linear, full_precision_linear


class SpatialCrossAttention(nn.Module):
    """Deformable attention of BEV queries over N cameras and L feature levels (docs/reference.md 4.5, SCA).

    A camera that sees any point of a pillar is asked for all of them; what it does not see counts as zero (4.1 O).

    Args:
        channels: C of queries and image features.
        num_heads: attention heads; divides ``channels``.
        num_levels: feature levels per camera.
        num_points: samples per head and level, a multiple of ``num_heights``; point p samples around height
            ``p mod num_heights`` of the pillar.
        num_heights: pillar heights in the visibility plan.
        dropout: on the projected output.
        start: where the samples lie at initialisation.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        num_heights: int,
        dropout: float = 0.1,
        start: SamplingStart | None = None,
    ) -> None:
        super().__init__()
        if channels % num_heads or num_points % num_heights:
            raise ValueError(f"{channels} channels / {num_heads} heads, {num_points} points / {num_heights} heights")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.num_heights, self.start = num_heights, start or SamplingStart()
        self.sampling_offsets = Linear(channels, num_heads * num_levels * num_points * 2)
        self.attention_weights = Linear(channels, num_heads * num_levels * num_points)
        self.value_proj = Linear(channels, channels)
        self.output_proj = Linear(channels, channels)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start as rays, one a head (docs/reference.md 4.5, Init), weights as ``start`` says."""
        sizes = (self.num_heads, self.num_levels, self.num_points)
        init_sampling_offsets(self.sampling_offsets, *sizes, self.start.ring_px)
        nn.init.zeros_(self.attention_weights.weight)
        head, point = torch.arange(self.num_heads)[:, None, None], torch.arange(self.num_points)
        focus = (head - point) % self.num_heights == 0
        with torch.no_grad():
            focus = focus.expand(-1, self.num_levels, -1).flatten() * self.start.height_focus
            self.attention_weights.bias.copy_(focus)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, query: Tensor, image_tokens: Tensor, shapes: Sequence[tuple[int, int]], plan: VisibilityPlan
    ) -> Tensor:
        """Update of the queries, without residual.

        Args:
            query: (B, Q, C).
            image_tokens: (B * N, sum of H_l * W_l, C) of all cameras, in the plan's order.
            shapes: (H_l, W_l) of the levels.
            plan: which cameras see which query, and where.

        Returns:
            (B, Q, C); a query that no camera sees gets the output projection's bias.
        """
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        offsets, logits = full_precision_linear(query, self.sampling_offsets, self.attention_weights)
        sampled = deformable_attention(
            self.value_proj(image_tokens).unflatten(-1, (heads, -1)),
            shapes,
            plan.slots,
            plan.references,
            offsets.unflatten(-1, (1, heads, levels, points, 2)),
            logits.unflatten(-1, (1, heads, levels * points)),
            plan.weights,
        )
        return self.dropout(self.output_proj(sampled))
