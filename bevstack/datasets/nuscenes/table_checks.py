"""What must hold of nuScenes tables before anything is built from them, table by table and between tables.

Every check raises :class:`bevstack.errors.InputError` that names the table's file, the record and field, and why.
Imports the devkit for its names: import this module only where tables are read.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from nuscenes.utils.color_map import get_colormap

from bevstack.datasets.nuscenes.camera_sweeps import check_camera_chains
from bevstack.datasets.nuscenes.taxonomy import DETECTION_CLASSES
from bevstack.errors import InputError

# 1973 to 5138; a simulator's clock may start from 0, then the steps between samples tell the unit (_check_steps).
_MICROSECONDS = (1e14, 1e17)
_STEP_US = (1e3, 1e8)
_COUNTS = (0, 2**31 - 1)
_UNIT_TOLERANCE = 1e-3
_FARTHEST_M = 1e7

# Fields that are read, with the kind of value each must hold.
TABLE_FIELDS: dict[str, dict[str, str]] = {
    "category": {"name": "text"},
    "attribute": {"name": "text"},
    "visibility": {},
    "instance": {"category_token": "text"},
    "sensor": {"channel": "text", "modality": "text"},
    "calibrated_sensor": {
        "sensor_token": "text",
        "translation": "vector3",
        "rotation": "quaternion",
        "camera_intrinsic": "list",
    },
    "ego_pose": {"translation": "vector3", "rotation": "quaternion"},
    "log": {"location": "text"},
    "scene": {"name": "text", "log_token": "text", "first_sample_token": "text", "last_sample_token": "text"},
    "sample": {"scene_token": "text", "timestamp": "microseconds", "prev": "text", "next": "text"},
    "sample_data": {
        "sample_token": "text",
        "ego_pose_token": "text",
        "calibrated_sensor_token": "text",
        "timestamp": "microseconds",
        "is_key_frame": "flag",
        "filename": "text",
        "height": "count",
        "width": "count",
    },
    "sample_annotation": {
        "sample_token": "text",
        "instance_token": "text",
        "attribute_tokens": "list",
        "visibility_token": "text",
        "translation": "vector3",
        "size": "size",
        "rotation": "quaternion",
        "prev": "text",
        "next": "text",
        "num_lidar_pts": "count",
        "num_radar_pts": "count",
    },
}
MAY_BE_EMPTY = ("instance", "sample_annotation", "visibility", "attribute", "category", "log")

_TYPES = {"text": str, "list": list, "flag": bool}
_TYPE_NAMES = {"text": "text", "list": "a list", "flag": "true or false"}
_VECTORS = {"vector3": 3, "quaternion": 4, "size": 3}


def check_records(path: Path, table: str, records: object) -> None:
    """Check one table by itself: its type, its tokens, the type and range of each field that is read.

    Args:
        path: the table's file, for messages.
        table: a key of ``TABLE_FIELDS``.
        records: what the file holds.
    """
    if not isinstance(records, list):
        raise InputError(path, "content", f"must be a list of records, not {type(records).__name__}")
    if not records and table not in MAY_BE_EMPTY:
        raise InputError(path, "content", "holds no record")
    seen: set[str] = set()
    for row, record in enumerate(records):
        if not isinstance(record, dict):
            raise InputError(path, f"[{row}]", f"must be a record, not {type(record).__name__}")
        token = record.get("token")
        if not isinstance(token, str) or not token.isprintable() or not token:
            raise InputError(path, f"[{row}].token", "is missing" if token is None else "must be a non-empty text")
        if token in seen:
            raise InputError(path, f"[{row}].token", f"{token} stands twice in the table")
        seen.add(token)
    for field, kind in TABLE_FIELDS[table].items():
        _check_field(path, records, field, kind)
    if table == "calibrated_sensor":
        _check_intrinsics(path, records)


def _fail(path: Path, record: dict, field: str, reason: str) -> None:
    raise InputError(path, f"{record['token']}.{field}", reason)


def _check_field(path: Path, records: list[dict], field: str, kind: str) -> None:
    for record in records:
        if field not in record:
            _fail(path, record, field, "is missing")
    if kind in _TYPES:
        for record in records:
            value = record[field]
            if type(value) is not _TYPES[kind] or (isinstance(value, str) and not value.isprintable()):
                _fail(path, record, field, f"must be {_TYPE_NAMES[kind]}, not {value!r:.60}")
        return
    if kind in _VECTORS:
        _check_vectors(path, records, field, kind)
        return
    for record in records:
        if type(record[field]) not in (int, float):
            _fail(path, record, field, f"must be a number, not {record[field]!r:.60}")
    low, high, wrong = float(_COUNTS[0]), float(_COUNTS[1]), "must be 0 or more"
    if kind == "microseconds":
        since_1970 = any(_MICROSECONDS[0] <= record[field] <= _MICROSECONDS[1] for record in records)
        low, high = _MICROSECONDS[0] if since_1970 else 0, _MICROSECONDS[1]
        wrong = "is not in microseconds since 1970" + (", as others are" if since_1970 else ", nor since a start")
    for record in records:
        if not low <= record[field] <= high:
            _fail(path, record, field, f"{record[field]} {wrong}")


def _check_vectors(path: Path, records: list[dict], field: str, kind: str) -> None:
    length = _VECTORS[kind]
    for record in records:
        value = record[field]
        if type(value) is not list or len(value) != length or any(type(v) not in (int, float) for v in value):
            what = "(w, x, y, z)" if kind == "quaternion" else ""
            _fail(path, record, field, f"must be {length} numbers {what}, not {value!r:.60}")
    values = np.array([record[field] for record in records], dtype=np.float64).reshape(-1, length)
    checks = [(~(np.abs(values) < _FARTHEST_M).all(1), "is not finite, or no metres")]
    if kind == "quaternion":
        checks.append((np.abs(np.linalg.norm(values, axis=1) - 1) > _UNIT_TOLERANCE, "is not a unit quaternion"))
    if kind == "size":
        checks.append((~(values > 0).all(1), "must be positive (width, length, height)"))
    for bad, reason in checks:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            _fail(path, records[row], field, f"{records[row][field]} {reason}")


def _check_intrinsics(path: Path, records: list[dict]) -> None:
    for record in records:
        matrix = record["camera_intrinsic"]
        if matrix == []:
            continue
        shaped = len(matrix) == 3 and all(type(row) is list and len(row) == 3 for row in matrix)
        if not shaped or any(type(v) not in (int, float) for row in matrix for v in row):
            _fail(path, record, "camera_intrinsic", "must be 3 x 3 numbers")
        if not np.isfinite(np.array(matrix, dtype=np.float64)).all() or matrix[0][0] <= 0 or matrix[1][1] <= 0:
            _fail(path, record, "camera_intrinsic", "must be finite, with positive focal lengths")


def _known(path: Path, field: str, targets: dict[str, dict], other: str, empty: bool, records: Iterable[dict]) -> None:
    for record in records:
        token = record[field]
        if token not in targets and not (empty and token == ""):
            _fail(path, record, field, f"{token!r} is no token of {other}.json")


# table, field, the table that the field's token is of, whether it may be ""
_REFERENCES = (
    ("scene", "log_token", "log", True),
    ("scene", "first_sample_token", "sample", False),
    ("scene", "last_sample_token", "sample", False),
    ("sample", "scene_token", "scene", False),
    ("sample", "prev", "sample", True),
    ("sample", "next", "sample", True),
    ("calibrated_sensor", "sensor_token", "sensor", False),
    ("sample_data", "sample_token", "sample", False),
    ("sample_data", "ego_pose_token", "ego_pose", False),
    ("sample_data", "calibrated_sensor_token", "calibrated_sensor", False),
    ("instance", "category_token", "category", False),
    ("sample_annotation", "sample_token", "sample", False),
    ("sample_annotation", "instance_token", "instance", False),
    ("sample_annotation", "prev", "sample_annotation", True),
    ("sample_annotation", "next", "sample_annotation", True),
)


def check_references(folder: Path, tables: dict[str, list[dict]], own_categories: Collection[str] = ()) -> None:
    """Check that the tables fit together: references, chains of samples and boxes, cameras, categories.

    Args:
        folder: where the tables' files are, for messages.
        tables: every table of ``TABLE_FIELDS``, already checked by :func:`check_records`.
        own_categories: names of categories that are near nuScenes' own, and meant so.
    """
    for records, check in reference_checks(folder, tables, own_categories):
        check(records)


def reference_checks(
    folder: Path, tables: dict[str, list[dict]], own_categories: Collection[str] = ()
) -> Iterator[tuple[list[dict], Callable[[list[dict]], None]]]:
    """The checks of :func:`check_references` in turn: records, and what to call with them, or with some of them.

    Each takes for granted what those before it have found right.
    """
    files = {name: folder / f"{name}.json" for name in tables}
    rows = {name: {record["token"]: record for record in records} for name, records in tables.items()}
    for table, field, other, empty in _REFERENCES:
        yield tables[table], partial(_known, files[table], field, rows[other], other, empty)
    yield tables["scene"], partial(_check_sample_chains, files, tables["sample"], rows)
    yield tables["sample"], partial(_check_steps, files["sample"], rows["sample"])
    yield tables["sample_annotation"], partial(_check_box_chains, files["sample_annotation"], rows)
    yield tables["calibrated_sensor"], partial(_check_camera_calibration, files["calibrated_sensor"], rows["sensor"])
    yield tables["sample_data"], partial(check_camera_chains, files["sample_data"], rows)
    yield tables["sample_data"], partial(_check_image_sizes, files["sample_data"], rows)
    yield tables["instance"], partial(_check_categories, files["category"], rows["category"], own_categories)


def _check_sample_chains(
    files: dict[str, Path], samples: list[dict], rows: dict[str, dict], scenes: list[dict]
) -> None:
    path = files["sample"]
    reached: set[str] = set()
    for scene in scenes:
        sample = last = rows["sample"][scene["first_sample_token"]]
        previous = None
        if sample["prev"] != "":
            _fail(files["scene"], scene, "first_sample_token", f"sample {sample['token']} has a predecessor")
        while sample is not None:
            if sample["token"] in reached:
                _fail(path, sample, "prev/next", "the chain of samples runs in a loop")
            reached.add(sample["token"])
            if sample["scene_token"] != scene["token"]:
                _fail(path, sample, "scene_token", f"the chain of scene {scene['name']} leads to another scene")
            if previous is not None:
                if sample["prev"] != previous["token"]:
                    _fail(path, sample, "prev", f"is not {previous['token']}, whose next it is")
                if sample["timestamp"] <= previous["timestamp"]:
                    _fail(path, sample, "timestamp", "is not later than its predecessor's")
            previous, last = sample, sample
            sample = rows["sample"][sample["next"]] if sample["next"] else None
        if last["token"] != scene["last_sample_token"]:
            _fail(files["scene"], scene, "last_sample_token", f"the chain of samples ends at {last['token']}")
    of_these = {scene["token"] for scene in scenes}
    for sample in samples:
        if sample["scene_token"] in of_these and sample["token"] not in reached:
            _fail(path, sample, "prev/next", "cannot be reached from its scene's first sample")


def _check_steps(path: Path, samples: dict[str, dict], records: list[dict]) -> None:
    """Times are in microseconds: seconds, milliseconds and nanoseconds show in the steps from sample to sample."""
    pairs = [(record, samples[record["next"]]) for record in records if record["next"]]
    if pairs:
        step = float(np.median([after["timestamp"] - record["timestamp"] for record, after in pairs]))
        if not _STEP_US[0] <= step <= _STEP_US[1]:
            _fail(path, pairs[0][0], "timestamp", f"samples would be {step:.6g} microseconds apart; which unit is it?")


def _check_box_chains(path: Path, rows: dict[str, dict], records: list[dict]) -> None:
    boxes, samples, attributes = rows["sample_annotation"], rows["sample"], rows["attribute"]
    for record in records:
        for token in record["attribute_tokens"]:
            if not isinstance(token, str) or token not in attributes:
                _fail(path, record, "attribute_tokens", f"{token!r} is no token of attribute.json")
        if record["next"]:
            after = boxes[record["next"]]
            if after["instance_token"] != record["instance_token"]:
                _fail(path, record, "next", "belongs to another instance")
            if after["prev"] != record["token"]:
                _fail(path, after, "prev", f"is not {record['token']}, whose next it is")
            if samples[after["sample_token"]]["timestamp"] <= samples[record["sample_token"]]["timestamp"]:
                _fail(path, record, "next", "is not later in time")
        if record["prev"] and boxes[record["prev"]]["next"] != record["token"]:
            _fail(path, record, "prev", f"{record['prev']} has another next")


def _check_camera_calibration(path: Path, sensors: dict[str, dict], records: list[dict]) -> None:
    for record in records:
        if sensors[record["sensor_token"]]["modality"] == "camera" and not record["camera_intrinsic"]:
            _fail(path, record, "camera_intrinsic", "is empty, yet the sensor is a camera")


def _check_image_sizes(path: Path, rows: dict[str, dict], records: list[dict]) -> None:
    """Key frames of cameras say how large their image is."""
    sensor_of = {token: rows["sensor"][record["sensor_token"]] for token, record in rows["calibrated_sensor"].items()}
    for record in records:
        if record["is_key_frame"] and sensor_of[record["calibrated_sensor_token"]]["modality"] == "camera":
            for field in ("height", "width"):
                if record[field] < 1:
                    _fail(path, record, field, f"is {record[field]}; an image's size in pixels has to be there")


def _check_categories(
    path: Path, categories: dict[str, dict], own_categories: Collection[str], instances: list[dict]
) -> None:
    """Names that are nearly nuScenes' own are taken for mistakes; others are a dataset's own, said in one warning."""
    names, own = list(get_colormap()), []
    for token in dict.fromkeys(instance["category_token"] for instance in instances):
        name = categories[token]["name"]
        if name not in names and name not in DETECTION_CLASSES:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.9)
            if near and name not in own_categories:
                reason = f"{name!r} is no nuScenes category; did you mean {near[0]}? If not: --own-categories {name}"
                _fail(path, categories[token], "name", reason)
            own.append(name)
    if own:
        warnings.warn(f"categories beyond nuScenes', for the config to name as classes: {', '.join(own)}", stacklevel=2)
