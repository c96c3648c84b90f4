"""How well oriented poses are found (OKS-AP) and how exactly their keypoints are placed (PCK)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bevstack.errors import InputError
from bevstack.evaluation.coco_precision import THRESHOLDS, coco_precision, mean_of_known
from bevstack.evaluation.gathering import GatheredMetric, as_dict
from bevstack.evaluation.true_objects import class_ranges, countable, match_by_distance, on_host
from bevstack.geometry.keypoints import NUM_KEYPOINTS, box_poses, pose_keypoints
from bevstack.registry import METRICS
from bevstack.structures.poses import bev_from_augmented

SIGMAS = (0.1,) * NUM_KEYPOINTS
"""How far a keypoint may stray, by keypoint: COCO's hips have 0.107, shoulders 0.079. An object of 8 m2 of ground
whose keypoints are all 0.5 m off has OKS 0.68."""
TURNS = {"barrier": 2, "traffic_cone": 4}
"""By how many turns a class looks the same: its keypoints are judged against the one that fits best."""
MATCH_DISTANCE_M = 2.0
PCK_DISTANCES_M = (0.5, 1.0)


@dataclass(frozen=True)
class ScoredPoses:
    """One sample's objects and poses, in metres and without augmentation.

    Args:
        token: of the sample.
        labels: (G,); turns: G arrays (S, 6, 2) of an object's keypoints, as often as it has looks; areas: (G,) m2.
        predicted_labels: (D,); predicted: (D, 6, 2); scores: (D,).
    """

    token: str
    labels: np.ndarray
    turns: tuple[np.ndarray, ...]
    areas: np.ndarray
    predicted_labels: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray


class SimilarityMetric(GatheredMetric):
    """What metrics by object keypoint similarity share: classes, their ranges, and how far each keypoint may stray.

    Args:
        classes, sigmas, range_m: see :class:`KeypointMetric`.

    Raises:
        InputError: not one positive sigma for each keypoint.
    """

    def __init__(
        self,
        classes: Sequence[str] | None = None,
        sigmas: Sequence[float] = SIGMAS,
        range_m: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self._classes = None if classes is None else tuple(classes)
        self.sigmas, self.range_m = np.asarray(sigmas, float), dict(range_m or {})
        self._limits: np.ndarray | None = None
        if self.sigmas.shape != (NUM_KEYPOINTS,) or (self.sigmas <= 0).any():
            raise InputError(type(self).__name__, "sigmas", f"must be {NUM_KEYPOINTS} positive numbers")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, from the constructor or else from the dataset."""
        return self.named_classes(self._classes)

    @property
    def limits_m(self) -> np.ndarray:
        """(K,) range of each class, metres."""
        if self._limits is None:
            self._limits = class_ranges(self.classes, self.range_m)
        return self._limits


