"""One layer of the detection decoder, and the arithmetic of iterative refinement.

Source: docs/reference.md 4.6, Refinement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bevstack.models.layers.attention import DeformableCrossAttention, MultiHeadSelfAttention
from bevstack.models.layers.feed_forward import FeedForward
from bevstack.models.layers.settings import Settings


def inverse_sigmoid(fraction: Tensor, eps: float = 1e-5) -> Tensor:
    """Logits (...) of fractions (...), each side kept at least ``eps`` away from zero; float32 at least."""
    fraction = fraction.to(torch.promote_types(fraction.dtype, torch.float32)).clamp(0, 1)
    return (fraction.clamp_min(eps) / (1 - fraction).clamp_min(eps)).log()


@dataclass(frozen=True)
class DecoderSize(Settings):
    """Size of a decoder of object queries.

    Args:
        num_layers: D.
        num_heads: attention heads of both attentions.
        num_points: sampling points of a head in B_t.
        feed_forward_channels: width of the feed-forward networks.
        dropout: probability everywhere.
        head_width: ``split`` or ``replicated``, see :class:`MultiHeadSelfAttention`.
    """

    num_layers: int = 6
    num_heads: int = 8
    num_points: int = 4
    feed_forward_channels: int = 512
    dropout: float = 0.1
    head_width: str = "split"


class DETRDecoderLayer(nn.Module):
    """Self-attention, deformable attention into B_t, feed-forward; residual and LayerNorm after each.

    Source: docs/reference.md 4.6, Decoder layer, 4.8, Positions.

    Args:
        channels: C.
        size: of the decoder, of which this is one layer.
        value_channels: channels of B_t, C unless told.
    """

    def __init__(self, channels: int, size: DecoderSize, value_channels: int | None = None) -> None:
        super().__init__()
        self.self_attention = MultiHeadSelfAttention(channels, size.num_heads, size.dropout, size.head_width)
        self.cross_attention = DeformableCrossAttention(channels, size.num_heads, 1, size.num_points, value_channels)
        self.feed_forward = FeedForward(channels, size.feed_forward_channels, size.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(size.dropout)

    def forward(
        self, queries: Tensor, positions: Tensor, references: Tensor, tokens: Tensor, shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Refine the queries.

        Args:
            queries: (B, Q, C).
            positions: (B, Q, C) or broadcastable.
            references: (B, Q, 2) fractions (x, y) of the BEV grid.
            tokens: (B, Y * X, value channels) B_t, row-major.
            shapes: ((Y, X),).

        Returns:
            (B, Q, C).
        """
        queries = self.norms[0](queries + self.dropout(self.self_attention(queries, positions)))
        update = self.cross_attention(queries + positions, references, tokens, shapes)
        queries = self.norms[1](queries + self.dropout(update))
        return self.norms[2](queries + self.feed_forward(queries))
