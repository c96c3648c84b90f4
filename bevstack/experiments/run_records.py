"""What a comparison keeps of each run: one JSON file a run, whole or not there, from which its page is made.

A record's fields: ``section``, ``name`` and ``seed`` (its place), ``key`` (hash of its config; null of a run that was
finished elsewhere and taken in), ``budget`` (what ended it), ``metrics`` of the test, ``scores``
(:func:`bevstack.evaluation.drawn_scores.table_scores`), ``cost``, ``training``, ``logged``, and texts: ``commit``,
``machine``, ``data``, ``source``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bevstack.errors import InputError
from bevstack.files import atomic_write

_TEXTS = ("section", "name", "budget", "commit", "machine", "data", "source")
_NUMBERS = ("metrics", "scores", "cost")
_OBJECTS = (*_NUMBERS, "training", "logged")


class RunRecords:
    """The records of a folder, which is made with the first of them.

    Args:
        folder: of the files.

    Raises:
        InputError: a file is no record.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._records = {path: read_record(path) for path in sorted(folder.glob("*.json"))} if folder.is_dir() else {}

    def of(self, section: str, name: str, seed: int, key: str | None) -> dict[str, Any] | None:
        """The finished run of a variant: one with its config's hash, wherever it stands, else one taken in for its
        place; None where there is neither. ``key`` None: only one that was taken in."""
        for record in self._records.values():
            if key is not None and record["key"] == key and record["seed"] == seed:
                return record
        return next((r for r in self.placed(section, name, seed) if r["key"] is None), None)

    def placed(self, section: str, name: str, seed: int) -> list[dict[str, Any]]:
        """All records of a place, whatever config they were of."""
        place = (section, name, seed)
        return [r for r in self._records.values() if (r["section"], r["name"], r["seed"]) == place]

    def keep(self, record: Mapping[str, Any]) -> Path:
        """Write a record; an earlier one of the same place and config goes."""
        words = (record["section"], record["name"], f"seed-{record['seed']}", (record["key"] or "taken")[:8])
        path = self.folder / f"{'_'.join(map(_file_words, words))}.json"
        plain = {**record, **{field: _finite(record[field]) for field in _NUMBERS}}
        if "checkpoint" in plain["training"]:  # its folder is one machine's
            plain["training"] = {**plain["training"], "checkpoint": Path(plain["training"]["checkpoint"]).name}
        with atomic_write(path, "record") as temporary:
            temporary.write_text(json.dumps(plain, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        self._records[path] = read_record(path)
        return path


def read_record(path: Path) -> dict[str, Any]:
    """One record.

    Raises:
        InputError: the file is not what :meth:`RunRecords.keep` writes.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(path, "record", f"cannot be read ({error}); remove the file to run it again") from None
    if not isinstance(record, dict):
        raise InputError(path, "record", "must be an object; remove the file to run it again")
    for field in _TEXTS:
        if not isinstance(record.get(field), str):
            raise InputError(path, field, "must be a text; remove the file to run it again")
    if type(record.get("seed")) is not int or not isinstance(record.get("key", 0), str | None):
        raise InputError(path, "seed", "with key must be a number and a hash; remove the file to run it again")
    for field in _OBJECTS:
        values = record.get(field)
        if not isinstance(values, dict):
            raise InputError(path, field, "must be an object; remove the file to run it again")
        if field in _NUMBERS and not all(type(value) in (int, float) for value in values.values()):
            raise InputError(path, field, "must be numbers by name; remove the file to run it again")
    return record


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    known = {name: value for name, value in values.items() if value is not None}
    return {name: round(float(value), 6) for name, value in known.items() if math.isfinite(value)}


def _file_words(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", text).strip("-").lower()[:48]
