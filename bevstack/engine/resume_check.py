"""What a run was started with, and what of it changed when it is resumed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bevstack.errors import InputError

_PARTS = ("model", "train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "custom_hooks", "auto_scale_lr")
_OTHER_WRITER = "written by another loop or by another version of bevstack"
_SAID = 120  # characters
# where data lie, how many workers fetch them and what is kept of them changes no result
_FREE = frozenset(
    {"num_workers", "persistent_workers", "prefetch_factor", "pin_memory", "data_root", "work_dir", "kept_features"}
)


def _flatten(value: Any, place: str, into: dict[str, str]) -> None:
    if isinstance(value, dict):
        for key in value:
            if key not in _FREE:
                _flatten(value[key], f"{place}.{key}", into)
    elif isinstance(value, (list, tuple)) and any(isinstance(entry, (dict, list, tuple)) for entry in value):
        for position, entry in enumerate(value):
            _flatten(entry, f"{place}.{position}", into)
    else:
        into[place] = repr(list(value) if isinstance(value, tuple) else value)


def run_settings(cfg: Any, samples: int, processes: int) -> dict[str, str]:
    """The settings that decide what training computes, flat: ``model.heads.map.num_classes`` -> ``6``.

    Args:
        cfg: a config or dict.
        samples: length of the training set.
        processes: world size.
    """
    settings = {"number of training samples": repr(samples), "number of processes": repr(processes)}
    for part in _PARTS:
        value = cfg.get(part)
        if value is not None:
            _flatten(value, part, settings)
    return settings


def changed_settings(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """One text per difference, ``place: old -> new``; empty where nothing is known of before."""
    if not before:
        return []
    places = [*now, *(place for place in before if place not in now)]
    return [
        f"{place}: {before.get(place, 'absent')} -> {now.get(place, 'absent')}"
        for place in places
        if before.get(place) != now.get(place)
    ]


def changes_rates(changes: Sequence[str]) -> bool:
    """Whether changed settings are of the optimizer or its schedules, which then go by the new ones."""
    return any(change.startswith(("optim_wrapper.", "param_scheduler", "auto_scale_lr")) for change in changes)


def require_state(checkpoint: dict[str, Any], file: str | os.PathLike, in_epoch: bool) -> None:
    """Ask for everything that a run goes on from, before any of it is used.

    Args:
        checkpoint: of :func:`bevstack.engine.checkpoint.read_checkpoint`.
        file: where it was read.
        in_epoch: whether the loop goes on in the middle of an epoch.

    Raises:
        InputError: it holds weights only; or names what is absent.
    """
    meta = checkpoint.get("meta") or {}
    if "optimizer" not in checkpoint or "iter" not in meta:
        raise InputError(file, "--resume", "holds weights only; load them with --cfg-options load_from=...")
    for key in ("epoch", *["batch_in_epoch"] * in_epoch):
        if type(meta.get(key)) is not int:
            there = "absent" if key not in meta else f"{meta[key]!r} is no number"
            raise InputError(file, key, f"{there}: {_OTHER_WRITER}; {_anew(file)}")
    if "message_hub" not in checkpoint:
        raise InputError(file, "message_hub", f"absent: {_OTHER_WRITER}; {_anew(file)}")


@contextmanager
def stored_state(file: str | os.PathLike, field: str) -> Iterator[None]:
    """Turn what is wrong with a part of a checkpoint into one line, while it is brought back.

    Raises:
        InputError: instead of an error about keys, types, values or shapes.
    """
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, AssertionError, RuntimeError) as error:
        said = " ".join(str(error.args[0] if error.args else error).split())[:_SAID]
        reason = f"does not fit ({type(error).__name__}: {said}): {_OTHER_WRITER}; {_anew(file)}"
        raise InputError(file, field, reason) from error


def _anew(file: str | os.PathLike) -> str:
    return f"start anew from the weights: load_from={file}"


def require_continuable(changes: Sequence[str], meta: dict[str, Any], steps: int, file: str | os.PathLike) -> None:
    """Refuse what no setting can make go on: another kind of optimizer, or the middle of an epoch of another length.

    Args:
        changes: of :func:`changed_settings`.
        meta: of the checkpoint.
        steps: of an epoch now.
        file: the checkpoint.

    Raises:
        InputError: names both values.
    """
    advice = _anew(file)
    kind = next((change for change in changes if change.startswith("optim_wrapper.optimizer.type: ")), None)
    if kind is not None:
        raise InputError(file, "--resume", f"{kind}: the state of one is of no use to the other; {advice}")
    before, done = meta.get("steps_per_epoch", steps), meta.get("batch_in_epoch", 0)
    if before != steps and done:
        reason = f"written after {done} of the {before} steps of an epoch, which now has {steps}: the place is lost"
        raise InputError(file, "--resume", f"{reason}; resume the end of an epoch, or {advice}")
