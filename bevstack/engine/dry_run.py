"""``tools/train.py --dry-run``: a few steps that leave nothing behind, and what they say of the whole training."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from mmengine.config import Config
from mmengine.hooks import Hook

from bevstack.engine.console import batch_size, duration, memory_in_use
from bevstack.engine.hooks import BudgetSchedule, MaxSecondsHook

if TYPE_CHECKING:
    from bevstack.engine.runner import BEVRunner

MEASURED_STEPS = 3
MEASURED_SECONDS = 30.0


class DryRunHook(Hook):
    """Times steps and ends training after a first one and three more, or half a minute of them."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.step_seconds: list[float] = []
        self.waited_seconds: list[float] = []
        self.started = self._began = 0.0
        self._ended: float | None = None

    def before_train_epoch(self, runner) -> None:
        """The loader starts: what follows is waited for it."""
        self._ended = time.perf_counter()

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """A batch is there."""
        self._began = time.perf_counter()
        self.waited_seconds.append(self._began - (self._ended or self._began))

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """A step is done, with all that other hooks do after it."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._ended = time.perf_counter()
        self.step_seconds.append(self._ended - self._began)
        measured = self.step_seconds[1:]
        if len(measured) >= MEASURED_STEPS or sum(self.step_seconds) > MEASURED_SECONDS:
            runner.train_loop.stop_training = True


def prepare(cfg: Config, folder: Path) -> None:
    """Change a config so that a few steps of it write below ``folder`` alone, and no checkpoint by the way."""
    cfg.work_dir = str(folder)
    cfg.default_hooks = {**(cfg.get("default_hooks") or {}), "checkpoint": None, "progress": None}
    cfg.visualizer = {"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}]}


def run(runner: BEVRunner) -> list[str]:
    """Make some steps; returns what they say, as lines of a name and a text, ready to be printed.

    The schedule's time is that of a step, waiting included, for each step that is left; validation, checkpoints and,
    where features are kept, the first epoch's being slower or faster are not in it.
    """
    runner._val_loop = None  # rehearsed; a short epoch would start it
    hook = DryRunHook()
    runner.register_hook(hook)
    runner.train()
    steps = hook.step_seconds[1:] or hook.step_seconds
    waits = hook.waited_seconds[1:] or hook.waited_seconds
    seconds, waited = statistics.median(steps), statistics.median(waits)
    batch = batch_size(runner.train_dataloader) * runner.world_size
    left = max(runner.max_iters - (runner.iter - len(hook.step_seconds)), 0)
    saved = next(Path(runner.work_dir).glob("*.pth"), None)
    lines = {
        "step": f"{seconds + waited:.3g} s, median of {len(steps)} ({100 * waited / (seconds + waited):.0f} % waiting "
        f"for the loader); the first took {hook.step_seconds[0]:.3g} s",
        "speed": f"{batch / (seconds + waited):.3g} samples/s, {batch} a step",
        "memory": f"{memory_in_use()}, at the peak so far",
        "schedule": schedule_text(runner, left, seconds + waited),
    }
    if saved is not None:
        lines["files"] = f"{saved.stat().st_size / 1e6:.1f} MB a checkpoint"
    return [f"  {name:<9} {text}" for name, text in lines.items()]


def schedule_text(runner: BEVRunner, steps: int, seconds: float) -> str:
    """How long the steps that are left take; a budget of steps or seconds ends them earlier.

    Args:
        runner: whose hooks may hold a budget. steps: that are left. seconds: of one.
    """
    budget = [hook.max_seconds for hook in runner.hooks if isinstance(hook, BudgetSchedule | MaxSecondsHook)]
    limits = [limit for limit in budget if limit is not None]
    for hook in runner.hooks:
        if isinstance(hook, BudgetSchedule) and hook.max_steps is not None:
            steps = min(steps, hook.max_steps)
    total = steps * seconds
    if limits and min(limits) < total:
        return f"{min(limits):g} s are the budget: some {min(limits) / seconds:,.0f} of {steps:,} steps"
    return f"{steps:,} steps in {total / 86400:.2f} days ({duration(total)}), without validation"
