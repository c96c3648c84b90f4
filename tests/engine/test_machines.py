"""More than one machine: two nodes as two network namespaces, Slurm by what it sets, one to three ranks of a test.

Expected everywhere: what one machine, or one process, gives with the same samples.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bevstack.engine import processes
from bevstack.errors import InputError
from tests.engine.test_resume import end_state, same
from tests.engine.toy import toy_config
from tests.processes import run_captured

ROOT = Path(__file__).resolve().parents[2]
CHANGES = {"batch_size": 1, "model__batch_norm": False}
SUBNET = "10.214.7"
LONGEST_S = 240


def config_file(folder: Path, name: str, kill: dict | None = None, **changes) -> Path:
    cfg = toy_config(folder / name, **{**CHANGES, **changes})
    cfg.custom_hooks = [*cfg.custom_hooks, *([{"type": "KillAt", **kill}] if kill else [])]
    cfg.custom_imports = {"imports": ["tests.engine.toy"]}
    path = folder / f"{name}.py"
    cfg.dump(path)
    return path


def environment(**more: str) -> dict[str, str]:
    without = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    return {**without, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


# --- two nodes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Two network namespaces with a cable between them: each is a machine as far as sockets can tell.

    Skipped where the kernel refuses, with its words.
    """
    names = [f"bevstack-{os.getpid()}-{node}" for node in range(2)]
    ends = [f"bev{os.getpid() % 100000}n{node}" for node in range(2)]
    commands = [["ip", "netns", "add", name] for name in names]
    commands += [["ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1]]]
    for node, (name, end) in enumerate(zip(names, ends, strict=True)):
        inside = ["ip", "-n", name]
        commands += [
            ["ip", "link", "set", end, "netns", name],
            [*inside, "link", "set", end, "name", "cable"],
            [*inside, "addr", "add", f"{SUBNET}.{node + 1}/24", "dev", "cable"],
            [*inside, "link", "set", "cable", "up"],
            [*inside, "link", "set", "lo", "up"],
        ]
    try:
        for command in commands:
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except FileNotFoundError:
                pytest.skip("no command ip (iproute2)")
            if done.returncode:
                pytest.skip(f"no network namespaces here: {' '.join(command)}: {done.stderr.strip()}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


def start_node(name: str, node: int, config: Path, restarts: int) -> subprocess.Popen:
    """torchrun of one process in a namespace; node 0 is where they meet."""
    command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run"]
    command += ["--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", str(restarts), "--monitor-interval", "1"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{SUBNET}.1:29431", "--rdzv-id", "two-nodes"]
    command += ["--rdzv-conf", f"is_host={1 - node}", "--local-addr", f"{SUBNET}.{node + 1}"]
    command += ["tools/train.py", str(config), "--launcher", "pytorch", "--resume"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    own = environment(GLOO_SOCKET_IFNAME="cable")
    return subprocess.Popen(command, cwd=ROOT, env=own, start_new_session=True, **pipes)


def ended(agents: list[subprocess.Popen]) -> list[str]:
    """What the nodes printed, once they have ended; they end, whatever happens."""
    end, printed = time.monotonic() + LONGEST_S, []
    try:
        for agent in agents:
            printed.append(agent.communicate(timeout=max(1.0, end - time.monotonic()))[0])
    finally:
        for agent in agents:
            if agent.poll() is None:
                agent.terminate()  # torchrun then ends its ranks, which have sessions of their own
                time.sleep(5)
                os.killpg(agent.pid, signal.SIGKILL)
    return printed


@pytest.mark.slow
def test_two_nodes_train_as_one_machine(nodes, tmp_path, run_ranks) -> None:
    """Sixteen steps over the cable, bit for bit those of two ranks on one machine."""
    assert run_ranks(str(tmp_path / "one"), **CHANGES) == [0, 0]
    config = config_file(tmp_path, "two")
    agents = [start_node(name, node, config, 0) for node, name in enumerate(nodes)]
    printed = ended(agents)
    assert [agent.returncode for agent in agents] == [0, 0], printed
    assert same(end_state(tmp_path / "one"), end_state(tmp_path / "two")) == []


@pytest.mark.slow
@pytest.mark.parametrize("restarts", [0, 3])
def test_a_node_whose_rank_dies(nodes, tmp_path, run_ranks, restarts) -> None:
    """kill -9 of rank 1 at step 5. Without restarts both nodes end within 60 s; with them the job goes on by itself
    from the checkpoint of step 3, to the weights of the run that nothing happened to."""
    marker = tmp_path / "killed"
    config = config_file(tmp_path, "two", {"iteration": 5, "rank": 1, "marker": str(marker)})
    agents = [start_node(name, node, config, restarts) for node, name in enumerate(nodes)]
    printed = ended(agents)
    assert marker.exists(), printed
    codes = [agent.returncode for agent in agents]
    if restarts:
        assert codes == [0, 0], printed
        assert any("resuming" in text and "iter_3.pth" in text for text in printed), printed
        assert run_ranks(str(tmp_path / "one"), **CHANGES) == [0, 0]
        assert same(end_state(tmp_path / "one"), end_state(tmp_path / "two")) == []
    else:
        assert 0 not in codes, printed
        assert time.time() - marker.stat().st_mtime < 60
        assert not (tmp_path / "two" / "iter_6.pth").exists()


@pytest.mark.slow
def test_torchrun_starts_a_dead_rank_again(tmp_path, run_ranks) -> None:
    """``--max-restarts`` on one machine: the job goes on from step 3 by itself, bit for bit."""
    marker = tmp_path / "killed"
    config = config_file(tmp_path, "again", {"iteration": 5, "rank": 1, "marker": str(marker)})
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "1", "tools/train.py", str(config), "--launcher", "pytorch", "--resume"]
    done = run_captured(command, LONGEST_S, cwd=ROOT, env=environment())
    assert done.returncode == 0 and marker.exists(), done.stderr
    assert "iter_3.pth" in done.stdout
    assert run_ranks(str(tmp_path / "one"), **CHANGES) == [0, 0]
    assert same(end_state(tmp_path / "one"), end_state(tmp_path / "again")) == []


# --- Slurm ----------------------------------------------------------------------------------------------------------

SRUN = """#!/bin/bash
# srun -n N COMMAND...: as many tasks on this node, told what Slurm tells them
count=$2; shift 2
export SLURM_NTASKS=$count SLURM_NODELIST='node[1-2]' SLURM_JOB_ID=70000123
for ((task = 0; task < count; task++)); do
    SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks+=($!)
done
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit $code
"""
SCONTROL = """#!/bin/bash
[ "$*" = 'show hostnames node[1-2]' ] || exit 1
echo localhost
echo elsewhere
"""


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """``srun`` and ``scontrol`` that do what Slurm's do, first on the path."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.mark.slow
def test_slurm_trains_as_torchrun_does(slurm, tmp_path, run_ranks) -> None:
    """Real processes of a ``srun`` that sets what Slurm sets; bit for bit two ranks."""
    config = config_file(tmp_path, "tasks")
    command = ["srun", "-n", "2", sys.executable, "tools/train.py", str(config), "--launcher", "slurm"]
    done = run_captured(command, LONGEST_S, cwd=ROOT, env=environment())
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stdout and done.stdout.count("trained 16 steps") == 1
    assert run_ranks(str(tmp_path / "one"), **CHANGES) == [0, 0]
    assert same(end_state(tmp_path / "one"), end_state(tmp_path / "tasks")) == []


def told(monkeypatch, **variables: str) -> dict[str, str]:
    monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"], **variables})
    return processes._slurm_places()


TASK = {"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}


def test_what_slurm_says_is_what_torch_is_told(slurm, monkeypatch) -> None:
    """By hand: the first name that scontrol gives, port 29500 + 123 (the job's number without its ten thousands)."""
    found = told(monkeypatch, SLURM_NODELIST="node[1-2]", SLURM_JOB_ID="70000123", **TASK)
    ranks = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}
    assert found == {**ranks, "MASTER_ADDR": "localhost", "MASTER_PORT": "29623"}
    assert told(monkeypatch, SLURM_NODELIST="alone", **TASK)["MASTER_ADDR"] == "alone"
    own = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234"}
    assert told(monkeypatch, SLURM_NODELIST="node[1-2]", **own, **TASK) == ranks


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({}, "SLURM_PROCID, SLURM_LOCALID, SLURM_NTASKS not in the environment; start with: srun"),
        (TASK, "there is no SLURM_NODELIST: set MASTER_ADDR"),
        ({**TASK, "SLURM_NODELIST": "other[1-9]"}, "scontrol cannot read SLURM_NODELIST other[1-9]"),
        ({**TASK, "SLURM_NODELIST": "node[1-2]", "PATH": ""}, "scontrol is not there to read SLURM_NODELIST node[1-2]"),
    ],
)
def test_what_slurm_does_not_say_is_named(slurm, monkeypatch, variables, reason) -> None:
    with pytest.raises(InputError) as error:
        told(monkeypatch, **variables)
    assert error.value.field == "slurm" and reason in error.value.reason
