"""One layer of the detection decoder, and the arithmetic of iterative refinement.

Source: docs/reference.md 4.6, Refinement.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bevstack.models.layers.attention import DeformableCrossAttention, MultiHeadSelfAttention
from bevstack.models.layers.feed_forward import FeedForward


def inverse_sigmoid(fraction: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of fractions, each side kept at least ``eps`` away from zero; float32 at least."""
    fraction = fraction.to(torch.promote_types(fraction.dtype, torch.float32)).clamp(0, 1)
    return (fraction.clamp_min(eps) / (1 - fraction).clamp_min(eps)).log()


class DETRDecoderLayer(nn.Module):
    """Self-attention, deformable attention into B_t, feed-forward; residual and LayerNorm after each.

    Source: docs/reference.md 4.6, Decoder layer, 4.8, Positions.

    Args:
        channels: C.
        heads: attention heads of both attentions.
        points: sampling points of a head in B_t.
        hidden: width of the feed-forward network.
        dropout: probability everywhere.
        head_width: ``split`` or ``replicated``, see :class:`MultiHeadSelfAttention`.
        map_channels: channels of B_t, C unless told.
    """

    def __init__(
        self,
        channels: int,
        heads: int = 8,
        points: int = 4,
        hidden: int = 512,
        dropout: float = 0.1,
        head_width: str = "split",
        map_channels: int | None = None,
    ) -> None:
        super().__init__()
        self.self_attention = MultiHeadSelfAttention(channels, heads, dropout, head_width)
        self.cross_attention = DeformableCrossAttention(channels, heads, 1, points, map_channels)
        self.feed_forward = FeedForward(channels, hidden, dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, queries: Tensor, positions: Tensor, references: Tensor, tokens: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Refine the queries.

        Args:
            queries: (B, Q, C).
            positions: (B, Q, C) or broadcastable.
            references: (B, Q, 2) fractions (x, y) of the BEV grid.
            tokens: (B, Y * X, map channels) B_t, row-major.
            shapes: ((Y, X),).

        Returns:
            (B, Q, C).
        """
        queries = self.norms[0](queries + self.dropout(self.self_attention(queries, positions)))
        update = self.cross_attention(queries + positions, references, tokens, shapes)
        queries = self.norms[1](queries + self.dropout(update))
        return self.norms[2](queries + self.feed_forward(queries))
