"""``tools/pack_weights.py``: a training's weights as one file that says by itself what they are, to be shipped.

The averaged weights of a checkpoint, in half precision where that is asked for, without what another package carries;
config, classes, rig, metrics and origin stand in the header (:class:`bevstack.weights.header.WeightsHeader`).
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from bevstack.engine.arguments import pack_parser
from bevstack.engine.checkpoint import checkpoint_of, read_checkpoint
from bevstack.engine.config import load_config
from bevstack.engine.convert_calibration import read_scene
from bevstack.engine.convert_checkpoint import write_safetensors
from bevstack.engine.models import build_model, class_names, model_of_checkpoint
from bevstack.engine.packaged_parts import unchanged_parts, with_packaged_parts
from bevstack.engine.rig_file import read_json, rig_content
from bevstack.engine.source_commit import commit
from bevstack.engine.stored_config import CONFIG_KEY, config_text, data_settings, stored_config
from bevstack.engine.test import INTERVALS_NAME
from bevstack.errors import InputError
from bevstack.weights.header import ENDING, WeightsHeader, read_header

_OF_ONE_MACHINE = ("work_dir", "load_from", "resume", "launcher")
_LARGEST_HALF = 6e4
_ADDED = ("rare",)
"""Arguments of ``tools/create_synthetic.py`` that a set's ``synthetic.json`` names where they are not as by default."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, read it as a model again, and print what it holds.

    Raises:
        InputError: a file that cannot be read or written, or does not fit the config.
    """
    args = pack_parser().parse_args(arguments)
    if args.out.suffix != ENDING:
        raise InputError(args.out, "--out", f"must end in {ENDING}")
    file = checkpoint_of(args.checkpoint)
    content = read_checkpoint(file)
    packed = "format_version" in (content.get("meta") or {})
    if args.config is not None:
        cfg = load_config(args.config, args.cfg_options)
    else:
        cfg = load_config(file, args.cfg_options) if packed else stored_config(content, file)
    header = replace(read_header(file), cfg=config_text(cfg)) if packed else header_of_training(content, cfg)
    given = {name: getattr(args, name) for name in ("command", "commit", "licence", "data", "hours")}
    header = replace(header, **{name: value for name, value in given.items() if value is not None})
    if args.metrics is not None:
        header = replace(header, metrics=read_metrics(args.metrics), intervals=read_intervals(args.metrics))
    weights = {name.removeprefix("module."): value for name, value in content["state_dict"].items()}
    size = pack(weights, content.get("meta") or {}, cfg, header, args.out, args.half)
    parts = ", ".join(read_header(args.out).packaged) or "nothing"
    print(f"wrote {args.out}: {size / 1e6:.2f} MB, {len(header.metrics)} metrics; left to other packages: {parts}")
    return 0


def pack(
    weights: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    cfg: Config,
    header: WeightsHeader,
    out: Path,
    half: bool,
) -> int:
    """Write weights with their header, and read them as a model again.

    Args:
        weights: by name, of any shape.
        meta: of the file that they come from, which may lack parts that another package carries.
        cfg: of the model.
        header: all but ``packaged``, which is found out here.
        out: the file.
        half: see :func:`halved`.

    Returns:
        Bytes of the file.

    Raises:
        InputError: the weights do not fit the config, or the file cannot be written.
    """
    model = build_model(cfg, "cpu")
    whole = with_packaged_parts(weights, meta, model, out, strict=True)
    packaged = unchanged_parts(cfg, model, whole)
    own = {name: value for name, value in whole.items() if name.partition(".")[0] not in packaged}
    header = replace(header, packaged=packaged)
    write_safetensors(halved(own, model) if half else own, out, header.metadata())
    try:
        model_of_checkpoint(read_checkpoint(out), out, device="cpu")
    except InputError:
        out.unlink()
        raise
    return out.stat().st_size


def halved(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights in half precision: those that are learned and have more than one dimension.

    What stays as it is costs little and may not be rounded: biases, factors and shifts of norms, their running
    statistics and every other buffer, and weights beyond half precision's range.

    Args:
        weights: by name, of any shape.
        model: whose weights they are.
    """
    learned = {name for name, _ in model.named_parameters()}
    rounded = {}
    for name, value in weights.items():
        fits = name in learned and value.dim() > 1 and value.is_floating_point()
        rounded[name] = value.half() if fits and float(value.abs().max()) < _LARGEST_HALF else value
    return rounded


def header_of_training(content: Mapping[str, Any], cfg: Config) -> WeightsHeader:
    """What a training's checkpoint and its data say: labels, rig, world, seed, steps and hours.

    Args:
        content: of :func:`read_checkpoint`, whose own config says which data it was; rig and world are read there.
        cfg: to be shipped.
    """
    meta = content.get("meta") or {}
    cfg = copy.deepcopy(cfg)
    for name in _OF_ONE_MACHINE:
        cfg.pop(name, None)
    told = meta.get(CONFIG_KEY)
    loader = (told if isinstance(told, Mapping) else cfg).get("train_dataloader")
    data = data_settings({"train_dataloader": loader})
    root, version = Path(data.get("data_root") or "absent"), str(data.get("version") or "absent")
    name = Path(cfg.filename or "CONFIG.py").with_suffix(".py").name
    trained = meta.get("dataset_meta") or {}
    return WeightsHeader(
        cfg=config_text(cfg),
        classes=tuple(map(str, trained.get("classes") or class_names(cfg, meta))),
        cameras=tuple(map(str, trained.get("cameras") or ())),
        rig=rig_content(read_scene(root / version)[0]) if (root / version / "sample_data.json").is_file() else {},
        recipe=world_at(root, version),
        command=f"python tools/train.py configs/{name}",
        seed=int(meta.get("seed") or 0),
        steps=int(meta.get("iter") or 0),
        hours=round(float(meta.get("train_seconds") or 0) / 3600, 3),
        commit=commit(),
        licence="Apache-2.0",
        box_convention=str(meta.get("box_convention") or ""),
    )


def world_at(root: Path, version: str) -> dict[str, Any]:
    """Arguments of ``tools/create_synthetic.py`` that made a set, by their names there; empty for any other set."""
    path = root / "synthetic.json"
    if not path.is_file():
        return {}
    told = read_json(path, "recipe")
    try:
        width, height = told["image_size"]
        world = {name: told[name] for name in ("train_scenes", "val_scenes", "seed", "frames", "sweeps")}
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(path, "recipe", f"lacks {error}: tools/create_synthetic.py writes it") from None
    world |= {"image_size": f"{width}x{height}", "rig": told.get("rig", "sedan"), "version": version}
    return world | {name: told[name] for name in _ADDED if told.get(name)}


def read_metrics(path: str | os.PathLike) -> dict[str, float]:
    """The finite numbers of a ``metrics.json``.

    Raises:
        InputError: it cannot be read, or is no table of numbers.
    """
    content = read_json(path, "--metrics")
    if not isinstance(content, dict):
        raise InputError(path, "--metrics", "is no table of numbers by name")
    numbers = {name: value for name, value in content.items() if type(value) in (int, float)}
    return {name: float(value) for name, value in numbers.items() if torch.tensor(float(value)).isfinite()}


def read_intervals(metrics: Path) -> dict[str, Any]:
    """The intervals that ``tools/test.py --intervals`` wrote beside a ``metrics.json``; empty where it did not."""
    path = metrics.with_name(INTERVALS_NAME)
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
