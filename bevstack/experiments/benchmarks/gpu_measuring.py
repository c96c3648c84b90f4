"""Times on a CUDA device, and what a step costs it beside time: memory, launches, synchronisations."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tqdm import tqdm

from bevstack.experiments.benchmarks.measuring import Row

LEAST_SECONDS = 2e-3
"""That a measurement lasts at least, by calling again and again: a kernel of 20 us is shorter than its launch."""
MOST_CALLS = 200

Run = Callable[[], object]


class Deadline:
    """The time that a suite has.

    Args:
        seconds: from now on.
        clock: tells seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.end = clock() + seconds

    @property
    def passed(self) -> bool:
        """Whether nothing new should be started."""
        return self.clock() >= self.end


def event_seconds(run: Run, calls: int) -> float:
    """Seconds of one call on the device, the mean of some in a row, between two of its events."""
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    for _ in range(calls):
        run()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3 / calls


class DeviceStopwatch:
    """Times candidates in turns, A B A B, each long enough to be measured; says which fail, and goes on without them.

    Args:
        rounds: times that each candidate counts.
        deadline: after which rows are left out.
        seconds_of: times some calls of a function, :func:`event_seconds` where not given.
    """

    def __init__(
        self, rounds: int, deadline: Deadline, seconds_of: Callable[[Run, int], float] = event_seconds
    ) -> None:
        self.rounds, self.deadline, self.seconds_of = rounds, deadline, seconds_of

    def row(
        self,
        name: str,
        candidates: Mapping[str, Run],
        base: str = "",
        differences: Mapping[str, float] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Row:
        """A row of timed candidates, functions without arguments, and of what each costs beside time."""
        told = dict(facts or {})
        if self.deadline.passed:
            return Row(name, facts=told | {"left out": "no time was left"})
        calls: dict[str, int] = {}
        for key, run in candidates.items():
            try:
                run()  # compiles, and chooses algorithms
                once = self.seconds_of(run, 1)
                told |= {f"{key}: {what}": value for what, value in device_work(run).items()}
            except Exception as error:  # noqa: BLE001 - compilers, captures and peers fail in many ways; the row says how
                told[f"without {key}"] = reason_of(error)
            else:
                calls[key] = int(min(max(LEAST_SECONDS / max(once, 1e-9), 1), MOST_CALLS))
        seconds: dict[str, list[float]] = {key: [] for key in calls}
        for _ in tqdm(range(self.rounds), desc=name):
            for key, number in calls.items():
                seconds[key].append(self.seconds_of(candidates[key], number))
        return Row(name, seconds, base if base in seconds else "", dict(differences or {}), told)


def reason_of(error: Exception) -> str:
    """An error as one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:200]


def device_work(run: Run) -> dict[str, int]:
    """Memory in MiB that one call takes at most beyond what there was, launches, and waits for the device.

    {} on a machine without one.
    """
    if not torch.cuda.is_available():
        return {}
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    kinds = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[kinds.CPU, kinds.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    counts = {event.key: event.count for event in profile.key_averages()}
    return {"MiB": round(peak / 2**20), "launches": launches_of(counts), "waits": waits_of(run)}


def launches_of(counts: Mapping[str, int]) -> int:
    """Kernels and graphs that were launched, of the calls of the driver and its runtime by name."""
    names = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cuGraphLaunch")
    return sum(count for key, count in counts.items() if key.startswith(names))


def waits_of(run: Run) -> int:
    """How often one call makes the host wait for the device."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in caught)


def captured(run: Run) -> Run:
    """A function as one CUDA graph, which replays what it did on the same tensors.

    Raises:
        RuntimeError: it waits for the device, or does something else that no graph can hold.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay
