"""Losses and costs against their formulas written out, and finite differences."""

import math

import pytest
import torch

from bevstack.geometry.heading_bins import encode_heading
from bevstack.losses.functional import (
    heading_bin_loss,
    l1_cost,
    masked_l1_loss,
    mean_across_ranks,
    sigmoid_focal_cost,
    sigmoid_focal_loss,
)
from tests.processes import run_forked_ranks


def _focal(logit, positive, alpha, gamma):
    p = 1 / (1 + math.exp(-logit))
    return -alpha * (1 - p) ** gamma * math.log(p) if positive else -(1 - alpha) * p**gamma * math.log(1 - p)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.6, 1.0), (0.5, 0.0)])
def test_focal_loss_is_its_formula(alpha, gamma):
    logits = torch.tensor([[-3.0, 0.2, 1.7], [0.5, -0.4, 2.2]])
    loss = sigmoid_focal_loss(logits, torch.tensor([2, -1]), alpha, gamma)
    expected = [[_focal(-3.0, False, alpha, gamma), _focal(0.2, False, alpha, gamma), _focal(1.7, True, alpha, gamma)]]
    expected += [[_focal(x, False, alpha, gamma) for x in (0.5, -0.4, 2.2)]]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_focal_loss_survives_large_logits():
    # At +-100 the loss of a right answer is 0 and of a wrong one |logit| times the class weight: the formula's limit.
    loss = sigmoid_focal_loss(torch.tensor([[100.0, -100.0]]), torch.tensor([1]))
    torch.testing.assert_close(loss, torch.tensor([[75.0, 25.0]]))


def test_focal_loss_gradient_by_finite_differences():
    torch.manual_seed(0)
    logits = torch.randn(3, 4, requires_grad=True)
    labels = torch.tensor([0, 3, -1])
    sigmoid_focal_loss(logits, labels).sum().backward()
    step = 1e-2
    for index in ((0, 0), (1, 2), (2, 3)):
        shift = torch.zeros_like(logits)
        shift[index] = step
        with torch.no_grad():
            high = sigmoid_focal_loss(logits + shift, labels).double().sum()
            low = sigmoid_focal_loss(logits - shift, labels).double().sum()
        assert logits.grad[index].item() == pytest.approx(((high - low) / (2 * step)).item(), abs=1e-3)


def test_losses_do_not_hide_nan():
    logits = torch.tensor([[math.nan, 0.0]])
    assert sigmoid_focal_loss(logits, torch.tensor([0])).isnan().any()
    nan = torch.full((2,), math.nan)
    assert masked_l1_loss(nan, torch.zeros(2), torch.tensor([True, False])).isnan().all()


def test_focal_cost_is_positive_minus_negative_loss():
    # The definition: what changes in the loss when a query's target becomes the positive one (eps aside).
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 5, 4), torch.tensor([3, 0, 3])
    cost = sigmoid_focal_cost(logits, labels)
    assert cost.shape == (2, 5, 3)
    for g, label in enumerate(labels.tolist()):
        for d, q in ((0, 0), (1, 4)):
            x = logits[d, q, label].item()
            assert cost[d, q, g].item() == pytest.approx(_focal(x, True, 0.25, 2) - _focal(x, False, 0.25, 2), abs=1e-6)
    assert sigmoid_focal_cost(logits, labels[:0]).shape == (2, 5, 0)


def test_l1_cost_is_the_sum_of_differences():
    torch.manual_seed(0)
    predictions, targets = torch.randn(2, 5, 3), torch.randn(4, 3)
    expected = (predictions[:, :, None] - targets).abs().sum(-1)
    torch.testing.assert_close(l1_cost(predictions, targets), expected)
    assert l1_cost(predictions, targets[:0]).shape == (2, 5, 0)


def test_masked_l1_loss_ignores_what_is_masked():
    predictions = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    targets = torch.tensor([0.0, math.nan, 5.0])
    loss = masked_l1_loss(predictions, targets, targets.isfinite())
    loss.sum().backward()
    assert loss.tolist() == [1.0, 0.0, 2.0]
    assert predictions.grad.tolist() == [1.0, 0.0, -1.0]


def test_heading_bin_loss_by_hand():
    # Four bins, 30 degrees: shares 2/3 and 1/3, a third of a bin's width from one centre and two thirds from the other.
    # Nothing predicted: divergence ln 4 + 2/3 ln 2/3 + 1/3 ln 1/3, angles 2/3 * 1/3 + 1/3 * 2/3.
    loss = heading_bin_loss(torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([math.pi / 6]))
    expected = math.log(4) + 2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3) + 4 / 9
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_heading_bin_loss_is_zero_at_the_truth():
    yaw = torch.linspace(-4, 4, 50)
    weights, residuals = encode_heading(yaw, 6)
    loss = heading_bin_loss(weights.clamp_min(1e-30).log(), residuals, yaw)
    torch.testing.assert_close(loss, torch.zeros(50), atol=1e-5, rtol=0)


def test_an_unknown_heading_costs_nothing():
    logits, residuals = (torch.randn(2, 5, requires_grad=True) for _ in range(2))
    loss = heading_bin_loss(logits, residuals, torch.tensor([math.nan, 1.0]))
    loss.sum().backward()
    assert loss[0] == 0 and loss[1] > 0
    for predicted in (logits, residuals):
        assert (predicted.grad[0] == 0).all() and predicted.grad[1].abs().sum() > 0


def test_mean_across_one_rank_is_the_number():
    assert mean_across_ranks(3).item() == 3.0
    number = torch.tensor(2.5)
    assert mean_across_ranks(number) is not number and mean_across_ranks(number).item() == 2.5


def write_mean(rank, folder):
    """One process: the mean over both, and the rank's own number after it."""
    number = torch.tensor(3.0 + 4 * rank)
    (folder / f"rank{rank}").write_text(f"{mean_across_ranks(number).item()} {number.item()}")


def test_mean_across_two_ranks(tmp_path):
    # (3 + 7) / 2, with each rank's own number left as it was.
    run_forked_ranks(tmp_path, write_mean, tmp_path)
    answers = [(tmp_path / f"rank{rank}").read_text().split() for rank in range(2)]
    assert answers == [["5.0", "3.0"], ["5.0", "7.0"]]
