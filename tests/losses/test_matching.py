"""The matcher against every permutation, and the invariants of its contract."""

import itertools
import math

import pytest
import torch

from bevstack.losses.matching import BoxL1Cost, FocalClassCost, HungarianMatcher


class Given:
    """A cost that is handed over as it is."""

    def __call__(self, predictions, targets):
        return predictions["cost"][..., : len(targets["labels"])]


def _match(*costs):
    predictions = [{"cost": cost} for cost in costs]
    return HungarianMatcher([Given()])(predictions, [{"labels": torch.arange(cost.shape[-1])} for cost in costs])


def _total(cost, matched):
    return sum(cost[q, g].item() for q, g in enumerate(matched.tolist()) if g >= 0)


@pytest.mark.parametrize(("queries", "targets"), [(5, 3), (4, 4), (3, 5), (1, 1)])
def test_least_total_cost_by_brute_force(queries, targets):
    torch.manual_seed(queries * 10 + targets)
    cost = torch.randn(2, queries, targets)
    matched = _match(cost)[0]
    few, many = sorted((queries, targets))
    for problem in range(2):
        table = cost[problem] if queries >= targets else cost[problem].T
        best = min(
            sum(table[row, column].item() for column, row in enumerate(rows))
            for rows in itertools.permutations(range(many), few)
        )
        assert _total(cost[problem], matched[problem]) == pytest.approx(best, abs=1e-5)
        used = matched[problem][matched[problem] >= 0]
        assert len(used) == few == len(used.unique())


def test_batch_equals_singles_with_different_numbers_of_targets():
    torch.manual_seed(0)
    costs = [torch.randn(3, 6, g) for g in (4, 0, 6, 1)]
    together = _match(*costs)
    assert together.shape == (4, 3, 6) and together.dtype == torch.long
    for sample, cost in enumerate(costs):
        assert torch.equal(together[sample], _match(cost)[0])
    assert (together[1] == -1).all()


def test_queries_permute_with_their_predictions():
    torch.manual_seed(0)
    cost, order = torch.randn(1, 6, 4), torch.randperm(6)
    assert torch.equal(_match(cost[:, order])[0], _match(cost)[0][:, order])


def test_nan_costs_lose_to_finite_ones():
    cost = torch.tensor([[[math.nan, 9.0], [5.0, math.inf], [8.0, math.nan]]])
    assert _match(cost)[0].tolist() == [[1, 0, -1]]


def test_terms_add_up_and_read_what_they_name():
    # A logit of +-9 makes class cost decisive; equal logits leave it to the distance of the first two values.
    predictions = [{"logits": torch.zeros(1, 3, 2), "boxes": torch.tensor([[[0.0, 0, 9], [5, 5, 0], [9, 9, 0]]])}]
    targets = [{"labels": torch.tensor([1, 0]), "boxes": torch.tensor([[8.0, 8, 9], [1.0, 0, math.nan]])}]
    matcher = HungarianMatcher([FocalClassCost(2.0), BoxL1Cost(0.25, dims=2)])
    assert matcher(predictions, targets).tolist() == [[[1, -1, 0]]]
    predictions[0]["logits"] = torch.tensor([[[-9.0, 9.0], [9.0, -9.0], [-9.0, -9.0]]])
    strong = HungarianMatcher([dict(type="FocalClassCost", weight=100.0), dict(type="BoxL1Cost", dims=2)])
    assert strong(predictions, targets).tolist() == [[[0, 1, -1]]]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least one cost"):
        HungarianMatcher([])
    with pytest.raises(ValueError, match="sample 1"):
        _match(torch.zeros(2, 5, 1), torch.zeros(2, 4, 1))
