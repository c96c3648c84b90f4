"""Processes for runs that are killed, and a place for their results."""

from __future__ import annotations

import multiprocessing
import socket
from collections.abc import Callable, Sequence

import pytest

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.engine.toy"])


@pytest.fixture(scope="session")
def run_process() -> Callable[..., int]:
    """Call a function of :mod:`tests.engine.toy` in a process of its own; returns its exit code (-9: killed)."""

    def run(function: Callable, *args, **kwargs) -> int:
        process = _CONTEXT.Process(target=function, args=args, kwargs=kwargs)
        process.start()
        process.join(120)
        if process.is_alive():
            process.kill()
            raise AssertionError("the process did not end within 120 s")
        return process.exitcode

    return run


@pytest.fixture(scope="session")
def run_together() -> Callable[..., list[int]]:
    """Call a function of :mod:`tests.engine.toy` in one process for each set of arguments; returns their exit codes."""

    def run(function: Callable, arguments: Sequence[tuple], **kwargs) -> list[int]:
        ranks = [_CONTEXT.Process(target=function, args=args, kwargs=kwargs) for args in arguments]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(120)
            if process.is_alive():
                process.kill()
        return [process.exitcode for process in ranks]

    return run


@pytest.fixture(scope="session")
def run_ranks(run_together) -> Callable[..., list[int]]:
    """Call :func:`tests.engine.toy.train_as_rank` in two processes that talk over gloo; returns their exit codes."""
    from tests.engine.toy import train_as_rank

    def run(*args, **kwargs) -> list[int]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        return run_together(train_as_rank, [(rank, 2, port, *args) for rank in range(2)], **kwargs)

    return run
