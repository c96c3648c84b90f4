"""Heatmaps of points: painting their targets, reading their peaks; on BEV cells and image cells alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def gaussian_heatmap(cells: Tensor, sigma_cells: Tensor, channels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Every point as a Gaussian that is 1 at its own cell; where several of one channel meet, the largest counts.

    Args:
        cells: (G, 2) integer (column, row); sigma_cells: (G,) standard deviations; channels: (G,) integer.
        shape: (K, rows, columns) of the heatmap.

    Returns:
        (K, rows, columns) in [0, 1].
    """
    number, rows, columns = shape
    sigma = sigma_cells.float()[:, None]
    along_columns = torch.arange(columns, device=cells.device)[None] - cells[:, :1]
    along_rows = torch.arange(rows, device=cells.device)[None] - cells[:, 1:]
    bell_columns = torch.exp(-0.5 * (along_columns / sigma).square())
    bell_rows = torch.exp(-0.5 * (along_rows / sigma).square())
    heatmap = sigma.new_zeros(number, rows, columns)
    for channel in channels.unique():
        own = channels == channel
        heatmap[channel] = (bell_rows[own].unsqueeze(2) * bell_columns[own].unsqueeze(1)).amax(0)
    return heatmap


def local_peaks(scores: Tensor) -> Tensor:
    """(B, K, rows, columns) scores, kept where none of the eight cells around is higher, zero elsewhere."""
    return scores * (scores == F.max_pool2d(scores, 3, 1, 1))


def radius_by_class(radius_m: float | Mapping[str, float], classes: Sequence[str]) -> Tensor:
    """(K,) metres of :func:`keep_apart`, from one number for all classes or one by name."""
    by_name = radius_m if isinstance(radius_m, Mapping) else dict.fromkeys(classes, radius_m)
    return torch.tensor([float(by_name[name]) for name in classes])


def keep_apart(centers: Tensor, labels: Tensor, radius_m: Tensor) -> Tensor:
    """Greedy suppression by distance: of two boxes of one class nearer than the radius, the earlier one stays.

    Args:
        centers: (D, 2) metres, best first; labels: (D,); radius_m: (D,) of each box's class.

    Returns:
        Indices of the boxes that stay, in order.
    """
    near = (torch.cdist(centers, centers) < radius_m[:, None]) & (labels[:, None] == labels)
    near = near.cpu()
    alive = torch.ones(len(centers), dtype=torch.bool)
    for index in range(len(centers)):
        if alive[index]:
            alive[index + 1 :] &= ~near[index, index + 1 :]
    return alive.nonzero().squeeze(1).to(centers.device)
