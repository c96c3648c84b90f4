"""Settings of a training that cannot be kept: refused by name before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import InfiniteSampler
from mmengine.runner import loops as mmengine_loops

from bevstack.engine.compilation import compile_options
from bevstack.engine.config import components, find_component
from bevstack.errors import InputError
from bevstack.weights import file_of


def check_training(cfg: Config, resumes: bool = False) -> None:
    """Compare what a config asks of a training with what is offered.

    Args:
        cfg: as read.
        resumes: whether it goes on from a checkpoint, so that ``load_from`` is not read.

    Raises:
        InputError: a loop of mmengine's, which neither resumes exactly nor stops at a NaN; iterations asked for and
            epochs given, or the other way round; a sampler without an end; a wrapper of datasets
            of another package; ``auto_scale_lr`` without the batch size
            that the rate is meant for; ``compile`` without a compiler; a file of weights that is not there.
    """
    file = cfg.filename or "config"
    settings = cfg.train_cfg
    loop = find_component(settings["type"]) if settings.get("type") is not None else None
    if loop in (mmengine_loops.EpochBasedTrainLoop, mmengine_loops.IterBasedTrainLoop):
        length = "max_epochs" if loop is mmengine_loops.EpochBasedTrainLoop else "max_iters"
        reason = f"{loop.__name__} resumes at another place than it stopped and carries no memory; use"
        reason += f" ResumableTrainLoop or StreamingTrainLoop, which take {length}, too"
        raise InputError(file, "train_cfg.type", reason)
    wanted, other = ("max_epochs", "max_iters") if settings.get("by_epoch", True) else ("max_iters", "max_epochs")
    if "by_epoch" in settings and settings.get(wanted) is None:
        there = f"{other} is {settings.get(other)}"
        raise InputError(file, f"train_cfg.{wanted}", f"absent, but by_epoch is {settings['by_epoch']}; {there}")
    sampler = find_component((cfg.train_dataloader.get("sampler") or {}).get("type"))
    if sampler is InfiniteSampler:
        reason = "InfiniteSampler has no place to which a run could be resumed; use ClipSampler or StreamingSampler:"
        raise InputError(file, "train_dataloader.sampler.type", f"{reason} max_iters goes on from epoch to epoch")
    for place, node in components(cfg.train_dataloader.get("dataset"), "train_dataloader.dataset"):
        kind = find_component(node["type"])
        wraps = "dataset" in node or "datasets" in node
        if wraps and str(getattr(kind, "__module__", "")).startswith(("mmengine.", "mmdet.", "mmdet3d.")):
            reason = f"{kind.__module__.partition('.')[0]}'s {kind.__name__} asks a dataset for what those here do not"
            reason += " have; bevstack's RepeatDataset, ConcatDataset and CBGSDataset keep streams, too"
            raise InputError(file, f"{place}.type", reason)
    scaling = cfg.get("auto_scale_lr") or {}
    if scaling.get("enable") and not scaling.get("base_batch_size"):
        reason = "absent, but auto_scale_lr.enable is True: for which batch size is the learning rate meant?"
        raise InputError(file, "auto_scale_lr.base_batch_size", reason)
    compile_options(cfg)
    check_weight_files(cfg, resumes)


def check_weight_files(cfg: Config, resumes: bool) -> None:
    """Ask for the files of weights that the model and ``load_from`` name.

    Raises:
        InputError: one is not there; names the config, its field and the file.
    """
    file = cfg.filename or "config"
    if cfg.get("load_from") and not resumes:
        _require_file(file, "load_from", cfg.load_from)
    for place, node in components(cfg.get("model"), "model"):
        entries = node.get("init_cfg") or ()
        for entry in [entries] if isinstance(entries, dict) else entries:
            if str(entry.get("type", "")).endswith("Pretrained") and entry.get("checkpoint"):
                _require_file(file, f"{place}.init_cfg.checkpoint", entry["checkpoint"])


def _require_file(config: str, field: str, name: Any) -> None:
    if "://" not in str(name) and not file_of(name).is_file():
        option = field.removesuffix(".checkpoint")
        reason = f"no such file: {name} (looked for from {Path.cwd()}); fetch it, or set {option}=None to start without"
        raise InputError(config, field, reason)