@METRICS.register_module()
class KeypointMetric(SimilarityMetric):
    """OKS-AP and PCK of six keypoints per object, in the BEV frame.

    Reads ``gt_instances_3d`` (boxes, labels and, where there, ``num_lidar_pts`` and ``num_radar_pts``) and
    ``pred_keypoints`` (``keypoints`` (n, 6, 2), ``scores``, ``labels``).

    OKS is COCO's object keypoint similarity: the mean over the keypoints of exp(-d^2 / (2 s^2 k^2)), d their distance
    in metres, s^2 the object's ground area in m^2, k = 2 sigma. AP is pycocotools' own at OKS .50:.05:.95.
    ``keypoint_AP``, ``keypoint_AP50``, ``keypoint_AP75`` are means over the classes with at least one true object;
    ``keypoint_AP/<class>`` and ``keypoint_AP50/<class>`` are NaN for the others.

    PCK is the share of keypoints within a distance, of the true objects that have a match: going down the scores, each
    pose takes the nearest true object of its class that is still free and whose centre is nearer than 2 m.
    ``PCK@0.5m/<class>`` and ``PCK@1m/<class>`` are NaN where a class has no match; ``PCK@0.5m`` and ``PCK@1m`` are
    means over the other classes. ``keypoint_matched`` and ``keypoint_matched/<class>`` say which share of the true
    objects has a match at all: a PCK without it says little. ``keypoint_gt/<class>`` counts true objects.

    As in nuScenes' detection evaluation, true objects without any lidar or radar point and objects beyond their class's
    range are left out, true or predicted. The range is measured from the origin of the BEV frame, and bicycle racks are
    not looked at. Classes that look the same from several sides (:data:`TURNS`) are judged by the best of them.

    Args:
        classes: names of the labels; None takes the dataset's ``metainfo["classes"]``.
        sigmas: one for each keypoint.
        range_m: range of each class; those not named get nuScenes' own, or else 50 m.

    Raises:
        InputError: a field is missing, a prediction is not finite, a sample comes twice, there is none.
    """

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keep one batch's poses and true objects within range."""
        limits = self.limits_m
        for sample in map(as_dict, data_samples):
            token = sample.get("token")
            for field in ("gt_instances_3d", "pred_keypoints"):
                if field not in sample:
                    why = "add a KeypointHead" if field.startswith("pred") else "the split has no labels"
                    reason = f"sample {token} has none: {why}, or leave the metric out"
                    raise InputError("KeypointMetric", field, reason)
            matrix = bev_from_augmented(sample).numpy()[:2]
            labels, turns, areas = self._truth(sample["gt_instances_3d"], matrix)
            within = [np.linalg.norm(t[0, 0]) < limits[label] for t, label in zip(turns, labels, strict=True)]
            near = np.flatnonzero(within)
            predicted = sample["pred_keypoints"]
            points, scores = _moved(predicted["keypoints"], matrix), on_host(predicted["scores"])
            if not (np.isfinite(points).all() and np.isfinite(scores).all()):
                raise InputError("KeypointMetric", "pred_keypoints", f"sample {token} has a value that is not finite")
            own = on_host(predicted["labels"]).astype(int)
            if ((own < 0) | (own >= len(limits))).any():
                reason = f"sample {token} has label {own.max()}, but there are {len(limits)} classes"
                raise InputError("KeypointMetric", "pred_keypoints", reason)
            keep = np.linalg.norm(points[:, 0], axis=-1) < limits[own]
            self.results.append(
                ScoredPoses(
                    sample["token"], labels[near], tuple(turns[i] for i in near), areas[near],
                    own[keep], points[keep], scores[keep],
                )  # fmt: skip
            )

    def _truth(self, instances: Any, matrix: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
        """Labels, keypoints in every look, and ground areas of the true objects that count."""
        boxes, labels = instances["bboxes_3d"].tensor.detach().cpu().double(), on_host(instances["labels_3d"])
        keep = countable(instances)
        labels = labels[keep].astype(int)
        poses = box_poses(boxes[torch.from_numpy(keep)])
        areas = (poses[:, 2] * poses[:, 3]).numpy() * abs(np.linalg.det(matrix[:, :2]))
        turns = []
        for pose, label in zip(poses, labels, strict=True):
            number = TURNS.get(self.classes[label], 1)
            looks = pose.repeat(number, 1)
            looks[:, 4] += torch.arange(number) * 2 * torch.pi / number
            if number == 4:  # a quarter turn makes the length a width
                looks[1::2, 2:4] = looks[1::2, 2:4].flip(1)
            turns.append(_moved(pose_keypoints(looks), matrix))
        return labels, turns, areas

    def compute_metrics(self, results: list[ScoredPoses]) -> dict[str, float]:
        """AP by pycocotools, PCK by matching and the share of matched objects: of each class, and means over them."""
        if not results:
            raise InputError("KeypointMetric", "samples", "no sample was scored")
        results = sorted(results, key=lambda result: result.token)
        self.require_distinct(result.token for result in results)
        precision = oks_precision(results, len(self.classes), self.sigmas)
        metrics = {"keypoint_AP": mean_of_known(precision.mean((0, 1)))}
        metrics["keypoint_AP50"] = mean_of_known(precision[THRESHOLDS.index(0.5)].mean(0))
        metrics["keypoint_AP75"] = mean_of_known(precision[THRESHOLDS.index(0.75)].mean(0))
        number = np.bincount(np.concatenate([r.labels for r in results]), minlength=len(self.classes))
        errors = matched_errors(results, len(self.classes))
        with_truth = np.where(number > 0, number, np.nan)
        matched = np.array([len(error) for error in errors]) / with_truth
        metrics["keypoint_matched"] = mean_of_known(matched)
        for limit in PCK_DISTANCES_M:
            shares = [float((error <= limit).mean()) if len(error) else np.nan for error in errors]
            metrics[f"PCK@{limit:g}m"] = mean_of_known(np.array(shares))
            metrics.update({f"PCK@{limit:g}m/{name}": s for name, s in zip(self.classes, shares, strict=True)})
        for index, name in enumerate(self.classes):
            metrics[f"keypoint_AP/{name}"] = precision[..., index].mean()
            metrics[f"keypoint_AP50/{name}"] = precision[THRESHOLDS.index(0.5), :, index].mean()
            metrics[f"keypoint_matched/{name}"] = matched[index]
            metrics[f"keypoint_gt/{name}"] = number[index]
        return {key: float(value) for key, value in metrics.items()}


def object_keypoint_similarity(
    points: np.ndarray, turns: Sequence[np.ndarray], areas: np.ndarray, sigmas: np.ndarray
) -> np.ndarray:
    """COCO's OKS of poses to objects, each object in the look that fits best.

    Args:
        points: (D, 6, 2) metres; turns: G arrays (S, 6, 2) metres; areas: (G,) m2; sigmas: (6,).

    Returns:
        (D, G) in [0, 1].
    """
    answer = np.zeros((len(points), len(turns)))
    for index, (looks, area) in enumerate(zip(turns, areas, strict=True)):
        squared = ((points[:, None] - looks[None]) ** 2).sum(-1)  # (D, S, 6)
        similarity = np.exp(-squared / (2 * (2 * sigmas) ** 2 * max(area, 1e-6)))
        answer[:, index] = similarity.mean(-1).max(-1)
    return answer


def oks_precision(results: Sequence[ScoredPoses], num_classes: int, sigmas: np.ndarray) -> np.ndarray:
    """Precision at OKS thresholds and recalls.

    Args:
        results: of all samples, in a fixed order; num_classes: K; sigmas: (6,).

    Returns:
        (10, 101, K), as :func:`bevstack.evaluation.coco_precision.coco_precision`.
    """

    def similarity(image: int, label: int) -> np.ndarray:
        result = results[image]
        found, true = result.predicted_labels == label, result.labels == label
        turns = [look for look, own in zip(result.turns, true, strict=True) if own]
        order = np.argsort(-result.scores[found], kind="stable")
        return object_keypoint_similarity(result.predicted[found][order], turns, result.areas[true], sigmas)

    true, found = [], []
    for index, result in enumerate(results):
        true += [{"image_id": index, "category_id": int(label)} for label in result.labels]
        pairs = zip(result.predicted_labels, result.scores, strict=True)
        found += [{"image_id": index, "category_id": int(label), "score": float(score)} for label, score in pairs]
    return coco_precision(true, found, len(results), num_classes, similarity)


def matched_errors(results: Sequence[ScoredPoses], num_classes: int) -> list[np.ndarray]:
    """Distances of the keypoints of matched objects, by class.

    Poses find objects by their centres (:func:`match_by_distance`); an object is seen in the look with the least mean
    distance.

    Returns:
        K arrays (M, 6) metres.
    """
    errors: list[list[np.ndarray]] = [[] for _ in range(num_classes)]
    for result in results:
        centers = np.array([look[0, 0] for look in result.turns]).reshape(-1, 2)
        places = (result.predicted[:, 0], result.predicted_labels, result.scores)
        for row, true_row in match_by_distance(*places, centers, result.labels, MATCH_DISTANCE_M):
            looks = np.linalg.norm(result.turns[true_row] - result.predicted[row], axis=-1)  # (S, 6)
            errors[result.predicted_labels[row]].append(looks[looks.mean(-1).argmin()])
    return [np.array(error).reshape(-1, NUM_KEYPOINTS) for error in errors]


def _moved(points: Any, matrix: np.ndarray) -> np.ndarray:
    """(..., 2) points on the ground moved by the upper rows (2, 4) of a transform, in float64."""
    return on_host(points).astype(np.float64) @ matrix[:, :2].T + matrix[:, 3]
