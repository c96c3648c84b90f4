"""Other processes in tests: they end, whatever happens."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def run_captured(command: Sequence[str], timeout_s: float, **kwargs: Any) -> subprocess.CompletedProcess:
    """``subprocess.run`` with its text captured; beyond the time, the command's children end with it.

    ``subprocess.run`` kills the command alone and then waits, without end, for children that hold its pipes.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes, **kwargs) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        except BaseException:
            process.terminate()  # torchrun then ends its ranks, within 30 s; they have sessions of their own
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(40)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def run_forked_ranks(
    folder: Path, function: Callable[..., None], *arguments: Any, timeout_s: float = 120, ranks: int = 2
) -> None:
    """Call ``function(rank, *arguments)`` in forked processes of a gloo group, which meet in ``folder``.

    Forked, not spawned: importing mmdet3d and the devkit afresh in each process would take twenty seconds. Raises what
    they raise, and AssertionError where they do not end.
    """
    started = (_as_rank, (folder / f"store{ranks}", ranks, function, arguments))
    group = torch.multiprocessing.start_processes(*started, nprocs=ranks, join=False, start_method="fork")
    end = time.monotonic() + timeout_s
    while not group.join(max(0.0, end - time.monotonic())):
        if time.monotonic() > end:
            for process in group.processes:
                process.kill()
            raise AssertionError(f"the ranks did not end within {timeout_s} s")


def _as_rank(rank: int, store: Path, ranks: int, function: Callable[..., None], arguments: Sequence[Any]) -> None:
    torch.set_num_threads(1)  # a forked process has lost the threads of its parent's pool
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    function(rank, *arguments)
    # What the function made in DDP is gone. Were it the last to hold the group, gloo's threads and Python would wait
    # for each other.
    dist.destroy_process_group()
