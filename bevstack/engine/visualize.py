"""The work behind ``tools/visualize.py``: pictures of samples, with or without a model, and a clip a scene."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bevstack.errors import InputError
from bevstack.structures import BEVDataSample, BEVMemory


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line of ``tools/visualize.py``.

    Raises:
        InputError: flags that contradict each other.
    """
    parser = argparse.ArgumentParser(
        prog="tools/visualize.py", description="Draw predictions and ground truth: a PNG a sample, a clip a scene."
    )
    parser.add_argument("config")
    parser.add_argument("checkpoint", nargs="?", help="left out with --dataset-only")
    parser.add_argument("--out", required=True, type=Path, help="folder for <scene>/*.png and <scene>.gif")
    parser.add_argument("--dataset-only", action="store_true", help="draw the ground truth, without a model")
    parser.add_argument("--split", help="train, val or test (that dataloader of the config), or a split of the dataset")
    parser.add_argument("--scenes", nargs="+", help="scene names; all of the split by default")
    parser.add_argument("--max-samples", type=int, help="stop after this many samples")
    parser.add_argument("--score-thr", type=float, default=0.3, help="least score of a box that is drawn")
    parser.add_argument("--fps", type=float, default=4.0)
    parser.add_argument("--format", choices=("gif", "mp4", "none"), default="gif", help="of the clip a scene")
    parser.add_argument("--max-width-px", type=int, default=1280, help="of the clips; PNGs keep their size")
    parser.add_argument("--layout", choices=("wide", "tall"), help="panels right of the cameras, or below them")
    parser.add_argument("--cfg-options", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="overrides")
    args = parser.parse_args(arguments)
    if args.dataset_only == (args.checkpoint is not None):
        raise InputError(args.config, "CHECKPOINT", "give a checkpoint, or --dataset-only without one")
    for field, value in (
        ("--fps", args.fps),
        ("--max-samples", args.max_samples),
        ("--max-width-px", args.max_width_px),
    ):
        if value is not None and not value > 0:
            raise InputError(args.config, field, f"must be positive, not {value:g}")
    existing = next(folder for folder in (args.out, *args.out.resolve().parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(args.out, "--out", "cannot be written to")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the command line asks for and print one line on what was made.

    Raises:
        InputError: bad configuration, checkpoint, split, scene or folder; before anything is drawn where possible.
    """
    from bevstack.engine.checkpoint import read_checkpoint
    from bevstack.engine.config import building, check_components, load_config

    args = parse_arguments(arguments)
    cfg = load_config(args.config, args.cfg_options)
    weights = None if args.dataset_only else read_checkpoint(args.checkpoint)["state_dict"]
    check_components(cfg)
    with building(cfg):
        dataset = build_dataset(cfg, args.split)
    chosen = choose_samples(dataset, args.scenes, args.max_samples)
    with building(cfg):
        model = None if weights is None else build_model(cfg, weights, args.checkpoint)
    draw_dataset(cfg, dataset, chosen, model, args)
    return 0


def build_dataset(cfg: Any, split: str | None) -> Any:
    """The test dataset of a config, in test mode, of another split where one is named.

    Args:
        cfg: the config. split: ``train``, ``val`` or ``test`` for the split of that dataloader, any other name for a
            split of the dataset; None for the test dataloader's (or the validation's) own.
    """
    from bevstack.registry import DATASETS

    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader")
    if not loader:
        raise InputError(cfg.filename or "config", "test_dataloader", "the config has neither it nor val_dataloader")
    dataset = dict(loader["dataset"])
    if split is not None:
        named = cfg.get(f"{split}_dataloader")
        dataset["split"] = named["dataset"].get("split", split) if named else split
    dataset["test_mode"] = True
    return DATASETS.build(dataset)


def choose_samples(dataset: Any, scenes: Sequence[str] | None, max_samples: int | None) -> list[int]:
    """Numbers of the dataset's samples that lie in ``scenes``, at most ``max_samples`` of them.

    Raises:
        InputError: the split has no such scene (the nearest name is given).
    """
    names = [dataset.index.scenes[scene]["name"] for scene in dataset.scene_rows]
    for scene in scenes or ():
        if scene not in names:
            near = difflib.get_close_matches(scene, sorted(set(names)), n=1, cutoff=0.0)
            raise InputError(dataset.index.folder, "--scenes", f"the split has no scene '{scene}'; nearest: {near[0]}")
    return [number for number, name in enumerate(names) if not scenes or name in scenes][:max_samples]


def build_model(cfg: Any, weights: dict[str, torch.Tensor], checkpoint: str) -> torch.nn.Module:
    """The config's model with a checkpoint's weights (any shape), in evaluation mode, on the GPU where there is one."""
    from mmengine.registry import init_default_scope

    from bevstack.engine.checkpoint import load_weights
    from bevstack.precision import default_device
    from bevstack.registry import MODELS

    init_default_scope(cfg.get("default_scope", "bevstack"))
    model = MODELS.build(cfg.model)
    load_weights(model, weights, checkpoint, strict=True)
    return model.to(default_device()).eval()


def camera_views(index: Any, sample: BEVDataSample) -> list:
    """The sample's cameras with their original images, seen from the (augmented) BEV frame of its boxes."""
    from bevstack.visualization import CameraView
    from bevstack.visualization.files import read_image

    row = index.row_of[sample.metainfo["token"]]
    bev_from_augmented = np.linalg.inv(sample.metainfo.get("augmented_from_bev", np.eye(4)))
    parts = zip(
        index.cameras, index.image_paths(row), index.pixels_from_camera(row), index.camera_from_bev(row), strict=True
    )
    return [
        CameraView(name, read_image(path), pixels_from_camera, camera_from_bev @ bev_from_augmented)
        for name, path, pixels_from_camera, camera_from_bev in parts
    ]


def predicted_samples(
    cfg: Any, dataset: Any, chosen: Sequence[int], model: torch.nn.Module | None
) -> Iterator[BEVDataSample]:
    """The chosen samples in order; with predictions where there is a model.

    The model's memory travels from each sample to its successor, as in the streaming test loop, where the config
    tests along streams.
    """
    from mmengine.dataset import pseudo_collate

    from bevstack.engine.streaming import carried_memory, memory_after
    from bevstack.precision import choose_precision

    if model is None:
        yield from (dataset[number]["data_samples"] for number in chosen)
        return
    loop = cfg.get("test_cfg") or cfg.get("val_cfg") or {}
    streaming = str(loop.get("type", "")).rpartition(".")[2].startswith("Streaming")
    precision = choose_precision(loop.get("dtype", "float32"))
    memory: BEVMemory | None = None
    for number in chosen:
        with torch.no_grad(), precision.autocast():
            data = model.data_preprocessor(pseudo_collate([dataset[number]]), False)
            samples = data["data_samples"]
            if streaming:
                clip = replace(data["inputs"], memory=carried_memory(memory, samples))
                predicted, memory = model(inputs=clip, data_samples=samples, mode="stream_predict")
                memory = memory_after(memory, samples)
            else:
                predicted = model(**data, mode="predict")
        yield from predicted


def build_visualizer(cfg: Any, model: torch.nn.Module | None, args: argparse.Namespace) -> Any:
    """The config's ``sample_visualizer`` (or the usual one), with a panel for each head that can paint itself
    or names, as ``painter``, one that does, and one for tracks where the config has a ``tracker``."""
    from bevstack.registry import VISUALIZERS
    from bevstack.visualization.painters import HeadPainter
    from bevstack.visualization.tracks import TrackPainter

    settings = {"type": "SampleVisualizer", "score_thr": args.score_thr, **(cfg.get("sample_visualizer") or {})}
    if args.layout is not None:
        settings["layout"] = args.layout
    visualizer = VISUALIZERS.build(settings)
    heads = dict(model.heads.items()) if hasattr(model, "heads") else {}
    visualizer.painters += [HeadPainter(name, head) for name, head in heads.items() if hasattr(head, "paint")]
    for name, head in heads.items():
        if getattr(head, "painter", None) and not any(type(p).__name__ == head.painter for p in visualizer.painters):
            settings = {"type": head.painter, "score_thr": args.score_thr, "title": name}
            visualizer.painters.append(VISUALIZERS.build(settings))
    if cfg.get("tracker") and not any(isinstance(painter, TrackPainter) for painter in visualizer.painters):
        visualizer.painters.append(TrackPainter(args.score_thr))
    return visualizer


def draw_dataset(
    cfg: Any, dataset: Any, chosen: Sequence[int], model: torch.nn.Module | None, args: argparse.Namespace
) -> None:
    """Write a PNG a sample and a clip a scene under ``args.out``; a progress bar, then one line."""
    from rich.console import Console
    from rich.progress import track

    from bevstack.registry import TASK_UTILS
    from bevstack.tracking import track_samples
    from bevstack.visualization.files import write_clip, write_png

    visualizer = build_visualizer(cfg, model, args)
    pictures: dict[str, list[Path]] = {}
    samples = predicted_samples(cfg, dataset, chosen, model)
    if model is not None and cfg.get("tracker"):
        samples = track_samples(TASK_UTILS.build(cfg.tracker), samples)
    for sample in track(samples, "drawing", total=len(chosen), console=Console(file=sys.stderr)):
        scene = pictures.setdefault(sample.metainfo["scene_name"], [])
        path = args.out / sample.metainfo["scene_name"] / f"{len(scene):04d}_{sample.metainfo['token']}.png"
        write_png(path, visualizer.draw(sample, camera_views(dataset.index, sample)))
        scene.append(path)
    if args.format != "none":
        for scene, paths in pictures.items():
            write_clip(args.out / f"{scene}.{args.format}", paths, args.fps, args.max_width_px)
    clips = "" if args.format == "none" else f" and {len(pictures)} {args.format.upper()} clip(s)"
    print(f"{len(chosen)} picture(s) of {len(pictures)} scene(s){clips} in {args.out}")
