"""The work behind ``tools/visualize.py``: a picture a sample, with or without a model, a clip a scene, a page of all,
a recording for the Rerun viewer."""

from __future__ import annotations

import argparse
import copy
import difflib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.dataset import pseudo_collate
from mmengine.model import BaseModel
from rich.console import Console
from rich.progress import track

from bevstack.datasets.base import BEVDataset
from bevstack.datasets.plausibility import findings, print_findings
from bevstack.datasets.wrappers import innermost_configs
from bevstack.engine.arguments import visualize_arguments
from bevstack.engine.checkpoint import checkpoint_of, read_checkpoint
from bevstack.engine.compilation import compile_form
from bevstack.engine.config import building, check_components, load_config
from bevstack.engine.label_checks import check_labels, check_trained_cameras
from bevstack.engine.models import model_of_checkpoint, precision_of
from bevstack.engine.stream_checks import carries_memory, check_memory
from bevstack.engine.streaming import Streams, require_streams
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.images import read_image
from bevstack.models.bev.attention_record import AttentionRecord
from bevstack.models.inference_form import inference_form
from bevstack.registry import DATASETS, TASK_UTILS, VISUALIZERS
from bevstack.structures import BEVDataSample
from bevstack.structures.poses import bev_from_augmented
from bevstack.tracking import track_samples
from bevstack.visualization import CameraView
from bevstack.visualization.files import write_clip, write_png
from bevstack.visualization.recording import SceneRecording, require_rerun
from bevstack.visualization.scene_page import MAX_MOMENTS, ScenePage

LATTICE = 24
"""Cells each way whose attention a page holds."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw what the command line asks for and print one line on what was made. Of a dataset alone, the table of what is
    plausible comes first (:mod:`bevstack.datasets.plausibility`).

    Raises:
        InputError: bad configuration, checkpoint, split, scene or folder; before anything is drawn where possible.
    """
    args = visualize_arguments(arguments)
    if args.rerun is not None:
        require_rerun()
    cfg = load_config(args.config, args.cfg_options)
    checkpoint = None if args.ground_truth else checkpoint_of(args.checkpoint)
    content = None if checkpoint is None else read_checkpoint(checkpoint)
    check_components(cfg)
    with building(cfg):
        dataset = build_dataset(cfg, args.split)
    chosen = choose_samples(dataset, args.scenes, args.max_samples)
    if args.html is not None and len(chosen) > MAX_MOMENTS:
        reason = f"{len(chosen)} samples are too many for a page, at most {MAX_MOMENTS}: take --scenes or --max-samples"
        raise InputError(args.config, "--html", reason)
    if args.ground_truth:
        print_findings(findings(dataset, chosen))
    model = None if content is None else model_of_checkpoint(content, str(checkpoint), cfg)
    if model is not None:
        meta = (content or {}).get("meta") or {}
        check_labels(cfg, model, dataset, "test")
        check_memory(cfg, model, tests=True)
        check_trained_cameras(model, meta, dataset.metainfo.get("cameras", ()), checkpoint)
    draw_dataset(cfg, dataset, chosen, model, args)
    return 0


def build_dataset(cfg: Any, split: str | None) -> BEVDataset:
    """The test dataset of a config, in test mode, of another split where one is named.

    Args:
        cfg: the config. split: ``train``, ``val`` or ``test`` for the split of that dataloader, any other name for a
            split of the dataset; None for the test dataloader's (or the validation's) own.
    """
    loader = cfg.get("test_dataloader") or cfg.get("val_dataloader")
    if not loader:
        raise InputError(cfg.filename or "config", "test_dataloader", "the config has neither it nor val_dataloader")
    dataset = copy.deepcopy(loader["dataset"])
    if split is not None:
        named = cfg.get(f"{split}_dataloader")
        split = next(innermost_configs(named["dataset"])).get("split", split) if named else split
    for inner in innermost_configs(dataset):
        inner["test_mode"] = True
        if split is not None:
            inner["split"] = split
    return DATASETS.build(dataset)


def choose_samples(dataset: BEVDataset, scenes: Sequence[str] | None, max_samples: int | None) -> list[int]:
    """Numbers of the dataset's samples that lie in ``scenes``, at most ``max_samples`` of them.

    Raises:
        InputError: the split has no such scene (the nearest name is given).
    """
    names = dataset.scene_names
    for scene in scenes or ():
        if scene not in names:
            near = difflib.get_close_matches(scene, sorted(set(names)), n=1, cutoff=0.0)
            raise InputError(dataset.source, "--scenes", f"the split has no scene '{scene}'; nearest: {near[0]}")
    return [number for number, name in enumerate(names) if not scenes or name in scenes][:max_samples]


def camera_views(dataset: BEVDataset, sample: BEVDataSample) -> list:
    """The sample's cameras with their original images, seen from the (augmented) BEV frame of its boxes."""
    cameras = dataset.camera_views(sample.metainfo["token"])
    undone = bev_from_augmented(sample).numpy()
    parts = zip(cameras.names, cameras.image_paths, cameras.pixels_from_camera, cameras.camera_from_bev, strict=True)
    return [
        CameraView(name, read_image(path), pixels_from_camera, camera_from_bev @ undone)
        for name, path, pixels_from_camera, camera_from_bev in parts
    ]


def predicted_samples(
    cfg: Any, dataset: Any, chosen: Sequence[int], model: BaseModel | None, explained: Explained | None = None
) -> Iterator[BEVDataSample]:
    """The chosen samples in order; with predictions where there is a model.

    The model's memory travels from each sample to its successor, as in the streaming test loop, where the config
    tests along streams. What is to be ``explained`` is set on the samples as ``bev_features`` and ``attention``.

    Raises:
        InputError: a sample's predecessor is chosen, too, but was not drawn just before it.
    """
    if model is None:
        yield from (dataset[number]["data_samples"] for number in chosen)
        return
    streaming = carries_memory(cfg, "test" if cfg.get("test_cfg") else "val")
    precision, streams, model = precision_of(cfg, model=model), Streams(), inference_form(model)
    if explained is None:
        compile_form(model, cfg)
    record = None if explained is None else explained.record(model)
    for number in chosen:
        with torch.no_grad(), precision.autocast():
            data = model.data_preprocessor(pseudo_collate([dataset[number]]), False)
            if streaming:
                require_streams(data["data_samples"], streams)
                predicted, streams = streams.step(model, data, "predict")
            else:
                predicted = model(**data, mode="predict")
        if explained is not None and record is not None:
            explained.explain(predicted[0], record)
        yield from predicted


@dataclass(frozen=True)
class Explained:
    """What is shown of how a model comes to its answer.

    Args:
        features: B_t.
        attention: places (x, y) in metres whose cells' attention is shown; none for those of the likeliest boxes; None
            shows no attention.
        lattice: of a page in which any cell can be asked: how many cells each way; 0 for none.
    """

    features: bool = False
    attention: Sequence[tuple[float, float]] | None = None
    lattice: int = 0

    def record(self, model: Any) -> AttentionRecord:
        """What listens to the model.

        Raises:
            InputError: it has no encoder to listen to.
        """
        if not has_encoder(model):
            raise InputError("model", type(model).__name__, "has no BEV encoder whose B_t or attention could be drawn")
        return AttentionRecord(model)

    def explain(self, sample: BEVDataSample, record: AttentionRecord) -> None:
        """Set on a sample what the record knows of the step that has just been made for it."""
        if self.features and record.bev is not None:
            sample.set_field(record.bev, "bev_features")
        if self.attention is not None:
            places = self.attention or _likeliest(sample)
            sample.set_field(record.places(0, places), "attention")
            if self.lattice:
                sample.set_field(record.places(0, lattice_points(record.grid, self.lattice)), "attention_lattice")


def has_encoder(model: Any) -> bool:
    """Whether a model makes a B_t by an encoder that can be listened to."""
    return hasattr(model, "encoder") and hasattr(model.encoder, "grid")


def lattice_points(grid: BEVGrid, count: int) -> list[tuple[float, float]]:
    """Middles of ``count`` x ``count`` equal parts of a grid, metres, row by row."""
    (x_min, x_max), (y_min, y_max) = grid.x_range_m, grid.y_range_m
    steps = [(place + 0.5) / count for place in range(count)]
    return [(x_min + (x_max - x_min) * x, y_min + (y_max - y_min) * y) for y in steps for x in steps]


