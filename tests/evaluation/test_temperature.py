"""Temperatures: what is fitted is what was put in, and the error is that of the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bevstack.evaluation.breakdown import calibration_counts, expected_calibration_error
from bevstack.evaluation.temperature import (
    LIMITS,
    bin_logits,
    calibration_error,
    fitted_temperature,
    likelihood_loss,
    logit_counts,
)
from bevstack.models.layers.temperature import require_temperature, tempered
from bevstack.runtime.boxes import tempered as runtime_tempered


def said_and_right(temperature: float, number: int = 200_000) -> tuple[np.ndarray, np.ndarray]:
    """Confidences whose logits are so many times what they should be, and whether each was right."""
    rng = np.random.default_rng(0)
    logits = rng.normal(-1, 1.5, number)
    right = rng.random(number) < 1 / (1 + np.exp(-logits))
    return 1 / (1 + np.exp(-logits * temperature)), right


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_was_put_in_is_found(temperature):
    # Expected: the divisor that undoes the factor, within what 200,000 draws leave; then nearly no error.
    counts = logit_counts(*said_and_right(temperature))
    found = fitted_temperature(counts)
    assert found == pytest.approx(temperature, rel=0.03)
    assert calibration_error(counts, found) < 0.006
    assert likelihood_loss(counts, found) <= likelihood_loss(counts, 1.0)
    if temperature != 1:
        assert calibration_error(counts) > 5 * calibration_error(counts, found)


def test_the_error_is_that_of_the_report():
    # Expected: the same as of the confidences themselves, up to the width of the bins of logits.
    confidence, right = said_and_right(2.0)
    exact = expected_calibration_error(calibration_counts(confidence, right))
    assert calibration_error(logit_counts(confidence, right)) == pytest.approx(exact, abs=1e-3)
    halved = 1 / (1 + np.exp(-np.log(confidence / (1 - confidence)) / 2))
    exact = expected_calibration_error(calibration_counts(halved, right))
    assert calibration_error(logit_counts(confidence, right), 2.0) == pytest.approx(exact, abs=1e-3)


def test_counts_by_hand():
    # Expected: 0.5 lies in the bin above logit 0; 0 and 1 in the outermost ones; nothing counted means 1 and NaN.
    counts = logit_counts(np.array([0.5, 0.5, 0.0, 1.0]), np.array([True, False, False, True]))
    rows = np.flatnonzero(counts[:, 0])
    assert counts[rows].tolist() == [[1, 0], [2, 1], [1, 1]]
    assert bin_logits()[rows[1]] == pytest.approx(0.01) and bin_logits()[0] == pytest.approx(-15.99)
    empty = logit_counts(np.zeros(0), np.zeros(0, bool))
    assert fitted_temperature(empty) == 1 and np.isnan(calibration_error(empty))


def test_it_stays_within_its_limits():
    # Expected: always right and sure of little asks for a temperature of 0; the least one is taken.
    counts = logit_counts(np.full(100, 0.6), np.ones(100, bool))
    assert LIMITS[0] <= fitted_temperature(counts) < 1.01 * LIMITS[0]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 3.0])
def test_the_layer_and_the_runtime_divide_logits(temperature):
    # Expected: sigmoid(logit / T), in torch, in numpy and by hand; order and one half stay.
    scores = torch.tensor([0.02, 0.3, 0.5, 0.9, 0.999])
    expected = torch.sigmoid(torch.log(scores / (1 - scores)) / temperature)
    found = tempered(scores, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(runtime_tempered(scores.numpy(), temperature)), found)
    assert found[2] == 0.5 and (found.diff() > 0).all()
    assert tempered(torch.tensor([0.0, 1.0]), temperature).isfinite().all()


def test_a_temperature_is_above_zero():
    for value in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="is not above 0"):
            require_temperature(value)
