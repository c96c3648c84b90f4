"""Which predicted box found which true one, as the evaluation says it and pictures and reports show it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class DetectionMatches:
    """Pairs of one sample's R predicted and G true boxes, row for row as the sample has them.

    Pairs are made by falling score, so that those of the predictions above a threshold are the same whatever lies
    below it.

    Args:
        true_row: (R,) row of the true box that a prediction found, -1 for none.
        distance_m: (R,) between the two centres on the ground, NaN for none.
        counted: (R,) bool, whether the prediction lies in the range in which its class is scored.
        counted_truth: (G,) bool, whether the true box does, has a class, and was hit by a sensor where that is known.
    """

    true_row: np.ndarray
    distance_m: np.ndarray
    counted: np.ndarray
    counted_truth: np.ndarray
