"""``tools/convert_calibration.py``: ``rig.json`` and ``poses.json`` of nuScenes' and T4's tables, and of KITTI's files.

A page to copy from where another format is at hand: all that is needed are the two matrices of each camera.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bevstack.engine.arguments import convert_calibration_parser
from bevstack.engine.result_files import write_json
from bevstack.engine.rig_file import read_json, rig_content
from bevstack.errors import InputError
from bevstack.structures.moment import Rig
from bevstack.structures.rigid_arrays import rigid_inverse

CAMERA_ORDER = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
"""The cameras in the order that models of nuScenes learned; others come after them, by name."""
BEV_AXES = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])
"""Rotation of ``ego_from_bev`` where the BEV frame is as nuScenes' lidar: x right, y forward, z up."""
BEV_HEIGHT_M = 1.84
"""Of nuScenes' BEV frame above the ground."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ``rig.json``, and of tables ``poses.json``, to a folder; one line on what was written.

    Raises:
        InputError: the tables or the calibration cannot be read, or lack something.
    """
    args = convert_calibration_parser().parse_args(arguments)
    moments: list[dict[str, Any]]
    if args.kind == "kitti":
        rig, moments = rig_of_kitti(args.source, args.cameras or ["P2"], args.lidar_height), []
    else:
        tables = args.source / ("annotation" if args.kind == "t4" else args.version)
        rig, moments = read_scene(tables, args.scene, args.bev or ("lidar" if args.kind == "nuscenes" else "nuscenes"))
    write_json(args.out / "rig.json", rig_content(rig))
    if moments:
        write_json(args.out / "poses.json", {"moments": moments})
    poses = f", {len(moments)} moments in {args.out / 'poses.json'}" if moments else ""
    print(f"{len(rig)} camera(s) in {args.out / 'rig.json'}{poses}")
    return 0


def read_scene(tables: Path, scene: str | None = None, bev: str = "lidar") -> tuple[Rig, list[dict[str, Any]]]:
    """The rig and the moments of one scene of tables as nuScenes and T4 have them.

    The cameras' mounts are those of the calibration; that each camera takes its image some milliseconds before or
    after the lidar, which the datasets here take into account, is left out.

    Args:
        tables: the folder of ``sample_data.json`` and the others.
        scene: its name; the first one where not given.
        bev: "lidar": the BEV frame is that of the first lidar; "nuscenes": at its place, x right and y forward.

    Returns:
        The rig, and for each keyframe what ``poses.json`` says of it; images as the tables name them.

    Raises:
        InputError: a table or an entry of it is missing.
    """
    names = ("scene", "sample", "sample_data", "sensor", "calibrated_sensor", "ego_pose")
    rows = {name: read_json(tables / f"{name}.json", name) for name in names}
    try:
        by_token = {name: {row["token"]: row for row in rows[name]} for name in names}
        chosen = next((row for row in rows["scene"] if scene in (None, row["name"])), None)
        if chosen is None:
            known = ", ".join(row["name"] for row in rows["scene"][:5])
            raise InputError(tables / "scene.json", "--scene", f"no scene '{scene}'; there are {known} ...")
        keyframes: dict[str, dict[str, Any]] = {}
        for row in rows["sample_data"]:
            sensor = by_token["sensor"][by_token["calibrated_sensor"][row["calibrated_sensor_token"]]["sensor_token"]]
            if row["is_key_frame"]:
                keyframes.setdefault(row["sample_token"], {})[sensor["channel"]] = row
        samples = [row for row in rows["sample"] if row["scene_token"] == chosen["token"]]
        samples.sort(key=lambda row: row["timestamp"])
        rig = _rig_of(keyframes[samples[0]["token"]], by_token, bev)
        lidar = _lidar_of(keyframes[samples[0]["token"]])
        moments = []
        for sample in samples:
            data = keyframes[sample["token"]]
            pose = by_token["ego_pose"][data[lidar]["ego_pose_token"]]
            images = {camera: data[camera]["filename"] for camera in rig.names if camera in data}
            moments.append(
                {
                    "name": sample["token"],
                    "stream": chosen["name"],
                    "seconds": sample["timestamp"] / 1e6,
                    "global_from_ego": _pose_of(pose).tolist(),
                    "images": images,
                }
            )
    except (KeyError, IndexError, TypeError) as error:
        raise InputError(tables, "tables", f"lack {error}") from error
    return rig, moments


