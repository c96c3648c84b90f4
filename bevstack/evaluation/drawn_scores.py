"""Scores of a run over its scenes, and over scenes drawn with replacement: by class, distance and what is seen.

A row of ``times`` says how often each scene counts; the first row of :func:`drawn_times` is the set itself, so that a
score's first value is the score and the others say how sure it is (bootstrap over scenes, Efron 1979).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bevstack.evaluation.breakdown import average_precision, precision_curve
from bevstack.evaluation.detection_table import ERROR_COLUMN, DetectionTable

RINGS_M = (0.0, 10.0, 20.0, 30.0, 50.0)
MOVING_MPS = 0.5
"""Above this speed an object moves, as the devkit's attributes and ``criterion.moving_speed_mps`` have it."""
VEHICLES = ("car", "truck", "bus", "trailer", "construction_vehicle", "motorcycle", "bicycle")
HEADINGS = {"within 15 deg": (0, 15), "across": (60, 120), "turned by half": (150, 181)}
SEEN = {1: "seen 0-40 %", 2: "seen 40-60 %", 3: "seen 60-80 %", 4: "seen 80-100 %"}
Drawn = dict[str, np.ndarray]


def drawn_times(num_scenes: int, draws: int, seed: int = 0) -> np.ndarray:
    """(1 + draws, scenes) how often each scene counts: once, then as drawn with replacement."""
    drawn = np.random.default_rng(seed).multinomial(num_scenes, np.full(num_scenes, 1 / num_scenes), size=draws)
    return np.concatenate([np.ones((1, num_scenes), int), drawn])


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """A score and the ends of the middle 95 % of its draws; NaN where it does not exist."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, (2.5, 97.5)) if len(drawn) else (np.nan, np.nan)
    return float(values[0]), float(low), float(high)


def class_scores(table: DetectionTable, scenes: Sequence[str], times: np.ndarray) -> Drawn:
    """(draws,) each by name: ``mAP`` over the classes with objects, then ``AP/<class>``."""
    whole = np.ones(len(table.label), bool), np.ones(len(table.true_label), bool)
    scores = _precisions(table, scenes, times, *whole, "")
    return {"mAP": np.nanmean(list(scores.values()), axis=0), **scores} if scores else {}


def distance_scores(
    table: DetectionTable, scenes: Sequence[str], times: np.ndarray, rings_m: Sequence[float] = RINGS_M
) -> Drawn:
    """Scores by distance: ``AP/<class>/<ring>`` and their mean ``mAP/<ring>``, ``off/<ring>`` and ``AOE/<ring>``.

    A prediction that found an object belongs where that one stands, any other where it says that it is itself.
    ``off`` are metres and ``AOE`` radians, of the cars found at 2 m; so are the parts of their headings that are right,
    across or turned by half (``heading/<which>/<ring>``).
    """
    place = table.distance_m.copy()
    hits = table.hit[:, ERROR_COLUMN]
    place[hits] = table.true_distance_m[table.object[hits]]
    found = hits & (table.label == _label(table, "car"))
    degrees = np.degrees(table.heading_off)
    scores: Drawn = {}
    for low, high in zip(rings_m[:-1], rings_m[1:], strict=True):
        ring = f"{low:g}-{high:g} m"
        rows, true_rows = (
            (place >= low) & (place < high),
            (table.true_distance_m >= low) & (table.true_distance_m < high),
        )
        own = _precisions(table, scenes, times, rows, true_rows, f"/{ring}")
        scores |= own
        if own:
            scores[f"mAP/{ring}"] = _mean_of(list(own.values()))
        for name, values in (("off", table.off_m), ("AOE", table.heading_off)):
            scores[f"{name}/{ring}"] = _mean(values, found & rows, table, scenes, times)
        for name, (least, most) in HEADINGS.items():
            part = ((degrees >= least) & (degrees < most)).astype(float)
            scores[f"heading/{name}/{ring}"] = _mean(part, found & rows, table, scenes, times)
    return scores


def motion_scores(table: DetectionTable, scenes: Sequence[str], times: np.ndarray) -> Drawn:
    """What is known of motion, of vehicles found at 2 m, metres per second.

    ``speed/movers`` is what is predicted for those that move, ``true_speed/movers`` how fast they are, ``AVE/movers``
    the error of the velocity; ``speed/standing`` what is predicted for those that stand; ``moving/movers`` and
    ``moving/standing`` the parts that are predicted to move.
    """
    vehicles = np.array([name in VEHICLES for name in table.classes], bool)
    found = table.hit[:, ERROR_COLUMN] & vehicles[table.label]
    true = np.full(len(found), np.nan)
    true[found] = table.true_speed[table.object[found]]
    moves, stands = found & (true > MOVING_MPS), found & (true <= MOVING_MPS)
    taken = (table.speed > MOVING_MPS).astype(float)
    columns = {
        "true_speed/movers": (true, moves),
        "speed/movers": (table.speed, moves),
        "AVE/movers": (table.velocity_off, moves),
        "moving/movers": (taken, moves),
        "speed/standing": (table.speed, stands),
        "moving/standing": (taken, stands),
    }
    return {name: _mean(values, rows, table, scenes, times) for name, (values, rows) in columns.items()}


def visibility_scores(table: DetectionTable, scenes: Sequence[str], times: np.ndarray) -> Drawn:
    """``recall/<how much is seen>``: parts of the objects that are found at 2 m, where the cameras see so much of them.

    As many boxes of a sample count as it has objects, the best ones, so that a model that is surer of itself gains
    nothing by that.
    """
    objects = np.bincount(table.true_sample, minlength=len(table.tokens))
    least = np.full(len(table.tokens), np.inf)
    for row, count in enumerate(objects):
        scores = np.sort(table.score[table.sample == row])[::-1]
        if count and len(scores):
            least[row] = scores[min(count, len(scores)) - 1]
    found = (table.found_score[:, ERROR_COLUMN] >= least[table.true_sample]).astype(float)
    scene = _scene_rows(table, scenes)[table.true_sample]
    return {
        f"recall/{name}": _ratio(found, table.visibility == level, scene, len(scenes), times)
        for level, name in SEEN.items()
        if (table.visibility == level).any()
    }


def raster_scores(cells: Mapping[tuple[str, str, str], np.ndarray], scenes: Sequence[str], times: np.ndarray) -> Drawn:
    """``IoU/<raster>/<layer>`` (draws,) of counts (3,) inside both, predicted and true, by raster, layer and scene."""
    scores = {}
    for layer in sorted({key[:2] for key in cells}):
        counts = np.stack([cells.get((*layer, scene), np.zeros(3)) for scene in scenes])
        inside, predicted, true = (times @ counts).T
        scores[f"IoU/{'/'.join(layer)}"] = np.where(true > 0, inside / np.maximum(predicted + true - inside, 1), np.nan)
    return scores


def table_scores(table: DetectionTable) -> dict[str, float]:
    """All scores of a table that exist, as they are, by name."""
    scenes, once = sorted(set(table.scenes.tolist())), np.ones((1, len(set(table.scenes.tolist()))), int)
    parts = (class_scores, distance_scores, motion_scores, visibility_scores)
    found = {name: float(values[0]) for part in parts for name, values in part(table, scenes, once).items()}
    return {name: value for name, value in found.items() if np.isfinite(value)}


def _precisions(
    table: DetectionTable,
    scenes: Sequence[str],
    times: np.ndarray,
    rows: np.ndarray,
    true_rows: np.ndarray,
    ending: str,
) -> Drawn:
    """``AP/<class><ending>`` of the classes that have objects among some rows (P,) and (G,) bool."""
    scene = _scene_rows(table, scenes)
    scores: Drawn = {}
    for label, name in enumerate(table.classes):
        own, true = rows & (table.label == label), true_rows & (table.true_label == label)
        if true.any():
            found = scene[table.sample[own]]
            objects = np.bincount(scene[table.true_sample[true]], minlength=len(scenes))
            scores[f"AP/{name}{ending}"] = _precision(table.score[own], table.hit[own], found, objects, times)
    return scores


def _precision(
    score: np.ndarray, hit: np.ndarray, scene: np.ndarray, objects: np.ndarray, times: np.ndarray
) -> np.ndarray:
    """(draws,) AP of a class; NaN in draws without an object of it."""
    order = np.argsort(-score, kind="stable")
    score, hit, scene = score[order], hit[order], scene[order]
    values = np.full(len(times), np.nan)
    for draw, often in enumerate(times):
        if total := float((often * objects).sum()):
            weights = often[scene]
            curves = [precision_curve(score, found, total, weights) for found in hit.T]
            values[draw] = np.mean([average_precision(curve) for curve in curves])
    return values


def _mean(
    values: np.ndarray, rows: np.ndarray, table: DetectionTable, scenes: Sequence[str], times: np.ndarray
) -> np.ndarray:
    """(draws,) mean of values of predictions (P,) over some of them (P,) bool, of which those are left out that are
    not known."""
    return _ratio(values, rows, _scene_rows(table, scenes)[table.sample], len(scenes), times)


def _ratio(values: np.ndarray, rows: np.ndarray, scene: np.ndarray, num_scenes: int, times: np.ndarray) -> np.ndarray:
    known = rows & np.isfinite(values)
    total = times @ np.bincount(scene[known], values[known], num_scenes)
    count = times @ np.bincount(scene[known], minlength=num_scenes)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean_of(scores: Sequence[np.ndarray]) -> np.ndarray:
    """(draws,) mean over scores that exist in a draw."""
    stacked = np.stack(scores)
    known = np.isfinite(stacked)
    return np.where(known.any(0), np.where(known, stacked, 0).sum(0) / np.maximum(known.sum(0), 1), np.nan)


def _scene_rows(table: DetectionTable, scenes: Sequence[str]) -> np.ndarray:
    """(S,) place of each sample's scene among the names."""
    place = {name: number for number, name in enumerate(scenes)}
    return np.array([place[name] for name in table.scenes.tolist()], np.int64)


def _label(table: DetectionTable, name: str) -> int:
    return table.classes.index(name) if name in table.classes else -1
