"""Attention layers of the detection decoder: among queries, and from queries into B_t."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.models.layers.initialization import init_sampling_offsets
from bevstack.ops import deformable_attention
from bevstack.ops.linear import Linear, full_precision_linear

HEAD_WIDTHS = ("split", "replicated")


def inner_channels(channels: int, num_heads: int, head_width: str) -> int:
    """Channels of all heads' queries (or keys, or values) together: C when ``split``, h C when ``replicated``.

    Raises:
        ValueError: C does not split, or the width is unknown.
    """
    if head_width not in HEAD_WIDTHS:
        raise ValueError(f"head_width: {head_width!r} is none of {', '.join(HEAD_WIDTHS)}")
    if head_width == "split" and channels % num_heads:
        raise ValueError(f"num_heads: {channels} channels do not split over {num_heads} heads")
    return channels if head_width == "split" else channels * num_heads


class MultiHeadSelfAttention(nn.Module):
    """Scaled dot-product attention among queries (Vaswani et al. 2017, eq. 1).

    With ``head_width="split"`` each head works on C / h channels: 4 C^2 weights. With ``"replicated"`` each head sees
    all C: 4 h C^2 weights, and h times the cost of the projections and of the attention itself.

    Args:
        channels: C.
        num_heads: h; must divide C when split.
        dropout: probability on the attention weights.
        head_width: ``split`` or ``replicated``.

    Raises:
        ValueError: C does not split, or the width is unknown.
    """

    def __init__(self, channels: int, num_heads: int, dropout: float = 0.0, head_width: str = "split") -> None:
        super().__init__()
        inner = inner_channels(channels, num_heads, head_width)
        self.num_heads, self.dropout = num_heads, dropout
        self.query_key_proj = Linear(channels, 2 * inner)
        self.value_proj = Linear(channels, inner)
        self.output_proj = Linear(inner, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        for linear in (self.query_key_proj, self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, positions: Tensor) -> Tensor:
        """Update of the queries, without residual.

        Args:
            queries: (B, Q, C).
            positions: (B, Q, C) or broadcastable, added to queries and keys, not to the values.

        Returns:
            (B, Q, C).
        """
        query, key = self.query_key_proj(queries + positions).chunk(2, dim=-1)
        query, key, value = (
            tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens in (query, key, self.value_proj(queries))
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)
        return self.output_proj(attended.transpose(1, 2).flatten(2))


class DeformableCrossAttention(nn.Module):
    """Queries look into one set of feature maps around one reference point each (Zhu et al. 2021, eq. 3).

    Args:
        channels: C.
        num_heads: h; must divide C.
        num_levels: L feature maps.
        num_points: P sampling points a level.
        value_channels: channels of the maps, C unless told.

    Raises:
        ValueError: C does not split over the heads.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int = 8,
        num_levels: int = 1,
        num_points: int = 4,
        value_channels: int | None = None,
    ) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"num_heads: {channels} channels do not split over {num_heads} heads")
        self.num_heads, self.num_levels, self.num_points = num_heads, num_levels, num_points
        self.value_proj = Linear(value_channels or channels, channels)
        self.sampling_offsets = Linear(channels, num_heads * num_levels * num_points * 2)
        self.attention_weights = Linear(channels, num_heads * num_levels * num_points)
        self.output_proj = Linear(channels, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each head starts looking in its own direction, point i at i + 1 pixels (docs/reference.md 4.5, Init)."""
        init_sampling_offsets(self.sampling_offsets, self.num_heads, self.num_levels, self.num_points)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, queries: Tensor, references: Tensor, tokens: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Update of the queries, without residual.

        Args:
            queries: (B, Q, C), their positions added.
            references: (B, Q, 2) fractions (x, y) of the maps.
            tokens: (B, sum of H_l * W_l, value channels) the maps, levels one after another, row-major.
            shapes: (H_l, W_l) of the L levels.

        Returns:
            (B, Q, C).
        """
        batch, count, _ = queries.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        slots = torch.arange(batch, device=queries.device).view(batch, 1, 1).expand(-1, count, -1)
        offsets, logits = full_precision_linear(queries, self.sampling_offsets, self.attention_weights)
        sampled = deformable_attention(
            self.value_proj(tokens).unflatten(-1, (heads, -1)),
            shapes,
            slots,
            references[:, :, None, None],
            offsets.unflatten(-1, (1, heads, levels, points, 2)),
            logits.unflatten(-1, (1, heads, levels * points)),
            torch.ones_like(slots, dtype=references.dtype),
        )
        return self.output_proj(sampled)
