"""What a console shows of a training: one line of at most 120 columns a report, and nothing that no screen holds.

Every number, also those that no line has room for, goes to ``scalars.json`` and TensorBoard.
"""

from __future__ import annotations

import datetime
import logging
import math
import resource
from collections.abc import Mapping, Sequence
from numbers import Real

import torch
from mmengine.runner import LogProcessor

COLUMNS = 120
_PREFIX = len("12:34:56 ")
_SUMMARY_LINES = 3


class WithoutNoise(logging.Filter):
    """Keeps from the console what mmengine says about its own deprecated parts, and lines that no screen holds."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a line is shown."""
        text = record.getMessage()
        if text.endswith(" is skipped since its requires_grad=False"):  # once for every tensor that is frozen
            return False
        return len(text) < 1000 and not text.startswith(('"FileClient" will', '"HardDiskBackend" is', "Exp name: "))


class ShortFormatter(logging.Formatter):
    """``12:34:56 text``; with the level's name where a line is more than information."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(message)s", "%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line of a record."""
        level = f"{record.levelname.lower()}: " if record.levelno > logging.INFO else ""
        return f"{record.asctime} {level}{record.message}"


class ShortLogProcessor(LogProcessor):
    """mmengine's, whose scalars stay as they are and whose lines fit a console.

    A training line says the step, the loss, each task's part of it (what a head's losses sum up to, the largest first),
    the learning rate, the time left, samples per second, the part of the time that was waited for the loader, memory.

    Args:
        **kwargs: of mmengine's ``LogProcessor``.
    """

    def get_log_after_iter(self, runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        """Scalars by name, and the line."""
        scalars, line = super().get_log_after_iter(runner, batch_idx, mode)
        if mode != "train":
            total = self._get_dataloader_size(runner, mode)
            return scalars, f"{mode}  {batch_idx + 1}/{total}{speed_text(scalars, 0)}"
        size = batch_size(runner.train_dataloader) * runner.world_size
        if size and scalars.get("time"):
            scalars["samples_per_second"] = size / scalars["time"]
        loop = runner.train_loop
        if getattr(loop, "by_iterations", not self.by_epoch):
            head = f"step {runner.iter + 1}/{runner.max_iters}"
        else:
            steps = self._get_dataloader_size(runner, mode)
            head = f"epoch {runner.epoch + 1}/{runner.max_epochs}  step {batch_idx + 1}/{steps}"
        eta = runner.message_hub.runtime_info.get("eta")
        return scalars, training_line(head, scalars, eta, size)

    def get_log_after_epoch(self, runner, batch_idx: int, mode: str, with_non_scalar: bool = False) -> tuple[dict, str]:
        """Scalars by name, and up to three lines of them, those of no single class first."""
        scalars, _ = super().get_log_after_epoch(runner, batch_idx, mode, with_non_scalar)
        names = [name for name, value in scalars.items() if isinstance(value, Real)]
        shown = [name for name in names if name not in ("time", "data_time", "epoch", "iter")]
        shown.sort(key=lambda name: "/" in name)
        epoch = f" after epoch {self._get_epoch(runner, mode)}" if mode == "val" else ""
        return scalars, summary_lines(f"{mode}{epoch}:", [f"{name} {scalars[name]:.4g}" for name in shown])


def batch_size(loader) -> int:
    """Samples of a step of a loader; 0 where nothing says it."""
    return getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size or 0


def task_losses(scalars: Mapping[str, float]) -> dict[str, float]:
    """What each task's losses sum up to, the largest first: ``detection.loss_cls`` is of the task ``detection``."""
    tasks: dict[str, float] = {}
    for name, value in scalars.items():
        if "loss" in name and name != "loss" and isinstance(value, Real):
            task = name.split(".")[0].removeprefix("loss_")
            tasks[task] = tasks.get(task, 0.0) + value
    return dict(sorted(tasks.items(), key=lambda item: -item[1] if math.isfinite(item[1]) else -math.inf))


def training_line(head: str, scalars: Mapping[str, float], eta_s: float | None, batch: int) -> str:
    """The line of a training step, of at most 120 columns with the time before it.

    Args:
        head: which step it is.
        scalars: by mmengine's names: loss, lr, time, data_time, memory (megabytes of a GPU), and the tasks' losses.
        eta_s: seconds left, None where that is not known.
        batch: samples of a step of all processes.
    """
    tail = f"  lr {scalars['lr']:.1e}" if "lr" in scalars else ""
    tail += "" if eta_s is None else f"  {duration(eta_s)} left"
    tail += speed_text(scalars, batch)
    memory = scalars.get("memory")
    memory_gb = memory / 1024 if memory else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    tail += f"  {memory_gb:.1f} GB"
    start = f"{head}  loss {scalars['loss']:.4g}" if "loss" in scalars else head
    room = COLUMNS - _PREFIX - len(start) - len(tail)
    return f"{start}{fitting_losses(task_losses(scalars), room)}{tail}"


def fitting_losses(tasks: Mapping[str, float], room: int) -> str:
    """`` (detection 3.2, map 1.1, 2 more 0.4)`` in at most ``room`` columns; nothing where a single task is all."""
    if len(tasks) < 2:
        return ""
    parts = [f"{name} {value:.3g}" for name, value in tasks.items()]
    values = list(tasks.values())
    for shown in range(len(parts), 0, -1):
        rest = [f"{len(parts) - shown} more {sum(values[shown:]):.3g}"] if shown < len(parts) else []
        text = f" ({', '.join([*parts[:shown], *rest])})"
        if len(text) <= room:
            return text
    return ""


def speed_text(scalars: Mapping[str, float], batch: int) -> str:
    """Samples (without a batch, steps) per second, and the part of the time that was waited for the loader."""
    seconds = scalars.get("time")
    if not seconds:
        return ""
    waited = 100 * scalars.get("data_time", 0.0) / seconds
    rate = (batch or 1) / seconds
    shown = f"{rate:.3g}" if rate < 100 else f"{rate:.0f}"
    return f"  {shown} {'samples' if batch else 'steps'}/s  wait {waited:.0f} %"


def duration(seconds: float) -> str:
    """``12:34``, ``1:02:03`` or ``2 d 3:04`` (days, hours, minutes)."""
    whole = datetime.timedelta(seconds=round(seconds))
    hours, minutes, rest = whole.seconds // 3600, whole.seconds // 60 % 60, whole.seconds % 60
    if whole.days:
        return f"{whole.days} d {hours}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def summary_lines(head: str, items: Sequence[str]) -> str:
    """Items behind a head, in up to three lines that fit the console; how many are left out is said."""
    width = COLUMNS - _PREFIX
    lines, left = [head], list(items)
    while left:
        added = f"{lines[-1]}  {left[0]}"
        last = len(lines) == _SUMMARY_LINES
        more = f"  ({len(left) - 1} more in scalars.json)" if last and len(left) > 1 else ""
        if len(added) + len(more) <= width:
            lines[-1] = added
            left.pop(0)
        elif last:
            lines[-1] += f"  ({len(left)} more in scalars.json)"
            break
        else:
            lines.append(" " * _PREFIX)
    return "\n".join(lines)


def memory_in_use() -> str:
    """Peak memory so far: of this process, and of the GPU where there is one."""
    text = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB of this process"
    if torch.cuda.is_available():
        reserved, total = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(0).total_memory
        text += f", {reserved / 2**30:.2f} GB of the GPU's {total / 2**30:.0f}"
    return text
