"""Two processes over gloo: the same gradients as one, exact resume, and an end when one of them dies."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from bevstack.engine.checkpoint import read_checkpoint
from tests.engine.test_resume import end_state, same
from tests.engine.toy import toy_config, train_toy
from tests.processes import run_captured

ROOT = Path(__file__).resolve().parents[2]
EXACT = {
    "model__dropout": 0.0,
    "model__batch_norm": False,  # statistics of a batch of one are not those of a batch of two
    "optim_wrapper__optimizer": {"type": "SGD", "lr": 0.01, "_delete_": True},
    "custom_hooks": [],
}


def test_two_ranks_equal_one(tmp_path, run_ranks) -> None:
    """R8: one rank with a batch of two against two with one each, 16 steps of SGD (expected: the single process)."""
    train_toy(str(tmp_path / "one"), **EXACT)
    assert run_ranks(str(tmp_path / "two"), batch_size=1, **EXACT) == [0, 0]
    one, two = (read_checkpoint(tmp_path / name / "iter_16.pth")["state_dict"] for name in ("one", "two"))
    assert set(one) == set(two)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-5, atol=1e-6)


def test_divided_weights_are_refused(tmp_path, run_ranks) -> None:
    changes = {**EXACT, "batch_size": 1, "model_wrapper_cfg": {"type": "MMFullyShardedDataParallel"}}
    assert run_ranks(str(tmp_path), **changes) == [2, 2]
    assert "need whole weights here; leave it out, for DDP" in Path(f"{tmp_path}-message.json").read_text()


def test_streams_on_two_ranks_resume_exactly(tmp_path, run_ranks) -> None:
    """R8: SIGTERM reaches both in mid-epoch; memory and generators of each rank come back."""
    changes = {"streaming": True, "batch_size": 1, "model__batch_norm": False}
    assert run_ranks(str(tmp_path / "straight"), **changes) == [0, 0]
    hook = {"type": "KillAt", "iteration": 6, "number": int(signal.SIGTERM)}
    assert run_ranks(str(tmp_path / "cut"), extra_hooks=[hook], **changes) == [143, 143]
    assert run_ranks(str(tmp_path / "cut"), "auto", resume_changed=True, **changes) == [0, 0]
    assert same(end_state(tmp_path / "straight"), end_state(tmp_path / "cut")) == []
    states = read_checkpoint(tmp_path / "cut" / "iter_6.pth")["meta"]["rank_states"]
    assert [state["streams"]["tokens"] for state in states] == [["s9"], ["s13"]]


def test_another_number_of_ranks_is_refused(tmp_path, run_ranks) -> None:
    """R7: the world size belongs to what must not change."""
    train_toy(str(tmp_path), **EXACT)
    assert run_ranks(str(tmp_path), "auto", **EXACT) == [2, 2]
    assert "number of processes: 1 -> 2" in Path(f"{tmp_path}-message.json").read_text()


def test_unused_parameters_are_named(tmp_path, run_ranks) -> None:
    """R9: torch stops at the second step; the message names what had no gradient."""
    codes = run_ranks(str(tmp_path), batch_size=1, **{**EXACT, "model__unused": True})
    assert codes == [1, 1]
    assert "spare.weight, spare.bias" in Path(f"{tmp_path}-message.json").read_text()


def test_unused_parameters_work_when_allowed(tmp_path, run_ranks) -> None:
    changes = {**EXACT, "model__unused": True, "find_unused_parameters": True}
    assert run_ranks(str(tmp_path), batch_size=1, **changes) == [0, 0]


@pytest.mark.slow
def test_torchrun_ends_when_a_rank_is_killed(tmp_path) -> None:
    """R8, the command line: kill -9 of one rank ends the job with an error within 60 s."""
    cfg = toy_config(tmp_path / "run", batch_size=1, model__batch_norm=False)
    cfg.custom_hooks = [{"type": "KillAt", "iteration": 5, "rank": 1}]
    cfg.custom_imports = {"imports": ["tests.engine.toy"]}
    cfg.dump(tmp_path / "toy.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["tools/train.py", str(tmp_path / "toy.py"), "--launcher", "pytorch", "--amp"]
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = run_captured(command, 180, cwd=ROOT, env=environment)
    saved = tmp_path / "run" / "iter_3.pth"
    assert done.returncode != 0 and saved.is_file(), done.stderr
    assert time.time() - saved.stat().st_mtime < 60 and time.monotonic() - started < 180
    assert "2 processes" in done.stdout
