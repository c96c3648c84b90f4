"""Other processes in tests: they end, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch.multiprocessing


def run_captured(command: Sequence[str], timeout_s: float, **kwargs: Any) -> subprocess.CompletedProcess:
    """``subprocess.run`` with its text captured; beyond the time, the command's children are killed with it.

    ``subprocess.run`` kills the command alone and then waits, without end, for children that hold its pipes.
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, start_new_session=True, **pipes, **kwargs) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout_s)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, process.returncode, stdout, stderr)


def run_forked_ranks(function: Callable[..., None], *arguments: Any, timeout_s: float = 120) -> None:
    """Call ``function(rank, *arguments)`` in two forked processes; raises what they raise.

    Forked, not spawned: importing mmdet3d and the devkit afresh in each process would take twenty seconds.
    """
    ranks = torch.multiprocessing.start_processes(function, arguments, nprocs=2, join=False, start_method="fork")
    end = time.monotonic() + timeout_s
    while not ranks.join(max(0.0, end - time.monotonic())):
        if time.monotonic() > end:
            for process in ranks.processes:
                process.kill()
            raise AssertionError(f"the ranks did not end within {timeout_s} s")
