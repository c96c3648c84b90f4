"""The files of an index: their names, what they hold, and what must hold of them when one is opened.

Every check raises :class:`bevstack.errors.InputError` that names the file.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from bevstack.datasets.nuscenes.table_files import file_sha256
from bevstack.errors import InputError

SCHEMA, SCHEMA_VERSION, INDEX_FILE = "bevstack-nuscenes-index", 3, "index.json"
_RIGID_TOLERANCE = 1e-4

# name -> axes: S samples, T = S + 1, A boxes, N cameras, K calibrations, I instances, W images between key frames,
# F = S * N + 1; a digit is itself
ARRAYS = {
    "sample_token": "S", "sample_timestamp_us": "S", "sample_scene": "S", "sample_prev": "S", "sample_next": "S",
    "camera_path": "SN", "camera_size_px": "SN2", "camera_timestamp_us": "SN", "camera_calibration": "SN",
    "global_from_camera_ego": "SN44", "intrinsics": "K33", "ego_from_sensor": "K44", "lidar_path": "S",
    "lidar_calibration": "S", "global_from_lidar_ego": "S44", "global_from_bev": "S44", "can_bus_raw": "Sb",
    "can_bus_valid": "S", "box_offset": "T", "box_center": "A3", "box_wlh": "A3", "box_quaternion": "A4",
    "box_velocity": "A3", "box_category": "A", "box_attribute": "A", "box_visibility": "A", "box_instance": "A",
    "box_num_lidar_pts": "A", "box_num_radar_pts": "A", "instance_token": "I", "sweep_offset": "F", "sweep_path": "W",
    "sweep_timestamp_us": "W",
}  # fmt: skip
# arrays of row numbers: name, lowest value, what they count in
_ROWS = (
    ("sample_scene", 0, "scenes"), ("sample_prev", -1, "sample_token"), ("sample_next", -1, "sample_token"),
    ("camera_calibration", 0, "intrinsics"), ("lidar_calibration", 0, "intrinsics"),
    ("box_category", 0, "categories"), ("box_attribute", -1, "attributes"), ("box_instance", 0, "instance_token"),
)  # fmt: skip


def index_folder(root: str | Path, version: str, index_root: str | Path | None = None) -> Path:
    """Where the index of ``version`` lies."""
    return (Path(index_root) if index_root else Path(root) / "bevstack-index") / version


def read_header(folder: Path, root: Path, version: str) -> dict:
    """``index.json`` of the index in ``folder``: there, of this schema, and whole."""
    path = folder / INDEX_FILE
    if not path.is_file():
        if not root.is_dir():
            raise InputError(root, "data_root", "no such folder")
        hint = f"python tools/create_data.py nuscenes --root {root} --version {version}"
        raise InputError(path, "index", f"not found; make it with: {hint}")
    try:
        header = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(path, "content", f"is no index: {error}") from None
    if not isinstance(header, dict) or header.get("schema") != SCHEMA:
        raise InputError(path, "schema", f"is not {SCHEMA}")
    if header.get("schema_version") != SCHEMA_VERSION:
        hint = f"python tools/create_data.py nuscenes --root {root} --version {version}"
        reason = f"is {header.get('schema_version')}, this program reads {SCHEMA_VERSION}; make it again with: {hint}"
        raise InputError(path, "schema_version", reason)
    kinds = {
        "tables": dict,
        "arrays": dict,
        "splits": dict,
        "cameras": list,
        "scenes": list,
        "categories": list,
        "left_out": dict,
    }
    for field, kind in {**kinds, "attributes": list, "lidar": str, "version": str, "tables_sha256": str}.items():
        if not isinstance(header.get(field), kind):
            raise InputError(path, field, "is missing or of another type; run create_data again")
    if header["version"] != version:
        raise InputError(path, "version", f"is {header['version']}, not {version}")
    return header


def open_arrays(folder: Path, header: dict) -> dict[str, np.ndarray]:
    """All arrays by name, memory-mapped and read-only; :data:`ARRAYS` has their axes.

    Raises:
        InputError: an array is missing, cannot be read, or has another dtype or shape than the header says.
    """
    return {name: _open_array(folder, name, header) for name in ARRAYS}


def _open_array(folder: Path, name: str, header: dict) -> np.ndarray:
    path = folder / f"{name}.npy"
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(path, "array", "not found; run create_data again") from None
    except (OSError, ValueError, EOFError) as error:
        raise InputError(path, "array", f"cannot be read: {error}") from None
    expected = header["arrays"].get(name, {})
    if array.dtype.str != expected.get("dtype") or list(array.shape) != expected.get("shape"):
        raise InputError(path, "array", f"is {array.dtype.str} {list(array.shape)}, {INDEX_FILE} says {expected}")
    return array


def check_shapes(folder: Path, header: dict, arrays: dict[str, np.ndarray]) -> None:
    """The arrays' axes (:data:`ARRAYS`) fit together and the number of cameras that the header names.

    Raises:
        InputError: names the first array that does not fit.
    """
    samples, boxes = len(arrays["sample_token"]), len(arrays["box_center"])
    sizes = {"S": samples, "T": samples + 1, "A": boxes, "N": len(header["cameras"]), "b": 16}
    sizes |= {"K": len(arrays["intrinsics"]), "I": len(arrays["instance_token"])}
    sizes |= {"W": len(arrays["sweep_path"]), "F": samples * len(header["cameras"]) + 1}
    for name, axes in ARRAYS.items():
        expected = tuple(sizes[axis] if axis in sizes else int(axis) for axis in axes)
        if arrays[name].shape != expected:
            raise InputError(folder / f"{name}.npy", "shape", f"{arrays[name].shape} must be {expected}")


def check_tables(folder: Path, header: dict) -> None:
    """The tables in ``folder`` are those the index was made from; same size and time are taken for the same table."""
    if not folder.is_dir():
        return  # the index travels without its tables
    for name, made_from in header["tables"].items():
        path = folder / f"{name}.json"
        if not path.is_file():
            raise InputError(path, "table", "is gone since the index was made")
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) == (made_from["bytes"], made_from["mtime_ns"]):
            continue
        if stat.st_size != made_from["bytes"] or file_sha256(path) != made_from["sha256"]:
            raise InputError(path, "sha256", "has changed since the index was made; run create_data again")
    splits = folder / "splits.json"
    if (file_sha256(splits) if splits.exists() else "") != header.get("splits_sha256"):
        raise InputError(splits, "sha256", "has changed since the index was made; run create_data again")


def check_contents(folder: Path, header: dict, arrays: dict[str, np.ndarray]) -> None:
    """(..., 4, 4) transforms are rigid, intrinsics finite, paths stay under the root, row numbers point at something.

    Raises:
        InputError: names the array and what is wrong with it.
    """
    tables = {**arrays, **{name: header[name] for name in ("scenes", "categories", "attributes")}}
    for name in ("global_from_camera_ego", "ego_from_sensor", "global_from_lidar_ego", "global_from_bev"):
        matrices = np.asarray(arrays[name]).reshape(-1, 4, 4)
        rotation = matrices[:, :3, :3]
        error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max(axis=(1, 2), initial=0)
        bad = ~np.isfinite(matrices).all(axis=(1, 2)) | ~(error < _RIGID_TOLERANCE)
        bad |= (matrices[:, 3] != (0, 0, 0, 1)).any(axis=1) | ~(np.linalg.det(rotation) > 0)
        if bad.any():
            raise InputError(folder / f"{name}.npy", f"[{np.flatnonzero(bad)[0]}]", "is no rigid transform")
    for name in ("camera_path", "lidar_path", "sweep_path"):
        paths = np.asarray(arrays[name]).ravel()
        out = np.char.startswith(paths, b"/") | np.char.startswith(paths, b"../") | (np.char.find(paths, b"/../") >= 0)
        if out.any():
            path = paths[np.flatnonzero(out)[0]].decode()
            raise InputError(folder / f"{name}.npy", "path", f"{path} leads out of the root")
    for name, low, table in _ROWS:
        rows = np.asarray(arrays[name])
        if rows.size and (rows.min() < low or rows.max() >= len(tables[table])):
            raise InputError(folder / f"{name}.npy", "rows", f"point outside the {len(tables[table])} of {table}")
    offset = np.asarray(arrays["box_offset"])
    if offset[0] != 0 or offset[-1] != len(arrays["box_center"]) or (np.diff(offset) < 0).any():
        raise InputError(folder / "box_offset.npy", "rows", "do not divide the boxes among the samples")
    offset = np.asarray(arrays["sweep_offset"])
    if offset[0] != 0 or offset[-1] != len(arrays["sweep_path"]) or (np.diff(offset) < 0).any():
        raise InputError(folder / "sweep_offset.npy", "rows", "do not divide the sweeps among the samples' cameras")
    used = np.unique(arrays["camera_calibration"])
    if not np.isfinite(np.asarray(arrays["intrinsics"])[used]).all():
        raise InputError(folder / "intrinsics.npy", "camera", "a camera's intrinsics are not finite")
