"""Scoring of submitted boxes by the nuScenes devkit's own detection evaluation (detection_cvpr_2019).

Functions import the devkit themselves: it is loaded where something is scored, not with every metric of a config.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bevstack.datasets.nuscenes.split_names import scenes_of
from bevstack.errors import InputError
from bevstack.evaluation.submission import (
    SubmittedBoxes,
    with_default_attributes,
)

if TYPE_CHECKING:
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.data_classes import DetectionMetrics

    from bevstack.datasets.nuscenes.tables import NuScenesTables

TP_ERRORS = {"trans_err": "ATE", "scale_err": "ASE", "orient_err": "AOE", "vel_err": "AVE", "attr_err": "AAE"}


@functools.lru_cache(maxsize=2)
def _open_tables(root: str, version: str) -> NuScenesTables:
    # only here: the devkit behind it takes 2 s
    from bevstack.datasets.nuscenes.tables import NuScenesTables, require_version

    require_version(root, version, "version")
    return NuScenesTables(root, version)


def open_tables(root: str | os.PathLike, version: str) -> NuScenesTables:
    """The tables of one version as the devkit's ``NuScenes``, loaded once per process (cached by folder and version).

    Raises:
        InputError: the folder is missing or the tables cannot be read.
    """
    return _open_tables(str(Path(root).resolve()), version)


@dataclass(frozen=True)
class ScoredSplit:
    """The samples of a split that are scored, as the dataset has them.

    Args:
        root: dataset root. version: folder of the tables. split: the split's name.
        left_out: tokens of samples that the dataset leaves out (``create_data --skip-missing``).
        lidar: whose moment is the samples'; "" for LIDAR_TOP, or else the first lidar.
    """

    root: str
    version: str
    split: str
    left_out: tuple[str, ...] = ()
    lidar: str = ""

    @property
    def tables(self) -> NuScenesTables:
        """The version's tables (:func:`open_tables`)."""
        return open_tables(self.root, self.version)

    def tokens(self) -> list[str]:
        """Tokens of the samples in the order of the sample table. The splits are those of the dataset
        (:func:`bevstack.datasets.nuscenes.tables.read_splits`).

        Raises:
            InputError: the split is unknown, or none of its scenes is in the tables.
        """
        # only here: the devkit behind it takes 2 s
        from bevstack.datasets.nuscenes.tables import read_splits

        tables = self.tables
        splits = read_splits(tables.table_root, tables.scene)
        members = scenes_of(splits, self.split)
        if members is None:
            there = ", ".join(sorted(splits))
            raise InputError(tables.table_root, self.split, f"no such split, or none of its scenes; there are {there}")
        scenes, left_out = set(members), set(self.left_out)
        tokens = [s["token"] for s in tables.sample if s["scene_token"] in scenes and s["token"] not in left_out]
        if not tokens:
            raise InputError(tables.table_root, self.split, "all samples of the split are left out")
        return tokens

    def with_ego_distance(self, boxes: EvalBoxes) -> EvalBoxes:
        """Tell boxes how far from the ego car they are, as the devkit's ``add_center_dist`` does, which asks for a
        lidar called LIDAR_TOP."""
        for token in boxes.sample_tokens:
            place = self._ego_place(token)
            for box in boxes[token]:
                box.ego_translation = tuple(b - e for b, e in zip(box.translation, place, strict=True))
        return boxes

    def _ego_place(self, token: str) -> list[float]:
        # only here: the devkit behind it takes 2 s
        from bevstack.datasets.nuscenes.tables import bev_lidar

        tables, data = self.tables, self.tables.get("sample", token)["data"]
        kinds = {channel: tables.get("sample_data", key)["sensor_modality"] for channel, key in data.items()}
        lidars = [channel for channel, kind in kinds.items() if kind == "lidar"]
        if not lidars or (self.lidar and self.lidar not in lidars):
            raise InputError(tables.table_root, f"sample {token}", f"has no key frame of {self.lidar or 'a lidar'}")
        sweep = tables.get("sample_data", data[self.lidar or bev_lidar(lidars)])
        return tables.get("ego_pose", sweep["ego_pose_token"])["translation"]


