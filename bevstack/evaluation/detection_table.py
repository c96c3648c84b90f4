"""All predicted and true boxes of a run as two flat tables, by which scores are broken down and runs are compared."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from bevstack.errors import InputError
from bevstack.evaluation.detection_matches import detection_matches
from bevstack.evaluation.true_objects import on_host
from bevstack.files import atomic_write
from bevstack.structures import BEVDataSample

DISTANCES_M = (0.5, 1.0, 2.0, 4.0)
"""nuScenes' distances, over which a class's average precision is the mean."""
ERROR_COLUMN = 2
"""Where 2 m stands in them: of recall, errors and confusions."""
SYMMETRIC = ("barrier",)
"""Classes without a front: turned by half they are the same."""
_COLUMNS: dict[str, tuple[int, ...]] = {
    "label": (), "score": (), "distance_m": (), "speed": (), "hit": (4,), "off_m": (), "object": (),
    "heading_off": (), "velocity_off": (),
    "true_label": (), "true_distance_m": (), "true_speed": (), "visibility": (), "found_score": (4,),
}  # fmt: skip


@dataclass(frozen=True)
class DetectionTable:
    """P predicted and G true boxes that count, of S samples; the parts of one sample stand together.

    Args:
        classes: names of the labels.
        tokens: of the S samples.
        scenes: of the S samples, names.
        sample: (P,) and true_sample: (G,) rows of the S samples.
        label: (P,) and true_label: (G,).
        score: (P,).
        distance_m: (P,) and true_distance_m: (G,) from the BEV frame's origin.
        speed: (P,) and true_speed: (G,) metres per second, NaN where unknown.
        hit: (P, 4) bool, whether it found a true box of its class, at each of :data:`DISTANCES_M`.
        off_m: (P,) how far the box that it found at 2 m is, NaN for none.
        object: (P,) row of the true box found at 2 m; where none was, of the nearest one of another class nearer than
            2 m that the table's G rows have; -1 for neither.
        heading_off: (P,) radians between the headings of a box and of the one that it found at 2 m, 0 to pi; of
            barriers, which have no front, 0 to pi / 2; NaN for none.
        velocity_off: (P,) metres per second between the velocities of these two, NaN where one is unknown.
        visibility: (G,) 1 to 4 as nuScenes has it (less than 40 %, 60 %, 80 %, more), 0 where unknown.
        found_score: (G, 4) score of the prediction that found it at each distance, -1 for none.
    """

    classes: tuple[str, ...]
    tokens: np.ndarray
    scenes: np.ndarray
    sample: np.ndarray
    label: np.ndarray
    score: np.ndarray
    distance_m: np.ndarray
    speed: np.ndarray
    hit: np.ndarray
    off_m: np.ndarray
    object: np.ndarray
    heading_off: np.ndarray
    velocity_off: np.ndarray
    true_sample: np.ndarray
    true_label: np.ndarray
    true_distance_m: np.ndarray
    true_speed: np.ndarray
    visibility: np.ndarray
    found_score: np.ndarray

    @classmethod
    def of_records(cls, records: Sequence[Mapping[str, np.ndarray]], classes: Sequence[str]) -> DetectionTable:
        """The table of the records of :func:`detection_record`, in their order."""
        sizes, true_sizes = ([len(record[key]) for record in records] for key in ("label", "true_label"))
        columns = {
            name: np.concatenate([np.zeros((0, *shape)), *(record[name] for record in records)])
            for name, shape in _COLUMNS.items()
        }
        starts = np.repeat(np.cumsum([0, *true_sizes])[:-1], sizes)
        found = columns.pop("object").astype(np.int64)
        whole = {name: columns.pop(name).astype(np.int64) for name in ("label", "true_label", "visibility")}
        return cls(
            classes=tuple(classes),
            tokens=np.array([str(record["token"]) for record in records]),
            scenes=np.array([str(record["scene"]) for record in records]),
            sample=np.repeat(np.arange(len(records)), sizes),
            true_sample=np.repeat(np.arange(len(records)), true_sizes),
            object=np.where(found >= 0, found + starts, -1),
            hit=columns.pop("hit").astype(bool),
            **whole,
            **columns,
        )

    def save(self, path: str | os.PathLike) -> None:
        """Write the table as ``.npz``."""
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **{part.name: np.asarray(getattr(self, part.name)) for part in fields(self)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> DetectionTable:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: there is no such file, or it holds no table.
        """
        try:
            with np.load(path, allow_pickle=False) as content:
                parts = {part.name: content[part.name] for part in fields(cls)}
        except FileNotFoundError:
            reason = "no such file; tools/test.py CONFIG CHECKPOINT --report DIR writes it"
            raise InputError(path, "report", reason) from None
        except (OSError, ValueError, KeyError) as error:
            raise InputError(path, "report", f"is no table of detections: {error}") from error
        return cls(**{**parts, "classes": tuple(parts["classes"].tolist())})


