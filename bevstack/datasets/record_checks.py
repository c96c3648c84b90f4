"""What a format answers, checked where it comes in: a slip is one line that names dataset and sample.

Unchecked it would be an error of some transform in a worker, a label beyond a head's classes on the GPU, or a stream
whose frames are out of order. The checks cost microseconds a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bevstack.datasets.base import CameraRecords, ObjectRecords
from bevstack.datasets.format import SampleTable
from bevstack.errors import InputError


def check_samples(samples: SampleTable, source: Path) -> None:
    """Refuse samples that are none, or not scene by scene and in order of time.

    Raises:
        InputError: names the first row that is wrong.
    """
    scene, times = np.asarray(samples.scene), np.asarray(samples.timestamp_us)
    if not len(scene) or (samples.rows is not None and not len(samples.rows)):
        raise InputError(source, "samples", "there is none")
    if scene.ndim != 1 or times.shape != scene.shape:
        raise InputError(source, "samples", f"scene is {scene.shape} and timestamp_us {times.shape}, not both (S,)")
    same = scene[1:] == scene[:-1]
    parts = np.flatnonzero(np.r_[True, ~same])
    if len(parts) > len(np.unique(scene)):
        first_parts = np.unique(scene[parts], return_index=True)[1]
        row = next(row for place, row in enumerate(parts.tolist()) if place not in first_parts)
        raise InputError(source, f"samples: row {row}", f"scene {scene[row]} goes on after another one; sort by scene")
    late = np.flatnonzero(same & (times[1:] <= times[:-1]))
    if len(late):
        reason = f"its time is {times[late[0] + 1]} microseconds, not later than {times[late[0]]} of the row before"
        raise InputError(source, f"samples: row {late[0] + 1}", reason)


def checked_cameras(cameras: CameraRecords, source: Path, token: str) -> CameraRecords:
    """The records, of N cameras each.

    Raises:
        InputError: an array of another shape, an image without a size, a number that is not finite.
    """
    n = len(cameras.names)
    _require_shape("image_paths", cameras.image_paths, (n,), source, token)
    _require_shape("image_size_px", cameras.image_size_px, (n, 2), source, token)
    _require_shape("pixels_from_camera", cameras.pixels_from_camera, (n, 3, 3), source, token)
    _require_shape("camera_from_bev", cameras.camera_from_bev, (n, 4, 4), source, token)
    if not n or (np.asarray(cameras.image_size_px) < 1).any():
        raise InputError(source, f"sample {token}", "has no camera" if not n else "image_size_px must be 1 or more")
    for name in ("pixels_from_camera", "camera_from_bev"):
        if not np.isfinite(getattr(cameras, name)).all():
            raise InputError(source, f"sample {token}", f"{name} is not finite")
    return cameras


def checked_objects(objects: ObjectRecords, classes: Sequence[str], source: Path, token: str) -> ObjectRecords:
    """The records, of G objects each; a velocity alone may be NaN.

    Raises:
        InputError: an array of another length or shape, a label of no class, a box without a place or a size.
    """
    boxes, labels = np.asarray(objects.boxes), np.asarray(objects.labels)
    _require_shape("objects.boxes", boxes, (len(boxes), 9), source, token)
    for name, values in objects.known().items():
        if name != "boxes" and len(values) != len(boxes):
            raise InputError(source, f"sample {token}", f"objects.{name} are {len(values)}, but boxes {len(boxes)}")
    wrong = np.flatnonzero((labels < 0) | (labels >= len(classes)))
    if len(wrong):
        reason = f"objects.labels: {labels[wrong[0]]} is no place in the {len(classes)} classes"
        raise InputError(source, f"sample {token}", reason)
    wrong = np.flatnonzero(~(np.isfinite(boxes[:, :7]).all(axis=1) & (boxes[:, 3:6] > 0).all(axis=1)))
    if len(wrong):
        reason = f"objects.boxes: {boxes[wrong[0], :7].tolist()} (x, y, z, length, width, height, yaw) is no box"
        raise InputError(source, f"sample {token}", reason)
    return objects


def _require_shape(name: str, values: Any, shape: tuple[int, ...], source: Path, token: str) -> None:
    if np.shape(values) != shape:
        raise InputError(source, f"sample {token}", f"{name} is {np.shape(values)}, not {shape}")
