"""COCO's average precision, computed by pycocotools from its own masks or from any similarity."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())
"""Similarities (IoU or OKS) from which on a prediction is right."""


def coco_precision(
    true: Sequence[dict],
    found: Sequence[dict],
    num_images: int,
    num_classes: int,
    similarity: Callable[[int, int], np.ndarray] | None = None,
    max_detections: int | None = None,
    image_size_px: tuple[int, int] = (1, 1),
) -> np.ndarray:
    """Precision at similarities and recalls, by pycocotools' matching and accumulation.

    Args:
        true: an object each: ``image_id`` in 0 ... num_images - 1, ``category_id`` in 0 ... num_classes - 1; where
            ``ignore`` is true, it need not be found and may be (not for masks).
        found: a prediction each: the same, without ``ignore``, and ``score``.
        similarity: of an image and a class: (D, G) of its predictions (best first, of equal scores the earlier) to its
            objects, in [0, 1]. None: IoU of the entries' ``segmentation`` (run lengths), which need ``bbox`` and
            ``area`` too.
        max_detections: of an image and class, best first; None for all.
        image_size_px: (rows, columns) of the masks.

    Returns:
        (10, 101, K): similarities :data:`THRESHOLDS`, recalls 0:.01:1; NaN for classes without a true object.
    """
    class GivenSimilarity(COCOeval):
        """COCO's evaluation of keypoints; only the similarity comes from here."""

        def computeOks(self, imgId, catId):  # noqa: N802, N803 - COCO's names
            """(D, G) similarities of an image's predictions (best first) and objects of a class."""
            there = self._gts[imgId, catId] and self._dts[imgId, catId]
            return similarity(imgId, catId) if there and similarity is not None else []

    def tables(entries: Sequence[dict]) -> COCO:
        coco = COCO()
        rows, columns = image_size_px
        coco.dataset = {
            "images": [{"id": index, "height": rows, "width": columns} for index in range(num_images)],
            "categories": [{"id": label} for label in range(num_classes)],
            "annotations": [
                {"area": 1.0, **e, "id": n, "iscrowd": 0, "num_keypoints": 1 - bool(e.get("ignore"))}
                for n, e in enumerate(entries, start=1)
            ],
        }
        coco.createIndex()
        return coco

    kind = (COCOeval, "segm") if similarity is None else (GivenSimilarity, "keypoints")
    with contextlib.redirect_stdout(io.StringIO()):  # it narrates
        evaluation = kind[0](tables(true), tables(found), kind[1])
        evaluation.params.iouThrs = np.array(THRESHOLDS)
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, np.inf]], ["all"]
        evaluation.params.maxDets = [max(1, len(found)) if max_detections is None else max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., 0, 0]  # -1 without a true object
    return np.where(precision < 0, np.nan, precision)


def mean_of_known(values: np.ndarray) -> float:
    """The mean of the values, of any shape, that are not NaN; NaN where nothing is known."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")
