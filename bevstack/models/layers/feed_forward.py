"""The position-wise feed-forward network of a Transformer layer."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from bevstack.ops.linear import Linear, linear


class FeedForward(nn.Sequential):
    """Linear, ReLU, dropout, Linear, dropout on (..., C); the residual is the caller's.

    Args:
        channels: C.
        feed_forward_channels: width in between.
        dropout: probability after each linear layer.
    """

    def __init__(self, channels: int, feed_forward_channels: int, dropout: float = 0.1) -> None:
        super().__init__(
            Linear(channels, feed_forward_channels),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            Linear(feed_forward_channels, channels),
            nn.Dropout(dropout),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Xavier-uniform weights, zero biases (docs/reference.md 4.5, Init)."""
        for layer in self:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., C) to (..., C); the first layer and its ReLU are one product."""
        first, _, first_dropout, second, second_dropout = (cast("Linear", layer) for layer in self)
        hidden = first_dropout(linear(tokens, first.weight, first.bias, activation="relu"))
        return second_dropout(second(hidden))
