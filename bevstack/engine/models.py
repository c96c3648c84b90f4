"""Models from configs and from checkpoints: the one place where a tool, a study or a user gets one."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Collection, Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from bevstack.engine.checkpoint import checkpoint_of, load_weights, read_checkpoint
from bevstack.engine.component_names import find_component, registered
from bevstack.engine.config import accepted_keys, building, check_components, load_config
from bevstack.engine.cpu_memory import keep_freed_memory
from bevstack.engine.label_checks import check_trained_labels
from bevstack.engine.packaged_parts import PACKAGED, packaged_names, with_packaged_parts
from bevstack.engine.stored_config import data_settings, stored_config
from bevstack.errors import InputError
from bevstack.interop.foreign_weights import check_box_convention
from bevstack.models import BEVPerception
from bevstack.ops.backends import select_backend
from bevstack.precision import Precision, choose_precision, default_device
from bevstack.registry import MODELS


def build_model(cfg: Config, device: torch.device | str | None = None) -> BEVPerception:
    """The model that a config describes, as training starts from it before ``load_from``.

    Args:
        cfg: of :func:`bevstack.engine.config.load_config`.
        device: where it lives; ``meta`` for shapes without values, which takes no memory. The GPU where there is one,
            else the CPU, by default.

    Raises:
        InputError: the config describes no model, or one that cannot be built.
    """
    if not isinstance(cfg.get("model"), Mapping):
        raise InputError(cfg.filename or "config", "model", "absent: this config describes no model")
    select_backend(cfg.get("ops_backend"), cfg.filename or "config")
    init_default_scope(cfg.get("default_scope", "bevstack"))
    device = default_device() if device is None else torch.device(device)
    with building(cfg):
        model = MODELS.build(cfg["model"]) if device.type != "meta" else _without_values(cfg["model"])
    return model.to(device)


def _without_values(config: Mapping) -> BEVPerception:
    """A model built on the meta device; with values where it computes with them while it is built (folded norms)."""
    try:
        with torch.device("meta"):
            return MODELS.build(config)
    except RuntimeError:  # torch: no values to compute with
        return MODELS.build(config)


def load_model(
    checkpoint: str | os.PathLike,
    config: Config | str | os.PathLike | None = None,
    device: torch.device | str | None = None,
) -> BEVPerception:
    """A trained model, from its checkpoint alone.

    The weights are those that ``tools/test.py`` scores: with an average (``EMAHook``), the averaged ones. Nothing in
    the file is run: its config is data, and the names in it are looked up among what is registered
    (:mod:`bevstack.engine.stored_config`). Where it names parts of a package of your own, import that package first.
    On a CPU the process keeps the memory that a step frees from here on (:mod:`bevstack.engine.cpu_memory`).

    Args:
        checkpoint: the name of shipped weights ("demo", "full"); a file of ``tools/train.py`` or
            ``tools/pack_weights.py``; a work directory, whose newest checkpoint is taken; another file of weights for
            the config, safetensors too, where ``config`` is given.
        config: instead of the checkpoint's: a config, or the file of one, which is a program and runs.
        device: the GPU where there is one, else the CPU, by default.

    Returns:
        The model in evaluation mode; ``model.config`` is its config, ``model.classes`` the names of its labels,
        ``model.cameras`` those of the cameras that it was trained with, in their order; () where the file does not say.

    Raises:
        InputError: the file cannot be read, carries no config or one that names unknown parts, or its weights do not
            fit.
    """
    file = checkpoint_of(checkpoint)
    return model_of_checkpoint(read_checkpoint(file), file, config, device)


def model_of_checkpoint(
    content: Mapping[str, Any],
    file: str | os.PathLike,
    config: Config | str | os.PathLike | None = None,
    device: torch.device | str | None = None,
) -> BEVPerception:
    """As :func:`load_model`, of a checkpoint that is read already.

    Args:
        content: of :func:`bevstack.engine.checkpoint.read_checkpoint`.
        file: where it was read, for messages.
        config, device: see there.
    """
    cfg = stored_config(content, file) if config is None else _given(config)
    meta = content.get("meta") or {}
    model = build_model(_without_starting_weights(cfg, config is not None, meta.get(PACKAGED) or ()), device)
    check_box_convention(model, meta, file, content["state_dict"])
    check_trained_labels(model, meta, file)
    load_weights(model, with_packaged_parts(content["state_dict"], meta, model, file, True), file, strict=True)
    model.config, model.classes = cfg, class_names(cfg, meta)
    model.cameras = tuple((meta.get("dataset_meta") or {}).get("cameras") or ())
    if next(model.parameters()).device.type == "cpu":
        keep_freed_memory()
    return model.eval()


def class_names(cfg: Config, meta: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Names of the labels that a config's model gives boxes.

    Those of the config's data, else of the data that a checkpoint was trained on (its ``meta``), else what the kind of
    dataset means where nothing is said; () where nothing is known.
    """
    data = data_settings(cfg)
    names = data.get("classes") or ((meta or {}).get("dataset_meta") or {}).get("classes")
    if not names and data.get("type"):
        component = registered(data["type"]) if isinstance(data["type"], str) else data["type"]
        parameters = {} if component is None else inspect.signature(component).parameters
        default = parameters["classes"].default if "classes" in parameters else ()
        names = () if default is inspect.Parameter.empty else default
    return tuple(map(str, names or ()))


def precision_of(
    cfg: Config,
    device: torch.device | str | None = None,
    dtype: str | None = None,
    model: nn.Module | None = None,
) -> Precision:
    """The number format that a config tests its model in.

    Args:
        cfg: of the model.
        device: that the model is on, :func:`bevstack.precision.default_device` by default.
        dtype: instead of what the config says.
        model: as built, which "auto" has to be right for.

    Raises:
        InputError: no such format, or none that the device has.
    """
    loop = cfg.get("test_cfg") or cfg.get("val_cfg") or {}
    try:
        return choose_precision(dtype or loop.get("dtype", "float32"), device, model)
    except ValueError as error:
        raise InputError(cfg.filename or "config", "dtype", str(error)) from error


def _given(config: Config | str | os.PathLike) -> Config:
    if isinstance(config, Config):
        return config
    cfg = load_config(config)
    check_components(cfg)
    return cfg


def _without_starting_weights(cfg: Config, trusted: bool, packaged: Collection[str] = ()) -> Config:
    """A copy whose parts start from no weights of their own: a checkpoint brings all of them.

    But for those of its ``packaged`` parts that a package carries (:mod:`bevstack.engine.packaged_parts`).
    """
    bare = copy.deepcopy(cfg)
    kept = [bare["model"][name] for name in packaged_names(bare) if name in packaged]
    waiting: list[Any] = [bare.get("model")]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            kind = node.get("type")
            if node.get("pretrained") and kind is not None and not any(node is part for part in kept):
                component = (find_component if trusted else registered)(kind) if isinstance(kind, str) else kind
                if component is not None and "pretrained" in (accepted_keys(component) or ()):
                    del node["pretrained"]
            waiting += node.values()
        elif isinstance(node, list | tuple):
            waiting += node
    return bare
