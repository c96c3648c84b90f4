"""The Transformer decoder of mask classification: queries attend to the whole map, or to their own masks alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.models.layers.attention import MultiHeadSelfAttention, inner_channels
from bevstack.models.layers.feed_forward import FeedForward
from bevstack.models.layers.settings import Settings
from bevstack.ops.linear import Linear


class FourierEncoding(nn.Module):
    """Sines and cosines of a place at F frequencies, so that a product of two codes is a function of their distance.

    ``(w * code(a)) . code(b) = sum over axes and frequencies of w cos(2 pi f (a - b))``, where sine and cosine of one
    frequency share their weight w: the positional product of Conditional DETR (Meng et al. 2021, section 3.3).

    Args:
        num_frequencies: F, spaced geometrically.
        lowest, highest: of them, in waves over the whole extent.
    """

    waves: Tensor

    def __init__(self, num_frequencies: int = 8, lowest: float = 0.5, highest: float = 16.0) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        exponents = torch.linspace(0, 1, num_frequencies, dtype=torch.float64)
        waves = 2 * math.pi * lowest * (highest / lowest) ** exponents
        self.register_buffer("waves", waves.float(), persistent=False)

    def forward(self, places: Tensor) -> Tensor:
        """(..., 2) fractions (x, y) of an extent to (..., 4 F): sine x, cosine x, sine y, cosine y; float32."""
        angles = places.float().unsqueeze(-1) * self.waves
        return torch.stack([angles.sin(), angles.cos()], dim=-2).flatten(-3)

    def spread(self, weights: Tensor) -> Tensor:
        """(..., 2 F) weights of x's and y's frequencies to (..., 4 F), one for each entry of a code."""
        return weights.unflatten(-1, (2, 1, self.num_frequencies)).expand(*weights.shape[:-1], 2, 2, -1).flatten(-3)


class MaskedCrossAttention(nn.Module):
    """Queries attend to tokens, each only to those that it is allowed to see (Mask2Former, Cheng et al. 2022, eq. 1-2).

    Args:
        channels: C.
        num_heads: h; must divide C when split.
        dropout: probability on the attention weights.
        head_width: ``split`` or ``replicated``, see
            :class:`bevstack.models.layers.attention.MultiHeadSelfAttention`.

    Raises:
        ValueError: C does not split, or the width is unknown.
    """

    def __init__(self, channels: int, num_heads: int, dropout: float = 0.0, head_width: str = "split") -> None:
        super().__init__()
        inner = inner_channels(channels, num_heads, head_width)
        self.num_heads, self.dropout = num_heads, dropout
        self.query_proj, self.key_proj, self.value_proj = (Linear(channels, inner) for _ in range(3))
        self.output_proj = Linear(inner, channels)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases."""
        for linear in (self.query_proj, self.key_proj, self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None = None) -> Tensor:
        """Update of the queries, without residual.

        Args:
            queries, keys: (B, Q, C) and (B, S, C), their positions added.
            values: (B, S, C).
            allowed: (B, Q, S) bool, which tokens a query sees; one that is allowed none sees all. None: all see all.

        Returns:
            (B, Q, C).
        """
        query, key, value = (
            tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens in (self.query_proj(queries), self.key_proj(keys), self.value_proj(values))
        )
        if allowed is not None:
            allowed = (allowed | ~allowed.any(-1, keepdim=True)).unsqueeze(1)
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
        return self.output_proj(attended.transpose(1, 2).flatten(2))


@dataclass(frozen=True)
class MaskDecoderSize(Settings):
    """Size of a decoder of mask queries, and what they attend to.

    Args:
        num_layers: D.
        num_heads: attention heads of both attentions.
        feed_forward_channels: width of the feed-forward networks.
        dropout: probability everywhere.
        head_width: ``split`` or ``replicated``, see :class:`bevstack.models.layers.attention.MultiHeadSelfAttention`.
        token_stride: cells that one token of the cross-attention stands for, in each direction.
        masked_attention: whether a layer's queries see only the tokens inside the masks they had before it.

    Raises:
        ValueError: no layer, or a stride below 1.
    """

    num_layers: int = 3
    num_heads: int = 4
    feed_forward_channels: int = 192
    dropout: float = 0.0
    head_width: str = "split"
    token_stride: int = 4
    masked_attention: bool = False

    def __post_init__(self) -> None:
        if self.num_layers < 1 or self.token_stride < 1:
            raise ValueError(f"num_layers ({self.num_layers}), token_stride ({self.token_stride}): at least 1")


class MaskDecoderLayer(nn.Module):
    """Cross-attention to the map, self-attention, feed-forward; residual and LayerNorm after each.

    The order is Mask2Former's (section 3.2.2): queries that have seen nothing yet have nothing to tell one another.

    Args:
        channels: C.
        size: of the decoder, of which this is one layer.
    """

    def __init__(self, channels: int, size: MaskDecoderSize) -> None:
        super().__init__()
        self.cross_attention = MaskedCrossAttention(channels, size.num_heads, size.dropout, size.head_width)
        self.self_attention = MultiHeadSelfAttention(channels, size.num_heads, size.dropout, size.head_width)
        self.feed_forward = FeedForward(channels, size.feed_forward_channels, size.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))
        self.dropout = nn.Dropout(size.dropout)

    def forward(
        self, queries: Tensor, positions: Tensor, keys: Tensor, values: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """Refine the queries.

        Args:
            queries, positions: (B, Q, C).
            keys, values: (B, S, C) tokens of the map, with their positions and without.
            allowed: see :class:`MaskedCrossAttention`.

        Returns:
            (B, Q, C).
        """
        update = self.cross_attention(queries + positions, keys, values, allowed)
        queries = self.norms[0](queries + self.dropout(update))
        queries = self.norms[1](queries + self.dropout(self.self_attention(queries, positions)))
        return self.norms[2](queries + self.feed_forward(queries))
