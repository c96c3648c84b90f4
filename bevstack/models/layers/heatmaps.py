"""Heatmaps of points: painting their targets, reading their peaks, and which cells are positive for a point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from bevstack.models.layers.settings import Settings


@dataclass(frozen=True)
class HeatmapCriterion(Settings):
    """What a heatmap of object centres, and what is regressed at them, is trained by.

    Args:
        heatmap_weight: of the focal loss of centres.
        min_sigma_cells: smallest standard deviation of a centre's Gaussian; larger objects get wider ones.
        reach_cells: what is regressed at a centre is also learned in the cells that are so many rows and columns away,
            so that a peak which is one cell off still finds its object; 0 for the centre's cell alone.
    """

    heatmap_weight: float = 1.0
    min_sigma_cells: float = 0.8
    reach_cells: int = 1


@dataclass(frozen=True)
class PeakDecoding(Settings):
    """How objects are read from the peaks of a heatmap.

    Args:
        max_num: most objects of a sample, kept by score.
        score_threshold: objects that score less are dropped.
        nms_radius_m: of two objects of one class nearer than this (by class, or one number) the better stays.
    """

    max_num: int = 300
    score_threshold: float = 0.02
    nms_radius_m: float | Mapping[str, float] = 0.5


EMPTY_CELL_LOGIT = -4.6
"""Where the bias of a heatmap starts: probability 0.01, as nearly every cell holds nothing."""


class PositiveCells(NamedTuple):
    """The R cells that learn what is regressed at G points, as center sampling does (:func:`positive_cells`).

    Args:
        points: (R,) index of the point whose values a cell learns.
        cells: (R,) flat index of the cell in maps of the given shape.
        offsets: (R, 2) from the cell's centre to the point (column, row), in cells: within +-(reach + 1/2).
        shares: (R,) what each weighs: those of one point sum to 1, near cells weigh more than far ones.
    """

    points: Tensor
    cells: Tensor
    offsets: Tensor
    shares: Tensor


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


def positive_cells(places: Tensor, channels: Tensor, shape: tuple[int, int, int], reach_cells: int) -> PositiveCells:
    """The cells in which a point's values are learned: its own and those around, so that a peak beside it has them too
    (center sampling, FCOS, Tian et al. 2019, with soft weights).

    A cell's share is exp(-d^2 / 2), d its centre's distance to the point in cells, before the shares of one point are
    made to sum to 1. A cell between two points of one channel learns the nearer one's (both, where both are equally
    near); a point that is nearest nowhere has no cell.

    Args:
        places: (G, 2) (column, row) of the points in cells, on the map: cell i covers [i, i + 1).
        channels: (G,) integer: points of different channels do not contest each other's cells.
        shape: (K, rows, columns) of the maps.
        reach_cells: rows and columns to every side; 0 for the point's own cell alone.
    """
    number, rows, columns = shape
    steps = torch.arange(-reach_cells, reach_cells + 1, device=places.device)
    around = places.floor().long().unsqueeze(1) + torch.cartesian_prod(steps, steps)  # (G, cells, 2): column, row
    offsets = places.unsqueeze(1) - around - 0.5
    distance = offsets.square().sum(-1)
    there = ((around >= 0) & (around < around.new_tensor([columns, rows]))).all(-1)
    index = (around[..., 1] * columns + around[..., 0]).clamp(0, rows * columns - 1)
    index = index + channels.unsqueeze(1) * (rows * columns)
    nearest = distance.new_full((number * rows * columns,), torch.inf)
    nearest = nearest.scatter_reduce(0, index[there], distance[there], "amin")
    own = there & (distance <= nearest[index])
    shares = torch.exp(-0.5 * distance) * own
    shares = shares / shares.sum(1, keepdim=True).clamp_min(1e-6)
    return PositiveCells(own.nonzero()[:, 0], index[own], offsets[own], shares[own])


def heatmap_nms(scores: Tensor) -> Tensor:
    """(B, K, rows, columns) scores, kept where none of the eight cells around is higher, zero elsewhere.

    Source: CenterNet (Zhou et al. 2019), section 4.
    """
    return scores * (scores == F.max_pool2d(scores, 3, 1, 1))


def nms_radii(radius_m: float | Mapping[str, float], classes: Sequence[str]) -> Tensor:
    """(K,) radii in metres for :func:`circle_nms`, from one number for all classes or one by name.

    Raises:
        ValueError: a class without radius, or a radius of no class.
    """
    by_name = radius_m if isinstance(radius_m, Mapping) else dict.fromkeys(classes, radius_m)
    if set(by_name) != set(classes):
        raise ValueError(f"nms_radius_m: names {sorted(by_name)}, the classes are {sorted(classes)}")
    return torch.tensor([float(by_name[name]) for name in classes])


def circle_nms(centers: Tensor, labels: Tensor, radius_m: Tensor) -> Tensor:
    """Greedy suppression by distance: of two boxes of one class nearer than the radius, the earlier one stays.

    Source: CenterPoint (Yin et al. 2021).

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
