"""Writes the index of a nuScenes version: tables in, plain memory-mapped arrays and one JSON file out.

Imports the devkit: import this module only where an index is made. What the arrays hold is told in
:mod:`bevstack.datasets.nuscenes.index`, which reads them.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bevstack.datasets.nuscenes.camera_sweeps import sweep_arrays
from bevstack.datasets.nuscenes.can_bus import read_can_bus
from bevstack.datasets.nuscenes.index_files import INDEX_FILE, SCHEMA, SCHEMA_VERSION, index_folder
from bevstack.datasets.nuscenes.map_rasterizer import write_map_tiles
from bevstack.datasets.nuscenes.map_tiles import TILES_FOLDER, MapTiles
from bevstack.datasets.nuscenes.plausibility import findings, map_findings
from bevstack.datasets.nuscenes.sample_rows import IndexChoices, SampleRows
from bevstack.datasets.nuscenes.table_files import file_sha256
from bevstack.datasets.nuscenes.tables import CheckedTables
from bevstack.datasets.plausibility import FASTEST_EGO_MPS, Finding
from bevstack.errors import InputError
from bevstack.files import atomic_folder

Progress = Callable[[str], None]


def check_writable(folder: Path) -> None:
    """Raise :class:`InputError` where ``folder`` cannot come to be; a read-only place is left alone even by root."""
    place = next(parent for parent in folder.absolute().parents if parent.exists())
    if not place.is_dir() or not place.stat().st_mode & 0o222 or not os.access(place, os.W_OK):
        raise InputError(place, "--out", "cannot be written to; name another folder with --out")


def write_index(
    root: str | Path,
    version: str,
    out: str | Path | None = None,
    maps: bool = True,
    choices: IndexChoices | None = None,
    progress: Progress = print,
) -> dict:
    """Read and check the tables of ``version`` and write its index and the map tiles of its locations.

    Args:
        root: dataset root.
        version: folder of the tables.
        out: folder for indices, ``<root>/bevstack-index`` by default; the index goes to ``<out>/<version>``.
        maps: whether to rasterise the map expansion.
        choices: cameras, lidar, and what to do about missing images; None for its defaults.
        progress: called with a line for each step begun.

    Returns:
        What was written: scenes, samples, sweeps (camera images between key frames), boxes, boxes_per_class, maps
        (location -> bytes), bytes (of the index without maps), seconds, folder, has_can_bus, and findings
        (:func:`bevstack.datasets.nuscenes.plausibility.findings`).

    Raises:
        InputError: the tables are wrong, an image is missing, what they say cannot be right and ``choices`` are
            strict, or nothing can be written. Nothing is left behind.
    """
    start = time.perf_counter()
    root, folder = Path(root), index_folder(root, version, out)
    if root.is_dir():
        check_writable(folder)
    choices = choices or IndexChoices()
    own = tuple(choices.own_categories)
    nusc = CheckedTables(root, version, progress=lambda table: progress(f"reading {table}"), own_categories=own)
    progress("collecting samples")
    rows = SampleRows(nusc, choices)
    header = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "version": version,
        "tables": nusc.table_files,
        "tables_sha256": tables_hash(nusc.table_files),
        **rows.names(),
    }
    splits = Path(nusc.table_root) / "splits.json"
    header["splits_sha256"] = file_sha256(splits) if splits.exists() else ""
    progress("collecting sensors")
    arrays = {"sample_token": _text([s["token"] for s in rows.samples]), **rows.arrays(), **_sensor_arrays(nusc, rows)}
    progress("collecting sweeps")
    arrays |= sweep_arrays(nusc, root, rows.samples, rows.cameras)
    progress("collecting boxes")
    arrays |= _box_arrays(nusc, rows)
    progress("reading the CAN bus")
    bus, arrays["can_bus_valid"] = read_can_bus(root, rows.scene_times())
    arrays["can_bus_raw"] = np.concatenate([arrays.pop("ego_state"), bus], axis=1)
    progress("judging plausibility")
    judged = findings(header, arrays)
    if choices.strict:
        _refuse_doubts(nusc, judged)
    header["arrays"] = {name: {"dtype": a.dtype.str, "shape": list(a.shape)} for name, a in arrays.items()}
    progress("writing")
    check_writable(folder)
    with atomic_folder(folder, "--out") as temporary:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
        (temporary / INDEX_FILE).write_text(json.dumps(header, indent=1), encoding="utf-8")
        size = sum(file.stat().st_size for file in temporary.iterdir())
        locations = sorted({scene["location"] for scene in header["scenes"]})
        tiles = write_map_tiles(root, locations, temporary / TILES_FOLDER, progress) if maps else {}
        judged += map_findings(header, arrays, MapTiles.open(root, temporary.name, temporary.parent))
        if choices.strict:
            _refuse_doubts(nusc, judged)
    categories = np.bincount(arrays["box_category"], minlength=len(header["categories"]))
    per_class: dict[str, int] = {}
    for category, count in zip(header["categories"], categories, strict=True):
        if category["detection_name"] and count:
            per_class[category["detection_name"]] = per_class.get(category["detection_name"], 0) + int(count)
    return {
        "folder": folder,
        "scenes": len(header["scenes"]),
        "samples": len(arrays["sample_token"]),
        "sweeps": len(arrays["sweep_path"]),
        "boxes": len(arrays["box_category"]),
        "boxes_per_class": per_class,
        "maps": tiles,
        "bytes": size,
        "seconds": time.perf_counter() - start,
        "findings": judged,
        "has_can_bus": bool(arrays["can_bus_valid"].any()),
    }


def _refuse_doubts(nusc: CheckedTables, judged: Sequence[Finding]) -> None:
    doubts = [finding for finding in judged if finding.doubt]
    if doubts:
        others = f"; {len(doubts) - 1} more: {', '.join(f.what for f in doubts[1:])}" if doubts[1:] else ""
        reason = f"{doubts[0].found}; {doubts[0].doubt}{others} (without --strict this is a warning)"
        raise InputError(nusc.table_root, doubts[0].what, reason)


def tables_hash(table_files: dict[str, dict]) -> str:
    """One SHA-256 over the hashes of all tables."""
    text = "".join(f"{name}:{table_files[name]['sha256']}\n" for name in sorted(table_files))
    return hashlib.sha256(text.encode()).hexdigest()


def _text(values: list[str], shape: tuple[int, ...] = (-1,)) -> np.ndarray:
    """UTF-8 bytes of fixed width: unlike Python's text, they can be memory-mapped."""
    return np.array([v.encode() for v in values] or [b""] * 0, dtype=None if values else "S1").reshape(shape)


