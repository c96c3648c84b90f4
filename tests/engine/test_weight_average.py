"""The average in one pass is mmengine's, to the bit."""

from __future__ import annotations

import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage, MomentumAnnealingEMA, StochasticWeightAverage
from torch import nn

from bevstack.engine.weight_average import AverageUpdate

KINDS = {
    "annealing": lambda model: MomentumAnnealingEMA(model, momentum=0.005, gamma=3),
    "annealing, every second step": lambda model: MomentumAnnealingEMA(model, momentum=0.005, gamma=3, interval=2),
    "exponential": lambda model: ExponentialMovingAverage(model, momentum=0.1),
    "buffers, too": lambda model: ExponentialMovingAverage(model, momentum=0.1, update_buffers=True),
    "stochastic": StochasticWeightAverage,
}
ONE_PASS = {"annealing", "annealing, every second step", "exponential"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_bits_as_update_parameters(kind, monkeypatch) -> None:
    # Expected: mmengine's own update after each of seven steps, with a frozen layer that never moves.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    model[3].requires_grad_(False)
    average = KINDS[kind](model)
    expected = copy.deepcopy(average)
    if not expected.update_buffers:  # a copied dict still names the weights that it was copied from
        expected.avg_parameters = dict(expected.module.named_parameters())
    else:
        expected.avg_parameters = expected.module.state_dict()
    update = AverageUpdate(average, model)
    assert update.in_one_pass == (kind in ONE_PASS)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    calls = []
    inner = average.update_parameters
    monkeypatch.setattr(average, "update_parameters", lambda source: (calls.append(1), inner(source)))
    for _ in range(7):
        model(torch.randn(2, 3, 6, 6)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        update.step()
        expected.update_parameters(model)
        found, wanted = average.state_dict(), expected.state_dict()
        assert set(found) == set(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert len(calls) == (1 if kind in ONE_PASS else 7)
