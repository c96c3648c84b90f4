"""What stops a run in the middle: numbers that are not finite, a signal, a data worker's death, a changed config."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from types import FrameType
from typing import Any

from torch import nn
from torch.utils.data import DataLoader


class RunError(RuntimeError):
    """A run that cannot go on. Entry points print ``error: `` and the message, and exit with ``exit_code``."""

    exit_code = 1


class NonFiniteError(RunError):
    """A loss or a gradient is NaN or infinite. The message names the samples or the parameters."""


class StoppedBySignal(RunError):
    """The run finished its step and saved because a signal asked for it; exit code 128 + signal, as a shell has it."""

    def __init__(self, signal_number: int, checkpoint: str) -> None:
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number
        name = signal.Signals(signal_number).name
        super().__init__(f"stopped by {name} after saving {checkpoint}; continue with --resume")


class SignalWatch:
    """Remembers SIGTERM or SIGINT instead of dying of it; a second one kills as usual. Workers inherit it by fork."""

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)

    def __enter__(self) -> SignalWatch:
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._remember)
            except ValueError:  # not the main thread: whoever started the thread takes care of signals
                return self
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


@contextmanager
def naming_unused(model: nn.Module) -> Iterator[None]:
    """Say the names of parameters that no loss reached, where DDP gives their numbers only."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"did not receive grad for rank \d+: ([\d ]+)", str(error))
        if found is None:
            raise
        parameters = model.get_submodule("module").named_parameters()
        trained = [name for name, parameter in parameters if parameter.requires_grad]
        names = [trained[int(number)] for number in found[1].split()]
        shown = ", ".join(names[:4]) + ", ..." * (len(names) > 4)
        advice = "leave them out of the config, freeze them, or set find_unused_parameters=True"
        raise RunError(f"{len(names)} parameters took no part in the loss: {shown}; {advice}") from error


@contextmanager
def naming_dead_worker(loader: DataLoader, running: Callable[[], tuple[Any, int]]) -> Iterator[None]:
    """Say which data worker died, and which samples it was asked for, where torch gives the number of its process only.

    torch notices within five seconds, wherever the main process is by then.

    Args:
        loader: of the epoch under way; its batch sampler gives the same batches again.
        running: gives torch's iterator over it, and how many batches of the epoch it left out at the start.

    Raises:
        RunError: a worker died.
    """
    try:
        yield
    except RuntimeError as error:
        found = re.match(r"DataLoader worker \(pid(?:\(s\))? (\d+)", str(error))
        if found is None:
            raise
        iterator, skip = running()
        workers = {worker.pid: number for number, worker in enumerate(getattr(iterator, "_workers", ()))}
        number = workers.get(int(found[1]))
        asked = {skip + batch for batch, task in getattr(iterator, "_task_info", {}).items() if task[0] == number}
        batches = islice(loader.batch_sampler or (), max(asked, default=-1) + 1)
        samples = [sample for place, batch in enumerate(batches) if place in asked for sample in batch]
        told = ", ".join(_sample_name(loader.dataset, int(sample)) for sample in samples) or "none that is known"
        reason = str(error).splitlines()[0].rstrip(". ")
        advice = "often the system's memory is full: set a smaller num_workers; continue with --resume"
        raise RunError(f"data worker {number} died, asked for samples {told}: {reason}; {advice}") from error


def _sample_name(dataset: Any, number: int) -> str:
    """A sample's number in the dataset, and its token where the dataset tells it."""
    return f"{number} ({dataset.clip(number).frames[-1].token})" if hasattr(dataset, "clip") else str(number)
