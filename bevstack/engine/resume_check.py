"""What a run was started with, and what of it changed when it is resumed."""

from __future__ import annotations

from typing import Any

_PARTS = ("model", "train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "custom_hooks", "auto_scale_lr")
# where data lie and how many workers fetch them changes no result
_FREE = frozenset({"num_workers", "persistent_workers", "prefetch_factor", "pin_memory", "data_root", "work_dir"})


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
