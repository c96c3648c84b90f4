"""Learning rates that change on resuming, and schedules that end elsewhere than training does."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.optim.scheduler.param_scheduler import _ParamScheduler

from bevstack.errors import InputError


def load_optimizer(
    wrapper: OptimWrapper, state: Mapping[str, Any], file: str | os.PathLike, keep_settings: bool = False
) -> None:
    """Continue an optimizer's state (moments, steps).

    Args:
        wrapper: as built of the config.
        state: of a checkpoint.
        file: named in messages.
        keep_settings: whether rates, decay and such stay those of the config instead of the checkpoint's.

    Raises:
        InputError: the state is of another kind of optimizer, or of other groups of parameters.
    """
    groups = wrapper.optimizer.param_groups
    configured = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    try:
        wrapper.load_state_dict(state)
    except (ValueError, KeyError) as error:
        reason = f"its optimizer's state does not fit ({error}); start anew from the weights: load_from={file}"
        raise InputError(file, "optimizer", reason) from error
    if keep_settings:
        for group, settings in zip(wrapper.optimizer.param_groups, configured, strict=True):
            group.update({"initial_lr": settings["lr"], **settings})


def advance(schedulers: Iterable[_ParamScheduler], iterations: int, epochs: int) -> None:
    """Bring newly built schedulers to where they would be after so much training.

    Args:
        schedulers: of a run that begins; in the order in which they act.
        iterations: steps done.
        epochs: epochs done, all as long as each other.
    """
    schedulers = list(schedulers)
    ends = {math.ceil(iterations * (epoch + 1) / epochs) for epoch in range(epochs)} if epochs else set()
    for iteration in range(1, iterations + 1):
        for scheduler in schedulers:
            if not scheduler.by_epoch:
                scheduler.step()
        if iteration in ends:
            for scheduler in schedulers:
                if scheduler.by_epoch:
                    scheduler.step()


def schedule_notes(cfg: Config, max_epochs: int, max_iters: int) -> list[str]:
    """What a user who changed the length of training should know: schedules that end later or earlier than it.

    Args:
        cfg: with ``param_scheduler``.
        max_epochs, max_iters: of the training.
    """
    schedulers = cfg.get("param_scheduler") or []
    one = isinstance(schedulers, dict)
    notes, ends = [], []
    for number, scheduler in enumerate([schedulers] if one else schedulers):
        if not isinstance(scheduler, Mapping):
            continue
        place = "param_scheduler" if one else f"param_scheduler.{number}"
        by_epoch = scheduler.get("by_epoch", True)
        limit, unit = (max_epochs, "epoch") if by_epoch else (max_iters, "iteration")
        end = _end(scheduler)
        ends.append((end, limit))
        if end is not None and end > limit:
            kind = str(getattr(scheduler["type"], "__name__", scheduler["type"]))
            notes.append(f"{place}: {kind} ends at {unit} {end}, training at {limit}: its last rates are never used")
    if ends and all(end is not None and end < limit for end, limit in ends):
        notes.append("param_scheduler: every schedule ends before training does; the last learning rate then stays")
    return notes


def _end(scheduler: Mapping[str, Any]) -> int | None:
    """Where a schedule's last change lies; None where it goes on for ever."""
    begin, end = scheduler.get("begin", 0), scheduler.get("end")
    inner = [scheduler["T_max"]] if isinstance(scheduler.get("T_max"), int) else []
    milestones: Sequence[int] = scheduler.get("milestones") or ()
    found = [begin + value for value in inner] + list(milestones)
    if isinstance(end, (int, float)) and math.isfinite(end):
        found.append(int(end))
    return max(found, default=None)
