"""Writes an index of info files (mmdet3d's and the published BEVFormer's pickles) instead of tables.

What such files lack, the index lacks: maps' locations, scenes' names, identities of objects, visibility, attributes
(docs/fleet.md). What they say twice is compared first (:mod:`bevstack.datasets.nuscenes.info_checks`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from bevstack.datasets.nuscenes.index_files import INDEX_FILE, SCHEMA, SCHEMA_VERSION, index_folder
from bevstack.datasets.nuscenes.info_checks import box_convention, check_cameras, check_feet
from bevstack.datasets.nuscenes.info_records import InfoCamera, InfoFile, InfoSample, read_info_file
from bevstack.datasets.nuscenes.info_scenes import scenes_of
from bevstack.datasets.nuscenes.plausibility import findings
from bevstack.datasets.nuscenes.table_files import file_sha256
from bevstack.datasets.nuscenes.taxonomy import CAMERAS, detection_class
from bevstack.errors import InputError
from bevstack.files import atomic_folder, require_writable
from bevstack.images import stored_size_px
from bevstack.structures.rigid_arrays import rigid_inverse

_HEADER_BYTES = 65_536
_SPLIT_OF_NAME = ("train", "val", "test")


@dataclass(frozen=True)
class ImportChoices:
    """What a user says of info files.

    Args:
        version: of the index; None for the one that the files name.
        split: of the files' samples; None for what a file's name ends in (train, val, test).
        convention: of boxes (:data:`bevstack.datasets.nuscenes.info_checks.CONVENTIONS`); None for what they show.
    """

    version: str | None = None
    split: str | None = None
    convention: str | None = None


def import_infos(paths: Sequence[Path], root: Path, out: Path, choices: ImportChoices) -> dict:
    """Read and check info files and write one index of them.

    Args:
        paths: info files of one version, each a split.
        root: dataset root; images are read below it.
        out: folder for indices; the index goes to ``<out>/<version>``.
        choices: see there.

    Returns:
        What was written: folder, version, styles, conventions, splits (name -> number of scenes), scenes, samples,
        boxes, and findings (:func:`bevstack.datasets.nuscenes.plausibility.findings`).

    Raises:
        InputError: a file is none of these, breaks a convention, does not fit the others, or an image is missing.
            Nothing is left behind.
    """
    if not root.is_dir():
        raise InputError(root, "--root", "no such folder")
    require_writable(out, "--out")
    files = [read_info_file(path) for path in paths]
    version = _version(files, choices)
    splits: dict[str, list[str]] = {"all": []}
    scenes: list[tuple[str, list[InfoSample]]] = []
    conventions = []
    for file in files:
        cut = list(scenes_of(file))
        check_cameras(file, [samples for _, samples in cut])
        conventions.append(box_convention(file, choices.convention))
        check_feet(file)
        for token, _ in cut:
            if token in splits["all"]:
                raise InputError(file.path, "scene_token", f"scene {token} is in another file, too")
            splits["all"].append(token)
        splits.setdefault(_split(file, version, choices), []).extend(token for token, _ in cut)
        scenes += cut
    convention_of = {id(sample): conventions[n] for n, file in enumerate(files) for sample in file.samples}
    samples = [sample for _, of_scene in scenes for sample in of_scene]
    cameras, lidar = _sensors(files[0].path, samples)
    header = _header(root, version, files, scenes, cameras, lidar, splits, samples)
    arrays = _sample_arrays(scenes, samples) | _sensor_arrays(root, files[0].path, samples, cameras)
    arrays |= _box_arrays(samples, header["categories"], [convention_of[id(sample)] for sample in samples])
    header["arrays"] = {name: {"dtype": a.dtype.str, "shape": list(a.shape)} for name, a in arrays.items()}
    judged = findings(header, arrays)
    folder = index_folder(root, version, out)
    with atomic_folder(folder, "--out") as temporary:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", np.ascontiguousarray(array), allow_pickle=False)
        (temporary / INDEX_FILE).write_text(json.dumps(header, indent=1), encoding="utf-8")
    return {
        "folder": folder,
        "version": version,
        "styles": [file.style for file in files],
        "conventions": conventions,
        "splits": {name: len(tokens) for name, tokens in splits.items()},
        "scenes": len(scenes),
        "samples": len(samples),
        "boxes": len(arrays["box_center"]),
        "findings": judged,
    }


def _version(files: Sequence[InfoFile], choices: ImportChoices) -> str:
    if choices.version is not None:
        return choices.version
    named = {file.version for file in files}
    if len(named) != 1 or not re.fullmatch(r"[\w.-]+", version := next(iter(named))):
        found = ", ".join(sorted(name or "none" for name in named))
        raise InputError(files[0].path, "version", f"the files name {found}: say --version, as v1.0-trainval")
    return version


def _split(file: InfoFile, version: str, choices: ImportChoices) -> str:
    """The split's name: a user's, or the word of the file's name as the devkit calls it in this version."""
    if choices.split is not None:
        return choices.split
    words = re.findall(r"[a-z]+", file.path.stem.lower())
    found = [word for word in words if word in _SPLIT_OF_NAME]
    if len(found) != 1:
        reason = "the file's name holds no train, val or test: say --split"
        raise InputError(file.path, "--split", reason)
    return f"mini_{found[0]}" if version.endswith("mini") else found[0]


