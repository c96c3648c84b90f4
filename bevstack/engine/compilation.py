"""``compile`` of a config: what torch.compile is given, and whether this machine can compile."""

from __future__ import annotations

import importlib.util
import os
import shutil
import warnings
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from bevstack.errors import InputError

_FIELD = "compile"


def compile_options(cfg: Config) -> dict[str, Any] | None:
    """Arguments of torch.compile from ``compile`` (True, or a dict of them); None where nothing is to be compiled.

    Raises:
        InputError: neither of the two.
        MissingCompilerError: this machine has no compiler.
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


def compile_form(form: nn.Module, cfg: Config) -> bool:
    """Compile backbone and neck of a model's form for inference where ``compile`` says so; returns whether it was done.

    The weights become constants of what is compiled (inductor's ``freezing``), where the config gives neither
    ``options`` nor ``mode``. Without a compiler the form stays as it is, and one line says so.

    Args:
        form: of :func:`bevstack.models.inference_form.inference_form`.
        cfg: of the model.

    Raises:
        InputError: ``compile`` is neither True, False nor a dict.
    """
    try:
        options = compile_options(cfg)
    except MissingCompilerError as error:
        warnings.warn(f"{error}; goes on without", stacklevel=2)
        return False
    if options is None:
        return False
    if options.get("backend", "inductor") == "inductor" and not {"mode", "options"} & set(options):
        options["options"] = {"freezing": True}
    for name in ("backbone", "neck"):
        part = getattr(form, name, None)
        if isinstance(part, nn.Module):
            part.compile(**options)
    return True


class MissingCompilerError(InputError):
    """``compile`` was asked for where there is no compiler."""


def _require_compiler(file: str) -> None:
    """torch's own backend makes C++ for the CPU and Triton for a GPU, whose launchers are C."""
    advice = "install it, or leave compile out"
    if shutil.which(os.environ.get("CXX", "g++")) is None and shutil.which("clang++") is None:
        reason = f"torch.compile needs a C++ compiler (g++), which this machine lacks; {advice}"
        raise MissingCompilerError(file, _FIELD, reason)
    if torch.cuda.is_available() and importlib.util.find_spec("triton") is None:
        raise MissingCompilerError(file, _FIELD, f"torch.compile needs the package triton on a GPU; {advice}")
