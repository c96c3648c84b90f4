"""Probabilities sharpened or softened by one number, fitted after training (Guo et al. 2017, temperature scaling)."""

from __future__ import annotations

from torch import Tensor

_LEAST = 1e-6


def tempered(probability: Tensor, temperature: float) -> Tensor:
    """Probabilities of any shape whose logits are divided by a temperature; as they are where it is 1.

    Guo et al., On Calibration of Modern Neural Networks, eq. 9, for two outcomes.
    """
    return probability if temperature == 1 else (probability.logit(_LEAST) / temperature).sigmoid()


def require_temperature(value: float) -> float:
    """A temperature as it is.

    Raises:
        ValueError: it is not above 0.
    """
    if not value > 0:
        raise ValueError(f"temperature: {value} is not above 0")
    return value