def _likeliest(sample: BEVDataSample, count: int = 3) -> list[tuple[float, float]]:
    """Where the boxes of the highest scores are; ten metres ahead where nothing is predicted."""
    if "pred_instances_3d" not in sample or not len(sample.pred_instances_3d):
        return [(0.0, 10.0)]
    best = sample.pred_instances_3d.scores_3d.argsort(descending=True, stable=True)[:count]
    return [(x, y) for x, y in sample.pred_instances_3d.bboxes_3d.tensor[best, :2].tolist()]


def build_visualizer(cfg: Any, score_thr: float = 0.3, layout: str | None = None) -> Any:
    """The config's ``sample_visualizer``, or one that draws whatever a sample has.

    Args:
        cfg: the config.
        score_thr: least score of what is drawn, where the config does not say it.
        layout: "wide" or "tall"; the config's own where None.
    """
    settings = {"type": "SampleVisualizer", "score_thr": score_thr, **(cfg.get("sample_visualizer") or {})}
    if layout is not None:
        settings["layout"] = layout
    return VISUALIZERS.build(settings)


def draw_dataset(
    cfg: Any, dataset: Any, chosen: Sequence[int], model: BaseModel | None, args: argparse.Namespace
) -> None:
    """Write what ``args`` asks for: under ``args.out`` a PNG a sample and a clip a scene, at ``args.html`` a page,
    at ``args.rerun`` a recording; a progress bar, then one line for each."""
    visualizer = build_visualizer(cfg, args.score_thr, args.layout)
    page = None if args.html is None else ScenePage(page_title(cfg, args), score_thr=args.score_thr)
    recording = None if args.rerun is None else SceneRecording(page_title(cfg, args), args.score_thr)
    pictures: dict[str, list[Path]] = {}
    explained = None
    features = args.features or (args.rerun is not None and has_encoder(model))  # a recording has B_t by itself
    if features or args.attention is not None:
        explained = Explained(features, args.attention, 0 if args.html is None else LATTICE)
    samples = predicted_samples(cfg, dataset, chosen, model, explained)
    if model is not None and cfg.get("tracker"):
        samples = track_samples(TASK_UTILS.build(cfg.tracker), samples)
    console = Console(file=sys.stderr)
    for sample in track(samples, "drawing", total=len(chosen), console=console, disable=not console.is_terminal):
        views = camera_views(dataset, sample)
        if args.out is not None:
            scene = pictures.setdefault(sample.metainfo["scene_name"], [])
            path = args.out / sample.metainfo["scene_name"] / f"{len(scene):04d}_{sample.metainfo['token']}.png"
            write_png(path, visualizer.draw(sample, views))
            scene.append(path)
        if page is not None or recording is not None:
            from bevstack.evaluation.detection_matches import detection_matches  # only here: it brings the metrics

            matches = detection_matches(sample, sample.metainfo["classes"])
            for made in (page, recording):
                if made is not None:
                    made.add(sample, views, matches)
    if args.out is not None:
        endings = {"both": ("gif", "mp4"), "none": ()}.get(args.format, (args.format,))
        wanted = [(name, ending) for ending in endings for name in pictures]
        for name, ending in track(wanted, "joining", console=console, disable=not console.is_terminal):
            write_clip(args.out / f"{name}.{ending}", pictures[name], args.fps, args.max_width_px)
        clips = f" and {len(pictures)} {' and '.join(map(str.upper, endings))} clip(s)" if endings else ""
        print(f"{len(chosen)} picture(s) of {len(pictures)} scene(s){clips} in {args.out}")
    if page is not None:
        size = page.write(args.html)
        print(f"page of {len(chosen)} sample(s), {size / 1e6:.1f} MB: {args.html}")
    if recording is not None:
        size = recording.write(args.rerun)
        print(f"recording of {len(chosen)} sample(s), {size / 1e6:.1f} MB: rerun {args.rerun}")


def page_title(cfg: Any, args: argparse.Namespace) -> str:
    """What a page is called: the config's name, and the checkpoint's where it is another, or that it is the truth."""
    name = Path(cfg.filename or "clip").stem
    shown = "ground truth" if args.ground_truth else Path(args.checkpoint).name
    return name if shown == name else f"{name}: {shown}"
