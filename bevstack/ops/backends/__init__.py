"""Backends of deformable attention: which there are, which can run here, and which one runs.

- ``reference``: the definition in plain torch operations, any dtype and device, differentiable any number of times.
- ``torch``: as fast as torch gets without a compiler, from ``embedding_bag``; first derivatives.
- ``grid_sample``: for exported graphs, of operations that other runtimes have, no tensor of more than five axes.
- ``native``: loops that numba compiles for this processor at first use (CPU, float32 and bfloat16).
- ``triton``: kernels for a GPU (CUDA, float32, bfloat16 and float16).

One is chosen before any work is done: the call's ``backend``, else what :func:`select_backend` was told (a config's
``ops_backend``), else the environment's ``BEVSTACK_OPS``, else ``auto``: the fastest that can take the tensors. Double
precision always goes to ``reference``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from functools import cache
from types import ModuleType

from bevstack.errors import InputError

BACKENDS = ("reference", "torch", "grid_sample", "native", "triton")
ENVIRONMENT = "BEVSTACK_OPS"

_chosen: str | None = None


def select_backend(name: str | None, place: str = "config", field: str = "ops_backend") -> None:
    """Choose the backend of every later call in this process that names none.

    Args:
        name: of :data:`BACKENDS`, ``auto``, or None for what the environment says.
        place: file or other place that the name comes from, for the message.
        field: its field there.

    Raises:
        InputError: there is no such backend, or it cannot run here.
    """
    global _chosen  # the operator is called deep inside models, which know nothing of it
    if name not in (None, "auto"):
        _require(str(name), place, field)
    _chosen = name


def selected_backend() -> str:
    """The name that counts where a call gives none: ``auto`` or one of :data:`BACKENDS`.

    Raises:
        InputError: the environment names a backend that is not there or cannot run here.
    """
    if _chosen is not None:
        return _chosen
    name = os.environ.get(ENVIRONMENT, "auto") or "auto"
    if name != "auto":
        _require(name, "environment", ENVIRONMENT)
    return name


def backend_for(device: str, double: bool, name: str | None = None) -> str:
    """The backend that takes a call.

    Args:
        device: type of the tensors' device.
        double: whether they are in double precision.
        name: what the call asks for; None or ``auto``: what is selected.

    Returns:
        One of :data:`BACKENDS`.

    Raises:
        ValueError: the call names a backend that there is not.
        InputError: what is selected cannot run here.
    """
    if name is None or name == "auto":
        name = selected_backend()
    elif name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; there are auto, {', '.join(BACKENDS)}")
    if double:
        return "reference"
    if name != "auto":
        return name
    fastest = {"cpu": "native", "cuda": "triton"}.get(device)
    return fastest if fastest is not None and unavailable(fastest) is None else "torch"


@cache
def unavailable(name: str) -> str | None:
    """Why a backend cannot run here; None where it can."""
    if name == "native":
        return None if importlib.util.find_spec("numba") else "numba is not installed: pip install numba"
    if name == "triton":
        if importlib.util.find_spec("triton") is None:
            return "triton is not installed: pip install triton"
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        import torch  # only here: doctor asks about the others without it

        return None if torch.cuda.is_available() else "no CUDA device"
    return None


def module_of(name: str) -> ModuleType:
    """The module behind a backend: its ``forward`` and ``backward``. Imported at first use, as numba is slow."""
    return importlib.import_module(f"{__name__}.{name}")


def _require(name: str, place: str, field: str) -> None:
    if name not in BACKENDS:
        raise InputError(place, field, f"unknown backend '{name}'; there are auto, {', '.join(BACKENDS)}")
    reason = unavailable(name)
    if reason is not None:
        raise InputError(place, field, f"backend '{name}' cannot run here: {reason}")
