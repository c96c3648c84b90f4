"""One temperature that makes probabilities mean what they say, fitted to counts of what was right (Guo et al. 2017)."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar

from bevstack.evaluation.breakdown import CALIBRATION_BINS, expected_calibration_error

LOGIT_BINS, LARGEST_LOGIT = 1600, 16.0
LIMITS = (0.1, 10.0)
"""Between which temperatures are looked for."""


def logit_counts(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(1600, 2) counts by the logit of the confidence, from -16 to 16: how many, how many of them right.

    Args:
        confidence: of any shape, in [0, 1]. right: bool, of the same shape.
    """
    within = np.clip(np.asarray(confidence, np.float64).ravel(), 1e-7, 1 - 1e-7)
    logits = np.log(within) - np.log1p(-within)
    places = np.clip((logits + LARGEST_LOGIT) * (LOGIT_BINS / (2 * LARGEST_LOGIT)), 0, LOGIT_BINS - 1).astype(int)
    columns = (None, np.asarray(right, np.float64).ravel())
    return np.stack([np.bincount(places, column, LOGIT_BINS) for column in columns], axis=-1).astype(float)


def bin_logits() -> np.ndarray:
    """(1600,) middles of the bins of :func:`logit_counts`."""
    return ((np.arange(LOGIT_BINS) + 0.5) / LOGIT_BINS * 2 - 1) * LARGEST_LOGIT


def likelihood_loss(counts: np.ndarray, temperature: float) -> float:
    """Mean negative log likelihood of counts (1600, 2) where logits are divided by a temperature."""
    logits, (number, right) = bin_logits() / temperature, counts.T
    losses = number * np.logaddexp(0, logits) - right * logits
    return float(losses.sum() / max(number.sum(), 1.0))


def fitted_temperature(counts: np.ndarray) -> float:
    """The temperature with the least :func:`likelihood_loss` of counts (1600, 2); 1 where nothing was counted."""
    if not counts[:, 0].sum():
        return 1.0
    low, high = np.log(LIMITS)
    found = minimize_scalar(lambda power: likelihood_loss(counts, float(np.exp(power))), bounds=(low, high))
    return float(np.exp(found.x))


def calibration_error(counts: np.ndarray, temperature: float = 1.0) -> float:
    """Expected calibration error of counts (1600, 2), by tenths of the confidence; NaN of nothing.

    Args:
        counts: of :func:`logit_counts`.
        temperature: that logits are divided by.
    """
    confidence = 1 / (1 + np.exp(-bin_logits() / temperature))
    tenths = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    columns = (counts[:, 0], counts[:, 0] * confidence, counts[:, 1])
    summed = [np.bincount(tenths, column, CALIBRATION_BINS) for column in columns]
    return expected_calibration_error(np.stack(summed, axis=-1))
