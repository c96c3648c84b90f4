"""Configs: read, overridden from the command line, and checked before anything is built.

Configs are Python files and run code when they are read: take them only from whom you trust.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import sys
import traceback
import types
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner

from bevstack.engine.component_names import find_component, suggested_name, suggestion
from bevstack.engine.stored_config import header_config
from bevstack.errors import InputError
from bevstack.interop.mmengine_config import eager_standard_library, write_without_formatter
from bevstack.reference.compat import apply_compat
from bevstack.weights import carries_config

# top-level keys that have a meaning, beside the arguments of mmengine's Runner
_TOP_LEVEL = (
    "activation_checkpointing compat compile custom_imports default_scope find_unused_parameters finetune"
    " model_wrapper_cfg new_parts resume_changed sync_bn"
).split()
# dicts with a "type" that is not a registered name, or whose keys are split up by who reads them
_OPAQUE = {"clip_grad", "dcn", "init_cfg", "norm_cfg", "act_cfg", "conv_cfg", "upsample_cfg", "worker_init_fn"}
_OPAQUE |= {"collate_fn"}


def load_config(path: str | os.PathLike, options: Sequence[str] | None = None) -> Config:
    """Read a config file (Python with ``read_base``, or JSON / YAML) and apply ``key.path=value`` overrides.

    Args:
        path: the file; or shipped weights by their name, or a file of weights, for the config in their header.
        options: overrides; values are Python literals, else comma-separated lists, else text.

    Raises:
        InputError: no such file, not readable as a config, bad override syntax, or a key path that does not exist
            (with the nearest that does); an unknown ``compat`` (:mod:`bevstack.reference.compat`).
    """
    if carries_config(path):
        cfg = write_without_formatter(header_config(path))
        _override(cfg, options or (), Path(path))
        return apply_compat(cfg)
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "config", "no such file" if not path.exists() else "not a file")
    try:
        with eager_standard_library():
            cfg = write_without_formatter(Config.fromfile(path, import_custom_modules=False))
    except SyntaxError as error:
        raise InputError(path, f"line {error.lineno}", error.msg) from error
    except Exception as error:  # noqa: BLE001 - a config is a program and may raise anything
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(path.name)]
        place = f"line {frames[-1].lineno}" if frames else "config"
        raise InputError(path, place, f"{type(error).__name__}: {error}") from error
    try:
        entries = list(cfg.items())  # here mmengine imports what a config with read_base imports
    except ImportError as error:
        raise _failed_import(error, path) from error
    for key, value in entries:  # what a config imported for its own use, or to name it as a type
        if isinstance(value, types.ModuleType | types.FunctionType | type):
            cfg.pop(key)
    cfg.setdefault("default_scope", "bevstack")
    _override(cfg, options or (), path)
    _import_custom(cfg, path)
    return apply_compat(cfg)


def _failed_import(error: ImportError, path: Path) -> InputError:
    """The line of a config whose import failed, and why, from what mmengine says about it."""
    found = re.match(r"Failed to import (\S+)(?: from (\S+))? in (.+), line (\d+)(?: for (.*))?", str(error), re.DOTALL)
    if found is None:
        return InputError(path, "import", str(error))
    name, module, file, line, why = found.groups()
    if module is None:
        reason = f"cannot import {name!r}: {why}; is its package installed in {sys.prefix}?"
    else:
        reason = f"{module!r} has no {name!r}{suggestion(name, dir(sys.modules.get(module)))}"
    return InputError(file, f"line {line}", reason)


def _import_custom(cfg: Config, path: Path) -> None:
    """Import what ``custom_imports`` names; mmengine does so for configs without ``read_base`` only."""
    custom = cfg.get("custom_imports") or {}
    names = custom.get("imports") or ()
    for name in [names] if isinstance(names, str) else names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            if not custom.get("allow_failed_imports", False):
                advice = f"is its package installed in {sys.prefix}?"
                raise InputError(path, "custom_imports", f"cannot import {name!r}: {error}; {advice}") from error


def _override(cfg: Config, options: Sequence[str], path: Path) -> None:
    for option in options:
        key, sign, text = option.partition("=")
        if not sign or not key or not all(part.strip() for part in key.split(".")):
            raise InputError("--cfg-options", option, "expected key=value, as optim_wrapper.optimizer.lr=1e-4")
        _require_place(cfg, key.split("."), path)
        value = parse_value(text)
        try:
            cfg.merge_from_dict({key: value})
        except (TypeError, KeyError, IndexError, AssertionError) as error:
            raise InputError("--cfg-options", option, str(error)) from error


def _require_place(cfg: Config, parts: list[str], path: Path) -> None:
    """Every key on the way must exist; the last may be new except at the top level."""
    node: Any = cfg
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        place = ".".join(parts[: depth + 1])
        if isinstance(node, (list, tuple)):
            if not part.isdigit() or int(part) >= len(node):
                raise InputError("--cfg-options", place, f"{'.'.join(parts[:depth])} is a list of {len(node)} entries")
            node = node[int(part)]
        elif isinstance(node, (Config, ConfigDict, dict)):
            if part not in node:
                if last and depth > 0:
                    return
                known = list(node.keys()) + (sorted(runner_keys()) if depth == 0 else [])
                if last and part in known:
                    return
                raise InputError("--cfg-options", place, f"no such key in {path}{suggestion(part, known)}")
            node = node[part]
        else:
            raise InputError("--cfg-options", place, f"{'.'.join(parts[:depth])} is the value {node!r}, not a dict")


def runner_keys() -> set[str]:
    """Top-level keys of a config that have a meaning: mmengine's for its Runner, and ours."""
    return {*inspect.signature(Runner.__init__).parameters, *_TOP_LEVEL} - {"self", "cfg"}


