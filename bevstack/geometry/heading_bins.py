"""A heading as a choice of directions and an angle from each: what is uncertain between several keeps them all.

Source: MultiBin (Mousavian et al. 2017, section 4.1), with evenly spaced, overlapping bins.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class HeadingBins(NamedTuple):
    """Headings on a circle of n bins; bin k has its centre at k * 360 / n degrees, so that 0 is a centre.

    Args:
        weights: (..., n) how much of a heading is each bin's: 1 at the bin's centre, falling linearly to 0 at the
            neighbours' centres. They sum to 1, and at most two are not 0. NaN where the heading is not known.
        residuals: (..., n) angle from each bin's centre to the heading, in widths of a bin: in [-n / 2, n / 2).
    """

    weights: Tensor
    residuals: Tensor


def encode_heading(yaw: Tensor, bins: int) -> HeadingBins:
    """Headings (...) in radians, of any number of turns, as shares of ``bins`` bins; NaN stays NaN."""
    half = bins / 2
    position = yaw.unsqueeze(-1) * (bins / (2 * math.pi)) - torch.arange(bins, device=yaw.device)
    residuals = torch.remainder(position + half, bins) - half
    return HeadingBins((1 - residuals.abs()).clamp_min(0), residuals)


def decode_heading(scores: Tensor, residuals: Tensor) -> Tensor:
    """The heading that the best bin says.

    Args:
        scores: (..., n), the higher the likelier; any scale.
        residuals: (..., n) from each bin's centre, in widths of a bin.

    Returns:
        (...) radians in [-pi, pi].
    """
    bins = scores.shape[-1]
    best = scores.argmax(-1, keepdim=True)
    turns = (best + residuals.gather(-1, best)).squeeze(-1) / bins
    return 2 * math.pi * (turns - turns.round())
