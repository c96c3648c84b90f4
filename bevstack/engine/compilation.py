"""``compile`` of a config: what torch.compile is given, and whether this machine can compile."""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import Any

import torch
from mmengine.config import Config

from bevstack.errors import InputError

_FIELD = "compile"


def compile_options(cfg: Config) -> dict[str, Any] | None:
    """Arguments of torch.compile from ``compile`` (True, or a dict of them); None where nothing is to be compiled.

    Raises:
        InputError: neither of the two, or this machine has no compiler.
    """
    wanted, file = cfg.get(_FIELD), cfg.filename or "config"
    if wanted is None or wanted is False:
        return None
    if wanted is not True and not isinstance(wanted, dict):
        raise InputError(file, _FIELD, f"{wanted!r} is neither True, False nor a dict of arguments of torch.compile")
    options = {} if wanted is True else dict(wanted)
    if options.get("backend", "inductor") == "inductor":
        _require_compiler(file)
    return options


def _require_compiler(file: str) -> None:
    """torch's own backend makes C++ for the CPU and Triton for a GPU, whose launchers are C."""
    advice = "install it, or leave compile out"
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        raise InputError(file, _FIELD, f"torch.compile needs a C++ compiler (g++), which this machine lacks; {advice}")
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        raise InputError(file, _FIELD, f"torch.compile needs the package triton on a GPU; {advice}")