@dataclass
class _Side:
    """One side of a sample: what counts of it."""

    rows: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    distance_m: np.ndarray = field(init=False)
    speed: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.boxes, self.labels = self.boxes[self.rows].astype(float), self.labels[self.rows].astype(np.int64)
        self.distance_m = np.hypot(*self.boxes[:, :2].T)
        known = self.boxes.shape[1] > 8
        self.speed = np.hypot(*self.boxes[:, 7:9].T) if known else np.full(len(self.boxes), np.nan)


def detection_record(sample: BEVDataSample, classes: Sequence[str]) -> dict[str, np.ndarray] | None:
    """What the table holds of one sample; None where it has no predicted or no true boxes."""
    matches = [detection_matches(sample, classes, distance) for distance in DISTANCES_M]
    at_2m = matches[ERROR_COLUMN]
    if at_2m is None:
        return None
    predicted, true = sample.pred_instances_3d, sample.gt_instances_3d
    own, other = (
        _Side(np.flatnonzero(counted), on_host(part["bboxes_3d"].tensor), on_host(part["labels_3d"]))
        for part, counted in ((predicted, at_2m.counted), (true, at_2m.counted_truth))
    )
    scores = on_host(predicted["scores_3d"])[own.rows].astype(float)
    place = np.full(len(at_2m.counted_truth), -1)
    place[other.rows] = np.arange(len(other.rows))
    hit = np.zeros((len(own.rows), len(DISTANCES_M)), bool)
    found_score = np.full((len(other.rows), len(DISTANCES_M)), -1.0)
    for column, match in enumerate(matches):
        rows = match.true_row[own.rows] if match is not None else np.zeros(0)
        hit[:, column] = rows >= 0
        found_score[place[rows[rows >= 0]], column] = scores[rows >= 0]
    rows = at_2m.true_row[own.rows]
    found, matched = rows >= 0, place[rows[rows >= 0]]
    heading_off, velocity_off = (np.full(len(own.rows), np.nan) for _ in range(2))
    heading_off[found] = _angles_between(own.boxes[found, 6], other.boxes[matched, 6], other.labels[matched], classes)
    if own.boxes.shape[1] > 8 and other.boxes.shape[1] > 8:
        velocity_off[found] = np.hypot(*(own.boxes[found, 7:9] - other.boxes[matched, 7:9]).T)
    visibility = on_host(true["visibility"])[other.rows] if "visibility" in true else np.zeros(len(other.rows))
    return {
        "token": np.array(sample.metainfo["token"]),
        "scene": np.array(sample.metainfo.get("scene_name", "")),
        "label": own.labels,
        "score": scores,
        "distance_m": own.distance_m,
        "speed": own.speed,
        "hit": hit,
        "off_m": at_2m.distance_m[own.rows],
        "object": np.where(found, place[rows], _nearest_of_another_class(own, other)),
        "heading_off": heading_off,
        "velocity_off": velocity_off,
        "true_label": other.labels,
        "true_distance_m": other.distance_m,
        "true_speed": other.speed,
        "visibility": visibility,
        "found_score": found_score,
    }


def table_path(folder: str | os.PathLike) -> Path:
    """Where a report's table stands."""
    return Path(folder) / "detections.npz"


def _angles_between(first: np.ndarray, second: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """(D,) radians between headings, as nuScenes counts them."""
    half_turn = np.array([name in SYMMETRIC for name in classes], bool)[labels]
    period = np.where(half_turn, np.pi, 2 * np.pi)
    apart = (first - second) % period
    return np.minimum(apart, period - apart)


def _nearest_of_another_class(own: _Side, other: _Side) -> np.ndarray:
    """(P,) row of the nearest true box of another class nearer than 2 m, -1 for none."""
    if not len(other.labels) or not len(own.labels):
        return np.full(len(own.labels), -1)
    apart = np.hypot(*(own.boxes[:, None, :2] - other.boxes[None, :, :2]).transpose(2, 0, 1))
    apart[own.labels[:, None] == other.labels] = np.inf
    return np.where(apart.min(axis=1) < DISTANCES_M[ERROR_COLUMN], apart.argmin(axis=1), -1)
