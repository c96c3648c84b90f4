"""Info files of mmdet3d and the published BEVFormer are pickles: read as plain data, so that none of them runs code.

A pickle names functions and calls them. Here those alone are known that rebuild numpy's arrays and numbers and Python's
own containers; whatever else a file names is refused by that name before anything of it is imported or called.
"""

from __future__ import annotations

import importlib
import os
import pickle  # noqa: S403 - the reader below knows a few names and refuses all others
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bevstack.errors import InputError

_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_ALLOWED = {
    *((module, name) for module in _NUMPY[:2] for name in ("_reconstruct", "scalar")),
    *((module, "_frombuffer") for module in _NUMPY[2:]),
    ("numpy", "ndarray"),
    *((module, name) for module in ("builtins", "__builtin__") for name in ("set", "frozenset", "complex")),
    ("collections", "OrderedDict"),
}
"""(module, name) of everything that an info file may name."""

_BROKEN = (
    pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, KeyError, IndexError, ImportError,
    OverflowError, MemoryError, RecursionError, AssertionError, struct.error,
)  # fmt: skip


class _PlainUnpickler(pickle.Unpickler):
    """Knows :data:`_ALLOWED` and nothing else."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file, encoding="latin1")
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        """What a name stands for; a name that is not on the list is refused."""
        if (module, name) in _STAND_INS:
            return _STAND_INS[module, name]
        if (module, name) not in _ALLOWED:
            reason = f"names {module}.{name}, which is neither a number, a text, a list nor a numpy array: not read"
            raise InputError(self.path, "pickle", reason)
        module = {"__builtin__": "builtins"}.get(module, module)
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):  # numpy 1 and 2 call the same place numpy.core and numpy._core
            other = module.replace("numpy._core", "numpy.core") if "_core" in module else module
            return getattr(importlib.import_module(other), name)


def _plain_dtype(description: Any, align: bool = False, copy: bool = True) -> np.dtype:
    """A dtype of numbers, texts or objects; arrays of records, which a file can describe wrongly, are not needed."""
    dtype = np.dtype(description)
    if dtype.kind == "V":
        raise ValueError("an array of records")
    return dtype


def _latin1(text: str, encoding: str) -> bytes:
    """Bytes as older pickles hold them: a text of as many characters."""
    if encoding not in ("latin1", "latin-1"):
        raise ValueError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Callable] = {("numpy", "dtype"): _plain_dtype, ("_codecs", "encode"): _latin1}


def read_info_pickle(path: str | os.PathLike) -> Any:
    """The plain data of an info file.

    Args:
        path: a pickle of dicts, lists, texts, numbers and numpy arrays.

    Raises:
        InputError: it is not there, no whole pickle, or names something that is not on the list. Nothing that it names
            has run then.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            reader: Callable[[], Any] = _PlainUnpickler(file, path).load
            return reader()
    except InputError:
        raise
    except OSError as error:
        raise InputError(path, "INFOS.pkl", error.strerror or "cannot be read") from None
    except _BROKEN as error:
        raise InputError(path, "pickle", f"is no whole pickle: {type(error).__name__}: {error}") from None
