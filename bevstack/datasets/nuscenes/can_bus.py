"""nuScenes' CAN bus, where there is one; :mod:`bevstack.datasets.ego_state` says what it is for.

Imports the devkit: import this module only where an index is made.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
from nuscenes.can_bus.can_bus_api import NuScenesCanBus

from bevstack.datasets.nuscenes.table_files import read_json
from bevstack.errors import InputError

POSE_FIELDS = ("accel", "rotation_rate", "vel")
STALE_SECONDS = 0.5
_MOST, _LATEST_US = 1e6, 1e17  # m/s^2, rad/s, m/s; microseconds


def read_can_bus(root: str | Path, scenes: list[tuple[str, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Newest ``pose`` message at or before each sample, through the devkit's CAN-bus API.

    Args:
        root: dataset root; messages are read from ``can_bus`` below it.
        scenes: per scene its name and the (n,) int64 timestamps of its samples in microseconds.

    Returns:
        (S, 9) float64 acceleration, rotation rate, velocity (NaN where there is none), and (S,) bool: whether there is.
        A sample has none where its scene has no messages (the devkit's blacklist among them), or none of them came
        in the 0.5 s before it. One warning tells how many scenes are concerned.

    Raises:
        InputError: a message file is no list of messages, or a message lacks a key.
    """
    values, missing = [], []
    folder = Path(root) / "can_bus"
    api = None
    if folder.is_dir():
        api = NuScenesCanBus(dataroot=str(root))
    for name, timestamps in scenes:
        messages = None if api is None else _scene_messages(api, folder, name)
        rows = np.full((len(timestamps), 9), np.nan) if messages is None else _newest_before(*messages, timestamps)
        if np.isnan(rows).any():
            missing.append(name)
        values.append(rows)
    if missing and api is not None:
        few = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        warnings.warn(
            f"{folder}: {len(missing)} of {len(scenes)} scenes lack CAN-bus messages for some samples ({few}); "
            "their accelerations and velocities are zero, ego motion comes from the ego poses",
            stacklevel=2,
        )
    table = np.concatenate(values) if values else np.zeros((0, 9))
    return table, ~np.isnan(table).any(axis=1)


def _scene_messages(api, folder: Path, name: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Times (M,) in microseconds and values (M, 9) of one scene's pose messages, in order of time, or None."""
    path = folder / f"{name}_pose.json"
    if not re.fullmatch(r"scene-\d{4}", name) or int(name[-4:]) in api.can_blacklist or not path.exists():
        return None
    read_json(path)  # names the place of a fault; the devkit's own reader does not
    messages = api.get_messages(name, "pose", print_warnings=False)
    if not isinstance(messages, list):
        raise InputError(path, "content", "must be a list of messages")
    rows, times = [], []
    for row, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InputError(path, f"[{row}]", "must be a message")
        for field in ("utime", *POSE_FIELDS):
            if field not in message:
                raise InputError(path, f"[{row}].{field}", "is missing")
        numbers = [v for field in POSE_FIELDS for v in _listed(message[field])]
        if len(numbers) != 9 or not all(type(v) in (int, float) and abs(v) < _MOST for v in numbers):
            raise InputError(path, f"[{row}]", "accel, rotation_rate and vel must be 3 finite numbers each")
        if type(message["utime"]) not in (int, float) or not 0 <= message["utime"] < _LATEST_US:
            raise InputError(path, f"[{row}].utime", "must be a number of microseconds")
        times.append(message["utime"])
        rows.append(numbers)
    if not rows:
        return None
    order = np.argsort(np.array(times), kind="stable")
    return np.array(times, dtype=np.int64)[order], np.array(rows, dtype=np.float64)[order]


def _listed(value: object) -> list:
    return value if isinstance(value, list) else [value]


def _newest_before(times: np.ndarray, values: np.ndarray, timestamps: np.ndarray) -> np.ndarray:
    last = np.searchsorted(times, timestamps, side="right") - 1
    fresh = (last >= 0) & (timestamps - times[last] <= STALE_SECONDS * 1e6)
    return np.where(fresh[:, None], values[last], np.nan)
