"""Panoptic quality, instance AP and mIoU of panoptic BEV maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as run_lengths
from torch import Tensor

from bevstack.errors import InputError
from bevstack.evaluation.coco_precision import THRESHOLDS, coco_precision, mean_of_known
from bevstack.evaluation.gathering import GatheredMetric, as_dict
from bevstack.registry import METRICS
from bevstack.structures import PanopticMap

MAX_DETECTIONS = 100


@METRICS.register_module()
class PanopticMetric(GatheredMetric):
    """Panoptic quality (Kirillov et al. 2019, eq. 1 and 2), instance AP as COCO has it, IoU of the owners' classes.

    Reads ``gt_panoptic`` and ``pred_panoptic`` (:class:`bevstack.structures.PanopticMap`) and, where there,
    ``pred_masks`` (``masks`` (n, Y, X) bool, ``scores``, ``labels``) of each sample.

    Keys: ``PQ``, ``SQ``, ``RQ``, each also with ``_things`` and ``_stuff``, and ``PQ/<class>`` and so on;
    ``mask_AP`` (IoU 0.50 ... 0.95), ``mask_AP50``, ``mask_AP/<class>``, ``mask_AP50/<class>`` of the thing classes, at
    most 100 masks a sample; ``mIoU/panoptic``, ``iou_panoptic/<class>``.

    Cells that nothing owns are known to be empty, so they count against a segment that claims them: there is no void.
    A class is NaN and left out of means where it does not exist: in PQ without a true or predicted segment, in AP
    without a true mask, in IoU without a true cell. A class that has segments but no match has SQ 0, as in the
    benchmark's own code. The order and number of ranks cannot matter.

    Raises:
        InputError: a map is missing, classes or grids differ, a score is not finite, a sample comes twice.
    """

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Count one batch's segments and cells, and encode its masks."""
        for sample in map(as_dict, data_samples):
            truth, predicted = _map_of(sample, "gt_panoptic"), _map_of(sample, "pred_panoptic")
            if not truth.grid.same_as(predicted.grid):
                reason = f"the prediction lies on {predicted.grid}, the ground truth on {truth.grid}"
                raise InputError("PanopticMetric", "grid", reason)
            names = [(panoptic.thing_classes, panoptic.stuff_classes) for panoptic in (truth, predicted)]
            if names[0] != names[1]:
                reason = f"things and stuff of the prediction are {names[1]}, those of the ground truth {names[0]}"
                raise InputError("PanopticMetric", "classes", reason)
            counts = {
                "classes": (truth.thing_classes, truth.stuff_classes),
                "shape": truth.grid.shape,
                "matches": count_matches(predicted, truth).numpy(),
                "cells": count_class_cells(predicted, truth).numpy(),
                "truth": _encoded(truth.masks()[truth.is_thing], truth.labels[truth.is_thing]),
            }
            if sample.get("pred_masks") is not None:
                instances = sample["pred_masks"]
                if not torch.isfinite(instances["scores"]).all():
                    reason = f"sample {sample.get('token')} has a score that is not finite"
                    raise InputError("PanopticMetric", "pred_masks", reason)
                best = instances["scores"].argsort(descending=True, stable=True)[:MAX_DETECTIONS]
                parts = (instances[name][best] for name in ("masks", "labels", "scores"))
                counts["predicted"] = _encoded(*parts)
            self.results.append((sample["token"], counts))

    def compute_metrics(self, results: list[tuple[str, dict]]) -> dict[str, float]:
        """Metrics from all samples' counts."""
        if not results:
            raise InputError("PanopticMetric", "samples", "no sample was scored")
        results = sorted(results, key=lambda result: result[0])  # sums of floats depend on their order
        self.require_distinct(token for token, _ in results)
        samples = [sample for _, sample in results]
        thing_classes, stuff_classes = samples[0]["classes"]
        classes = (*thing_classes, *stuff_classes)
        metrics = _quality(sum(sample["matches"] for sample in samples), classes, len(thing_classes))
        metrics |= _class_iou(sum(sample["cells"] for sample in samples), classes)
        if all("predicted" in sample for sample in samples):
            metrics |= _instance_precision(samples, thing_classes)
        return metrics


