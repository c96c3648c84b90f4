"""What a file of weights says of itself: the header of a safetensors file, read alone, and held to be what it says.

safetensors begins with eight bytes, the length of a JSON text, and that text. Under its ``__metadata__`` stand texts by
name: here the config as ``name = value`` lines, and the rest of :class:`WeightsHeader` as JSON. It is data; nothing of
it is run.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bevstack.errors import InputError

ENDING = ".safetensors"
FORMAT, FORMAT_VERSION = "bevstack", 1
MAX_HEADER_BYTES = 25_000_000
_TEXTS = ("cfg", "command", "commit", "licence", "box_convention", "data")
_LISTS = ("classes", "cameras")
_NUMBERS = ("seed", "hours", "steps")
_TABLES = ("rig", "recipe", "metrics", "intervals", "calibration", "packaged")


@dataclass(frozen=True)
class WeightsHeader:
    """All that a file of weights says beside its weights.

    Args:
        cfg: the whole config, as text: lines ``name = value``.
        classes: names of the labels, in their order.
        cameras: that it was trained with, in their order.
        rig: of the first training scene, as a ``rig.json`` (docs/inference.md); empty where nobody said.
        recipe: arguments of ``tools/create_synthetic.py`` for the world it was trained on; empty for other data.
        data: that it was trained on, in words.
        metrics: on unseen scenes, by their names in ``metrics.json``.
        intervals: by the same names (low, high), 95 % by bootstrap over scenes.
        calibration: by head: ``temperature``, and the expected calibration error ``before`` and ``after`` it.
        command: that trained it. seed: of the training. steps, hours: of training.
        commit: of this package in training.
        licence: of the weights.
        packaged: parts of the model that another package carries, so that they are not in the file, with the norm of
            their weights (:mod:`bevstack.engine.packaged_parts`).
        box_convention: of detection heads, where the file has one.
    """

    cfg: str
    classes: tuple[str, ...] = ()
    cameras: tuple[str, ...] = ()
    rig: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    command: str = ""
    seed: int = 0
    steps: int = 0
    hours: float = 0.0
    commit: str = ""
    licence: str = ""
    packaged: Mapping[str, float] = field(default_factory=dict)
    box_convention: str = ""

    def metadata(self) -> dict[str, str]:
        """As safetensors takes it: text by name."""
        told = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "kind": "weights"}
        for part in fields(self):
            value = getattr(self, part.name)
            if value or part.name in _NUMBERS:
                told[part.name] = value if part.name in _TEXTS else json.dumps(value, allow_nan=False)
        return told

    @classmethod
    def of_metadata(cls, told: Mapping[str, str], file: str | os.PathLike) -> WeightsHeader:
        """The header of what a file says; what is not known is left.

        Args:
            told: text by name. file: named in messages.

        Raises:
            InputError: a field that is absent or not what it should be, or the format of a later version.
        """
        if told.get("format") != FORMAT or "format_version" not in told:
            reason = "is not of this package: tools/pack_weights.py writes such files"
            raise InputError(file, "format", reason)
        if told["format_version"] != str(FORMAT_VERSION):
            reason = f"{told['format_version']!r}: this version reads {FORMAT_VERSION}; install a newer bevstack"
            raise InputError(file, "format_version", reason)
        if not told.get("cfg"):
            raise InputError(file, "cfg", "absent: the config should stand there")
        parts: dict[str, Any] = {name: told[name] for name in _TEXTS if name in told}
        for name in (*_LISTS, *_NUMBERS, *_TABLES):
            if name in told:
                parts[name] = _value(told[name], name, file)
        return cls(**parts)


def _value(text: str, name: str, file: str | os.PathLike) -> Any:
    """The value of a field that is JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(file, name, f"is no JSON ({str(error)[:80]})") from None
    if name in _LISTS:
        return names_of(value, name, file)
    if name in _NUMBERS:
        whole = name != "hours"
        if type(value) not in ((int,) if whole else (int, float)) or not math.isfinite(value) or value < 0:
            raise InputError(file, name, f"{text[:40]!r} is no {'whole ' * whole}number from 0 on")
        return value
    if not isinstance(value, dict):
        raise InputError(file, name, "is no table of values by name")
    if name in ("metrics", "packaged"):
        _require_numbers(value, name, file)
    if name == "calibration":
        for head, numbers in value.items():
            if not isinstance(numbers, dict):
                raise InputError(file, f"{name}.{head}", "is no table of numbers by name")
            _require_numbers(numbers, f"{name}.{head}", file)
    if name == "intervals":
        for key, ends in value.items():
            if not isinstance(ends, list) or len(ends) != 2:
                raise InputError(file, f"{name}.{key}", "is no pair (low, high)")
            _require_numbers(dict(enumerate(ends)), f"{name}.{key}", file)
    return value


def names_of(value: Any, name: str, file: str | os.PathLike) -> tuple[str, ...]:
    """A list of names as a tuple.

    Raises:
        InputError: it is none.
    """
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise InputError(file, name, "is no list of names")
    return tuple(value)


def _require_numbers(table: Mapping[Any, Any], name: str, file: str | os.PathLike) -> None:
    for key, value in table.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InputError(file, f"{name}.{key}", f"{str(value)[:40]!r} is no number")


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The texts of a safetensors header, by name; empty where there are none. No weight is read.

    Raises:
        InputError: no such file, or one that does not begin as a whole safetensors file does.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "weights", "no such file" if not path.exists() else "not a file")
    with open(path, "rb") as file:
        size, first = os.fstat(file.fileno()).st_size, file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise InputError(path, "header", "truncated, or no safetensors file")
        text = file.read(length)
    try:
        header = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(path, "header", "damaged, or no safetensors file") from None
    told = header.get("__metadata__", {}) if isinstance(header, dict) else None
    if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
        raise InputError(path, "header", "its __metadata__ holds other than texts by name")
    _require_whole(path, header, size - 8 - length)
    return told


def read_header(path: str | os.PathLike) -> WeightsHeader:
    """The header of a file that ``tools/pack_weights.py`` wrote.

    Raises:
        InputError: see :func:`read_metadata` and :meth:`WeightsHeader.of_metadata`.
    """
    return WeightsHeader.of_metadata(read_metadata(path), path)


def _require_whole(path: Path, header: Mapping[str, Any], size: int) -> None:
    """Refuse a file that ends before the last weight that its header names."""
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        ends = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not isinstance(ends, list) or len(ends) != 2 or not all(type(end) is int for end in ends):
            raise InputError(path, name, "has no data_offsets: damaged")
        if not 0 <= ends[0] <= ends[1] <= size:
            raise InputError(path, name, f"lies beyond the end of the file, which has {size} bytes of weights: cut")
