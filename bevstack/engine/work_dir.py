"""One run at a time in a work directory, only where it can be written; one that is refused leaves nothing there."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from bevstack.errors import InputError
from bevstack.files import remove_partial_files

LOCK_NAME = ".train.lock"
_LOG_FOLDER = re.compile(r"\d{8}_\d{6}")  # mmengine's, of every run


class Attempt:
    """A run that may be refused before its first step: then its log and the copy of its config are removed again.

    Args:
        folder: of the run; folders above it that are made for it count, too.

    Set ``began`` once there is something to keep. Only an :class:`InputError` counts as a refusal.
    """

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder, self.began = Path(folder), False

    def __enter__(self) -> Attempt:
        self._made = _absent(self.folder)
        self._before = self._records()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not issubclass(kind, InputError) or self.began:
            return
        for record in self._records() - self._before:
            if record.is_dir():
                shutil.rmtree(record, ignore_errors=True)
            else:
                record.unlink(missing_ok=True)
        _remove_empty(self._made)

    def _records(self) -> set[Path]:
        """What mmengine writes of a run when it builds it."""
        entries = self.folder.iterdir() if self.folder.is_dir() else ()
        return {entry for entry in entries if _LOG_FOLDER.fullmatch(entry.name) or entry.suffix == ".py"}


def _absent(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, innermost first."""
    return [place for place in (folder, *folder.absolute().parents) if not place.exists()]


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


class WorkDirLock:
    """The right to write in a work directory, held by one process until it ends, however it ends.

    A POSIX record lock: the system drops it with the process (also at kill -9), and data workers do not inherit it.
    The file holds the owner's process id for the message; a file left behind by a dead process means nothing. Folders
    made for it go with it when they are empty.

    Args:
        work_dir: created where it is absent.

    Raises:
        InputError: another run holds it, or the folder cannot be created or written.
    """

    def __init__(self, work_dir: str | os.PathLike) -> None:
        self.folder = Path(work_dir)
        self._file = None
        self._made = _absent(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = open(self.folder / LOCK_NAME, "a+")  # noqa: SIM115 - held open as long as the lock
        except OSError as error:
            raise InputError(work_dir, "--work-dir", f"cannot be written: {error.strerror or error}") from error
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise InputError(work_dir, "--work-dir", f"in use by another run (process {owner})") from error
        try:
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
        except OSError as error:
            file.close()
            raise InputError(work_dir, "--work-dir", f"cannot be written: {error.strerror or error}") from error
        self._file = file
        remove_partial_files(self.folder)

    def release(self) -> None:
        """Give the directory back and remove the lock file."""
        if self._file is not None:
            (self.folder / LOCK_NAME).unlink(missing_ok=True)
            self._file.close()
            self._file = None
            _remove_empty(self._made)

    def __enter__(self) -> WorkDirLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
