"""Files and folders that appear under their names only when they are complete."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from bevstack.errors import InputError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike, field: str = "file", remark: str = "") -> Iterator[Path]:
    """Write a file so that ``path`` is at every moment either the earlier file or the complete new one.

    When the block ends well, the bytes are on the disk before the name is (the file is synchronised, renamed, and then
    its folder synchronised), so that this holds if the machine loses power, too. Else nothing is left behind.

    Args:
        path: its folder is made where it is absent.
        field: what an error calls the file.
        remark: what an error adds to its reason.

    Yields:
        A path of the same ending in the same folder, to be written; the file is there and empty.

    Raises:
        InputError: it cannot be written (full disk, read-only folder); an earlier file is intact.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    with _one_line(path, field, remark):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.touch(exist_ok=False)
            yield temporary
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _synchronise(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(folder: str | os.PathLike, field: str = "folder") -> Iterator[Path]:
    """Make a folder with all that is in it, so that a killed process leaves the earlier one or none.

    What killed processes of this machine left of the same folder is removed first. Two renames exchange an earlier
    folder for the new one; the files themselves are not synchronised.

    Args:
        folder: may be there, and is then replaced as a whole; the folder above it is made where it is absent.
        field: what an error calls the folder.

    Yields:
        An empty folder beside it.

    Raises:
        InputError: it cannot be written; an earlier folder is intact.
    """
    folder = Path(folder)
    above, temporary = folder.parent, folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    fresh = not above.exists()
    with _one_line(folder, field):
        try:
            _remove_partial_folders(folder)
            temporary.mkdir(parents=True)
            yield temporary
            _exchange(temporary, folder)
            _synchronise(above)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            if fresh and above.is_dir() and not any(above.iterdir()):
                above.rmdir()


def remove_partial_files(folder: str | os.PathLike) -> None:
    """Delete what killed processes left of :func:`atomic_write` in a folder that no other process writes in now."""
    for pattern in (".*.tmp", ".*.tmp.*"):
        for leftover in Path(folder).glob(pattern):
            leftover.unlink(missing_ok=True)


def require_writable(folder: str | os.PathLike, field: str) -> None:
    """Ask before long work whether a folder can be written to, or made; it is left as it is.

    Raises:
        InputError: what stands there, or the nearest folder above it, is no folder or cannot be written to.
    """
    path = Path(folder)
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(path, field, "cannot be written to")


@contextlib.contextmanager
def _one_line(path: Path, field: str, remark: str = "") -> Iterator[None]:
    """Turn what the system says about a write into one line."""
    try:
        yield
    except OSError as error:
        raise InputError(path, field, f"cannot be written: {error.strerror or error}{remark}") from error


def _exchange(temporary: Path, folder: Path) -> None:
    """Give a complete folder its name; an earlier one of that name goes, and comes back if that fails."""
    if not folder.exists():
        os.rename(temporary, folder)
        return
    earlier = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    os.rename(folder, earlier)
    try:
        os.rename(temporary, folder)
    except OSError:
        os.rename(earlier, folder)
        raise
    shutil.rmtree(earlier)


def _synchronise(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_partial_folders(folder: Path) -> None:
    """Remove what processes that are gone left of ``folder``."""
    for leftover in folder.parent.glob(f".{glob.escape(folder.name)}.partial-*"):
        process = leftover.name.rpartition("-")[2]
        if process.isdigit() and (int(process) == os.getpid() or not Path(f"/proc/{process}").exists()):
            shutil.rmtree(leftover, ignore_errors=True)
