"""Models of a short sequence along an agent's track: recurrent, convolutional, attentive; one contract.

Each takes ``tokens`` (G, M, C) of G agents (none, too) in M frames, the newest first, and ``valid`` (G, M) bool, whose
first column is True, and returns (G, C): what the sequence says of the newest frame. What is not valid has no
influence.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.registry import MODELS


@MODELS.register_module()
class TrackLSTM(nn.Module):
    """Long short-term memory, read from the oldest to the newest frame (Hochreiter & Schmidhuber 1997).

    A frame that is not valid leaves the state as it is.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(channels, channels)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """(G, M, C) tokens and (G, M) bool to (G, C) float32, the state after the newest frame."""
        with torch.autocast(tokens.device.type, enabled=False):  # a state in bfloat16 loses what it gathers
            tokens = tokens.float()
            hidden = cell = tokens.new_zeros(tokens.shape[0], tokens.shape[2])
            for age in reversed(range(tokens.shape[1])):
                next_hidden, next_cell = self.cell(tokens[:, age], (hidden, cell))
                there = valid[:, age : age + 1]
                hidden, cell = torch.where(there, next_hidden, hidden), torch.where(there, next_cell, cell)
        return hidden


@MODELS.register_module()
class TrackConvolution(nn.Module):
    """Residual temporal convolutions; the newest frame and the mean over the valid ones are the answer.

    Args:
        channels: C.
        num_layers: number of convolutions.
        kernel_size: frames that one covers, odd.

    Raises:
        ValueError: an even kernel size.
    """

    def __init__(self, channels: int, num_layers: int = 2, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: {kernel_size} must be odd")
        self.convolutions = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, padding=kernel_size // 2) for _ in range(num_layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(num_layers))

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """(G, M, C) tokens and (G, M) bool to (G, C): the newest frame plus the mean over the valid ones."""
        weight = valid.unsqueeze(-1).to(tokens.dtype)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            update = convolution((tokens * weight).transpose(1, 2)).transpose(1, 2)
            tokens = tokens + F.relu(norm(update))
        return tokens[:, 0] + (tokens * weight).sum(1) / weight.sum(1)


@MODELS.register_module()
class TrackTransformer(nn.Module):
    """Transformer encoder over the frames (Vaswani et al. 2017), pre-norm; the newest frame is the answer.

    Args:
        channels: C.
        num_layers: number of encoder layers.
        num_heads: of the attention; must divide C.
        max_frames: longest sequence, for the learned embedding of a frame's age.
        dropout: probability.
    """

    def __init__(
        self, channels: int, num_layers: int = 2, num_heads: int = 4, max_frames: int = 16, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.ages = nn.Embedding(max_frames, channels)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(channels, num_heads, 2 * channels, dropout, batch_first=True, norm_first=True)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """(G, M, C) tokens and (G, M) bool to (G, C): the newest frame, normalised.

        Raises:
            ValueError: the sequence is longer than ``max_frames``.
        """
        if tokens.shape[1] > self.ages.num_embeddings:
            raise ValueError(f"max_frames: {self.ages.num_embeddings}, but the sequence has {tokens.shape[1]}")
        tokens = tokens + self.ages.weight[: tokens.shape[1]].to(tokens.dtype)
        for layer in self.layers if len(tokens) else ():  # torch's attention cannot reshape a mask of no agents
            tokens = layer(tokens, src_key_padding_mask=~valid)
        return self.norm(tokens[:, 0])