def _sensors(path: Path, samples: Sequence[InfoSample]) -> tuple[list[str], str]:
    there = list(samples[0].cameras)
    for sample in samples:
        if set(sample.cameras) != set(there):
            lacking = ", ".join(sorted(set(there) ^ set(sample.cameras)))
            raise InputError(path, f"{sample.place}.cameras", f"not every sample has the same cameras: {lacking}")
    if not there:
        raise InputError(path, samples[0].place, "has no camera")
    return (list(CAMERAS) if set(there) == set(CAMERAS) else there), Path(samples[0].lidar_path).parent.name


def _header(
    root: Path,
    version: str,
    files: Sequence[InfoFile],
    scenes: Sequence[tuple[str, list[InfoSample]]],
    cameras: list[str],
    lidar: str,
    splits: dict[str, list[str]],
    samples: Sequence[InfoSample],
) -> dict:
    names = list(dict.fromkeys(name for sample in samples for name in sample.names))
    starts = np.cumsum([0] + [len(of_scene) for _, of_scene in scenes])
    path = root / version / "splits.json"
    return {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        "version": version,
        "tables": {},
        "tables_sha256": "",
        "splits_sha256": file_sha256(path) if path.exists() else "",
        "infos": {str(file.path.name): file_sha256(file.path) for file in files},
        "cameras": cameras,
        "lidar": lidar,
        "scenes": [
            {
                "token": token,
                "name": token,
                "description": "",
                "log": Path(of_scene[0].lidar_path).name.split("__")[0] if "__" in of_scene[0].lidar_path else "",
                "location": "",
                "first_row": int(first),
                "num_samples": len(of_scene),
            }
            for (token, of_scene), first in zip(scenes, starts[:-1], strict=True)
        ],
        "categories": [{"name": name, "detection_name": detection_class(name)} for name in names],
        "attributes": [],
        "splits": splits,
        "left_out": {},
    }


def _sample_arrays(
    scenes: Sequence[tuple[str, list[InfoSample]]], samples: Sequence[InfoSample]
) -> dict[str, np.ndarray]:
    scene_row = np.repeat(np.arange(len(scenes)), [len(of_scene) for _, of_scene in scenes])
    rows, starts = np.arange(len(samples)), np.r_[True, scene_row[1:] != scene_row[:-1]]
    raw, valid = np.full((len(samples), 16), np.nan), np.zeros(len(samples), dtype=bool)
    for row, sample in enumerate(samples):
        quaternion = Rotation.from_matrix(sample.global_from_ego[:3, :3]).as_quat()[[3, 0, 1, 2]]
        raw[row, :3] = sample.global_from_ego[:3, 3]
        raw[row, 3:7] = -quaternion if quaternion[0] < 0 else quaternion
        if sample.can_bus is not None and sample.can_bus[:16].any():  # the published converter's zeros: no message
            raw[row, 7:16], valid[row] = sample.can_bus[7:16], True
    return {
        "sample_token": np.array([sample.token.encode() for sample in samples]),
        "sample_timestamp_us": np.array([sample.timestamp_us for sample in samples], dtype=np.int64),
        "sample_scene": scene_row.astype(np.int32),
        "sample_prev": np.where(starts, -1, rows - 1).astype(np.int32),
        "sample_next": np.where(np.r_[starts[1:], True], -1, rows + 1).astype(np.int32),
        "can_bus_raw": raw,
        "can_bus_valid": valid,
    }


