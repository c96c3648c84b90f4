"""The wall-clock budget."""

from __future__ import annotations

import math
import time

import pytest
import torch
from mmengine.hooks import Hook

from bevstack.engine.checkpoint import read_checkpoint
from bevstack.engine.hooks import BudgetSchedule, MaxSecondsHook
from bevstack.errors import InputError
from bevstack.registry import HOOKS
from tests.engine.toy import train_toy


@HOOKS.register_module()
class SlowStep(Hook):
    """Makes each step take a known time."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        time.sleep(0.05)


@HOOKS.register_module()
class RemainingTime(Hook):
    """Notes (steps done before this one, their seconds, eta) when the logger would."""

    priority = "BELOW_NORMAL"
    seen: list[tuple[int, float, float]] = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        self.seen.append((runner.iter, runner.train_loop.seconds, runner.message_hub.get_info("eta")))


@HOOKS.register_module()
class WeightsSeen(Hook):
    """Notes the weights that each step starts from."""

    seen: list[dict] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self.seen.append({name: weight.clone() for name, weight in runner.model.state_dict().items()})


def test_factor_closed_form() -> None:
    """Linear to 1 at the end of the warm-up, half a cosine to the end factor."""
    schedule = BudgetSchedule(warmup=0.2, start_factor=0.1, end_factor=0.01)
    assert schedule.factor(0.0) == pytest.approx(0.1)
    assert schedule.factor(0.1) == pytest.approx(0.55)
    assert schedule.factor(0.2) == pytest.approx(1.0)
    assert schedule.factor(0.6) == pytest.approx(0.01 + 0.99 * (1 + math.cos(math.pi / 2)) / 2)
    assert schedule.factor(1.0) == pytest.approx(0.01)


def test_without_seconds_it_depends_on_steps_only(tmp_path) -> None:
    """Learning rate of step i of 16: 0.01 times the factor at i / 16."""
    hook = {"type": "BudgetSchedule", "warmup": 0.25, "start_factor": 0.1, "end_factor": 0.0}
    train_toy(str(tmp_path), param_scheduler=None, extra_hooks=[hook])
    rates = read_checkpoint(tmp_path / "iter_16.pth")["message_hub"]["log_scalars"]["train/lr"]["history"][0]
    schedule = BudgetSchedule(warmup=0.25, start_factor=0.1, end_factor=0.0)
    assert rates.tolist() == pytest.approx([0.01 * schedule.factor(i / 16) for i in range(16)])


def test_steps_end_training_and_the_schedule(tmp_path, capfd) -> None:
    """Of 16 steps, 5: the rate of step i is 0.01 times the factor at i / 5, and the last one is saved."""
    hook = {"type": "BudgetSchedule", "warmup": 0.25, "start_factor": 0.1, "end_factor": 0.0, "max_steps": 5}
    summary = train_toy(str(tmp_path), param_scheduler=None, extra_hooks=[hook])
    assert summary["steps"] == 5 and summary["checkpoint"].endswith("iter_5.pth")
    assert "schedule  at most 5 steps, seed 3" in capfd.readouterr().out
    rates = read_checkpoint(summary["checkpoint"])["message_hub"]["log_scalars"]["train/lr"]["history"][0]
    schedule = BudgetSchedule(warmup=0.25, start_factor=0.1, end_factor=0.0)
    assert rates.tolist() == pytest.approx([0.01 * schedule.factor(i / 5) for i in range(5)])
    with pytest.raises(ValueError, match="max_steps must be positive"):
        BudgetSchedule(max_steps=-1)


@pytest.mark.parametrize(
    ("budget", "left"),
    [
        ({"max_steps": 5}, lambda step, seconds: seconds * (5 - step) / step),
        ({"max_seconds": 1.0}, lambda step, seconds: max(0.0, 1.0 - seconds)),
    ],
)
def test_remaining_time_is_the_budgets(tmp_path, budget, left) -> None:
    """Not that of the epochs: what the steps so far took, for the steps left; or the seconds that are left."""
    hooks = [{"type": "BudgetSchedule", **budget}, {"type": "SlowStep"}, {"type": "RemainingTime"}]
    RemainingTime.seen = []
    train_toy(
        str(tmp_path),
        extra_hooks=hooks,
        param_scheduler=None,
        default_hooks__timer={"type": "BudgetTimerHook"},
        train_cfg__max_epochs=20,
    )
    assert len(RemainingTime.seen) > 1
    for step, seconds, eta in RemainingTime.seen[1:]:
        assert eta == pytest.approx(left(step, seconds))


@pytest.mark.parametrize("kind", ["BudgetSchedule", "MaxSecondsHook"])
def test_budget_ends_training_with_a_checkpoint(tmp_path, kind) -> None:
    """16 steps of at least 0.05 s do not fit in 0.3 s; what was done is saved and can be read."""
    hooks = [{"type": kind, "max_seconds": 0.3}, {"type": "SlowStep"}]
    summary = train_toy(str(tmp_path), extra_hooks=hooks, param_scheduler=None)
    assert 1 <= summary["steps"] <= 7
    assert summary["checkpoint"].endswith(f"iter_{summary['steps']}.pth")
    meta = read_checkpoint(summary["checkpoint"])["meta"]
    assert meta["iter"] == summary["steps"] and meta["train_seconds"] >= 0.3
    # resuming a spent budget trains one step more at most
    again = train_toy(str(tmp_path), "auto", extra_hooks=hooks, param_scheduler=None)
    assert again["steps"] <= summary["steps"] + 1


def test_rate_falls_to_the_end_within_the_budget(tmp_path) -> None:
    """The last step of a run cut by time is taken near the schedule's end, not in its middle."""
    hooks = [{"type": "BudgetSchedule", "max_seconds": 0.5, "end_factor": 0.0}, {"type": "SlowStep"}]
    summary = train_toy(str(tmp_path), extra_hooks=hooks, param_scheduler=None)
    rates = read_checkpoint(summary["checkpoint"])["message_hub"]["log_scalars"]["train/lr"]["history"][0]
    assert summary["steps"] < 16 and rates[-1] < 0.5 * rates.max()


