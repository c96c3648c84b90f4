"""Learned positional encoding of a BEV grid."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LearnedPositionalEncoding(nn.Module):
    """One learned vector per column and one per row, joined: C = 2 * channels_half (docs/reference.md 4.5, bev_pos).

    The first half of the channels tells the column (x), the second half the row (y). Both tables start uniform in
    [0, 1), as DETR's learned encoding does.

    Args:
        channels_half: length of each table's vectors, C / 2.
        rows: Y.
        columns: X.
    """

    def __init__(self, channels_half: int, rows: int, columns: int) -> None:
        super().__init__()
        self.row_embed = nn.Embedding(rows, channels_half)
        self.column_embed = nn.Embedding(columns, channels_half)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both tables anew, uniform in [0, 1)."""
        nn.init.uniform_(self.row_embed.weight)
        nn.init.uniform_(self.column_embed.weight)

    def forward(self) -> Tensor:
        """The encoding of every cell, (C, Y, X), in BEV orientation."""
        column, row = self.column_embed.weight, self.row_embed.weight
        column = column.t().unsqueeze(1).expand(-1, row.shape[0], -1)
        row = row.t().unsqueeze(2).expand(-1, -1, column.shape[2])
        return torch.cat([column, row], dim=0)
