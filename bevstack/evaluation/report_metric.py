"""What a report is made of, gathered beside the metrics while a test predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from mmengine.structures import InstanceData

from bevstack.errors import InputError
from bevstack.evaluation.breakdown import CALIBRATION_BINS, calibration_counts
from bevstack.evaluation.detection_table import DetectionTable, detection_record
from bevstack.evaluation.gathering import GatheredMetric
from bevstack.evaluation.segmentation_metric import FIXED_THRESHOLD
from bevstack.evaluation.true_objects import on_host
from bevstack.structures import BEVDataSample, BEVRaster
from bevstack.structures.boxes import box_tensor

RING_M = 10.0
MAX_RINGS = 6
LOWEST_SCORE = 0.05
"""Boxes below it are kept for no picture."""


@dataclass
class RunFindings:
    """All that a report says of a run, beside its metrics.

    Args:
        table: of its boxes; None where the model predicts none or nothing is known of the truth.
        cells: by raster and layer (6, 3) counts of cells by rings of 10 m (the last one without end): inside both,
            predicted, true; by scene.
        calibration: by head (10, 3) counts of :func:`calibration_counts`: ``boxes``, rasters by their names, ``scene
            <task>``, and ``behaviour`` at the true boxes where the head answers there.
    """

    table: DetectionTable | None = None
    cells: dict[tuple[str, str, str], np.ndarray] = field(default_factory=dict)
    calibration: dict[str, np.ndarray] = field(default_factory=dict)


class ReportMetric(GatheredMetric):
    """Keeps of each sample what the report needs; scores nothing. ``findings`` is there after :meth:`evaluate`, on the
    main rank.

    Args:
        classes: names of the labels; None takes the dataset's.
    """

    def __init__(self, classes: Sequence[str] | None = None) -> None:
        super().__init__()
        self._classes = None if classes is None else tuple(classes)
        self.findings = RunFindings()
        self.shown: dict[str, dict[str, np.ndarray]] = {}

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Take in one batch's samples."""
        for sample in data_samples:
            whole = sample if isinstance(sample, BEVDataSample) else _as_sample(sample)
            detections = None
            if "pred_instances_3d" in whole:
                detections = detection_record(whole, self.named_classes(self._classes))
            cells: dict[tuple[str, str], np.ndarray] = {}
            calibration: dict[str, np.ndarray] = {}
            for name, predicted in (whole.get("pred_rasters") or {}).items():
                true = (whole.get("gt_rasters") or {}).get(name)
                if true is not None and true.grid.same_as(predicted.grid):
                    cells |= {(name, layer): counts for layer, counts in ring_counts(predicted, true).items()}
                    calibration[name] = _calibration(predicted, true)
            calibration |= scene_calibration(whole) | behaviour_calibration(whole)
            scene = str(whole.metainfo.get("scene_name", ""))
            shown = shown_boxes(whole) if detections is not None else None
            self.results.append((str(whole.metainfo["token"]), scene, detections, cells, calibration, shown))

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Put the samples' parts together in :attr:`findings`; no metric.

        Raises:
            InputError: a sample comes twice.
        """
        self.require_distinct(token for token, *_ in results)
        if not results:
            raise InputError("report", "samples", "no sample was predicted")
        records = [detections for _, _, detections, *_ in results if detections is not None]
        self.shown = {token: shown for token, *_, shown in results if shown is not None}
        findings = RunFindings()
        if records:
            findings.table = DetectionTable.of_records(records, self.named_classes(self._classes))
            hits = findings.table.hit[:, 2]
            findings.calibration["boxes"] = calibration_counts(findings.table.score, hits)
        for _, scene, _, cells, calibration, _ in results:
            for (raster, layer), counts in cells.items():
                key = (raster, layer, scene)
                findings.cells[key] = findings.cells.get(key, 0) + counts
            for name, counts in calibration.items():
                findings.calibration[name] = findings.calibration.get(name, 0) + counts
        self.findings = findings
        return {}


def shown_boxes(sample: BEVDataSample, lowest_score: float = LOWEST_SCORE) -> dict[str, np.ndarray]:
    """What a picture of a sample needs: ``boxes`` (R, 9), ``scores`` (R,) and ``labels`` (R,) of at least a score."""
    instances = sample.pred_instances_3d
    scores = on_host(instances["scores_3d"])
    kept = np.flatnonzero(scores >= lowest_score)
    boxes = box_tensor(instances["bboxes_3d"]).detach().cpu().numpy()
    return {"boxes": boxes[kept], "scores": scores[kept], "labels": on_host(instances["labels_3d"])[kept]}


def ring_counts(predicted: BEVRaster, true: BEVRaster) -> dict[str, np.ndarray]:
    """Of each layer that both have (6, 3) counts of cells: inside both, predicted (at least 0.5), true.

    By rings of 10 m around the frame's origin, the last one without end.
    """
    ring = (true.grid.cell_centers().norm(dim=-1) / RING_M).long().clamp(max=MAX_RINGS - 1).flatten().numpy()
    counted = {}
    for place, name in enumerate(true.classes):
        if name not in predicted.classes:
            continue
        own = (predicted.layers[predicted.classes.index(name)].float() >= FIXED_THRESHOLD).cpu().numpy().ravel()
        other = (true.layers[place] != 0).cpu().numpy().ravel()
        columns = (own & other, own, other)
        counted[name] = np.stack([np.bincount(ring, column, MAX_RINGS) for column in columns], axis=-1).astype(np.int64)
    return counted


def _calibration(predicted: BEVRaster, true: BEVRaster) -> np.ndarray:
    names = [name for name in true.classes if name in predicted.classes]
    if not names:
        return np.zeros((CALIBRATION_BINS, 3))
    layers = torch.stack([predicted.layers[predicted.classes.index(name)] for name in names]).float().cpu().numpy()
    right = torch.stack([true.layers[true.classes.index(name)] != 0 for name in names]).cpu().numpy()
    return calibration_counts(layers, right)


def scene_calibration(sample: BEVDataSample) -> dict[str, np.ndarray]:
    """(10, 3) counts of the likeliest class of each task of a sample whose truth is known, by ``scene <task>``."""
    counts, truth = {}, sample.get("gt_scene") or {}
    for task, answer in (sample.get("pred_scene") or {}).items():
        if truth.get(task) is not None:
            probabilities = on_host(answer["probabilities"])
            best = int(probabilities.argmax())
            right = np.array([answer["names"][best] == truth[task]])
            counts[f"scene {task}"] = calibration_counts(probabilities[[best]], right)
    return counts


def behaviour_calibration(sample: BEVDataSample) -> dict[str, np.ndarray]:
    """(10, 3) counts of the attributes at a sample's true boxes that have one, as ``behaviour``; nothing without."""
    if "pred_on_truth_3d" not in sample or "attribute_names" not in sample.gt_instances_3d:
        return {}
    answers, names = sample.pred_on_truth_3d, sample.gt_instances_3d["attribute_names"]
    known = np.flatnonzero([bool(name) for name in names])
    scores = on_host(answers["attribute_scores"])[known]
    right = np.array([answers["attribute_names"][row] == names[row] for row in known], bool)
    return {"behaviour": calibration_counts(scores, right)} if len(known) else {}


def _as_sample(content: dict[str, Any]) -> BEVDataSample:
    """What the report reads of the sample that mmengine's evaluator has made a flat dict of."""
    sample = BEVDataSample(metainfo={name: content.get(name, "") for name in ("token", "scene_name")})
    for side in ("gt", "pred"):
        if (boxes := content.get(f"{side}_instances_3d")) is not None:
            sample.set_field(InstanceData(**dict(boxes.items())), f"{side}_instances_3d")
        if (rasters := content.get(f"{side}_rasters")) is not None:
            sample.set_field(rasters, f"{side}_rasters")
        if (scene := content.get(f"{side}_scene")) is not None:
            sample.set_field(scene, f"{side}_scene")
    if (answers := content.get("pred_on_truth_3d")) is not None:
        sample.set_field(InstanceData(**dict(answers.items())), "pred_on_truth_3d")
    return sample
