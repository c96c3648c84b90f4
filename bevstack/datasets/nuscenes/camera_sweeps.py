"""Camera images between key frames: the chain of ``sample_data`` that leads to each key frame, checked and as arrays.

nuScenes' cameras run at 12 Hz, its key frames at 2 Hz; ``prev`` of a camera's ``sample_data`` names the image that the
camera took just before.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from bevstack.errors import InputError

if TYPE_CHECKING:
    from nuscenes.nuscenes import NuScenes


def check_camera_chains(path: Path, rows: Mapping[str, Mapping[str, dict]], records: Sequence[dict]) -> None:
    """Check ``prev`` of every camera image: an image of the same camera that is not later, or "" at the start.

    Two images may have one time, as where a slow camera's image serves two samples.

    Args:
        path: the table's file, for messages.
        rows: records by token of ``sample_data``, ``calibrated_sensor`` and ``sensor``.
        records: of ``sample_data``, whose other fields are checked already.

    Raises:
        InputError: a ``prev`` that is no token, leads to another sensor, is later, or runs in a loop.
    """
    sensor_of = {token: record["sensor_token"] for token, record in rows["calibrated_sensor"].items()}
    for record in records:
        sensor, token = sensor_of[record["calibrated_sensor_token"]], record.get("prev", "")
        if token == "" or rows["sensor"][sensor]["modality"] != "camera":
            continue
        before = rows["sample_data"].get(token) if isinstance(token, str) else None
        if before is None:
            raise InputError(path, f"{record['token']}.prev", f"{token!r:.60} is no token of sample_data.json")
        if sensor_of[before["calibrated_sensor_token"]] != sensor:
            raise InputError(path, f"{record['token']}.prev", f"{token} comes from another sensor")
        if before["timestamp"] > record["timestamp"]:
            raise InputError(path, f"{record['token']}.prev", f"{token} is not earlier")
        seen = {record["token"]}
        while before is not None and before["timestamp"] == record["timestamp"]:
            if before["token"] in seen:
                raise InputError(path, f"{record['token']}.prev", f"the chain runs in a loop at {before['token']}")
            seen.add(before["token"])
            before = rows["sample_data"].get(before.get("prev", ""))


def sweep_arrays(nusc: NuScenes, root: Path, samples: Sequence[dict], cameras: Sequence[str]) -> dict[str, np.ndarray]:
    """The images that each camera took between a sample's predecessor and the sample.

    Args:
        nusc: checked tables.
        root: dataset root. Images that are not there are left out: many have the key frames alone, or some of the
            archives; one warning counts those that are missing beside others of their folder.
        samples: the S samples in the index's order.
        cameras: names of the N cameras.

    Returns:
        ``sweep_offset`` (S * N + 1,) int64: image rows of sample s and camera n run from entry
        s * N + n to the next one, oldest first, in ``sweep_path`` (bytes, relative to the root) and
        ``sweep_timestamp_us`` (int64).

    Raises:
        InputError: a file name leads out of the root.
    """
    table = Path(nusc.table_root) / "sample_data.json"
    offset, named, folders = [0], 0, FolderListing(root, table)
    found: list[dict] = []
    kept = {sample["token"] for sample in samples}
    for sample in samples:
        for camera in cameras:
            chain = list(_sweeps_before(nusc, nusc.get("sample_data", sample["data"][camera]), kept))[::-1]
            chain = [sweep for sweep in chain if folders.names(sweep["filename"])]
            there = [sweep for sweep in chain if folders.has(sweep["filename"])]
            named, found = named + len(chain), found + there
            offset.append(len(found))
    if named > len(found):
        missing = f"{named - len(found)} of {named} camera images between key frames are missing"
        warnings.warn(
            f"{root}: {missing} and left out; older images take their place in LoadCameraSweeps", stacklevel=2
        )
    paths = [sweep["filename"].encode() for sweep in found]
    return {
        "sweep_offset": np.array(offset, dtype=np.int64),
        "sweep_path": np.array(paths, dtype=None if paths else "S1"),
        "sweep_timestamp_us": np.array([sweep["timestamp"] for sweep in found], dtype=np.int64),
    }


def _sweeps_before(nusc: NuScenes, keyframe: dict, kept: Set[str]) -> Iterator[dict]:
    """Records before a key frame, newest first, back to a sample's that is ``kept`` or to the scene's start."""
    scene = nusc.get("sample", keyframe["sample_token"])["scene_token"]
    token = keyframe.get("prev", "")
    while token:
        sweep = nusc.get("sample_data", token)
        if (sweep["is_key_frame"] and sweep["sample_token"] in kept) or nusc.get("sample", sweep["sample_token"])[
            "scene_token"
        ] != scene:
            return
        yield sweep
        token = sweep.get("prev", "")


class FolderListing:
    """Which files a table's names lead to: each folder below the root is listed once, instead of asking for each file.

    Args:
        root: dataset root. table: whose names these are, for messages.
    """

    def __init__(self, root: Path, table: Path) -> None:
        self.root, self.table = root, table
        self._files: dict[str, set[str]] = {}

    def names(self, name: str) -> set[str]:
        """Names of the files in the folder of a file.

        Raises:
            InputError: the file's name leads out of the root.
        """
        folder = name.rpartition("/")[0]
        if folder not in self._files:
            place = PurePosixPath(folder)
            if place.is_absolute() or ".." in PurePosixPath(name).parts:
                raise InputError(self.table, "filename", f"{name} leads out of the root")
            there = self.root / place
            self._files[folder] = (
                {entry.name for entry in os.scandir(there) if entry.is_file()} if there.is_dir() else set()
            )
        return self._files[folder]

    def has(self, name: str) -> bool:
        """Whether a file is there; errors as :meth:`names`."""
        return name.rpartition("/")[2] in self.names(name)


def older_images(
    arrays: Mapping[str, np.ndarray], row: int, camera: int, count: int, max_gap_seconds: float
) -> list[tuple[bytes, int]]:
    """Up to ``count`` images that a camera took before a sample's key frame, across earlier key frames, newest first.

    Args:
        arrays: of the index.
        row: the sample.
        camera: number of the camera.
        count: how many at most.
        max_gap_seconds: a longer pause between two images ends the sequence, as the scene's start does.

    Returns:
        (path relative to the root, microseconds) of each.
    """
    images: list[tuple[bytes, int]] = []
    newer = int(arrays["camera_timestamp_us"][row, camera])
    for path, time in islice(_back_through_time(arrays, row, camera), count):
        if newer - time > max_gap_seconds * 1e6:
            break
        images.append((path, time))
        newer = time
    return images


def ego_poses(arrays: Mapping[str, np.ndarray], row: int, camera: int, times_us: np.ndarray) -> np.ndarray:
    """Where the ego car was when a camera took images at or before a sample's key frame.

    Between the key frames of that camera the position is interpolated linearly and the heading on the shortest arc: at
    2 Hz and 2 m/s^2 that is off by 6 cm at most. Before the scene's first key frame the car stands there.

    Args:
        arrays: of the index.
        row: the sample. camera: number of the camera.
        times_us: (S,) microseconds.

    Returns:
        ``global_from_ego`` (S, 4, 4) float64.
    """
    rows = [row]
    while arrays["camera_timestamp_us"][rows[0], camera] > times_us.min() and arrays["sample_prev"][rows[0]] >= 0:
        rows.insert(0, int(arrays["sample_prev"][rows[0]]))
    known_us = np.asarray(arrays["camera_timestamp_us"][rows, camera]).astype(np.float64)
    known = np.asarray(arrays["global_from_camera_ego"][rows, camera])
    times = np.clip(times_us.astype(np.float64), known_us[0], known_us[-1])
    poses = np.tile(np.eye(4), (len(times), 1, 1))
    known_us, first = np.unique(known_us, return_index=True)  # one image may serve two samples
    known = known[first]
    for axis in range(3):
        poses[:, axis, 3] = np.interp(times, known_us, known[:, axis, 3])
    turns = Rotation.from_matrix(known[:, :3, :3])
    poses[:, :3, :3] = (Slerp(known_us, turns)(times) if len(known_us) > 1 else turns).as_matrix()
    return poses


def _back_through_time(arrays: Mapping[str, np.ndarray], row: int, camera: int) -> Iterator[tuple[bytes, int]]:
    cameras = arrays["camera_path"].shape[1]
    while True:
        place = row * cameras + camera
        low, high = arrays["sweep_offset"][place : place + 2].tolist()
        for sweep in range(high - 1, low - 1, -1):
            yield bytes(arrays["sweep_path"][sweep]), int(arrays["sweep_timestamp_us"][sweep])
        row = int(arrays["sample_prev"][row])
        if row < 0:
            return
        yield bytes(arrays["camera_path"][row, camera]), int(arrays["camera_timestamp_us"][row, camera])