@dataclass(frozen=True)
class _Truth:
    boxes: EvalBoxes
    counts: Counter


@functools.lru_cache(maxsize=4)
def _truth(scored: ScoredSplit) -> _Truth:
    """Ground truth after the official filters (range by class, at least one point, bicycle racks), cached per split.

    Raises:
        InputError: there is none at all.
    """
    from nuscenes.eval.common.loaders import load_gt_of_sample_tokens
    from nuscenes.eval.detection.data_classes import DetectionBox

    with contextlib.redirect_stderr(io.StringIO()):  # the devkit's progress bar
        boxes = load_gt_of_sample_tokens(scored.tables, scored.tokens(), DetectionBox, verbose=False)
    boxes = _filtered(scored, boxes)
    return _Truth(boxes, Counter(box.detection_name for box in boxes.all))


def _filtered(scored: ScoredSplit, boxes: EvalBoxes) -> EvalBoxes:
    from nuscenes.eval.common.loaders import filter_eval_boxes

    boxes = scored.with_ego_distance(boxes)
    # With no box at all the devkit cannot tell detection from tracking and raises; there is nothing to filter then.
    return filter_eval_boxes(scored.tables, boxes, _detection_config().class_range) if boxes.all else boxes


@functools.lru_cache(maxsize=1)
def _detection_config():
    from nuscenes.eval.common.config import config_factory

    return config_factory("detection_cvpr_2019")


def score_boxes(scored: ScoredSplit, submitted: Mapping[str, SubmittedBoxes]) -> dict[str, float]:
    """Official scores of boxes that :func:`bevstack.evaluation.submission.check_submission` has passed.

    Returns flat keys: ``NDS``, ``mAP``, ``mATE`` ``mASE`` ``mAOE`` ``mAVE`` ``mAAE`` as the devkit computes them (a
    class without ground truth counts as AP 0 and error 1); per class ``AP/<class>``, ``ATE/<class>`` ... (NaN where the
    error is not defined) and ``gt/<class>``, the number of boxes that the official filters leave; ``mAP_present`` and
    ``NDS_present``, the same means over the classes with at least one such box.
    """
    truth = _truth(scored)
    return _flat(_evaluated(scored, truth, submitted, _detection_config()), truth.counts)


def default_attribute_errors(scored: ScoredSplit, submitted: Mapping[str, SubmittedBoxes]) -> dict[str, float]:
    """What the attribute errors would be by the default rule: ``mAAE_default`` and ``AAE_default/<class>``.

    Nothing where the boxes' attributes are the default ones. Takes a fraction of the time of :func:`score_boxes`, as
    the error is defined at one distance (2 m).
    """
    defaults = {token: with_default_attributes(boxes) for token, boxes in submitted.items()}
    if all(boxes.attributes == defaults[token].attributes for token, boxes in submitted.items()):
        return {}
    from nuscenes.eval.detection.data_classes import DetectionConfig

    config = DetectionConfig.deserialize(_detection_config().serialize())
    config.dist_ths = [config.dist_th_tp]
    metrics = _evaluated(scored, _truth(scored), defaults, config)
    errors = {f"AAE_default/{name}": metrics.get_label_tp(name, "attr_err") for name in config.class_names}
    return {"mAAE_default": float(metrics.tp_errors["attr_err"])} | {name: float(e) for name, e in errors.items()}


def _evaluated(scored: ScoredSplit, truth: _Truth, submitted: Mapping[str, SubmittedBoxes], config) -> DetectionMetrics:
    """What the devkit's evaluation makes of boxes in memory."""
    from nuscenes.eval.common.data_classes import EvalBoxes
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
    predicted = _filtered(scored, predicted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # means over nothing but NaN (velocities) are expected
        metrics, _ = LoadedDetectionEval(truth.boxes, predicted).evaluate()
    return metrics


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