def parse_value(text: str) -> Any:
    """A value of the command line: ``1e-4``, ``true``, ``none``, ``[1,2]``, ``1,2``, ``text``."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = None
    if value is not None:
        return list(value) if isinstance(value, tuple) else value
    if "," in text and not any(bracket in text for bracket in "()[]{}"):
        return [parse_value(part.strip()) for part in text.split(",")]
    return text


def accepted_keys(component: Any) -> set[str] | None:
    """Keyword arguments that a class or function takes; None where it takes any.

    A ``**kwargs`` of a class of this package goes to its base class (the house rule), and is followed there.
    """
    if not inspect.isclass(component):
        return _keywords(component)[0] if not _keywords(component)[1] else None
    names: set[str] = set()
    for cls in inspect.getmro(component):
        if "__init__" not in vars(cls) or cls is object:
            continue
        own, takes_any = _keywords(vars(cls)["__init__"])
        names |= own
        if not takes_any:
            return names - {"self"}
        if not cls.__module__.startswith("bevstack."):
            return None
    return None


def _keywords(function: Any) -> tuple[set[str], bool]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built in C, without a signature
        return set(), True
    return {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}, any(
        p.kind is p.VAR_KEYWORD for p in parameters
    )


def components(node: Any, place: str = "") -> Iterator[tuple[str, dict]]:
    """Every dict with a ``type`` in a config, with its place, outermost first."""
    if isinstance(node, dict):
        if "type" in node:
            yield place, node
        for key, value in node.items():
            if key not in _OPAQUE:
                yield from components(value, f"{place}.{key}" if place else str(key))
    elif isinstance(node, (list, tuple)):
        for position, value in enumerate(node):
            yield from components(value, f"{place}.{position}")


def check_components(cfg: Config) -> None:
    """Check every component of a config by name and by keyword, without building anything.

    Raises:
        InputError: an unknown name or keyword, with its place and the nearest known one.
    """
    file = cfg.filename or "config"
    for place, node in components(cfg._cfg_dict.to_dict() if hasattr(cfg, "_cfg_dict") else cfg):
        name = node["type"]
        component = find_component(name)
        if component is None:
            raise InputError(file, f"{place}.type", f"unknown name {name!r}{suggested_name(name)}")
        accepted = accepted_keys(component)
        if accepted is None:
            continue
        for key in node:
            if key not in accepted and key not in ("type", "_scope_") and not _read_by_runner(place, key):
                title = getattr(component, "__qualname__", name)
                raise InputError(file, place, f"unknown key {key!r} of {title}{suggestion(key, accepted)}")


def _read_by_runner(place: str, key: str) -> bool:
    """Keys that mmengine takes out of a dict before it builds the rest."""
    leaf = place.rpartition(".")[2]
    taken = {
        "optim_wrapper": {"optimizer", "constructor", "paramwise_cfg"},
        "train_cfg": {"by_epoch"},
    }
    if leaf.isdigit() or leaf in ("timer", "logger", "param_scheduler", "checkpoint", "sampler_seed", "runtime_info"):
        return key in ("priority", "convert_to_iter_based", "by_epoch")
    return key in taken.get(leaf, ())


@contextmanager
def building(cfg: Config) -> Iterator[None]:
    """Turn what a constructor says about its arguments into one line that names the config and the component.

    Set the environment variable ``BEVSTACK_DEBUG`` to see the traceback instead.

    Raises:
        InputError: instead of an error about types, values, keys or assertions, a package that is not installed, or a
            file that cannot be read or fetched.
    """
    try:
        yield
    except InputError:
        raise
    except (TypeError, ValueError, KeyError, AssertionError, ImportError, OSError) as error:
        if os.environ.get("BEVSTACK_DEBUG"):
            raise
        raise InputError(cfg.filename or "config", _component_of(error), said(error)) from error


_LONGEST = 400  # characters of a message


def said(error: BaseException) -> str:
    """What an error says, cut where it shows a whole model; its name where it says nothing."""
    text = str(error) if isinstance(error, OSError) else str(error.args[0]) if error.args else ""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
    return text or type(error).__name__


_BUILDERS = ("mmengine.config", "mmengine.registry", "mmengine.runner", "torch.serialization")


def _component_of(error: BaseException) -> str:
    """The class whose constructor was running, from the error's innermost frames."""
    owner = "config"
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "__init__" and "self" in frame.f_locals:
            cls = type(frame.f_locals["self"])
            if not cls.__module__.startswith(_BUILDERS):
                owner = cls.__name__
    return owner
