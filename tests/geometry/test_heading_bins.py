"""Heading bins: shares and angles by hand, and back to the very heading, at every border and in every bin."""

import math

import pytest
import torch

from bevstack.geometry.heading_bins import decode_heading, encode_heading


def apart(first, second):
    """Angle between headings, radians, whatever their turns."""
    return torch.remainder(first - second + math.pi, 2 * math.pi) - math.pi


def test_shares_and_angles_by_hand():
    # Four bins of 90 degrees: -170 degrees is 10 / 90 beyond bin 2's centre (180) and 80 / 90 before bin 3's (-90).
    weights, residuals = encode_heading(torch.tensor(math.radians(-170)), 4)
    torch.testing.assert_close(weights, torch.tensor([0, 0, 8 / 9, 1 / 9]))
    torch.testing.assert_close(residuals, torch.tensor([-17 / 9, 10 / 9, 1 / 9, -8 / 9]))
    weights, _ = encode_heading(torch.tensor([0.0, math.pi / 4, math.pi]), 4)
    torch.testing.assert_close(weights, torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0]]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("bins", [2, 3, 8, 12])
def test_decoding_gives_the_heading_back(bins):
    # Expected: the headings that were encoded: random ones, the bins' centres and their borders, some turns away.
    torch.manual_seed(0)
    steps = torch.arange(-4 * bins, 4 * bins + 1) * (math.pi / bins)
    yaw = torch.cat([(torch.rand(500) - 0.5) * 6 * math.pi, steps, steps + 1e-4, steps - 1e-4])
    weights, residuals = encode_heading(yaw, bins)
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(yaw)), atol=2e-6, rtol=0)
    found = decode_heading(weights.log(), residuals)
    assert found.abs().max() <= math.pi + 1e-6
    assert apart(found, yaw).abs().max() < 1e-5
    for choice in range(bins):  # whichever bin is believed, its own angle leads to the heading
        only = torch.zeros(len(yaw), bins)
        only[:, choice] = 1
        assert apart(decode_heading(only, residuals), yaw).abs().max() < 1e-5


def test_no_jump_at_a_border_or_after_a_whole_turn():
    # Closed form: a share changes by the angle in widths of a bin, 1e-3 * 8 / (2 pi), wherever it is.
    yaw = torch.linspace(-math.pi, math.pi, 1001)
    change = (encode_heading(yaw + 1e-3, 8).weights - encode_heading(yaw, 8).weights).abs()
    assert change.max() < 1.01e-3 * 8 / (2 * math.pi)
    turned = encode_heading(yaw + 2 * math.pi, 8).weights
    torch.testing.assert_close(turned, encode_heading(yaw, 8).weights, atol=1e-5, rtol=0)


def test_an_unknown_heading_stays_unknown():
    weights, residuals = encode_heading(torch.tensor([math.nan, 0.3]), 8)
    assert weights[0].isnan().all() and residuals[0].isnan().all() and weights[1].isfinite().all()
