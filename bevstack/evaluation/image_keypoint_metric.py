"""How well projected keypoints are found in the cameras' images: OKS-AP of points, and PCK."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bevstack.errors import InputError
from bevstack.evaluation.coco_precision import THRESHOLDS, coco_precision, mean_of_known
from bevstack.evaluation.gathering import as_dict
from bevstack.evaluation.keypoint_metric import SimilarityMetric, object_keypoint_similarity
from bevstack.evaluation.true_objects import countable, match_by_distance, on_host
from bevstack.geometry.keypoints import KEYPOINT_NAMES, NUM_KEYPOINTS, image_keypoints
from bevstack.registry import METRICS
from bevstack.structures.poses import bev_from_augmented

PCK_SHARES = (0.1, 0.2)
"""Of the object's size in the image: how far away a keypoint is still found."""

_CALIBRATION = ("pixels_from_camera", "camera_from_bev", "image_size_px")


TruePoints = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class ScoredPoints:
    """The points of one sample in all its cameras, in pixels.

    Args:
        token: of the sample; num_cameras: N.
        images: (V,) camera of each true point; kinds: (V,) index into ``KEYPOINT_NAMES``; points: (V, 2).
        sizes: (V,) how large its object looks there; counted: (V,) bool, False for those that need not be found.
        predicted_images: (D,); predicted_kinds: (D,); predicted: (D, 2); scores: (D,).
    """

    token: str
    num_cameras: int
    images: np.ndarray
    kinds: np.ndarray
    points: np.ndarray
    sizes: np.ndarray
    counted: np.ndarray
    predicted_images: np.ndarray
    predicted_kinds: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray


@METRICS.register_module()
class ImageKeypointMetric(SimilarityMetric):
    """OKS-AP and PCK of each keypoint as a point in the cameras' images; points belong to no object.

    Reads ``gt_instances_3d`` (boxes, labels and, where there, ``num_lidar_pts`` and ``num_radar_pts``),
    ``pred_image_keypoints`` (``points_px`` in pixels of the image tensor, ``cameras``, ``kinds``, ``scores``) and the
    keyframe's calibration in the metainfo. True points are where boxes' keypoints are projected to, inside the images.

    An object looks s = sqrt(f_u f_v h sqrt(l w)) / z pixels large at a keypoint of depth z (l, w, h: its box in metres,
    f: focal lengths), at most as large as the image. All numbers are relative to s, so images may be of any size.

    AP is pycocotools' own at OKS .50:.05:.95, each point of an image taken as an object with one keypoint: OKS is
    exp(-d^2 / (2 s^2 k^2)), k = 2 sigma. ``image_keypoint_AP``, ``image_keypoint_AP50`` and ``image_keypoint_AP75`` are
    means over the kinds of keypoints; with ``/<kind>`` they are those of one.

    PCK is the share of the true points that are found: going down the scores, each predicted point takes the nearest
    true one of its kind in its image that is still free and nearer than 0.1 s or 0.2 s. ``image_keypoint_PCK@0.1`` and
    ``image_keypoint_PCK@0.2`` are means over the kinds, also there with ``/<kind>``; false points cost nothing here.
    ``image_keypoint_gt/<kind>`` counts true points. What has no true point is NaN and left out of means.

    Points of objects without class, without any lidar or radar point, or beyond their class's range need not be found
    and are not held against what finds them. That something may stand in front of a point is not looked at.

    Args:
        classes: names of the labels; None takes the dataset's ``metainfo["classes"]``.
        sigmas: one for each keypoint.
        range_m: range of each class; those not named get nuScenes' own, or else 50 m.

    Raises:
        InputError: a field or the calibration is missing, a prediction is not finite or of a camera that is not there,
            a sample comes twice, there is none.
    """

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Project one batch's boxes and keep the points, true and predicted."""
        for sample in map(as_dict, data_samples):
            token = sample.get("token")
            hints = dict.fromkeys(_CALIBRATION, "PackBEVInputs brings it")
            hints |= {"gt_instances_3d": "the split has no labels", "pred_image_keypoints": "add an ImageKeypointHead"}
            for field, hint in hints.items():
                if sample.get(field) is None:
                    reason = f"sample {token} has none: {hint}, or leave the metric out"
                    raise InputError("ImageKeypointMetric", field, reason)
            found, number = sample["pred_image_keypoints"], len(sample["pixels_from_camera"])
            points, scores = (on_host(found[name]).astype(float) for name in ("points_px", "scores"))
            cameras, kinds = (on_host(found[name]).astype(int) for name in ("cameras", "kinds"))
            for bad, what in (
                (not (np.isfinite(points).all() and np.isfinite(scores).all()), "a value that is not finite"),
                (((cameras < 0) | (cameras >= number)).any(), f"a point in another than its {number} cameras"),
                (((kinds < 0) | (kinds >= NUM_KEYPOINTS)).any(), f"a point of another than {NUM_KEYPOINTS} kinds"),
            ):
                if bad:
                    raise InputError("ImageKeypointMetric", "pred_image_keypoints", f"sample {token} has {what}")
            self.results.append(
                ScoredPoints(
                    sample["token"], number, *_true_points(sample, self.limits_m),
                    predicted_images=cameras, predicted_kinds=kinds, predicted=points, scores=scores,
                )  # fmt: skip
            )

    def compute_metrics(self, results: list[ScoredPoints]) -> dict[str, float]:
        """AP by pycocotools, PCK by matching and the number of true points: of each kind, and means over the kinds."""
        if not results:
            raise InputError("ImageKeypointMetric", "samples", "no sample was scored")
        results = sorted(results, key=lambda result: result.token)
        self.require_distinct(result.token for result in results)
        number = sum(np.bincount(r.kinds[r.counted], minlength=NUM_KEYPOINTS) for r in results)
        precision = _precision(results, self.sigmas)
        by_kind = {
            "AP": precision.mean((0, 1)),
            "AP50": precision[THRESHOLDS.index(0.5)].mean(0),
            "AP75": precision[THRESHOLDS.index(0.75)].mean(0),
        }
        for share in PCK_SHARES:
            found = sum(_found(result, share) for result in results)
            by_kind[f"PCK@{share:g}"] = found / np.where(number > 0, number, np.nan)
        metrics = {f"image_keypoint_{name}": mean_of_known(values) for name, values in by_kind.items()}
        for name, values in {**by_kind, "gt": number}.items():
            metrics |= {f"image_keypoint_{name}/{k}": float(v) for k, v in zip(KEYPOINT_NAMES, values, strict=True)}
        return metrics