def _matrices(records: list[dict]) -> np.ndarray:
    """(n, 4, 4) of records with a rotation (w, x, y, z) and a translation."""
    q = np.array([r["rotation"] for r in records], dtype=np.float64).reshape(-1, 4)
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    matrices = np.zeros((len(records), 4, 4))
    matrices[:, 0, :3] = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], axis=1)
    matrices[:, 1, :3] = np.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], axis=1)
    matrices[:, 2, :3] = np.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], axis=1)
    matrices[:, :3, 3] = np.array([r["translation"] for r in records], dtype=np.float64).reshape(-1, 3)
    matrices[:, 3, 3] = 1
    return matrices


def _sensor_arrays(nusc: CheckedTables, rows: SampleRows) -> dict[str, np.ndarray]:
    size = (len(rows.samples), len(rows.cameras))
    frames = [nusc.get("sample_data", s["data"][camera]) for s in rows.samples for camera in rows.cameras]
    sweeps = [nusc.get("sample_data", s["data"][rows.lidar]) for s in rows.samples]
    poses = [nusc.get("ego_pose", sweep["ego_pose_token"]) for sweep in sweeps]
    ego_from_sensor = _matrices(nusc.calibrated_sensor)
    lidar_calibration = np.array([nusc.getind("calibrated_sensor", s["calibrated_sensor_token"]) for s in sweeps])
    global_from_lidar_ego = _matrices(poses)
    intrinsics = [c["camera_intrinsic"] or np.full((3, 3), np.nan) for c in nusc.calibrated_sensor]
    return {
        "camera_path": _text([f["filename"] for f in frames], size),
        "camera_size_px": np.array([[f["height"], f["width"]] for f in frames], dtype=np.int32).reshape(*size, 2),
        "camera_timestamp_us": np.array([f["timestamp"] for f in frames], dtype=np.int64).reshape(size),
        "camera_calibration": np.array(
            [nusc.getind("calibrated_sensor", f["calibrated_sensor_token"]) for f in frames], dtype=np.int32
        ).reshape(size),
        "global_from_camera_ego": _matrices([nusc.get("ego_pose", f["ego_pose_token"]) for f in frames]).reshape(
            *size, 4, 4
        ),
        "intrinsics": np.array(intrinsics, dtype=np.float64),
        "ego_from_sensor": ego_from_sensor,
        "lidar_path": _text([s["filename"] for s in sweeps]),
        "lidar_calibration": lidar_calibration.astype(np.int32),
        "global_from_lidar_ego": global_from_lidar_ego,
        "global_from_bev": global_from_lidar_ego @ ego_from_sensor[lidar_calibration],
        "ego_state": np.array([p["translation"] + p["rotation"] for p in poses], dtype=np.float64),
    }


