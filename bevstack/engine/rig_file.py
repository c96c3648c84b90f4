"""A rig and a drive as two JSON files that anybody can write: ``rig.json`` and ``poses.json`` (docs/inference.md).

Every mistake in them is one line that names the file and the place in it; a key that is not known is a mistake, too.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bevstack.errors import InputError
from bevstack.structures.moment import Moment, Motion, Rig, as_numbers, as_poses

RIG_KEYS = ("ego_from_bev", "cameras")
CAMERA_KEYS = ("name", "pixels_from_camera", "ego_from_camera", "image_size_px")
MOMENT_KEYS = ("name", "stream", "seconds", "global_from_ego", "images")


@dataclass(frozen=True)
class MomentRecord:
    """One moment as files state it.

    Args:
        name: of its results; unlike those of the others.
        images: by camera, the file of its image; cameras that are not named have none. None: found in the folder of
            images by the name, or by the order.
        stream: moments that follow each other in one stream share a memory.
        seconds: when it was, on any clock.
        global_from_ego: (4, 4) metres: where the car stood; None where that is not known: the moment stands alone.
        place: where it was read, for messages: the file and the field.
    """

    name: str
    images: Mapping[str, Path] | None = None
    stream: str = ""
    seconds: float | None = None
    global_from_ego: np.ndarray | None = None
    place: tuple[str, str] = field(default=("moments", ""), compare=False)

    def __post_init__(self) -> None:
        if not self.name or self.name != Path(self.name).name or self.name.startswith("."):
            raise InputError(self.place[0], f"{self.place[1]}.name", f"'{self.name}' is no name for a file")


def read_json(path: str | os.PathLike, field: str) -> Any:
    """What a JSON file holds.

    Args:
        path: the file. field: what it is, for messages.

    Raises:
        InputError: it is not there, cannot be read, or is no JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(path, field, "no such file") from None
    except OSError as error:
        raise InputError(path, field, error.strerror or "cannot be read") from error
    except UnicodeDecodeError:
        raise InputError(path, field, "is no text: expected JSON") from None
    except json.JSONDecodeError as error:
        raise InputError(path, field, f"is no JSON: {error.msg} (line {error.lineno})") from None


def read_rig(path: str | os.PathLike) -> Rig:
    """The rig that a ``rig.json`` describes.

    Raises:
        InputError: an absent, unknown or mistaken part, by its place in the file.
    """
    content = _object(read_json(path, "--calibration"), RIG_KEYS, RIG_KEYS, path, "")
    cameras = content["cameras"]
    if not isinstance(cameras, list) or not cameras:
        raise InputError(path, "cameras", "is no list of cameras")
    for n, camera in enumerate(cameras):
        place = f"cameras[{n}]"
        _object(camera, CAMERA_KEYS, CAMERA_KEYS[:3], path, place)
        as_numbers(camera["pixels_from_camera"], (3, 3), str(path), f"{place}.pixels_from_camera")
        as_poses(camera["ego_from_camera"], (4, 4), str(path), f"{place}.ego_from_camera")
        if "image_size_px" in camera:
            as_numbers(camera["image_size_px"], (2,), str(path), f"{place}.image_size_px")
    names = [_text(camera["name"], path, f"cameras[{n}].name") for n, camera in enumerate(cameras)]
    for n, name in enumerate(names):
        if name in names[:n]:
            raise InputError(path, f"cameras[{n}].name", f"'{name}' stands twice")
    sized = ["image_size_px" in camera for camera in cameras]
    if any(sized) and not all(sized):
        reason = "absent, though other cameras have it: give it for all of them or for none"
        raise InputError(path, f"cameras[{sized.index(False)}].image_size_px", reason)
    try:
        return Rig.from_ego(
            [camera["pixels_from_camera"] for camera in cameras],
            [camera["ego_from_camera"] for camera in cameras],
            content["ego_from_bev"],
            names,
            [camera["image_size_px"] for camera in cameras] if all(sized) else None,
        )
    except InputError as error:
        raise InputError(path, error.field, error.reason) from None


def rig_content(rig: Rig) -> dict[str, Any]:
    """What a ``rig.json`` of a rig holds: plain values, as ``json.dumps`` takes them."""
    columns = zip(rig.names, rig.pixels_from_camera, rig.ego_from_camera, strict=True)
    cameras = [
        {"name": name, "pixels_from_camera": intrinsics.tolist(), "ego_from_camera": mount.tolist()}
        for name, intrinsics, mount in columns
    ]
    if rig.image_size_px is not None:
        for camera, size in zip(cameras, rig.image_size_px.tolist(), strict=True):
            camera["image_size_px"] = size
    return {"ego_from_bev": rig.ego_from_bev.tolist(), "cameras": cameras}