def _true_points(sample: dict[str, Any], limits: np.ndarray) -> TruePoints:
    """Images, kinds, points, sizes and whether they count: :class:`ScoredPoints` says what of; limits (K,) metres."""
    pixels, camera_from_bev, image_size_px = (on_host(sample[name]) for name in _CALIBRATION)
    pixels, camera_from_bev = pixels.astype(float), camera_from_bev.astype(float)
    matrix = np.tile(np.eye(4), (len(pixels), 1, 1))
    matrix[:, :3] = pixels @ camera_from_bev[:, :3]
    instances = sample["gt_instances_3d"]
    boxes, labels = instances["bboxes_3d"].tensor.detach().cpu().double(), on_host(instances["labels_3d"]).astype(int)
    places = image_keypoints(boxes, torch.from_numpy(matrix), torch.from_numpy(image_size_px))
    cameras, objects, kinds, points, depths = (value.numpy() for value in places)

    boxes = boxes.numpy()
    focal_px2 = np.abs(np.linalg.det(pixels[:, :2, :2]))
    scale = np.cbrt(np.abs(np.linalg.det(camera_from_bev[:, :3, :3])))  # augmented boxes may be larger than life
    side_m2 = boxes[:, 5] * np.sqrt(boxes[:, 3] * boxes[:, 4])
    areas = focal_px2[cameras] * scale[cameras] ** 2 * side_m2[objects] / depths**2
    sizes = np.sqrt(np.minimum(areas, image_size_px[cameras].prod(-1)))

    matrix = bev_from_augmented(sample).numpy()
    centers = boxes[:, :2] @ matrix[:2, :2].T + matrix[:2, 3]
    counted = countable(instances) & (np.hypot(*centers.T) < limits[labels])
    return cameras, kinds, points, sizes, counted[objects]


def _precision(results: Sequence[ScoredPoints], sigmas: np.ndarray) -> np.ndarray:
    """(10, 101, 6) precision of each kind, as :func:`coco_precision`."""
    first = np.cumsum([0] + [result.num_cameras for result in results])
    true, found = [], []
    for start, result in zip(first, results, strict=False):
        for image, kind, counts in zip(result.images, result.kinds, result.counted, strict=True):
            true.append({"image_id": int(start + image), "category_id": int(kind), "ignore": not counts})
        for image, kind, score in zip(result.predicted_images, result.predicted_kinds, result.scores, strict=True):
            found.append({"image_id": int(start + image), "category_id": int(kind), "score": float(score)})

    def similarity(image: int, kind: int) -> np.ndarray:
        index = int(np.searchsorted(first, image, side="right")) - 1
        result, camera = results[index], image - first[index]
        own = np.flatnonzero((result.predicted_images == camera) & (result.predicted_kinds == kind))
        own = own[np.argsort(-result.scores[own], kind="stable")]
        there = (result.images == camera) & (result.kinds == kind)
        return object_keypoint_similarity(
            result.predicted[own, None],
            result.points[there][:, None, None],
            result.sizes[there] ** 2,
            sigmas[kind : kind + 1],
        )

    return coco_precision(true, found, int(first[-1]), NUM_KEYPOINTS, similarity)


def _found(result: ScoredPoints, share: float) -> np.ndarray:
    """(6,) how many true points of each kind count and are found: nearer than a share of their object's size."""
    predicted = result.predicted_images * NUM_KEYPOINTS + result.predicted_kinds
    true = result.images * NUM_KEYPOINTS + result.kinds
    pairs = match_by_distance(result.predicted, predicted, result.scores, result.points, true, share * result.sizes)
    rows = np.array([row for _, row in pairs], dtype=int)
    return np.bincount(result.kinds[rows[result.counted[rows]]], minlength=NUM_KEYPOINTS)
