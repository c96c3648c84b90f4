"""``tools/calibrate.py``: one temperature a head, fitted on training scenes, stored with the weights.

Boxes count as right where they found an object of their class within 2 m, cells where their layer is, a scene's classes
where they are the true ones (each for itself, which is exact where a task has two). A temperature changes no box, no
order, no mask at one half and no scene's class; it makes a score say how often it is right.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mmengine.config import Config
from rich.console import Console
from rich.progress import track

from bevstack.datasets.wrappers import innermost_configs
from bevstack.engine.arguments import calibrate_parser
from bevstack.engine.checkpoint import read_checkpoint
from bevstack.engine.config import building, load_config
from bevstack.engine.convert_checkpoint import write_safetensors
from bevstack.engine.models import model_of_checkpoint
from bevstack.engine.stored_config import config_text
from bevstack.engine.visualize import build_dataset, choose_samples, predicted_samples
from bevstack.errors import InputError
from bevstack.evaluation.detection_table import ERROR_COLUMN, detection_record
from bevstack.evaluation.temperature import calibration_error, fitted_temperature, logit_counts
from bevstack.models import BEVPerception
from bevstack.models.heads import DenseDetectionHead, SceneHead, SemanticSegmentationHead
from bevstack.structures import BEVDataSample
from bevstack.weights import file_of, header_of

Counts = dict[str, np.ndarray]


def main(arguments: Sequence[str] | None = None) -> int:
    """Fit, print a line a head, and write the file again with what was found.

    Raises:
        InputError: no file of weights, data that is not there, or a file that cannot be written.
    """
    args = calibrate_parser().parse_args(arguments)
    header, file = header_of(args.weights), file_of(args.weights)
    out = args.out or file
    content = read_checkpoint(file)
    cfg = with_temperatures(load_config(str(file), args.cfg_options), {})
    model = model_of_checkpoint(content, file, cfg)
    names = calibrated_heads(model)
    if not names:
        raise InputError(file, "heads", "none gives scores of boxes or cells that a temperature could be fitted to")
    fitted = counts_of(cfg, model, "train", args.train_root, args.samples)
    unseen = counts_of(cfg, model, None, args.test_root, args.samples)
    found = {name: calibration_of(fitted[name], unseen[name]) for name in names if fitted[name][:, 0].sum()}
    for name, numbers in found.items():
        before, after = (numbers.get(key, float("nan")) for key in ("before", "after"))
        errors = f"ECE on unseen scenes {before:.4f} -> {after:.4f}"
        print(f"  {name:<12} temperature {numbers['temperature']:.3f}, {errors}")
    plain = load_config(str(file))  # without the overrides of this run
    text = config_text(with_temperatures(plain, {name: numbers["temperature"] for name, numbers in found.items()}))
    write_safetensors(content["state_dict"], out, replace(header, cfg=text, calibration=found).metadata())
    print(f"wrote {out}")
    return 0


def calibration_of(fitted: np.ndarray, unseen: np.ndarray) -> dict[str, float]:
    """``temperature`` of counts of training scenes, and the error ``before`` and ``after`` it of those of unseen ones.

    Args:
        fitted, unseen: (1600, 2) of :func:`bevstack.evaluation.temperature.logit_counts`.
    """
    temperature = round(fitted_temperature(fitted), 4)
    numbers = {"temperature": temperature}
    for name, divisor in (("before", 1.0), ("after", temperature)):
        error = calibration_error(unseen, divisor)
        if np.isfinite(error):
            numbers[name] = round(error, 5)
    return numbers


def calibrated_heads(model: BEVPerception) -> list[str]:
    """Names of the heads whose probabilities a temperature belongs to: dense detection, segmentation and scene."""
    kinds = (DenseDetectionHead, SemanticSegmentationHead, SceneHead)
    return [name for name, head in model.heads.items() if isinstance(head, kinds)]


def with_temperatures(cfg: Config, temperatures: dict[str, float]) -> Config:
    """A config in which the named heads decode by these temperatures, and all others by none; the same object."""
    for name, head in cfg.model.heads.items():
        place = head.get("decoding") or {} if "DenseDetectionHead" in str(head["type"]) else head
        place.pop("temperature", None)
        if name in temperatures:
            if place is head:
                head["temperature"] = temperatures[name]
            else:
                head["decoding"] = {**place, "temperature": temperatures[name]}
    return cfg


def counts_of(cfg: Config, model: BEVPerception, split: str | None, root: str | None, samples: int) -> Counts:
    """By head: what its probabilities said and what was right, over the first samples of a split.

    Args:
        cfg: of the model. model: without temperatures.
        split: see :func:`bevstack.engine.visualize.build_dataset`. root: of the data, where it is not the config's.
        samples: at most so many.
    """
    cfg = copy.deepcopy(cfg)
    if root is not None:
        for inner in innermost_configs(cfg.test_dataloader["dataset"]):
            inner["data_root"] = root
    with building(cfg):
        dataset = build_dataset(cfg, split)
    chosen = choose_samples(dataset, None, samples)
    predictions = predicted_samples(cfg, dataset, chosen, model)
    return gathered(model, _shown(predictions, len(chosen), split or "test"), dataset.metainfo["classes"])


def _shown(samples: Iterable[BEVDataSample], number: int, split: str) -> Iterator[BEVDataSample]:
    """The samples, with a progress bar where somebody looks."""
    console = Console(stderr=True)
    return iter(track(samples, f"predicting {split}", total=number, console=console, disable=not console.is_terminal))


def gathered(model: BEVPerception, samples: Iterable[BEVDataSample], classes: Sequence[str]) -> Counts:
    """Counts (1600, 2) by head over predicted samples that have their truth.

    Args:
        model: whose heads predicted. samples: with predictions. classes: names of the labels.
    """
    nothing = logit_counts(np.zeros(0), np.zeros(0, bool))
    counts: Counts = {name: nothing.copy() for name in calibrated_heads(model)}
    for sample in samples:
        for name in counts:
            confidence, right = _answers(model.heads[name], sample, classes)
            counts[name] += logit_counts(confidence, right)
    return counts


def _answers(head: Any, sample: BEVDataSample, classes: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Confidence and whether it was right, of all that a head said of a sample; nothing where no truth is known."""
    if isinstance(head, DenseDetectionHead):
        record = detection_record(sample, classes)
        if record is not None:
            return record["score"], record["hit"][:, ERROR_COLUMN]
    elif isinstance(head, SceneHead):
        true = sample.get("gt_scene") or {}
        known = [(true[task], answer) for task, answer in (sample.get("pred_scene") or {}).items() if true.get(task)]
        if known:
            confidence = np.concatenate([answer["probabilities"].cpu().numpy() for _, answer in known])
            return confidence, np.array([name == right for right, answer in known for name in answer["names"]])
    else:
        predicted = (sample.get("pred_rasters") or {}).get(head.raster)
        true = (sample.get("gt_rasters") or {}).get(head.raster)
        if predicted is not None and true is not None and true.grid.same_as(predicted.grid):
            names = [name for name in true.classes if name in predicted.classes]
            pairs = [
                (predicted.layers[predicted.classes.index(name)].float(), true.layers[true.classes.index(name)] != 0)
                for name in names
            ]
            confidence, right = ([one.cpu().numpy().ravel() for one in column] for column in zip(*pairs, strict=True))
            return np.concatenate(confidence), np.concatenate(right)
    return np.zeros(0), np.zeros(0, bool)
