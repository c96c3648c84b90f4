"""``tools/train.py --dry-run`` and ``--auto-scale-lr``."""

from __future__ import annotations

import os
import re
import tempfile

import pytest

from bevstack.engine.checkpoint import read_checkpoint
from bevstack.engine.train import RunOptions, train_with
from bevstack.errors import InputError
from tests.engine.toy import toy_config, train_toy

DRY = RunOptions(dry_run=True)


def test_a_dry_run_says_what_it_found_and_leaves_nothing(tmp_path, capfd, monkeypatch):
    # Expected: 16 samples in steps of 2, twice: 16 steps; four of them are made; no file is left, nor a checkpoint.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    summary = train_with(toy_config(tmp_path / "run"), tmp_path / "run", DRY)
    assert summary["steps"] == 4 and os.listdir(tmp_path) == ["tmp"] and os.listdir(tmp_path / "tmp") == []
    printed = capfd.readouterr().out
    assert re.search(r"step +[\d.e-]+ s, median of 3 \(\d+ % waiting for the loader\); the first took", printed)
    assert re.search(r"speed +[\d.e+]+ samples/s, 2 a step", printed)
    assert re.search(r"memory +[\d.]+ GB of this process", printed)
    assert "16 steps in 0.00 days" in printed and " MB a checkpoint" in printed
    assert "dry run: everything was built, nothing is kept" in printed


def test_an_epoch_that_is_shorter_than_a_dry_run(tmp_path, capfd):
    # Expected: the steps go on in the next epoch, without a validation between them.
    cfg = toy_config(tmp_path / "run", train_dataloader__dataset__length=4, log_level="INFO")
    assert train_with(cfg, None, DRY)["steps"] == 4
    assert "val after" not in capfd.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("hook", "said"),
    [
        ({"max_steps": 7}, "7 steps in 0.00 days"),
        ({"max_seconds": 1e-6}, "1e-06 s are the budget: some 0 of 16 steps"),
    ],
)
def test_a_budget_bounds_the_schedule(tmp_path, capfd, hook, said):
    cfg = toy_config(tmp_path / "run", param_scheduler=None)
    cfg.custom_hooks = [*cfg.custom_hooks, {"type": "BudgetSchedule", **hook}]
    train_with(cfg, None, DRY)
    assert said in capfd.readouterr().out


def test_a_dry_run_goes_on_from_a_checkpoint(tmp_path, capfd):
    # Expected: of 16 steps, 13 are left after iteration 3; the run's own folder stays as it is.
    train_toy(str(tmp_path / "run"))
    before = sorted(os.listdir(tmp_path / "run"))
    cfg = toy_config(tmp_path / "run")
    train_with(cfg, None, RunOptions(resume=str(tmp_path / "run" / "iter_3.pth"), dry_run=True))
    assert "13 steps in 0.00 days" in capfd.readouterr().out
    assert sorted(os.listdir(tmp_path / "run")) == before


def test_a_dry_run_finds_mistakes(tmp_path):
    with pytest.raises(InputError, match="model"):
        train_with(toy_config(tmp_path / "run", model__chanels=3), None, DRY)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--work-dir: cannot be written to"):
        train_with(toy_config(tmp_path / "file"), None, DRY)


def test_the_learning_rate_is_scaled_by_the_batch(tmp_path, capfd):
    # Expected: linear scaling (Goyal et al. 2017): 0.01 for 8 samples is 0.0025 for 2; schedules go on from there.
    cfg = toy_config(tmp_path, auto_scale_lr=dict(base_batch_size=8), param_scheduler=None)
    train_with(cfg, None, RunOptions(auto_scale_lr=True))
    rates = read_checkpoint(tmp_path / "iter_16.pth")["message_hub"]["log_scalars"]["train/lr"]["history"][0]
    assert set(rates.tolist()) == {0.0025}
    assert "learning rate times 0.25: 2 samples a step, the config's is for 8" in capfd.readouterr().out


def test_scaling_needs_to_know_from_what(tmp_path):
    with pytest.raises(InputError, match=r"auto_scale_lr.base_batch_size: absent: --auto-scale-lr asks for"):
        train_with(toy_config(tmp_path), None, RunOptions(auto_scale_lr=True))
