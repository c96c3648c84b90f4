"""Moments that come one by one: as lines on standard input, or as files in a folder that a recorder writes into."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from bevstack.engine.image_folder import in_order, require_files
from bevstack.engine.rig_file import MomentRecord, moment_record
from bevstack.errors import InputError

POLL_S = 0.05
"""How often a folder is looked at."""
PATIENCE_S = 2.0
"""How long a file may be half written."""


def records_on(lines: Iterable[str]) -> Iterator[MomentRecord]:
    """A moment of each line of JSON that is not empty, as soon as it is there.

    Raises:
        InputError: a line is no moment, or an image of it is not there; when it is reached.
    """
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = ("stdin", f"line {number}")
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(*place, f"is no JSON: {error.msg}") from None
        record = moment_record(content, Path(), f"{number - 1:06d}", place)
        require_files([record])
        yield record


def records_in(folder: Path, idle_seconds: float | None = None) -> Iterator[MomentRecord]:
    """A moment of each ``*.json`` of a folder, those that are there first, then each as soon as it appears.

    Of several that wait, names are taken in their order, by the numbers in them. A file is taken once. One that is no
    JSON yet holds up those after it for :data:`PATIENCE_S` since its last change, because it may be half written; its
    images are to be there when it is.

    Args:
        folder: names of images in the files begin from it.
        idle_seconds: when so long nothing has come, the stream is over; None for one that Ctrl-C ends.

    Raises:
        InputError: a file is no moment, or an image of it is not there; when it is reached.
    """
    taken: set[str] = set()
    last = time.monotonic()
    while True:
        waiting = [path for path in folder.glob("*.json") if path.name not in taken and not path.name.startswith(".")]
        for path in sorted(waiting, key=lambda path: in_order(path.stem)):
            record = _record_of(path)
            if record is None:
                break
            taken.add(path.name)
            yield record
            last = time.monotonic()
        if idle_seconds is not None and time.monotonic() - last >= idle_seconds:
            return
        try:
            time.sleep(POLL_S)
        except KeyboardInterrupt:
            return


def _record_of(path: Path) -> MomentRecord | None:
    """The moment of a file; None where it is perhaps not wholly written."""
    try:
        changed = path.stat().st_mtime
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:  # also a character that is cut in two
        if time.time() - changed < PATIENCE_S:
            return None
        raise InputError(path, "--watch", f"is no JSON: {getattr(error, 'msg', 'no text')}") from None
    record = moment_record(content, path.parent, path.stem, (str(path), "moment"))
    require_files([record])
    return record
