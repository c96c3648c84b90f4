"""Scores of a run taken apart: by class, distance, visibility, speed and conditions; calibration; confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bevstack.evaluation.detection_table import ERROR_COLUMN, DetectionTable

MIN_RECALL, MIN_PRECISION = 0.1, 0.1
_RECALLS = np.linspace(0, 1, 101)
CALIBRATION_BINS = 10


@dataclass(frozen=True)
class Group:
    """One line of a breakdown.

    Args:
        name: of the group.
        objects: true boxes in it.
        recall: part of them found at 2 m by a box of at least the threshold.
        precision: part of the boxes of at least the threshold that found something; NaN where boxes have no group.
        ap: mean over the classes that the group has of their average precision; NaN where boxes have no group.
        off_m: mean distance of what was found at 2 m by boxes of at least the threshold.
    """

    name: str
    objects: int
    recall: float
    precision: float
    ap: float
    off_m: float


def precision_curve(
    scores: np.ndarray, hits: np.ndarray, objects: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """(101,) precision at recalls 0, 0.01, ... 1, as nuScenes' devkit interpolates it; 0 beyond the last recall.

    Args:
        scores, hits: (P,) of the predictions of a class.
        objects: how many true boxes there are; each counts as often as its weight.
        weights: (P,) whole numbers, how often each prediction counts; once by default.
    """
    if not len(scores) or not objects or not hits.any():
        return np.zeros(101)
    order = np.argsort(-scores, kind="stable")
    hits = hits[order] if weights is None else np.repeat(hits[order], weights[order])
    found = np.cumsum(hits).astype(float)
    if not len(found) or not found[-1]:
        return np.zeros(101)
    return np.interp(_RECALLS, found / objects, found / np.arange(1, len(found) + 1), right=0)


def average_precision(curve: np.ndarray) -> float:
    """nuScenes' average of a curve of :func:`precision_curve`: above recall and precision 0.1, scaled to 0..1."""
    above = curve[round(100 * MIN_RECALL) + 1 :] - MIN_PRECISION
    return float(np.maximum(above, 0).mean() / (1 - MIN_PRECISION))


def class_precision(table: DetectionTable, label: int, rows: np.ndarray, true_rows: np.ndarray) -> float:
    """Average precision of a class over the four distances, of some rows (P,) and (G,) bool; NaN without objects."""
    own, objects = rows & (table.label == label), (true_rows & (table.true_label == label)).sum()
    if not objects:
        return float("nan")
    curves = [precision_curve(table.score[own], hits, objects) for hits in table.hit[own].T]
    return float(np.mean([average_precision(curve) for curve in curves]))


def group_of(
    table: DetectionTable, name: str, rows: np.ndarray | None, true_rows: np.ndarray, score_thr: float
) -> Group:
    """One group's line.

    Args:
        table: of the run.
        name: of the group.
        rows: (P,) bool, predictions that belong to it; None where only true boxes have such a group.
        true_rows: (G,) bool, true boxes that belong to it.
        score_thr: for recall, precision and distance.
    """
    found = table.found_score[true_rows, ERROR_COLUMN] >= score_thr
    finds = (table.score >= score_thr) & table.hit[:, ERROR_COLUMN]
    finds[finds] = true_rows[table.object[finds]]
    precision = ap = float("nan")
    if rows is not None:
        shown = rows & (table.score >= score_thr)
        precision = _mean(table.hit[shown, ERROR_COLUMN])
        aps = [class_precision(table, label, rows, true_rows) for label in range(len(table.classes))]
        ap = _mean(np.array([value for value in aps if not np.isnan(value)]))
    return Group(name, int(true_rows.sum()), _mean(found), precision, ap, _mean(table.off_m[finds]))


def by_class(table: DetectionTable, score_thr: float) -> list[Group]:
    """A line a class, then one of all."""
    lines = [
        group_of(table, name, table.label == label, table.true_label == label, score_thr)
        for label, name in enumerate(table.classes)
    ]
    return [
        *lines,
        group_of(table, "all", np.ones(len(table.label), bool), np.ones(len(table.true_label), bool), score_thr),
    ]


