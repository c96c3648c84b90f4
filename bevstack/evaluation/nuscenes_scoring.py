"""Scoring of submitted boxes by the nuScenes devkit's own detection evaluation (detection_cvpr_2019).

Functions import the devkit themselves: it is loaded where something is scored, not with every metric of a config.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bevstack.errors import InputError
from bevstack.evaluation.submission import (
    SubmittedBoxes,
    check_submission,
    read_submission,
    with_default_attributes,
)

if TYPE_CHECKING:
    from nuscenes import NuScenes
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.data_classes import DetectionMetrics

TP_ERRORS = {"trans_err": "ATE", "scale_err": "ASE", "orient_err": "AOE", "vel_err": "AVE", "attr_err": "AAE"}


@functools.lru_cache(maxsize=2)
def _open_tables(root: str, version: str) -> NuScenes:
    from nuscenes import NuScenes

    folder = Path(root) / version
    if not folder.is_dir():
        raise InputError(folder, "version", "no such folder of nuScenes tables")
    try:
        return NuScenes(version=version, dataroot=root, verbose=False)
    except (AssertionError, OSError, KeyError, ValueError) as error:
        raise InputError(folder, "tables", f"the nuScenes devkit cannot load them ({error})") from None


def open_tables(root: str | os.PathLike, version: str) -> NuScenes:
    """The devkit's tables of one version, loaded once per process (cached by folder and version).

    Raises:
        InputError: the folder is missing or the devkit cannot load it.
    """
    return _open_tables(str(Path(root).resolve()), version)


def split_tokens(tables: NuScenes, split: str) -> list[str]:
    """Tokens of the split's samples in the order of the sample table.

    A split that ``<root>/<version>/splits.json`` names is taken from there, any other from the devkit's own splits;
    ``all`` is every scene, unless splits.json says otherwise.

    Raises:
        InputError: the split is unknown or none of its scenes is in the tables.
    """
    from nuscenes.utils.splits import create_splits_scenes

    own_file = Path(tables.table_root) / "splits.json"
    own: Any = {}
    if own_file.is_file():
        try:
            own = json.loads(own_file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(own_file, "file", f"is not JSON ({error})") from None
        if not isinstance(own, dict):
            raise InputError(own_file, "file", "must map split names to lists of scene names")
    splits = {**create_splits_scenes(), "all": [scene["name"] for scene in tables.scene], **own}
    if split not in splits:
        raise InputError(own_file, split, f"no such split; known are {', '.join(sorted(splits))}")
    scenes = set(splits[split])
    names = {scene["token"]: scene["name"] for scene in tables.scene}
    tokens = [sample["token"] for sample in tables.sample if names[sample["scene_token"]] in scenes]
    if not tokens:
        raise InputError(tables.table_root, split, "none of the split's scenes is in these tables")
    return tokens


@dataclass(frozen=True)
class _Truth:
    boxes: EvalBoxes
    counts: Counter


@functools.lru_cache(maxsize=4)
def _truth(root: str, version: str, split: str) -> _Truth:
    """Ground truth after the official filters (range by class, at least one point, bicycle racks), cached per split."""
    from nuscenes.eval.common.loaders import add_center_dist, load_gt_of_sample_tokens
    from nuscenes.eval.detection.data_classes import DetectionBox

    tables = _open_tables(root, version)
    with contextlib.redirect_stderr(io.StringIO()):  # the devkit's progress bar
        boxes = load_gt_of_sample_tokens(tables, split_tokens(tables, split), DetectionBox, verbose=False)
    boxes = _filtered(tables, add_center_dist(tables, boxes))
    return _Truth(boxes, Counter(box.detection_name for box in boxes.all))


def _filtered(tables: NuScenes, boxes: EvalBoxes) -> EvalBoxes:
    from nuscenes.eval.common.loaders import filter_eval_boxes

    # With no box at all the devkit cannot tell detection from tracking and raises; there is nothing to filter then.
    return filter_eval_boxes(tables, boxes, _detection_config().class_range) if boxes.all else boxes


@functools.lru_cache(maxsize=1)
def _detection_config():
    from nuscenes.eval.common.config import config_factory

    return config_factory("detection_cvpr_2019")


def score_boxes(tables: NuScenes, split: str, submitted: Mapping[str, SubmittedBoxes]) -> dict[str, float]:
    """Official scores of boxes that :func:`bevstack.evaluation.submission.check_submission` has passed.

    Returns flat keys: ``NDS``, ``mAP``, ``mATE`` ``mASE`` ``mAOE`` ``mAVE`` ``mAAE`` as the devkit computes them (a
    class without ground truth counts as AP 0 and error 1); per class ``AP/<class>``, ``ATE/<class>`` ... (NaN where the
    error is not defined) and ``gt/<class>``, the number of boxes that the official filters leave; ``mAP_present`` and
    ``NDS_present``, the same means over the classes with at least one such box.
    """
    truth = _truth(str(Path(tables.dataroot).resolve()), tables.version, split)
    return _flat(_evaluated(tables, truth, submitted, _detection_config()), truth.counts)


def default_attribute_errors(
    tables: NuScenes, split: str, submitted: Mapping[str, SubmittedBoxes]
) -> dict[str, float]:
    """What the attribute errors would be by the default rule: ``mAAE_default`` and ``AAE_default/<class>``.

    Nothing where the boxes' attributes are the default ones. Takes a fraction of the time of :func:`score_boxes`, as
    the error is defined at one distance (2 m).
    """
    defaults = {token: with_default_attributes(boxes) for token, boxes in submitted.items()}
    if all(boxes.attributes == defaults[token].attributes for token, boxes in submitted.items()):
        return {}
    from nuscenes.eval.detection.data_classes import DetectionConfig

    truth = _truth(str(Path(tables.dataroot).resolve()), tables.version, split)
    config = DetectionConfig.deserialize(_detection_config().serialize())
    config.dist_ths = [config.dist_th_tp]
    metrics = _evaluated(tables, truth, defaults, config)
    errors = {f"AAE_default/{name}": metrics.get_label_tp(name, "attr_err") for name in config.class_names}
    return {"mAAE_default": float(metrics.tp_errors["attr_err"])} | {name: float(e) for name, e in errors.items()}


def _evaluated(tables: NuScenes, truth: _Truth, submitted: Mapping[str, SubmittedBoxes], config) -> DetectionMetrics:
    """What the devkit's evaluation makes of boxes in memory."""
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.loaders import add_center_dist
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval

    class LoadedDetectionEval(DetectionEval):
        """The devkit's evaluation on boxes that are in memory already; everything but the loading is inherited."""

        def __init__(self, gt_boxes: EvalBoxes, pred_boxes: EvalBoxes) -> None:
            self.cfg, self.verbose = config, False
            self.gt_boxes, self.pred_boxes = gt_boxes, pred_boxes

    predicted = EvalBoxes()
    for token, boxes in submitted.items():
        predicted.add_boxes(token, [DetectionBox.deserialize(record) for record in boxes.records()])
    predicted = _filtered(tables, add_center_dist(tables, predicted))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means over nothing but NaN (velocities) are expected
        metrics, _ = LoadedDetectionEval(truth.boxes, predicted).evaluate()
    return metrics