def _lidar_of(data: dict[str, Any]) -> str:
    """The lidar whose place is the BEV frame's: LIDAR_TOP, or the first by name."""
    lidars = sorted(channel for channel in data if channel.startswith("LIDAR"))
    return "LIDAR_TOP" if "LIDAR_TOP" in lidars else lidars[0]


def _rig_of(data: dict[str, Any], by_token: dict[str, dict], bev: str) -> Rig:
    mounts = {name: by_token["calibrated_sensor"][row["calibrated_sensor_token"]] for name, row in data.items()}
    order = {name: place for place, name in enumerate(CAMERA_ORDER)}
    cameras = sorted((n for n in data if n.startswith("CAM")), key=lambda name: (order.get(name, len(order)), name))
    for name in cameras:
        if np.any(mounts[name].get("camera_distortion") or 0):
            print(f"note: the lens distortion of {name} is left out: undistort its images", file=sys.stderr)
    ego_from_bev = _pose_of(mounts[_lidar_of(data)])
    if bev == "nuscenes":
        ego_from_bev[:3, :3] = BEV_AXES
    return Rig.from_ego(
        [mounts[name]["camera_intrinsic"] for name in cameras],
        [_pose_of(mounts[name]) for name in cameras],
        ego_from_bev,
        cameras,
        [[data[name]["height"], data[name]["width"]] for name in cameras],
    )


def _pose_of(row: dict[str, Any]) -> np.ndarray:
    """(4, 4): a row's ``rotation``, a quaternion (w, x, y, z), and ``translation`` in metres."""
    w, x, y, z = np.array(row["rotation"], float) / np.linalg.norm(row["rotation"])
    pose = np.eye(4)
    pose[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    pose[:3, 3] = row["translation"]
    return pose


def rig_of_kitti(path: Path, cameras: Sequence[str], lidar_height_m: float) -> Rig:
    """The rig of a calibration file of KITTI's object or odometry set.

    A projection ``P2`` is K (I | t) behind the rectification: t is where the camera stands beside the rectified one.
    The car's frame is put on the ground below the lidar, the BEV frame above it as high as nuScenes', x right.

    Args:
        path: lines of ``name: numbers``: P0 to P3, R0_rect or R_rect (where absent, none), and Tr_velo_to_cam,
            Tr_velo_cam or Tr.
        cameras: which projections.
        lidar_height_m: of the lidar above the ground.

    Raises:
        InputError: the file cannot be read, or lacks a matrix.
    """
    try:
        lines = [line.partition(":") for line in path.read_text(encoding="utf-8").splitlines()]
        found = {name.strip(): np.array(text.split(), float) for name, colon, text in lines if colon}
    except (OSError, ValueError) as error:
        raise InputError(path, "calibration", f"cannot be read: {error}") from error

    def matrix(*names: str, default: np.ndarray | None = None) -> np.ndarray:
        for name in names:
            if name in found and found[name].size in (9, 12):
                square = np.eye(4)
                square[:3, : found[name].size // 3] = found[name].reshape(3, -1)
                return square
        if default is None:
            raise InputError(path, names[0], "absent, or not 9 or 12 numbers")
        return default

    rectified_from_lidar = matrix("R0_rect", "R_rect", default=np.eye(4)) @ matrix(
        "Tr_velo_to_cam", "Tr_velo_cam", "Tr"
    )
    ego_from_lidar, ego_from_bev = np.eye(4), np.eye(4)
    ego_from_lidar[2, 3], ego_from_bev[2, 3], ego_from_bev[:3, :3] = lidar_height_m, BEV_HEIGHT_M, BEV_AXES
    intrinsics, mounts = [], []
    for name in cameras:
        projection, shift = matrix(name), np.eye(4)
        shift[:3, 3] = np.linalg.solve(projection[:3, :3], projection[:3, 3])
        intrinsics.append(projection[:3, :3])
        mounts.append(ego_from_lidar @ rigid_inverse(shift @ rectified_from_lidar))
    return Rig.from_ego(intrinsics, mounts, ego_from_bev, list(cameras))
