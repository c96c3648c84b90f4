"""The two styles of info files, read into one kind of record: field by field, whatever is wrong is named.

``infos``: what mmdet3d writes first (``create_nuscenes_infos``), and the published BEVFormer's
``nuscenes_infos_temporal_*.pkl``, which adds ``scene_token``, ``prev``, ``next`` and ``can_bus``. Quaternions,
microseconds, paths; the ego pose of every camera at its own time.

``data_list``: what mmdet3d 1.x trains on (``update_infos_to_v2``): matrices in float32, seconds, names of files without
folders; of the cameras' ego poses only what ``lidar2cam`` says of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from bevstack.datasets.nuscenes.info_pickles import read_info_pickle
from bevstack.errors import InputError
from bevstack.structures.rigid_arrays import rigid_inverse

_ROTATION_TOLERANCE = 1e-3
_SECONDS = 1e11  # larger times are microseconds since 1970


@dataclass(frozen=True)
class InfoCamera:
    """One camera of a sample.

    Args:
        path: of its image, relative to the root.
        timestamp_us: when it was taken.
        pixels_from_camera: (3, 3) float64.
        ego_from_camera: (4, 4) float64, its calibration.
        camera_from_lidar: (4, 4) float64, from the lidar at its time to the camera at its own.
        global_from_ego: (4, 4) float64 the ego car when the image was taken; None where the file does not say.
        place: where ``camera_from_lidar`` stands in the file.
    """

    path: str
    timestamp_us: int
    pixels_from_camera: np.ndarray
    ego_from_camera: np.ndarray
    camera_from_lidar: np.ndarray
    global_from_ego: np.ndarray | None
    place: str


@dataclass(frozen=True)
class InfoSample:
    """One sample of an info file, G boxes as they stand there.

    Args:
        token: of the sample. place: where it stands in the file.
        scene_token: of its scene, "" where the file does not say. previous: token of the sample before, None likewise.
        timestamp_us: of the sample.
        lidar_path: relative to the root. lidar_sweeps: how many older sweeps the file lists.
        ego_from_lidar, global_from_ego: (4, 4) float64, the latter at the lidar's time.
        cameras: by channel.
        boxes: (G, 7) float64 in the lidar's frame: centre, three sizes, yaw, by the file's convention.
        names: G.
        velocity: (G, 2) m/s in the lidar's axes, NaN where unknown.
        num_lidar_pts, num_radar_pts: (G,) int64.
        can_bus: (18,) of the published BEVFormer, None without one.
    """

    token: str
    place: str
    scene_token: str
    previous: str | None
    timestamp_us: int
    lidar_path: str
    lidar_sweeps: int
    ego_from_lidar: np.ndarray
    global_from_ego: np.ndarray
    cameras: Mapping[str, InfoCamera]
    boxes: np.ndarray
    names: Sequence[str]
    velocity: np.ndarray
    num_lidar_pts: np.ndarray
    num_radar_pts: np.ndarray
    can_bus: np.ndarray | None

    @property
    def global_from_lidar(self) -> np.ndarray:
        """(4, 4) float64."""
        return self.global_from_ego @ self.ego_from_lidar


@dataclass(frozen=True)
class InfoFile:
    """An info file: ``style`` is "infos" or "data_list", ``version`` that of the tables it was made from."""

    path: Path
    style: str
    version: str
    samples: Sequence[InfoSample]


def read_info_file(path: str | Path) -> InfoFile:
    """Read an info file of either style.

    Raises:
        InputError: see :func:`bevstack.datasets.nuscenes.info_pickles.read_info_pickle`; or it is no info file, a field
            is missing, has another shape, is not finite or no rigid transform, or a path leads out of the root.
    """
    path = Path(path)
    content = read_info_pickle(path)
    if isinstance(content, Mapping):
        for style, heading, read in (("infos", "metadata", _of_infos), ("data_list", "metainfo", _of_data_list)):
            if isinstance(content.get(style), list):
                about: Any = content.get(heading)
                about = about if isinstance(about, Mapping) else {}
                rows = [_Row(path, f"{style}[{n}]", record) for n, record in enumerate(content[style])]
                if not rows:
                    raise InputError(path, style, "holds no sample")
                version = about.get("version")
                samples = [read(row, about) for row in rows]
                return InfoFile(path, style, version if isinstance(version, str) else "", samples)
    reason = "is no info file of nuScenes: neither 'infos' (mmdet3d 0.x, BEVFormer) nor 'data_list' (mmdet3d 1.x)"
    raise InputError(path, "content", reason)


class _Row:
    """A record of an info file that says where it stands."""

    def __init__(self, path: Path, place: str, record: Any) -> None:
        self.path, self.place = path, place
        if not isinstance(record, Mapping):
            raise InputError(path, place, f"must be a record, not {type(record).__name__}")
        self.record = record

    def fail(self, field: str, reason: str) -> InputError:
        return InputError(self.path, f"{self.place}.{field}", reason)

    def value(self, field: str) -> Any:
        if self.record.get(field) is None:
            raise self.fail(field, "is missing")
        return self.record[field]

    def inside(self, field: str) -> _Row:
        return _Row(self.path, f"{self.place}.{field}", self.value(field))

    def text(self, field: str) -> str:
        value = self.value(field)
        if not isinstance(value, str) or not value or not value.isprintable():
            raise self.fail(field, f"must be a text, not {value!r:.60}")
        return str(value)

    def numbers(self, field: str, *shape: int, finite: bool = True) -> np.ndarray:
        """float64 of a shape in which -1 is any length."""
        value = self.value(field)
        try:
            array = np.array(value, dtype=np.float64)
        except (TypeError, ValueError):
            raise self.fail(field, "must be numbers") from None
        if array.size == 0 and -1 in shape:
            array = array.reshape([0 if n == -1 else n for n in shape])
        if array.ndim != len(shape) or any(n not in (-1, m) for n, m in zip(shape, array.shape, strict=True)):
            raise self.fail(field, f"has the shape {array.shape}, not {shape}")
        if finite and not np.isfinite(array).all():
            raise self.fail(field, "is not finite")
        return array

    def microseconds(self, field: str = "timestamp") -> int:
        value = float(self.numbers(field))
        return round(value if value > _SECONDS else value * 1e6)

    def pose(self, name: str) -> np.ndarray:
        """(4, 4) of ``<name>_rotation`` (w, x, y, z) and ``<name>_translation``."""
        quaternion, matrix = self.numbers(f"{name}_rotation", 4), np.eye(4)
        if abs(np.linalg.norm(quaternion) - 1) > _ROTATION_TOLERANCE:
            raise self.fail(f"{name}_rotation", "is no unit quaternion (w, x, y, z)")
        matrix[:3, :3] = Rotation.from_quat(quaternion[[1, 2, 3, 0]]).as_matrix()
        matrix[:3, 3] = self.numbers(f"{name}_translation", 3)
        return matrix

    def rigid(self, field: str) -> np.ndarray:
        """(4, 4) rigid transform, its rotation made orthonormal again after float32."""
        return self.rigid_of(field, self.numbers(field, 4, 4))

    def rigid_of(self, field: str, matrix: np.ndarray) -> np.ndarray:
        rotation = matrix[:3, :3]
        left, _, right = np.linalg.svd(rotation)
        nearest = left @ right
        last = np.abs(matrix[3] - (0, 0, 0, 1)).max()
        if np.abs(nearest - rotation).max() > _ROTATION_TOLERANCE or last > 1e-6 or np.linalg.det(nearest) < 0:
            raise self.fail(field, "is no rigid transform")
        whole = np.eye(4)
        whole[:3, :3], whole[:3, 3] = nearest, matrix[:3, 3]
        return whole

    def file(self, field: str, folder: str) -> str:
        """A file relative to the root: from ``samples/`` or ``sweeps/`` on, or by its bare name in ``folder``."""
        name = self.text(field).replace("\\", "/")
        found = re.search(r"(?:^|/)((?:samples|sweeps)/.+)$", name)
        if found is None and "/" in name:
            raise self.fail(field, f"{name} lies neither in samples/ nor in sweeps/")
        name = f"samples/{folder}/{name}" if found is None else found.group(1)
        if ".." in name.split("/"):
            raise self.fail(field, f"{name} leads out of the root")
        return name


def _of_infos(row: _Row, about: Mapping[str, Any]) -> InfoSample:
    cams = row.inside("cams")
    cameras = {}
    for channel in cams.record:
        camera = cams.inside(channel)
        lidar_from_camera = np.eye(4)
        lidar_from_camera[:3, :3] = camera.numbers("sensor2lidar_rotation", 3, 3)
        lidar_from_camera[:3, 3] = camera.numbers("sensor2lidar_translation", 3)
        cameras[str(channel)] = InfoCamera(
            path=camera.file("data_path", str(channel)),
            timestamp_us=camera.microseconds(),
            pixels_from_camera=camera.numbers("cam_intrinsic", 3, 3),
            ego_from_camera=camera.pose("sensor2ego"),
            camera_from_lidar=rigid_inverse(camera.rigid_of("sensor2lidar_rotation", lidar_from_camera)),
            global_from_ego=camera.pose("ego2global"),
            place=f"{camera.place}.sensor2lidar",
        )
    boxes = row.numbers("gt_boxes", -1, 7) if "gt_boxes" in row.record else np.zeros((0, 7))
    count = len(boxes)
    names = [str(name) for name in row.value("gt_names")] if "gt_boxes" in row.record else []
    if len(names) != count:
        raise row.fail("gt_names", f"{len(names)} names of {count} boxes")
    return InfoSample(
        **_place_in_time(row),
        lidar_path=row.file("lidar_path", "LIDAR_TOP"),
        lidar_sweeps=len(row.record.get("sweeps") or ()),
        ego_from_lidar=row.pose("lidar2ego"),
        global_from_ego=row.pose("ego2global"),
        cameras=cameras,
        boxes=boxes,
        names=names,
        velocity=row.numbers("gt_velocity", count, 2, finite=False) if count else np.zeros((0, 2)),
        num_lidar_pts=_counts(row, "num_lidar_pts", count),
        num_radar_pts=_counts(row, "num_radar_pts", count),
        can_bus=row.numbers("can_bus", 18) if row.record.get("can_bus") is not None else None,
    )


def _place_in_time(row: _Row) -> dict[str, Any]:
    """What both kinds of files say alike of a sample: its names, and when it was."""
    return dict(
        token=row.text("token"),
        place=row.place,
        scene_token=row.text("scene_token") if row.record.get("scene_token") else "",
        previous=row.record["prev"] if isinstance(row.record.get("prev"), str) else None,
        timestamp_us=row.microseconds(),
    )


def _counts(row: _Row, field: str, count: int) -> np.ndarray:
    return row.numbers(field, count).astype(np.int64) if count else np.zeros(0, dtype=np.int64)


def _of_data_list(row: _Row, about: Mapping[str, Any]) -> InfoSample:
    lidar, images = row.inside("lidar_points"), row.inside("images")
    cameras = {}
    for channel, image in images.record.items():
        if not isinstance(image, Mapping) or image.get("img_path") is None:
            continue  # mmdet3d's empty places of other datasets' cameras
        camera = images.inside(channel)
        cameras[str(channel)] = InfoCamera(
            path=camera.file("img_path", str(channel)),
            timestamp_us=camera.microseconds() if camera.record.get("timestamp") else row.microseconds(),
            pixels_from_camera=camera.numbers("cam2img", 3, 3),
            ego_from_camera=camera.rigid("cam2ego"),
            camera_from_lidar=camera.rigid("lidar2cam"),
            global_from_ego=None,
            place=f"{camera.place}.lidar2cam",
        )
    boxes = [_Row(row.path, f"{row.place}.instances[{n}]", b) for n, b in enumerate(row.record.get("instances") or ())]
    names = _names_of_labels(row, about)
    labels = [int(box.numbers("bbox_label_3d")) for box in boxes]
    for box, label in zip(boxes, labels, strict=True):
        if label not in names:
            raise box.fail("bbox_label_3d", f"{label} is no label of metainfo.categories")
    velocity = [
        box.numbers("velocity", 2, finite=False) if box.record.get("velocity") is not None else np.full(2, np.nan)
        for box in boxes
    ]
    return InfoSample(
        **_place_in_time(row),
        lidar_path=lidar.file("lidar_path", "LIDAR_TOP"),
        lidar_sweeps=len(row.record.get("lidar_sweeps") or ()),
        ego_from_lidar=lidar.rigid("lidar2ego"),
        global_from_ego=row.rigid("ego2global"),
        cameras=cameras,
        boxes=np.array([box.numbers("bbox_3d", 7) for box in boxes]).reshape(-1, 7),
        names=[names[label] for label in labels],
        velocity=np.array(velocity, dtype=np.float64).reshape(-1, 2),
        num_lidar_pts=np.array([_count(box, "num_lidar_pts") for box in boxes], dtype=np.int64),
        num_radar_pts=np.array([_count(box, "num_radar_pts") for box in boxes], dtype=np.int64),
        can_bus=None,
    )


def _count(box: _Row, field: str) -> int:
    return int(box.numbers(field)) if box.record.get(field) is not None else 0


def _names_of_labels(row: _Row, about: Mapping[str, Any]) -> dict[int, str]:
    """Class of each label; -1 stands for categories whose names the file has dropped."""
    categories = about.get("categories")
    if not isinstance(categories, Mapping) or not all(isinstance(n, (int, np.integer)) for n in categories.values()):
        raise InputError(row.path, "metainfo.categories", "is missing, or no class -> label: which class is label 0?")
    names = {int(label): str(name) for name, label in categories.items() if int(label) >= 0}
    others = sorted(str(name) for name, label in categories.items() if int(label) < 0)
    return {**names, -1: others[0] if len(others) == 1 else "other"}
