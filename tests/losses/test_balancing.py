"""Rules that weigh tasks against each other, by closed form on losses and gradients that are known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from bevstack.losses.balancing import (
    DynamicWeightAverage,
    FixedWeights,
    GradNorm,
    UncertaintyWeights,
    shared_weight_name,
)
from tests.processes import run_forked_ranks

TWO = {"near": 1.0, "far": 1.0}
RULES = {
    "FixedWeights": FixedWeights,
    "UncertaintyWeights": UncertaintyWeights,
    "DynamicWeightAverage": lambda priors: DynamicWeightAverage(priors, window=1),
    "GradNorm": lambda priors: GradNorm(priors, initial_steps=1),
}


def given(near: float, far: float, extra: float = 0.0) -> dict:
    """Two tasks' losses as leaves; the far one's comes in two parts, beside a number that is no loss."""
    return {
        "near": {"loss": torch.tensor(near, requires_grad=True)},
        "far": {
            "loss_a": torch.tensor(far, requires_grad=True),
            "loss_b": torch.tensor(extra, requires_grad=True),
            "recall": torch.tensor(0.25),
        },
    }


def total(result: dict) -> torch.Tensor:
    """What mmengine descends: everything whose name contains "loss"."""
    return sum(value for name, value in result.items() if "loss" in name)


class TwoTasks(nn.Module):
    """One shared matrix, two linear tasks whose losses have very different scales."""

    def __init__(self, scales=(1.0, 1000.0)) -> None:
        super().__init__()
        self.trunk, self.tails = nn.Linear(4, 4, bias=False), nn.ModuleList(nn.Linear(4, 2) for _ in scales)
        self.scales = scales

    def losses(self, x: torch.Tensor) -> dict:
        features = self.trunk(x)
        values = [(tail(features) - x[:, :2]).square().mean() for tail in self.tails]
        return {name: {"loss": scale * value} for name, scale, value in zip(TWO, self.scales, values, strict=True)}


def test_fixed_weights_are_the_priors():
    # Closed form: 2 * 3 + 0.5 * (4 + 1); what is no loss passes; weights and plain sums are logged, not descended.
    result = FixedWeights({"near": 2.0, "far": 0.5})(given(3.0, 4.0, 1.0))
    assert total(result).item() == 2 * 3 + 0.5 * 5
    logged = {name: value.item() for name, value in result.items() if "loss" not in name}
    assert logged == {"far.recall": 0.25, "weight.near": 2.0, "weight.far": 0.5, "task.near": 3.0, "task.far": 5.0}
    assert set(FixedWeights(TWO, logged=False)(given(3.0, 4.0))) == {
        "near.loss", "far.loss_a", "far.loss_b", "far.recall",
    }  # fmt: skip
    assert FixedWeights(TWO).state_dict() == {}, "old checkpoints stay whole"


def test_uncertainty_is_kendalls_formula():
    # Kendall et al. 2018, eq. 7: sum of L exp(-s) / 2 + s / 2; its derivatives exp(-s) / 2 and (1 - L exp(-s)) / 2.
    rule = UncertaintyWeights(TWO)
    start = rule(given(3.0, 4.0))
    assert start["weight.near"].item() == start["weight.far"].item() == pytest.approx(1.0)
    with torch.no_grad():
        rule.log_variance.copy_(torch.tensor([0.3, -1.2]))
    losses = given(3.0, 4.0, 1.0)
    value = total(rule(losses))
    s = (0.3, -1.2)
    assert value.item() == pytest.approx(sum(L * math.exp(-v) / 2 + v / 2 for L, v in zip((3, 5), s, strict=True)))
    value.backward()
    assert losses["near"]["loss"].grad.item() == pytest.approx(math.exp(-0.3) / 2)
    assert losses["far"]["loss_b"].grad.item() == pytest.approx(math.exp(1.2) / 2)
    expected = [(1 - L * math.exp(-v)) / 2 for L, v in zip((3, 5), s, strict=True)]
    assert rule.log_variance.grad.tolist() == pytest.approx(expected)


def test_uncertainty_finds_one_over_twice_the_loss():
    # The optimum for constant losses, by setting the derivative above to zero.
    rule = UncertaintyWeights(TWO)
    optimizer = torch.optim.Adam(rule.parameters(), lr=0.2)
    for _ in range(250):
        optimizer.zero_grad()
        result = rule(given(0.2, 30.0))
        total(result).backward()
        optimizer.step()
    assert result["weight.near"].item() == pytest.approx(1 / 0.4, rel=1e-3)
    assert result["weight.far"].item() == pytest.approx(1 / 60, rel=1e-3)


def test_dynamic_weight_average_by_hand():
    # Windows of two steps. Means: near 4, 2, 1; far 10, 10, 30. Weights: 1, 1, then from (0.5, 1), then (0.5, 3).
    rule = DynamicWeightAverage(TWO, window=2, temperature=2.0)
    near, far = [3, 5, 1, 3, 1, 1, 0, 0], [10, 10, 5, 15, 20, 40, 1, 1]
    seen = [rule(given(float(a), float(b)))["weight.near"].item() for a, b in zip(near, far, strict=True)]

    def weight(first: float, second: float) -> float:
        return 2 * math.exp(first / 2) / (math.exp(first / 2) + math.exp(second / 2))

    expected = [1.0] * 4 + [weight(2 / 4, 10 / 10)] * 2 + [weight(1 / 2, 30 / 10)] * 2
    assert seen == pytest.approx(expected)
    both = rule(given(1.0, 1.0))
    assert (both["weight.near"] + both["weight.far"]).item() == pytest.approx(2.0)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_gradnorm_steps_as_the_paper_says(alpha):
    # Losses are linear in the shared weight, so that norms are known: 3 and 4 (5 after the weights' first change).
    # alpha 0: the target is the mean norm; the first step of Adam is the learning rate towards it, in log w.
    shared = torch.tensor([1.0, 1.0], requires_grad=True)
    rule = GradNorm(TWO, alpha=alpha, learning_rate=0.1, initial_steps=1)

    def losses() -> dict:
        return {
            "near": {"loss": (shared * torch.tensor([3.0, 0.0])).sum()},
            "far": {"loss": (shared * torch.tensor([0.0, 4.0])).sum()},
        }

    first = rule(losses(), shared)
    assert first["weight.near"].item() == first["weight.far"].item() == 1.0, "weights of before the step"
    up, down = math.exp(0.1), math.exp(-0.1)
    second = rule(losses(), shared)
    assert second["weight.near"].item() == pytest.approx(2 * up / (up + down))
    assert second["weight.far"].item() == pytest.approx(2 * down / (up + down))
    # L(t) / L(0) of near halves, far stays: relative rates 2/3 and 4/3 (alpha 1); the targets of the norms 2.9 ... 4
    # lie at 2/3 and 4/3 of their mean, so that now far is pushed up and near down.
    if alpha:
        before = rule.log_weights.clone()
        rule.gradient_mean.zero_()  # without momentum: the direction of this step alone
        halved = losses()
        halved["near"]["loss"] = halved["near"]["loss"] - 1.5
        rule(halved, shared)
        assert rule.log_weights[0] < before[0] and rule.log_weights[1] > before[1]


def test_gradnorm_makes_norms_equal_and_keeps_the_sum():
    torch.manual_seed(0)
    model, x = TwoTasks(), torch.randn(64, 4)
    rule = GradNorm(TWO, alpha=0.0, learning_rate=0.1, initial_steps=3)
    ratios = []
    for _ in range(120):
        result = rule(model.losses(x), model.trunk.weight)
        assert (result["weight.near"] + result["weight.far"]).item() == pytest.approx(2.0, abs=1e-4)
        norms = [
            torch.autograd.grad(result[f"{task}.loss"], model.trunk.weight, retain_graph=True)[0].norm() for task in TWO
        ]
        ratios.append((norms[1] / norms[0]).item())
    assert ratios[0] > 100 and ratios[0] == ratios[2], "weights move after the initial steps"
    assert ratios[-1] == pytest.approx(1.0, abs=0.15), "within a few learning rates of equal"
    assert model.trunk.weight.grad is None and model.tails[0].weight.grad is None, "its loss moves the weights alone"


def test_balanced_training_serves_both_tasks():
    # Two parabolas about 1 and -1 over one shared number, the second a thousand times as steep, from 3 on. Added up,
    # the minimum is at -1 + 2 / 1001: the first task ends where it began. GradNorm rests where both have the same part
    # of their first losses left: (1 - x) / 2 = (x + 1) / 4, x = 1 / 3, a ninth for both.
    def train(rule) -> list[float]:
        shared = torch.tensor([3.0], requires_grad=True)
        optimizer = torch.optim.RMSprop([shared], lr=0.03, alpha=0.9)
        for _ in range(300):
            optimizer.zero_grad()
            losses = {"near": {"loss": (shared - 1).square()}, "far": {"loss": 1000 * (shared + 1).square()}}
            result = rule(losses, shared)
            total(result).backward()
            optimizer.step()
        return [result["task.near"].item() / 4, result["task.far"].item() / 16000]

    assert train(FixedWeights(TWO)) == pytest.approx([1.0, 0.0], abs=0.02)
    assert train(GradNorm(TWO, alpha=1.0, learning_rate=0.05, initial_steps=1)) == pytest.approx([1 / 9] * 2, abs=0.05)


@pytest.mark.parametrize("rule", RULES)
def test_state_changes_in_training_only_and_is_resumed(rule):
    torch.manual_seed(0)
    model, x = TwoTasks(), torch.randn(8, 4)
    balancing = RULES[rule](TWO)
    for _ in range(4):
        model.trunk.weight.data.mul_(0.9)
        balancing(model.losses(x), model.trunk.weight)
    state = {name: value.clone() for name, value in balancing.state_dict().items()}
    with torch.no_grad():
        balancing(model.losses(x), model.trunk.weight)
    balancing.eval()(model.losses(x), model.trunk.weight)
    assert all(torch.equal(value, state[name]) for name, value in balancing.state_dict().items())
    resumed = RULES[rule](TWO)
    resumed.load_state_dict(state)
    for _ in range(3):
        model.trunk.weight.data.mul_(0.9)
        one = balancing.train()(model.losses(x), model.trunk.weight)
        other = resumed(model.losses(x), model.trunk.weight)
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert rule in ("FixedWeights", "UncertaintyWeights") or one["weight.near"] != one["weight.far"]


@pytest.mark.parametrize("rule", RULES)
def test_a_task_that_is_switched_off_changes_nothing(rule):
    # Expected: with prior 0 the other two tasks are weighed as if the third were not there.
    torch.manual_seed(0)
    model, x = TwoTasks(), torch.randn(8, 4)
    three, two = RULES[rule]({**TWO, "off": 0.0}), RULES[rule](TWO)
    for _ in range(5):
        model.trunk.weight.data.mul_(0.9)
        losses = model.losses(x)
        off = {"loss": model.trunk.weight.sum() * 100}
        with_it = three({**losses, "off": off}, model.trunk.weight)
        without = two(losses, model.trunk.weight)
        for name, value in without.items():
            torch.testing.assert_close(with_it[name], value)
    assert with_it["weight.off"] == 0 and with_it["off.loss"] == 0


def test_gradnorm_leaves_out_a_task_without_gradient():
    # The far task sees nothing of the trunk in this pass: nobody moves, and the near one is not compared with zero.
    torch.manual_seed(0)
    model, x = TwoTasks(), torch.randn(8, 4)
    rule = GradNorm(TWO, initial_steps=1)
    losses = model.losses(x)
    rule({**losses, "far": {"loss": losses["far"]["loss"].detach()}}, model.trunk.weight)
    assert rule.log_weights.tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="no head's loss depends on the shared weight"):
        rule({name: {"loss": torch.ones(())} for name in TWO}, model.trunk.weight)


def test_gradnorm_under_autocast():
    # Expected: float32's norms. float16 would flush gradients of 1e-7 to zero if they were not scaled.
    torch.manual_seed(0)
    model, x = TwoTasks((1e-6, 1.0)), torch.randn(8, 4)
    rule = GradNorm(TWO)

    def norms() -> torch.Tensor:
        losses = torch.stack([entry["loss"].float() for entry in model.losses(x).values()])
        return rule.gradient_norms(losses, model.trunk.weight)

    exact = norms()
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype):
            torch.testing.assert_close(norms(), exact, rtol=0.1, atol=0.0)


def test_gradnorm_moves_with_the_accumulated_passes():
    rule = GradNorm(TWO, initial_steps=1, interval=2)
    model, x, moved = TwoTasks(), torch.randn(8, 4), []
    for _ in range(6):
        before = rule.log_weights.clone()
        rule(model.losses(x), model.trunk.weight)
        moved.append(not torch.equal(before, rule.log_weights))
    assert moved == [False, True] * 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: FixedWeights({"lossy": 1.0}), "cannot be named 'lossy'"),
        (lambda: DynamicWeightAverage(TWO, window=0), "window and temperature must be positive, not 0 and 2.0"),
        (lambda: GradNorm(TWO, interval=0), "must be positive, not 10, 0 and 0.025"),
        (lambda: GradNorm(TWO, initial_steps=1)(TwoTasks().losses(torch.randn(8, 4))), "needs a weight that the heads"),
        (lambda: shared_weight_name(TwoTasks(), (), "trunc.weight"), "'trunc.weight'; did you mean 'trunk.weight'?"),
        (lambda: shared_weight_name(TwoTasks().requires_grad_(False), ("trunk",)), "but none of trunk is trained"),
    ],
    ids=["name", "window", "interval", "no weight", "pattern", "frozen"],
)  # fmt: skip
def test_mistakes_are_told(make, said):
    with pytest.raises(ValueError) as caught:
        make()
    assert said in str(caught.value)


def test_the_shared_weight_is_the_last_of_the_last_part():
    model = TwoTasks()
    assert shared_weight_name(model, ("absent", "trunk")) == "trunk.weight"
    assert shared_weight_name(model, ("tails", "trunk")) == "tails.1.weight", "matrices, not biases"
    model.tails.requires_grad_(False)
    assert shared_weight_name(model, ("tails", "trunk")) == "trunk.weight"
    assert shared_weight_name(model, (), "t*k.weight") == "trunk.weight"


def run_rank(rank: int, folder: Path) -> None:
    """Four steps of every rule on this rank's own data, in DDP; writes the weights."""
    written = {}
    for name, make in RULES.items():
        torch.manual_seed(0)
        model, x = TwoTasks(), torch.randn(2, 8, 4)[rank]
        model.balancing = make(TWO)
        model.forward = lambda x, model=model: model.balancing(model.losses(x), model.trunk.weight)
        parallel = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
        for _ in range(4):
            model.zero_grad()
            result = parallel(x)
            total(result).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 1e-4 * parameter.grad
        written[name] = [result["weight.near"], result["weight.far"], model.trunk.weight.detach()]
    torch.save(written, folder / f"rank{rank}.pth")


def test_ranks_agree(tmp_path):
    # Expected: the same weights on both ranks although their data differ, and trunks that stay together.
    run_forked_ranks(tmp_path, run_rank, tmp_path)
    one, other = (torch.load(tmp_path / f"rank{rank}.pth", weights_only=True) for rank in range(2))
    for rule in RULES:
        assert all(torch.equal(a, b) for a, b in zip(one[rule], other[rule], strict=True)), rule
        assert rule == "FixedWeights" or one[rule][0] != one[rule][1]
