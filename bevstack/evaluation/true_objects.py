"""Which true objects count, and which prediction found which of them, by nuScenes' rules.

Functions import the devkit themselves: it is loaded where something is scored, not with every metric of a config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

DEFAULT_RANGE_M = 50.0


def class_ranges(classes: Sequence[str], range_m: Mapping[str, float]) -> np.ndarray:
    """How far away objects count.

    Args:
        classes: names of the K labels.
        range_m: of some classes; the others get detection_cvpr_2019's, or else :data:`DEFAULT_RANGE_M`.

    Returns:
        (K,) metres.
    """
    from nuscenes.eval.common.config import config_factory

    known = {**config_factory("detection_cvpr_2019").class_range, **range_m}
    return np.array([float(known.get(name, DEFAULT_RANGE_M)) for name in classes])


def countable(instances: Any) -> np.ndarray:
    """(G,) bool: objects that have a class and, where the sample counts them, a lidar or radar point."""
    keep = on_host(instances["labels_3d"]) >= 0
    if "num_lidar_pts" in instances:
        points = on_host(instances["num_lidar_pts"])
        if "num_radar_pts" in instances:
            points = points + on_host(instances["num_radar_pts"])
        keep = keep & (points > 0)
    return keep


def match_by_distance(
    places: np.ndarray,
    labels: np.ndarray,
    scores: np.ndarray,
    true_places: np.ndarray,
    true_labels: np.ndarray,
    max_distance: float | np.ndarray,
) -> list[tuple[int, int]]:
    """Which prediction found which object: by falling score, each takes the nearest free object of its label in reach.

    This is how nuScenes' detection evaluation matches centres, its "nearer than" included. Of equal scores the earlier
    row goes first.

    Args:
        places, true_places: (R, 2) and (G, 2), in one unit.
        labels, true_labels: (R,) and (G,).
        scores: (R,).
        max_distance: a pair is nearer than this; one number or one an object (G,).

    Returns:
        Pairs (row of the prediction, row of the object), best scores first.
    """
    free, pairs = np.ones(len(true_places), dtype=bool), []
    for row in np.argsort(-scores, kind="stable").tolist():
        distance = np.hypot(*(true_places - places[row]).T)
        distance[~free | (true_labels != labels[row]) | ~(distance < max_distance)] = np.inf
        if len(distance) and np.isfinite(distance.min()):
            nearest = int(distance.argmin())
            free[nearest] = False
            pairs.append((row, nearest))
    return pairs


def on_host(value: Any) -> np.ndarray:
    """A tensor or an array of any shape, as a numpy array on the host."""
    return value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
