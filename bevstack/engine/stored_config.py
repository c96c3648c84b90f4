"""The config that a checkpoint carries: written as plain data, read without running anything that it holds.

A config file is a program. A checkpoint comes from anywhere, so what it says is data: names in it are looked up among
what is registered and never imported, and neither text nor ``custom_imports`` of it runs.
"""

from __future__ import annotations

import ast
import json
import math
import os
import types
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from mmengine.config import Config

from bevstack.engine.component_names import known_scopes, registered, suggested_name
from bevstack.errors import InputError
from bevstack.weights import file_of, header_of

CONFIG_KEY, TEXT_KEY = "config", "cfg"
"""Keys of a checkpoint's ``meta``: the config as data; and as Python text, as mmengine and older versions write it."""

_ANY_TYPE = ("norm_cfg", "act_cfg", "conv_cfg", "upsample_cfg", "init_cfg")
"""Parts of a config whose ``type`` is no registered name, but one that a layer knows."""
_WORDS = {"inf": math.inf, "nan": math.nan}


def plain_config(cfg: Config | Mapping) -> dict[str, Any]:
    """A config as nested dicts, lists, tuples, numbers, text, True, False and None.

    Classes and functions become their dotted names, paths text, arrays lists; of anything else its ``repr`` is left.
    """
    entries = (cfg._cfg_dict if isinstance(cfg, Config) else cfg).items()
    return {key: _plain(value) for key, value in entries}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return (tuple if isinstance(value, tuple) else list)(_plain(entry) for entry in value)
    if isinstance(value, type | types.FunctionType | types.BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    return repr(value)


def config_text(cfg: Config | Mapping) -> str:
    """A config as lines ``name = value``, which :func:`literal_config` reads again."""
    return "".join(f"{name} = {value!r}\n" for name, value in plain_config(cfg).items())


def literal_config(text: str) -> dict[str, Any]:
    """A config's text as data, where it is nothing but ``name = value`` lines as mmengine's ``pretty_text`` writes.

    Args:
        text: values are numbers, text, True, False, None, lists, tuples, dicts and ``dict(key=value)``.

    Raises:
        ValueError: anything else, with its line; it is not run.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"line {getattr(error, 'lineno', 1)}: is no Python ({type(error).__name__})") from None
    values = {}
    for line in tree.body:
        if not isinstance(line, ast.Assign) or len(line.targets) != 1 or not isinstance(line.targets[0], ast.Name):
            raise ValueError(f"line {line.lineno}: is not a value given to a name")
        values[line.targets[0].id] = _literal(line.value)
    return values


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str | int | float | bool | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = _literal(node.operand)
        if type(number) in (int, float):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.Name) and node.id in _WORDS:
        return _WORDS[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        entries = [_literal(entry) for entry in node.elts]
        return entries if isinstance(node, ast.List) else tuple(entries)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_literal(key): _literal(value) for key, value in zip(node.keys, node.values, strict=True) if key}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        if all(keyword.arg is not None for keyword in node.keywords):
            return {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    raise ValueError(f"line {node.lineno}: holds {ast.unparse(node)[:40]!r}, which is no plain value")


def stored_config(checkpoint: Mapping[str, Any], file: str | os.PathLike) -> Config:
    """The config that a checkpoint carries, its names looked up.

    Args:
        checkpoint: of :func:`bevstack.engine.checkpoint.read_checkpoint`.
        file: named in messages.

    Raises:
        InputError: it carries none, or none that is plain data; or one that names what nothing has registered: says
            which package to import first.
    """
    meta, advice = checkpoint.get("meta") or {}, "hand it in: load_model(FILE, config=...)"
    place = CONFIG_KEY if CONFIG_KEY in meta else TEXT_KEY
    content = meta.get(place)
    if content is None:
        raise InputError(file, CONFIG_KEY, f"the file carries none; {advice}")
    if isinstance(content, str):
        try:
            content = json.loads(content) if place == CONFIG_KEY else literal_config(content)
        except (ValueError, RecursionError) as error:
            raise InputError(file, f"meta.{place}", f"is not plain data ({error}) and is not run; {advice}") from None
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise InputError(file, f"meta.{place}", f"describes no model; {advice}")
    try:
        cfg = Config(content, cfg_text=f"# the config of {file}", filename=str(file))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(file, f"meta.{place}", f"is no config ({error}); {advice}") from None
    cfg.setdefault("default_scope", "bevstack")
    require_registered(cfg)
    return cfg


def header_config(place: str | os.PathLike) -> Config:
    """The config in the header of shipped weights, or of a file of weights, to be run by the tools as a config file is.

    Nothing of it is run or imported, other than of a config file: every name in it has to be registered already.

    Args:
        place: a name of :data:`bevstack.weights.NAMES`, or a file that ``tools/pack_weights.py`` wrote.

    Raises:
        InputError: see :func:`bevstack.weights.header_of` and :func:`stored_config`.
    """
    file, header = file_of(place), header_of(place)
    cfg = stored_config({"meta": {TEXT_KEY: header.cfg}}, file)
    cfg.pop("custom_imports", None)
    for name, key, value in _names(cfg._cfg_dict.to_dict(), ""):
        if key == "type" and not name.endswith(_ANY_TYPE) and registered(value) is None:
            raise InputError(file, f"{name}.type", f"unknown name {value!r}{suggested_name(value)}")
    return cfg


def data_settings(cfg: Mapping) -> Mapping:
    """What a config says of the data that its model is tested on: the test loader's dataset, else another loader's.

    Of datasets that are repeated or joined the first that reads samples; empty where the config has no data.
    """
    loaders = (cfg.get(f"{part}_dataloader") for part in ("test", "val", "train"))
    data: Mapping = next((loader["dataset"] for loader in loaders if loader and loader.get("dataset")), {})
    while inner := data.get("dataset") or (data.get("datasets") or [None])[0]:
        data = inner
    return data


def require_registered(cfg: Config) -> None:
    """Refuse a config of a checkpoint whose names nothing has registered, in all that inference builds.

    That is the model, the steps of the test pipeline, the form of the ``can_bus`` vector, the tracker and what draws.
    Other than :func:`bevstack.engine.config.check_components` this imports nothing by name, and looks everywhere.

    Raises:
        InputError: the first such name, its place, and which package to import first.
    """
    file, data = cfg.filename or "config", data_settings(cfg)
    parts = {"model": cfg["model"], "pipeline": data.get("pipeline"), "can_bus_form": data.get("can_bus_form")}
    parts |= {name: cfg.get(name) for name in ("tracker", "sample_visualizer")}
    for place, key, name in _names(parts, ""):
        if key == "type" and registered(name) is None:
            raise InputError(file, f"{place}.type", f"unknown name {name!r}; {_advice(cfg, name)}")
        if key == "_scope_" and name not in known_scopes():
            raise InputError(file, f"{place}._scope_", f"unknown scope {name!r}")
    if cfg["default_scope"] not in known_scopes():
        raise InputError(file, "default_scope", f"unknown scope {cfg['default_scope']!r}")


def _names(node: Any, place: str) -> Iterator[tuple[str, str, str]]:
    """Every name by which something is built, and every scope, with its place and key."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key in ("type", "_scope_") and isinstance(value, str):
                yield place, key, value
            else:
                yield from _names(value, f"{place}.{key}" if place else str(key))
    elif isinstance(node, list | tuple):
        for position, value in enumerate(node):
            yield from _names(value, f"{place}.{position}")


def _advice(cfg: Config, name: str) -> str:
    """Which package registers a name, as far as the config says."""
    imports = (cfg.get("custom_imports") or {}).get("imports") or ()
    packages = [imports] if isinstance(imports, str) else [str(entry) for entry in imports]
    packages = packages or ([name.partition(".")[0]] if "." in name else [])
    if not packages:
        return f"import the package that registers it first, or hand in the config{suggested_name(name)}"
    return f"import {' and '.join(packages)} first (a checkpoint imports nothing by itself), or hand in the config"