def by_range(table: DetectionTable, column: str, edges: Sequence[float], unit: str, score_thr: float) -> list[Group]:
    """Lines by a number that predictions and true boxes have.

    A prediction that found a true box belongs where that one does, any other where it says that it is itself.

    Args:
        table: of the run. column: ``distance_m`` or ``speed``. edges: ascending; the last may be infinite.
        unit: written behind the numbers. score_thr: see :func:`group_of`.
    """
    true = getattr(table, f"true_{column}")
    own = getattr(table, column).copy()
    hits = table.hit[:, ERROR_COLUMN]
    own[hits] = true[table.object[hits]]
    lines = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        name = f"{low:g} to {high:g} {unit}" if np.isfinite(high) else f"from {low:g} {unit}"
        lines.append(group_of(table, name, (own >= low) & (own < high), (true >= low) & (true < high), score_thr))
    return lines


def by_visibility(table: DetectionTable, score_thr: float) -> list[Group]:
    """Lines by how much of a true box the cameras see; predictions know nothing of it, so there is no precision."""
    names = {1: "0 to 40 %", 2: "40 to 60 %", 3: "60 to 80 %", 4: "80 to 100 %"}
    return [
        group_of(table, name, None, table.visibility == level, score_thr)
        for level, name in names.items()
        if (table.visibility == level).any()
    ]


def conditions_of(description: str) -> tuple[str, str]:
    """Time of day and weather that a nuScenes scene's description tells by the words for the dark and for rain.

    Without a description nobody knows.
    """
    words = description.lower()
    if not words:
        return "unknown", "unknown"
    return ("night" if "night" in words or "dark" in words else "day", "rain" if "rain" in words else "dry")


def by_scene(table: DetectionTable, kinds: Mapping[str, str], score_thr: float) -> list[Group]:
    """Lines by a property of the scene; ``kinds``: what each scene's name is of."""
    kind = np.array([kinds.get(scene, "unknown") for scene in table.scenes.tolist()])
    return [
        group_of(table, name, (kind == name)[table.sample], (kind == name)[table.true_sample], score_thr)
        for name in sorted(set(kind.tolist()))
    ]


def confusions(table: DetectionTable, score_thr: float) -> np.ndarray:
    """What became of each object, and what was seen where nothing is.

    Returns:
        (K + 1, K + 1) counts: row the true class, column what was predicted. The last column are objects that nothing
        found; the last row are boxes of at least ``score_thr`` at no true box: neither of their class nor, nearer than
        2 m, of another that was missed (each missed one counts once, for the best score).
    """
    count = len(table.classes)
    counts = np.zeros((count + 1, count + 1), np.int64)
    missed = table.found_score[:, ERROR_COLUMN] < score_thr
    np.add.at(counts, (table.true_label[~missed], table.true_label[~missed]), 1)
    shown = np.flatnonzero((table.score >= score_thr) & ~table.hit[:, ERROR_COLUMN])
    for row in shown[np.argsort(-table.score[shown], kind="stable")]:
        place = table.object[row]
        if place >= 0 and missed[place]:
            missed[place] = False
            counts[table.true_label[place], table.label[row]] += 1
        else:
            counts[count, table.label[row]] += 1
    np.add.at(counts[:, count], table.true_label[missed], 1)
    return counts


def calibration_counts(confidence: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(10, 3) sums by tenths of the confidence: how many, their confidence, how many of them are right.

    Args:
        confidence: of any shape, in [0, 1]. right: bool, of the same shape.
    """
    bins = np.minimum((confidence.ravel() * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    columns = (None, confidence.ravel().astype(float), right.ravel().astype(float))
    return np.stack([np.bincount(bins, column, CALIBRATION_BINS) for column in columns], axis=-1).astype(float)


def expected_calibration_error(counts: np.ndarray) -> float:
    """Mean distance between confidence and part that is right, over what counts (10, 3); NaN of nothing.

    Guo et al., On Calibration of Modern Neural Networks, eq. 3.
    """
    total = counts[:, 0].sum()
    return float(np.abs(counts[:, 1] - counts[:, 2]).sum() / total) if total else float("nan")


def sample_errors(table: DetectionTable, score_thr: float) -> np.ndarray:
    """(S,) how bad each sample is: scores of its boxes that found nothing, and how near (1 to 0 at 60 m) its misses."""
    wrong = (table.score >= score_thr) & ~table.hit[:, ERROR_COLUMN]
    missed = table.found_score[:, ERROR_COLUMN] < score_thr
    nearness = np.maximum(0, 1 - table.true_distance_m[missed] / 60)
    size = len(table.tokens)
    errors = np.bincount(table.sample[wrong], table.score[wrong], size)
    return errors + np.bincount(table.true_sample[missed], nearness, size)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