def count_matches(predicted: PanopticMap, truth: PanopticMap) -> Tensor:
    """Match segments of one class whose IoU is above one half; such a match is unique (Kirillov et al. 2019, 4.1).

    Returns:
        (K, 4) float64 of each class: sum of the matches' IoU, matches, unmatched predicted, unmatched true segments.
    """
    rows, columns = len(predicted) + 1, len(truth) + 1  # the last of each: no owner
    predicted_cells, true_cells = predicted.segments.cpu().flatten(), truth.segments.cpu().flatten()
    pairs = (predicted_cells % rows) * columns + true_cells % columns
    shared = torch.bincount(pairs, minlength=rows * columns).view(rows, columns)
    union = shared.sum(1, keepdim=True) + shared.sum(0) - shared
    shared, union = shared[:-1, :-1], union[:-1, :-1]
    predicted_labels, true_labels = predicted.labels.cpu(), truth.labels.cpu()
    match = (predicted_labels[:, None] == true_labels) & (2 * shared > union)
    iou = torch.where(match, shared.double() / union.clamp_min(1), 0.0)

    def by_class(labels: Tensor, values: Tensor) -> Tensor:
        return torch.bincount(labels, weights=values.double(), minlength=len(truth.classes)).double()

    return torch.stack(
        [
            by_class(true_labels, iou.sum(0)),
            by_class(true_labels, match.any(0)),
            by_class(predicted_labels, ~match.any(1)),
            by_class(true_labels, ~match.any(0)),
        ],
        dim=-1,
    )


def count_class_cells(predicted: PanopticMap, truth: PanopticMap) -> Tensor:
    """(K, 3) int64 cells of each class: predicted and true, predicted, true."""
    count = len(truth.classes)
    predicted_class, true_class = (cells.cpu().flatten() for cells in (predicted.cell_labels(), truth.cell_labels()))
    table = torch.bincount(
        (predicted_class % (count + 1)) * (count + 1) + true_class % (count + 1), minlength=(count + 1) ** 2
    ).view(count + 1, count + 1)
    return torch.stack([table.diagonal(), table.sum(1), table.sum(0)], dim=-1)[:-1]


def _map_of(sample: dict[str, Any], field: str) -> PanopticMap:
    if sample.get(field) is None:
        hint = "put MakePanopticMap into the test pipeline" if field == "gt_panoptic" else "no head predicted it"
        raise InputError("PanopticMetric", field, f"sample {sample.get('token')} has none; {hint}")
    return sample[field]


def _encoded(masks: Tensor, labels: Tensor, scores: Tensor | None = None) -> list[tuple]:
    """Masks (n, Y, X) as (run-length code, class, score), small enough to travel between ranks."""
    columns = np.asfortranarray(masks.cpu().numpy().astype(np.uint8).transpose(1, 2, 0))
    scores = torch.ones(len(labels)) if scores is None else scores
    return list(zip(run_lengths.encode(columns), labels.tolist(), scores.tolist(), strict=True))


def _quality(counts: np.ndarray, classes: Sequence[str], num_things: int) -> dict[str, float]:
    iou, matches, unmatched_predicted, unmatched_true = counts.T
    segments = matches + (unmatched_predicted + unmatched_true) / 2
    there = segments > 0
    segmentation = np.where(there, iou / np.maximum(matches, 1), np.nan)
    recognition = np.where(there, matches / np.where(there, segments, 1), np.nan)
    is_thing = np.arange(len(classes)) < num_things
    metrics = {}
    for name, values in (("PQ", segmentation * recognition), ("SQ", segmentation), ("RQ", recognition)):
        metrics[name] = mean_of_known(values)
        metrics[f"{name}_things"] = mean_of_known(values[is_thing])
        metrics[f"{name}_stuff"] = mean_of_known(values[~is_thing])
        metrics |= {f"{name}/{label}": float(value) for label, value in zip(classes, values, strict=True)}
    return metrics


def _class_iou(counts: np.ndarray, classes: Sequence[str]) -> dict[str, float]:
    shared, predicted, true = counts.T
    iou = np.where(true > 0, shared / np.maximum(predicted + true - shared, 1), np.nan)
    metrics = {f"iou_panoptic/{label}": float(value) for label, value in zip(classes, iou, strict=True)}
    return {"mIoU/panoptic": mean_of_known(iou), **metrics}


def _instance_precision(samples: Sequence[dict], classes: Sequence[str]) -> dict[str, float]:
    """COCO's average precision of masks, computed by pycocotools on run lengths of BEV cells."""
    def annotations(field: str) -> list[dict]:
        found = []
        for image, sample in enumerate(samples):
            for code, label, score in sample[field]:
                area, box = float(run_lengths.area(code)), run_lengths.toBbox(code).tolist()
                entry = dict(image_id=image, category_id=label, segmentation=code, area=area, bbox=box)
                found.append({**entry, "score": score})
        return found

    precision = coco_precision(
        annotations("truth"),
        annotations("predicted"),
        len(samples),
        len(classes),
        max_detections=MAX_DETECTIONS,
        image_size_px=samples[0]["shape"],
    )
    by_class = {"mask_AP": precision.mean((0, 1)), "mask_AP50": precision[THRESHOLDS.index(0.5)].mean(0)}
    metrics = {}
    for name, values in by_class.items():
        metrics[name] = mean_of_known(values)
        metrics |= {f"{name}/{label}": float(value) for label, value in zip(classes, values, strict=True)}
    return metrics
