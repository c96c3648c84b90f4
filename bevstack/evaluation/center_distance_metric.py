"""Average precision of boxes for any list of classes, by the nuScenes devkit's matching of centres.

Functions import the devkit themselves: it is loaded where something is scored, not with every metric of a config.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.structures import InstanceData

from bevstack.errors import InputError
from bevstack.evaluation.gathering import GatheredMetric, as_dict
from bevstack.registry import METRICS

DISTANCES_M = (0.5, 1.0, 2.0, 4.0)
"""Centre distances of a match; AP is their mean (detection_cvpr_2019)."""

_ERROR_DISTANCE_M = 2.0
_MIN_RECALL = _MIN_PRECISION = 0.1
_ERRORS = {"trans_err": "ATE", "scale_err": "ASE", "orient_err": "AOE", "vel_err": "AVE"}


@dataclass(frozen=True)
class _Box:
    """What the devkit's ``accumulate`` reads of a box; its own DetectionBox knows nuScenes' ten classes only."""

    sample_token: str
    translation: tuple[float, ...]
    size: tuple[float, ...]
    rotation: tuple[float, ...]
    velocity: tuple[float, ...]
    detection_name: str
    detection_score: float
    attribute_name: str = ""


@METRICS.register_module()
class CenterDistanceMetric(GatheredMetric):
    """The nuScenes detection score's AP and true-positive errors for classes that are not nuScenes'.

    For datasets with a class list of their own, where :class:`NuScenesDetectionMetric` refuses; its keys are the same,
    but there is no NDS, no attribute error and no submission file. Truth and predictions are ``gt_instances_3d`` and
    ``pred_instances_3d`` of the samples, so classes are the dataset's. AP is the mean over matches of centres within
    0.5, 1, 2 and 4 m; errors are those of the matches within 2 m. A class without truth is NaN and left out of means.

    Args:
        classes: names of the labels; None takes the dataset's ``metainfo["classes"]``.
        max_distance_m: truth and predictions farther (x, y) from the BEV frame's origin are left out; one number, or
            one a class.
        min_points: truth with fewer lidar and radar points together is left out, where the samples count them.

    Raises:
        InputError: the dataset has no box, or a class that has no distance; the model's detection heads have other
            classes.
    """

    def __init__(
        self,
        classes: Sequence[str] | None = None,
        max_distance_m: float | Mapping[str, float] = 50.0,
        min_points: int = 1,
    ) -> None:
        super().__init__()
        self._classes = None if classes is None else tuple(classes)
        self.max_distance_m, self.min_points = max_distance_m, min_points

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, from the constructor or else from the dataset."""
        return self.named_classes(self._classes)

    def check_dataset(self, meta: Mapping[str, Any]) -> None:
        """Refuse a dataset without truth, and ranges that leave out a class of it."""
        if meta.get("num_annotated", 1) == 0:
            reason = f"the dataset's {meta.get('split', '')!r} has no annotated box to score by; leave the metric out"
            raise InputError("CenterDistanceMetric", "split", reason)
        classes = self._classes or tuple(meta.get("classes", ()))
        if isinstance(self.max_distance_m, Mapping) and (absent := set(classes) - self.max_distance_m.keys()):
            reason = f"says nothing of {', '.join(sorted(absent))}; give one number, or one for each class"
            raise InputError("CenterDistanceMetric", "max_distance_m", reason)

    def check_model(self, model: Any) -> None:
        """Refuse a model whose heads number other labels."""
        self.refuse_other_classes(model, self.classes)

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keep one batch's boxes, true and predicted."""
        for sample in map(as_dict, data_samples):
            if "pred_instances_3d" not in sample:
                reason = "the model predicts no boxes: leave this metric out, or add a detection head"
                raise InputError("CenterDistanceMetric", "pred_instances_3d", reason)
            true, predicted = sample["gt_instances_3d"], sample["pred_instances_3d"]
            hit = np.ones(len(true["labels_3d"]), dtype=bool)
            if "num_lidar_pts" in true and "num_radar_pts" in true:
                hit = (true["num_lidar_pts"] + true["num_radar_pts"]).cpu().numpy() >= self.min_points
            token = sample["token"]
            boxes = self._boxes(token, true, np.full(len(hit), -1.0), hit)
            found = self._boxes(token, predicted, predicted["scores_3d"].detach().cpu().double().numpy())
            self.results.append((token, boxes, found))

    def _boxes(
        self, token: str, instances: InstanceData, scores: np.ndarray, keep: np.ndarray | None = None
    ) -> list[_Box]:
        values = instances["bboxes_3d"].tensor.detach().cpu().double().numpy()
        labels = instances["labels_3d"].detach().cpu().numpy()
        boxes = []
        for row in np.arange(len(values)) if keep is None else np.flatnonzero(keep):
            x, y, bottom, length, width, height, yaw, *velocity = values[row].tolist()
            name = self.classes[int(labels[row])]
            limit = self.max_distance_m[name] if isinstance(self.max_distance_m, Mapping) else self.max_distance_m
            if math.hypot(x, y) < limit:
                rotation = (math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2))
                place, size = (x, y, bottom + height / 2), (width, length, height)
                velocity = tuple(velocity) or (0.0, 0.0)
                boxes.append(_Box(token, place, size, rotation, velocity, name, float(scores[row])))
        return boxes

    def compute_metrics(self, results: list[tuple[str, list[_Box], list[_Box]]]) -> dict[str, float]:
        """``mAP``, ``mATE`` ``mASE`` ``mAOE`` ``mAVE``; per class ``AP/<class>`` ... and ``gt/<class>``, the number."""
        from nuscenes.eval.common.data_classes import EvalBoxes
        from nuscenes.eval.common.utils import center_distance
        from nuscenes.eval.detection.algo import accumulate, calc_ap, calc_tp

        self.require_distinct(token for token, _, _ in results)
        truth, predicted = EvalBoxes(), EvalBoxes()
        for token, true_boxes, found_boxes in results:
            truth.add_boxes(token, true_boxes)
            predicted.add_boxes(token, found_boxes)
        counts = Counter(box.detection_name for box in truth.all)
        metrics: dict[str, float] = {}
        for name in self.classes:
            matched = {d: accumulate(truth, predicted, name, center_distance, d) for d in DISTANCES_M}
            precisions = [calc_ap(data, _MIN_RECALL, _MIN_PRECISION) for data in matched.values()]
            metrics[f"AP/{name}"] = float(np.mean(precisions)) if counts[name] else math.nan
            for key, short in _ERRORS.items():
                error = calc_tp(matched[_ERROR_DISTANCE_M], _MIN_RECALL, key)
                metrics[f"{short}/{name}"] = float(error) if counts[name] else math.nan
            metrics[f"gt/{name}"] = float(counts[name])
        for short in ("AP", *_ERRORS.values()):
            present = [metrics[f"{short}/{name}"] for name in self.classes if counts[name]]
            metrics[f"m{short}"] = float(np.mean(present)) if present else math.nan
        return metrics
