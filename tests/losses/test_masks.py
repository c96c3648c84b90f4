"""Losses and costs of mask classification against the plain formulas, pair by pair."""

from __future__ import annotations

import pytest
import torch

from bevstack.losses.dense import binary_focal_loss, dice_loss
from bevstack.losses.masks import (
    mask_dice_cost,
    mask_focal_cost,
    mask_focal_loss,
    no_object_cross_entropy,
    softmax_class_cost,
)
from bevstack.losses.matching import HungarianMatcher, MaskDiceCost, MaskFocalCost, SoftmaxClassCost
from bevstack.registry import TASK_UTILS

GENERATOR = torch.Generator().manual_seed(0)
LOGITS = 3 * torch.randn(2, 5, 30, generator=GENERATOR)
MASKS = torch.rand(4, 30, generator=GENERATOR) < 0.3
ONES = torch.ones(30)


def test_costs_of_all_cells_are_the_losses_of_each_pair():
    # Expected: binary_focal_loss (mean of the cells) and dice_loss of every query and target.
    focal, dice = mask_focal_cost(LOGITS, MASKS, ONES), mask_dice_cost(LOGITS, MASKS, ONES)
    assert focal.shape == dice.shape == (2, 5, 4)
    for layer in range(2):
        for query in range(5):
            for target in range(4):
                pair = LOGITS[layer, query], MASKS[target].float()
                torch.testing.assert_close(focal[layer, query, target], binary_focal_loss(*pair).mean())
                torch.testing.assert_close(dice[layer, query, target], dice_loss(*pair))


def test_a_cell_of_weight_two_counts_as_two_cells():
    # Expected: losses and costs of the same cells written out twice.
    weights = torch.tensor([1.0, 2.0, 3.0] * 10)
    repeats = weights.long()
    logits, masks = LOGITS[0, :4], MASKS.float()
    longer = [values.repeat_interleave(repeats, -1) for values in (logits, masks)]
    torch.testing.assert_close(mask_focal_loss(logits, masks, weights), binary_focal_loss(*longer).mean(-1))
    torch.testing.assert_close(dice_loss(logits, masks, weights), dice_loss(*longer))
    for cost in (mask_focal_cost, mask_dice_cost):
        torch.testing.assert_close(cost(logits, masks, weights), cost(*longer, torch.ones(60)))


@pytest.mark.parametrize("cost", [mask_focal_cost, mask_dice_cost])
def test_the_true_mask_costs_least(cost):
    # Expected: of masks that are the targets themselves each costs least with its own.
    costs = cost((MASKS.float() * 2 - 1) * 8, MASKS, ONES)
    assert torch.equal(costs.argmin(1), torch.arange(4))
    assert cost(LOGITS, MASKS[:0], ONES).shape == (2, 5, 0)


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[1e4, -1e4]])
    for target in (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])):
        assert mask_focal_cost(logits, target, torch.ones(2)).isfinite().all()


def test_classes_with_no_object():
    # Closed form: three queries, two of them no object with weight 0.1: (a + 0.1 b + 0.1 c) / 1.2.
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.5], [2.0, 0.0, 0.0]])
    log = logits.log_softmax(-1)
    expected = -(log[0, 1] + 0.1 * log[1, 2] + 0.1 * log[2, 2]) / 1.2
    torch.testing.assert_close(no_object_cross_entropy(logits, torch.tensor([1, -1, -1])), expected)
    cost = softmax_class_cost(logits, torch.tensor([1, 0, 1]))
    assert cost.shape == (3, 3)
    torch.testing.assert_close(cost[0], -logits[0].softmax(-1)[[1, 0, 1]])


def test_terms_of_the_matcher():
    # Expected: the costs times their weights, and a matching by the masks alone where all classes cost the same.
    predictions = {"logits": torch.zeros(1, 5, 3), "masks": torch.full((1, 5, 30), -8.0)}
    order = [3, 0, 4, 1]
    for target, query in enumerate(order):
        predictions["masks"][0, query, MASKS[target]] = 8.0
    targets = {"labels": torch.tensor([0, 1, 0, 1]), "masks": MASKS, "weights": ONES}
    costs = [SoftmaxClassCost(2.0), MaskFocalCost(20.0), MaskDiceCost(5.0)]
    assert HungarianMatcher(costs)([predictions], [targets]).tolist() == [[[1, 3, -1, 0, 2]]]
    torch.testing.assert_close(costs[0](predictions, targets), torch.full((1, 5, 4), -2 / 3))
    torch.testing.assert_close(costs[1](predictions, targets), 20 * mask_focal_cost(predictions["masks"], MASKS, ONES))
    torch.testing.assert_close(costs[2](predictions, targets), 5 * mask_dice_cost(predictions["masks"], MASKS, ONES))
    for name in ("SoftmaxClassCost", "MaskFocalCost", "MaskDiceCost"):
        assert TASK_UTILS.get(name) is not None


def test_autocast_changes_nothing():
    # Expected: the same numbers, float32, as without autocast: a sum over 40 000 cells needs them.
    logits, masks = LOGITS[0, :4], MASKS.float()
    calls = [lambda f=f: f(logits, masks, ONES) for f in (mask_focal_loss, dice_loss, mask_focal_cost)]
    calls.append(lambda: mask_dice_cost(logits, masks, ONES))
    exact = [call() for call in calls]
    with torch.autocast("cpu", torch.bfloat16):
        for call, expected in zip(calls, exact, strict=True):
            assert torch.equal(call(), expected)