def read_poses(path: str | os.PathLike, folder: Path) -> list[MomentRecord]:
    """The moments of a ``poses.json``, in its order.

    Args:
        path: the file.
        folder: what names of images in it begin from.

    Raises:
        InputError: an absent, unknown or mistaken part, by its place in the file.
    """
    content = _object(read_json(path, "--poses"), ("moments",), ("moments",), path, "")
    if not isinstance(content["moments"], list) or not content["moments"]:
        raise InputError(path, "moments", "is no list of moments")
    records = [
        moment_record(moment, folder, f"{n:06d}", (str(path), f"moments[{n}]"))
        for n, moment in enumerate(content["moments"])
    ]
    require_names(records)
    return records


def require_names(records: Sequence[MomentRecord]) -> None:
    """Refuse two moments of one name: the results of one would take the other's place."""
    seen: set[str] = set()
    for record in records:
        if record.name in seen:
            raise InputError(record.place[0], f"{record.place[1]}.name", f"'{record.name}' stands twice")
        seen.add(record.name)


def moment_record(value: Any, folder: Path, name: str, place: tuple[str, str]) -> MomentRecord:
    """A moment from its JSON object.

    Args:
        value: the object. folder: what names of images begin from. name: where the object has none.
        place: file and field, for messages.

    Raises:
        InputError: an unknown or mistaken part.
    """
    file, spot = place
    content = _object(value, MOMENT_KEYS, (), file, spot)
    images = content.get("images")
    if images is not None:
        if not isinstance(images, dict) or not images:
            raise InputError(file, f"{spot}.images", 'is no object of files by camera, as {"CAM_FRONT": "a.jpg"}')
        for camera, image in images.items():
            if image is not None:
                _text(image, file, f"{spot}.images.{camera}")
        images = {camera: folder / image for camera, image in images.items() if image is not None}
    pose, seconds = content.get("global_from_ego"), content.get("seconds")
    if (pose is None) != (seconds is None):
        absent = "seconds" if seconds is None else "global_from_ego"
        raise InputError(file, f"{spot}.{absent}", "absent: a pose goes with the time of it, and a time with the pose")
    return MomentRecord(
        name=_text(content.get("name", name), file, f"{spot}.name"),
        images=images,
        stream=str(content.get("stream", "")),
        seconds=None if seconds is None else float(as_numbers(seconds, (), file, f"{spot}.seconds")),
        global_from_ego=None if pose is None else as_poses(pose, (4, 4), file, f"{spot}.global_from_ego"),
        place=place,
    )


def moments_of(records: Iterable[MomentRecord], rig: Rig) -> Iterator[tuple[MomentRecord, Moment]]:
    """Each record with the moment that it stands for: the motion since the one before it in the same stream.

    Args:
        records: with images, in the order of time.
        rig: whose cameras they name.

    Raises:
        InputError: time does not go on, or a camera is named that the rig lacks; when that record is reached.
    """
    before: MomentRecord | None = None
    for record in records:
        file, spot = record.place
        images = record.images or {}
        for camera in images:
            if camera not in rig.names:
                raise InputError(
                    file, f"{spot}.images.{camera}", f"the rig has no such camera{_nearest(camera, rig.names)}"
                )
        motion = None
        if record.global_from_ego is not None:
            motion = Motion.start(record.global_from_ego @ rig.ego_from_bev)
            if before is not None and before.stream == record.stream and before.global_from_ego is not None:
                elapsed = (record.seconds or 0.0) - (before.seconds or 0.0)
                if elapsed <= 0:
                    reason = f"{record.seconds:g} is not after the moment before it in its stream ({before.seconds:g})"
                    raise InputError(file, f"{spot}.seconds", reason)
                motion = Motion.from_ego(before.global_from_ego, record.global_from_ego, rig.ego_from_bev, elapsed)
        before = record
        yield record, Moment([images.get(name) for name in rig.names], rig, motion)


def _object(value: Any, known: Sequence[str], needed: Sequence[str], file: str | os.PathLike, place: str) -> dict:
    """A JSON object with its needed keys and none that is not known."""
    if not isinstance(value, dict):
        raise InputError(file, place or "content", f"is no JSON object with {', '.join(known)}")
    before = f"{place}." if place else ""
    for key in value:
        if key not in known:
            hint = " (lens distortion is not undone here: undistort the images first)" if "distort" in key else ""
            raise InputError(file, f"{before}{key}", f"unknown{hint or _nearest(key, known)}")
    for key in needed:
        if key not in value:
            raise InputError(file, f"{before}{key}", "absent")
    return value


def _text(value: Any, file: str | os.PathLike, place: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(file, place, f"is no text: {value!r}")
    return value


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f"; nearest: {near[0]}" if near else f"; there are {', '.join(names)}"
