"""What stops a run in the middle: numbers that are not finite, a signal, a changed config."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from torch import nn


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
