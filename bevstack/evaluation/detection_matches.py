"""Predicted boxes beside true ones, sample by sample, by nuScenes' rules: what was found, how far off it lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bevstack.evaluation.true_objects import class_ranges, countable, match_by_distance, on_host
from bevstack.structures import BEVDataSample
from bevstack.structures.matches import DetectionMatches

MATCH_DISTANCE_M = 2.0
"""Where nuScenes measures the errors of what was found."""


def detection_matches(
    sample: BEVDataSample,
    classes: Sequence[str],
    max_distance_m: float = MATCH_DISTANCE_M,
    range_m: Mapping[str, float] | None = None,
) -> DetectionMatches | None:
    """Which prediction of a sample found which true box of its class.

    By falling score each takes the nearest free true box nearer than ``max_distance_m``. Ranges are measured from the
    BEV frame's origin; the official score measures them from the car's, about a metre from there.

    Args:
        sample: has ``pred_instances_3d`` and ``gt_instances_3d``.
        classes: names of the labels.
        max_distance_m: on the ground.
        range_m: how far a class counts; nuScenes' own for those left out.

    Returns:
        None where the sample has no predicted or no true boxes.
    """
    if "pred_instances_3d" not in sample or "gt_instances_3d" not in sample:
        return None
    reach = class_ranges(classes, range_m or {})
    predicted, true = sample.pred_instances_3d, sample.gt_instances_3d
    places, true_places = (on_host(part["bboxes_3d"].tensor)[:, :2].astype(float) for part in (predicted, true))
    labels, true_labels = (on_host(part["labels_3d"]).astype(int) for part in (predicted, true))
    counted = np.hypot(*places.T) < reach[labels]
    counted_truth = countable(true) & (np.hypot(*true_places.T) < reach[np.maximum(true_labels, 0)])
    rows, true_rows = np.flatnonzero(counted), np.flatnonzero(counted_truth)
    pairs = match_by_distance(
        places[rows],
        labels[rows],
        on_host(predicted["scores_3d"])[rows].astype(float),
        true_places[true_rows],
        true_labels[true_rows],
        max_distance_m,
    )
    found = np.full(len(places), -1)
    for row, true_row in pairs:
        found[rows[row]] = true_rows[true_row]
    apart = np.full(len(places), np.nan)
    apart[found >= 0] = np.hypot(*(places[found >= 0] - true_places[found[found >= 0]]).T)
    return DetectionMatches(found, apart, counted, counted_truth)
