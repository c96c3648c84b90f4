"""The position-wise feed-forward network of a Transformer layer."""

from __future__ import annotations

from torch import nn


class FeedForward(nn.Sequential):
    """Linear, ReLU, dropout, Linear, dropout on (..., C); the residual is the caller's.

    Args:
        channels: C.
        feed_forward_channels: width in between.
        dropout: probability after each linear layer.
    """

    def __init__(self, channels: int, feed_forward_channels: int, dropout: float = 0.1) -> None:
        super().__init__(
            nn.Linear(channels, feed_forward_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(feed_forward_channels, channels),
            nn.Dropout(dropout),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases (docs/reference.md 4.5, Init)."""
        for linear in (layer for layer in self if isinstance(layer, nn.Linear)):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