@pytest.mark.parametrize(("kind", "value"), [(BudgetSchedule, -1), (MaxSecondsHook, 0)])
def test_budget_must_be_positive(kind, value) -> None:
    with pytest.raises(ValueError, match="positive"):
        kind(max_seconds=value)


def test_parts_of_another_model_start_a_training(tmp_path) -> None:
    """The named parts are the other run's, bit by bit, at the first step; the rest is not, nor is a resumed run."""
    train_toy(str(tmp_path / "other"), randomness__seed=9)
    other = read_checkpoint(tmp_path / "other" / "iter_16.pth")["state_dict"]
    parts = sorted({name.split(".")[0] for name in other})

    def trained(**changes) -> dict:
        WeightsSeen.seen.clear()
        hook = {"type": "LoadPartsHook", "checkpoint": str(tmp_path / "other"), "parts": parts[:1]}
        train_toy(str(tmp_path / "new"), extra_hooks=[hook, {"type": "WeightsSeen"}], **changes)
        return WeightsSeen.seen[0]

    start = trained()
    taken = {name for name in other if name.startswith(f"{parts[0]}.")}
    assert taken and all(torch.equal(start[name], other[name]) == (name in taken) for name in other)
    resumed = trained(resume=str(tmp_path / "new" / "iter_6.pth"))
    assert any(not torch.equal(resumed[name], other[name]) for name in taken)


@pytest.mark.parametrize(
    ("checkpoint", "part", "message"),
    [("other", "neck", "neck: the file has no such part"), ("empty", "neck", "checkpoint: this folder has none")],
)
def test_parts_that_are_not_there(tmp_path, checkpoint, part, message) -> None:
    (tmp_path / "empty").mkdir()
    train_toy(str(tmp_path / "other"))
    hook = {"type": "LoadPartsHook", "checkpoint": str(tmp_path / checkpoint), "parts": [part]}
    with pytest.raises(InputError, match=message):
        train_toy(str(tmp_path / "new"), extra_hooks=[hook])
