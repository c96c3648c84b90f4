"""The runner beside itself: what two runs of one process must not share."""

from __future__ import annotations

from mmengine.runner import Runner

from bevstack.registry import RUNNERS
from tests.engine.toy import toy_config


def test_runs_that_start_in_one_second_are_apart(tmp_path, monkeypatch) -> None:
    # Expected: each its own; mmengine names them by the config and the second.
    monkeypatch.setattr("time.strftime", lambda *_: "20261128_120000")
    first, second = (RUNNERS.get("BEVRunner").from_cfg(toy_config(tmp_path / name)) for name in ("first", "second"))
    assert isinstance(first, Runner) and first.timestamp == second.timestamp
    assert first.experiment_name != second.experiment_name
    for part in ("logger", "visualizer", "message_hub"):
        assert getattr(first, part) is not getattr(second, part), part
    assert [str(run.log_dir).startswith(str(run.work_dir)) for run in (first, second)] == [True, True]


def test_a_run_may_be_named(tmp_path) -> None:
    # Expected: mmengine's own rule, the name and the time.
    runner = RUNNERS.get("BEVRunner").from_cfg(toy_config(tmp_path, experiment_name="night"))
    assert runner.experiment_name == f"night_{runner.timestamp}"