def _box_arrays(nusc: CheckedTables, rows: SampleRows) -> dict[str, np.ndarray]:
    boxes = [nusc.get("sample_annotation", token) for sample in rows.samples for token in sample["anns"]]
    offset = np.cumsum([0] + [len(sample["anns"]) for sample in rows.samples])
    attribute_of = {a["token"]: i for i, a in enumerate(nusc.attribute)}
    instance = np.array([nusc.getind("instance", b["instance_token"]) for b in boxes], dtype=np.int32)
    category = np.array([nusc.getind("category", i["category_token"]) for i in nusc.instance], dtype=np.int16)
    return {
        "box_offset": offset.astype(np.int64),
        "box_center": np.array([b["translation"] for b in boxes], dtype=np.float64).reshape(-1, 3),
        "box_wlh": np.array([b["size"] for b in boxes], dtype=np.float64).reshape(-1, 3),
        "box_quaternion": np.array([b["rotation"] for b in boxes], dtype=np.float64).reshape(-1, 4),
        "box_velocity": _box_velocity(nusc, boxes, rows),
        "box_category": category[instance] if len(boxes) else np.zeros(0, dtype=np.int16),
        "box_attribute": np.array(
            [attribute_of[b["attribute_tokens"][0]] if b["attribute_tokens"] else -1 for b in boxes], dtype=np.int16
        ),
        "box_visibility": np.array([_visibility(b["visibility_token"]) for b in boxes], dtype=np.int8),
        "box_instance": instance,
        "box_num_lidar_pts": np.array([b["num_lidar_pts"] for b in boxes], dtype=np.int32),
        "box_num_radar_pts": np.array([b["num_radar_pts"] for b in boxes], dtype=np.int32),
        "instance_token": _text([i["token"] for i in nusc.instance]),
    }


def _visibility(token: str) -> int:
    return int(token) if token.isdecimal() and len(token) == 1 else 0


def _box_velocity(nusc: CheckedTables, boxes: list[dict], rows: SampleRows) -> np.ndarray:
    """(A, 3) m/s as the devkit's ``box_velocity`` estimates it: centred difference where both neighbours are there,
    one-sided where one is, NaN without neighbours or where they are more than ``velocity_gap_s`` a step apart (1.5 s
    there). NaN also where the ego jumps from one to the other, which the devkit does not look at: boxes jump with it.
    Neighbours at samples that are left out count, too."""
    annotated, gap_s = nusc.sample_annotation, rows.choices.velocity_gap_s
    center = np.array([b["translation"] for b in annotated], dtype=np.float64).reshape(-1, 3)
    sample = np.array([nusc.getind("sample", b["sample_token"]) for b in annotated], dtype=np.int64)
    times, unbroken = 1e-6 * np.array([s["timestamp"] for s in nusc.sample]), _unbroken_ways(nusc, rows.lidar)
    here, first, last = (
        np.array([nusc.getind("sample_annotation", b[link] or b["token"]) for b in boxes], dtype=np.int64)
        for link in ("token", "prev", "next")
    )
    seconds = times[sample[last]] - times[sample[first]]
    limit = np.where((first != here) & (last != here), 2 * gap_s, gap_s)
    known = (first != last) & (seconds <= limit) & (unbroken[sample[first]] == unbroken[sample[last]])
    return np.where(
        known[:, None], (center[last] - center[first]) / np.where(seconds > 0, seconds, 1.0)[:, None], np.nan
    )


def _unbroken_ways(nusc: CheckedTables, lidar: str) -> np.ndarray:
    """A number for each record of ``sample``, the same along a scene from one jump of the ego to the next.

    A sample's ego pose is that of the lidar's key frame, or of any where there is none; a sample without a key frame
    is where its predecessor is."""
    scene = np.array([nusc.getind("scene", s["scene_token"]) for s in nusc.sample])
    times = 1e-6 * np.array([s["timestamp"] for s in nusc.sample], dtype=np.float64)
    order = np.lexsort((times, scene))
    places: list[list[float]] = []
    for data in (nusc.sample[row]["data"] for row in order):
        key = data.get(lidar) or next(iter(data.values()), None)
        pose = nusc.get("ego_pose", nusc.get("sample_data", key)["ego_pose_token"]) if key else None
        places.append(pose["translation"] if pose else (places or [[0.0] * 3])[-1])
    way = np.linalg.norm(np.diff(np.array(places, dtype=np.float64), axis=0), axis=1)
    broken = (way > FASTEST_EGO_MPS * np.diff(times[order])) | (np.diff(scene[order]) != 0)
    ways = np.zeros(len(order), dtype=np.int64)
    ways[order[1:]] = np.cumsum(broken)
    return ways