def _sensor_arrays(
    root: Path, path: Path, samples: Sequence[InfoSample], cameras: Sequence[str]
) -> dict[str, np.ndarray]:
    size = (len(samples), len(cameras))
    calibrations: dict[bytes, int] = {}
    matrices: list[tuple[np.ndarray, np.ndarray]] = []

    def row_of(ego_from_sensor: np.ndarray, pixels_from_camera: np.ndarray) -> int:
        row = calibrations.setdefault(ego_from_sensor.tobytes() + pixels_from_camera.tobytes(), len(matrices))
        if row == len(matrices):
            matrices.append((ego_from_sensor, pixels_from_camera))
        return row

    no_pixels = np.full((3, 3), np.nan)
    views = [sample.cameras[channel] for sample in samples for channel in cameras]
    poses = [
        view.global_from_ego
        if view.global_from_ego is not None
        else sample.global_from_lidar @ rigid_inverse(view.ego_from_camera @ view.camera_from_lidar)
        for sample in samples
        for view in (sample.cameras[channel] for channel in cameras)
    ]
    camera_rows = [row_of(view.ego_from_camera, view.pixels_from_camera) for view in views]
    lidar_rows = [row_of(sample.ego_from_lidar, no_pixels) for sample in samples]
    return {
        "camera_path": np.array([view.path.encode() for view in views]).reshape(size),
        "camera_size_px": np.array([_size_px(root / v.path, path, v) for v in views], dtype=np.int32).reshape(*size, 2),
        "camera_timestamp_us": np.array([view.timestamp_us for view in views], dtype=np.int64).reshape(size),
        "camera_calibration": np.array(camera_rows, dtype=np.int32).reshape(size),
        "global_from_camera_ego": np.array(poses).reshape(*size, 4, 4),
        "intrinsics": np.array([pixels for _, pixels in matrices]),
        "ego_from_sensor": np.array([ego_from_sensor for ego_from_sensor, _ in matrices]),
        "lidar_path": np.array([sample.lidar_path.encode() for sample in samples]),
        "lidar_calibration": np.array(lidar_rows, dtype=np.int32),
        "global_from_lidar_ego": np.array([sample.global_from_ego for sample in samples]),
        "global_from_bev": np.array([sample.global_from_lidar for sample in samples]),
        "sweep_offset": np.zeros(size[0] * size[1] + 1, dtype=np.int64),
        "sweep_path": np.zeros(0, dtype="S1"),
        "sweep_timestamp_us": np.zeros(0, dtype=np.int64),
    }


def _size_px(path: Path, infos: Path, view: InfoCamera) -> tuple[int, int]:
    """(height, width) that an image's header tells; info files do not."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEADER_BYTES)
            size = stored_size_px(head) or stored_size_px(head + file.read())
    except OSError as error:
        reason = f"{error.strerror or 'cannot be read'}, yet {view.place.rpartition('.')[0]} of {infos.name} names it"
        raise InputError(path, "image", reason) from None
    if size is None:
        raise InputError(path, "image", "its header tells no size: neither a JPEG nor a PNG")
    return size


def _box_arrays(
    samples: Sequence[InfoSample], categories: Sequence[dict], conventions: Sequence[str]
) -> dict[str, np.ndarray]:
    """Boxes in the global frame. None has a neighbour in time: each is an instance of its own."""
    category_of = {category["name"]: row for row, category in enumerate(categories)}
    offset = np.cumsum([0] + [len(sample.names) for sample in samples]).astype(np.int64)
    center, wlh, quaternion, velocity = [], [], [], []
    for sample, convention in zip(samples, conventions, strict=True):
        pose, boxes = sample.global_from_lidar, sample.boxes
        width, length, yaw = (
            (boxes[:, 3], boxes[:, 4], -boxes[:, 6] - np.pi / 2)
            if convention == "mmdet3d-0"
            else (boxes[:, 4], boxes[:, 3], boxes[:, 6])
        )
        center.append(boxes[:, :3] @ pose[:3, :3].T + pose[:3, 3])
        wlh.append(np.stack([width, length, boxes[:, 5]], axis=1))
        turned = pose[:3, :3] @ Rotation.from_euler("z", yaw[:, None]).as_matrix().reshape(-1, 3, 3)
        quaternion.append(Rotation.from_matrix(turned).as_quat()[:, [3, 0, 1, 2]] if len(boxes) else np.zeros((0, 4)))
        velocity.append(np.c_[sample.velocity, np.zeros(len(boxes))] @ pose[:3, :3].T)
    count = int(offset[-1])
    names = [name for sample in samples for name in sample.names]
    return {
        "box_offset": offset,
        "box_center": np.concatenate(center),
        "box_wlh": np.concatenate(wlh),
        "box_quaternion": np.concatenate(quaternion),
        "box_velocity": np.concatenate(velocity),
        "box_category": np.array([category_of[name] for name in names], dtype=np.int16),
        "box_attribute": np.full(count, -1, dtype=np.int16),
        "box_visibility": np.zeros(count, dtype=np.int8),
        "box_instance": np.arange(count, dtype=np.int32),
        "box_num_lidar_pts": np.concatenate([sample.num_lidar_pts for sample in samples]).astype(np.int32),
        "box_num_radar_pts": np.concatenate([sample.num_radar_pts for sample in samples]).astype(np.int32),
        "instance_token": np.array([f"box-{n}".encode() for n in range(count)], dtype=None if count else "S1"),
    }
