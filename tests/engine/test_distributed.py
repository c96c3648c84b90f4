"""Two processes over gloo: the same gradients as one, exact resume, and an end when one of them dies."""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from mmengine.dist import init_dist
from torch.distributed import DistStoreError, TCPStore

from bevstack.engine.checkpoint import read_checkpoint
from bevstack.engine.processes import meeting_place, name_of_this_start
from tests.engine.test_resume import end_state, same
from tests.engine.toy import join_once, toy_config, train_toy
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


@pytest.fixture
def agent_store() -> TCPStore:
    """torchrun's store, which outlives the processes that meet there."""
    return TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


def name_at(store: TCPStore, rank: int, world_size: int = 3, seconds: float = 30, late_s: float = 0) -> str:
    """The name that a rank finds, over a connection of its own."""
    time.sleep(late_s)
    own = TCPStore(store.host, store.port, timeout=timedelta(seconds=seconds), wait_for_workers=False)
    return name_of_this_start(own, rank, world_size, timedelta(seconds=seconds))


@pytest.mark.parametrize("late", [0, 1, 2])
def test_the_processes_of_a_start_agree_on_a_name(agent_store, late) -> None:
    """Whoever comes last; what a start before left, one that never got together included, is no answer to them."""
    names = []
    for _ in range(2):
        with pytest.raises(DistStoreError):
            name_at(agent_store, 2, seconds=0.2)  # alone
        with ThreadPoolExecutor(3) as ranks:
            found = [ranks.submit(name_at, agent_store, rank, late_s=0.3 * (rank == late)) for rank in range(3)]
            agreed = {one.result() for one in found}
        assert len(agreed) == 1
        names += agreed
    assert names[0] != names[1]


def test_a_first_process_that_stays_alone_says_so(agent_store) -> None:
    agent_store.set("start/asked/1", "somebody of an earlier start")
    with pytest.raises(TimeoutError, match=r"ranks \[1, 2\] did not come within 0:00:00.2"):
        name_at(agent_store, 0, seconds=0.2)


def test_a_start_does_not_meet_the_one_before(agent_store, run_together) -> None:
    """The store still has the addresses of processes that were killed; rank 1 is there two seconds before rank 0 has
    written its new one (torch's own way: rank 1 is refused there)."""
    for late_s in (0.0, 2.0):
        arguments = [(rank, agent_store.port, late_s) for rank in range(2)]
        assert run_together(join_once, arguments) == [-signal.SIGKILL, -signal.SIGKILL]


def test_with_a_gpu_mmengine_is_told_where_to_meet(agent_store, monkeypatch) -> None:
    """What the runner adds to ``dist_cfg``, over gloo and without the GPU: the group is there and works."""
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_PORT", str(agent_store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    init_dist("pytorch", backend="gloo", timeout=30, **meeting_place(timedelta(seconds=30)))
    try:
        total = torch.ones(1)
        torch.distributed.all_reduce(total)
        assert total.item() == 1 and torch.distributed.get_world_size() == 1
    finally:
        torch.distributed.destroy_process_group()


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