def score_submission(
    path: str | os.PathLike, data_root: str | os.PathLike, version: str, split: str
) -> dict[str, float]:
    """Official scores of a submission file; keys as :func:`score_boxes`.

    Raises:
        InputError: the file, the tables or the split are not right.
    """
    submitted = read_submission(path)
    tables = open_tables(data_root, version)
    return score_boxes(tables, split, check_submission(submitted, split_tokens(tables, split), split, path))


def _flat(metrics, counts: Counter) -> dict[str, float]:
    classes = list(metrics.mean_dist_aps)
    present = [name for name in classes if counts[name]]
    flat = {"NDS": metrics.nd_score, "mAP": metrics.mean_ap}
    flat["mAP_present"] = float(np.mean([metrics.mean_dist_aps[name] for name in present])) if present else np.nan
    scores = []
    for key, short in TP_ERRORS.items():
        flat[f"m{short}"] = metrics.tp_errors[key]
        errors = [metrics.get_label_tp(name, key) for name in present]
        errors = [error for error in errors if not np.isnan(error)]
        scores.append(max(0.0, 1.0 - float(np.mean(errors))) if errors else 0.0)
    weight = metrics.cfg.mean_ap_weight
    flat["NDS_present"] = (weight * flat["mAP_present"] + sum(scores)) / (weight + len(scores))
    for name in classes:
        flat[f"AP/{name}"] = metrics.mean_dist_aps[name]
        flat.update({f"{short}/{name}": metrics.get_label_tp(name, key) for key, short in TP_ERRORS.items()})
        flat[f"gt/{name}"] = counts[name]
    return {key: float(value) for key, value in flat.items()}
