"""Intervals that say what is noise, by bootstrap over scenes: of one test, and of two on the same samples."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bevstack.errors import InputError
from bevstack.evaluation.detection_table import DetectionTable, table_path
from bevstack.evaluation.drawn_scores import class_scores, drawn_times, interval, raster_scores
from bevstack.files import atomic_write

CELLS_NAME, CALIBRATION_NAME = "cells.json", "calibration.json"
Cells = Mapping[tuple[str, str, str], np.ndarray]


@dataclass(frozen=True)
class Difference:
    """One score of two runs.

    Args:
        name: of the score.
        first, second: of the runs.
        low, high: ends of the 95 % interval of ``second - first``.
    """

    name: str
    first: float
    second: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


def save_cells(folder: Path, cells: Cells) -> None:
    """Write counts of cells by raster, layer and scene as ``cells.json``."""
    content = [[*key, np.asarray(counts).sum(0).tolist()] for key, counts in sorted(cells.items())]
    with atomic_write(folder / CELLS_NAME, "report") as temporary:
        temporary.write_text(json.dumps(content))


def load_cells(folder: str | os.PathLike) -> dict[tuple[str, str, str], np.ndarray]:
    """(3,) counts of cells inside both, predicted and true, by raster, layer and scene; empty where there are none.

    Raises:
        InputError: the file is none of :func:`save_cells`.
    """
    path = Path(folder) / CELLS_NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text())
        return {(raster, layer, scene): np.array(counts, float) for raster, layer, scene, counts in content}
    except (ValueError, TypeError) as error:
        raise InputError(path, "report", f"is no table of cells: {error}") from error


def save_calibration(folder: Path, calibration: Mapping[str, np.ndarray]) -> None:
    """Write counts (10, 3) of :func:`bevstack.evaluation.breakdown.calibration_counts` by head."""
    content = {name: np.asarray(counts).tolist() for name, counts in calibration.items()}
    with atomic_write(folder / CALIBRATION_NAME, "report") as temporary:
        temporary.write_text(json.dumps(content))


def load_calibration(folder: str | os.PathLike) -> dict[str, np.ndarray]:
    """(10, 3) counts by head; empty where there are none.

    Raises:
        InputError: the file is none of :func:`save_calibration`.
    """
    path = Path(folder) / CALIBRATION_NAME
    if not path.is_file():
        return {}
    try:
        counts = {str(name): np.array(rows, float) for name, rows in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(path, "report", f"is no table of confidence: {error}") from error
    if any(rows.ndim != 2 or rows.shape[1] != 3 for rows in counts.values()):
        raise InputError(path, "report", "is no table of confidence: rows of three numbers are")
    return counts


def compare_runs(
    first: str | os.PathLike, second: str | os.PathLike, draws: int = 1000, seed: int = 0
) -> list[Difference]:
    """Scores of two report folders and how sure their differences are.

    Scenes are drawn with replacement, the same for both runs, ``draws`` times; a score's interval holds the middle
    95 % of its differences. With few scenes (under about ten) such intervals are too narrow.

    Args:
        first, second: folders of ``tools/test.py --report``. draws: how many. seed: of the draws.

    Raises:
        InputError: a folder is no report, or the two are of other samples, classes or layers; fewer than two draws.
    """
    if draws < 2:
        raise InputError("compare_runs", "--draws", f"must be at least 2, not {draws}")
    tables = [DetectionTable.load(table_path(folder)) for folder in (first, second)]
    for name in ("classes", "tokens"):
        own, other = (sorted(np.asarray(getattr(table, name)).tolist()) for table in tables)
        if own != other:
            reason = f"differ from those of {first}: only runs on the same samples and classes can be compared"
            raise InputError(second, name, reason)
    scenes = sorted(set(tables[0].scenes.tolist()))
    times = drawn_times(len(scenes), draws, seed)
    scores = [class_scores(table, scenes, times) for table in tables]
    cells = [load_cells(folder) for folder in (first, second)]
    if cells[0].keys() != cells[1].keys():
        raise InputError(second, CELLS_NAME, f"has other layers or scenes than {first}'s")
    scores = [score | raster_scores(cell, scenes, times) for score, cell in zip(scores, cells, strict=True)]
    return [_difference(name, scores[0][name], scores[1][name]) for name in scores[0]]


def score_intervals(
    table: DetectionTable | None, cells: Cells, draws: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """How sure the scores of one test are: ends of their 95 % intervals, by bootstrap over its scenes.

    Scenes are drawn with replacement ``draws`` times; an interval holds the middle 95 % of a score's values. With few
    scenes (under about ten) it is too narrow.

    Args:
        table: of the test's boxes; None for a model that has none.
        cells: (3,) counts of its rasters as :func:`load_cells` has them, or (R, 3) by rings.
        draws: how many. seed: of the draws.

    Returns:
        By the names that ``metrics.json`` has: ``mAP``, ``mAP_present``, ``AP/<class>`` and ``iou/<layer>``.

    Raises:
        InputError: fewer than two draws.
    """
    if draws < 2:
        raise InputError("intervals", "draws", f"must be at least 2, not {draws}")
    of_boxes = set() if table is None else set(table.scenes.tolist())
    scenes = sorted(of_boxes | {scene for *_, scene in cells})
    if not scenes:
        return {}
    times = drawn_times(len(scenes), draws, seed)
    summed = {key: np.asarray(counts).reshape(-1, 3).sum(0) for key, counts in cells.items()}
    scores = {}
    if table is not None:
        found = class_scores(table, scenes, times)
        if "mAP" in found:
            scores["mAP_present"] = found.pop("mAP")
            counted = [np.nan_to_num(found[name]) for name in found]  # a class that no drawn scene has counts 0
            scores = {"mAP": np.sum(counted, axis=0) / len(table.classes), **scores, **found}
    for name, values in raster_scores(summed, scenes, times).items():
        scores[f"iou/{name.rpartition('/')[2]}"] = values
    known = {name: values for name, values in scores.items() if not np.isnan(values[1:]).all()}
    return {name: interval(values)[1:] for name, values in known.items()}


def _difference(name: str, first: np.ndarray, second: np.ndarray) -> Difference:
    low, high = np.nanpercentile(second[1:] - first[1:], (2.5, 97.5))
    return Difference(name, float(first[0]), float(second[0]), float(low), float(high))
