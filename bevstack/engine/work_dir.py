"""One run at a time in a work directory, and only where it can be written."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from bevstack.errors import InputError
from bevstack.files import remove_partial_files

LOCK_NAME = ".train.lock"


class WorkDirLock:
    """The right to write in a work directory, held by one process until it ends, however it ends.

    A POSIX record lock: the system drops it with the process (also at kill -9), and data workers do not inherit it.
    The file holds the owner's process id for the message; a file left behind by a dead process means nothing.

    Args:
        work_dir: created where it is absent.

    Raises:
        InputError: another run holds it, or the folder cannot be created or written.
    """

    def __init__(self, work_dir: str | os.PathLike) -> None:
        self.folder = Path(work_dir)
        self._file = None
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

    def __enter__(self) -> WorkDirLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
