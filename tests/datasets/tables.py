"""A tiny, valid nuScenes root for tests: two scenes, six small cameras, boxes, splits, a map and a CAN bus if asked.

World of scene-0001 (4 samples, 0.5 s apart, 4 m/s along global +x): the ego stands at (100 + 2 k, 200, 0) at sample k,
heading along +x. LIDAR_TOP sits 1 m ahead and 1.8 m up, y forward: BEV x = right = global -y, BEV y = global x.
scene-0003 (3 samples) turns left by 10 degrees a sample on the spot at (150, 250).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

VERSION = "v1.0-tiny"
LOCATION = "singapore-onenorth"
CAMERAS = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
CAMERA_YAW_DEG = (0.0, -55.0, 55.0, 180.0, 110.0, -110.0)
IMAGE_SIZE_PX = (36, 64)
LIDAR_OFFSET = (1.0, 0.0, 1.8)
START_US = 1_600_000_000_000_000
CATEGORIES = ("vehicle.car", "human.pedestrian.adult", "movable_object.barrier", "animal")
ATTRIBUTES = ("vehicle.moving", "vehicle.parked", "pedestrian.moving")


def quaternion(yaw: float) -> list[float]:
    """(w, x, y, z) of a turn about z."""
    return [math.cos(yaw / 2), 0.0, 0.0, math.sin(yaw / 2)]


def _multiply(a: list[float], b: list[float]) -> list[float]:
    (aw, ax, ay, az), (bw, bx, by, bz) = a, b
    return [
        aw * bw - ax * bx - ay * by - az * bz,
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
    ]


def _ego(scene: int, k: int) -> tuple[list[float], float]:
    return ([100.0 + 2 * k, 200.0, 0.0], 0.0) if scene == 0 else ([150.0, 250.0, 0.0], math.radians(10.0 * k))


# instance: (category, scene, positions by sample or None where it is not annotated, size w l h, yaw, attribute, points)
INSTANCES = (
    ("vehicle.car", 0, [(110.0 + 3 * k, 196.0, 1.0) for k in range(4)], (2.0, 4.5, 1.6), 0.0, "vehicle.moving", 9),
    ("human.pedestrian.adult", 0, [(105.0, 205.0 - k, 0.9) for k in range(4)], (0.6, 0.7, 1.8), -1.5, "", 0),
    ("movable_object.barrier", 0, [None, (120.0, 201.0, 0.5), None, None], (2.0, 0.5, 1.0), 0.3, "", 4),
    ("animal", 0, [(103.0, 203.0, 0.3)] * 4, (0.4, 0.9, 0.6), 0.0, "", 3),
    ("vehicle.car", 1, [(150.0, 260.0, 0.8)] * 3, (1.9, 4.2, 1.5), 1.0, "vehicle.parked", 7),
)


def build_root(root: Path, maps: bool = False, can_bus: bool = False, sample_counts: tuple[int, int] = (4, 3)) -> Path:
    """Write the root and return it; ``sample_counts`` above (4, 3) add samples without boxes."""
    tables: dict[str, list[dict]] = {name: [] for name in ("sample", "sample_data", "ego_pose", "sample_annotation")}
    names = ("scene-0001", "scene-0003")
    tables["log"] = [
        {"token": "log0", "logfile": "n000", "vehicle": "n000", "date_captured": "2020-09-13", "location": LOCATION}
    ]
    tables["map"] = [{"token": "map0", "category": "semantic_prior", "filename": "maps/m.png", "log_tokens": ["log0"]}]
    tables["category"] = [{"token": f"cat{i}", "name": n, "description": ""} for i, n in enumerate(CATEGORIES)]
    tables["attribute"] = [{"token": f"att{i}", "name": n, "description": ""} for i, n in enumerate(ATTRIBUTES)]
    tables["visibility"] = [{"token": str(i), "level": f"v{i}", "description": ""} for i in range(1, 5)]
    channels = [*CAMERAS, "LIDAR_TOP"]
    tables["sensor"] = [
        {"token": f"sen{c}", "channel": c, "modality": "camera" if c.startswith("CAM") else "lidar"} for c in channels
    ]
    tables["calibrated_sensor"] = [_calibration(channel) for channel in channels]
    tables["scene"] = [
        {
            "token": f"scene{s}",
            "log_token": "log0",
            "nbr_samples": n,
            "name": names[s],
            "description": "",
            "first_sample_token": f"s{s}k0",
            "last_sample_token": f"s{s}k{n - 1}",
        }
        for s, n in enumerate(sample_counts)
    ]
    for s, count in enumerate(sample_counts):
        for k in range(count):
            _add_sample(root, tables, s, k, count)
    tables["instance"] = []
    for i, instance in enumerate(INSTANCES):
        _add_instance(tables, i, *instance)
    folder = root / VERSION
    folder.mkdir(parents=True)
    for name, records in tables.items():
        write_json(folder / f"{name}.json", records)
    write_json(folder / "splits.json", {"tiny_train": ["scene-0001"], "tiny_val": ["scene-0003"]})
    (root / "maps").mkdir()
    cv2.imwrite(str(root / "maps" / "m.png"), np.zeros((8, 8), np.uint8))
    if maps:
        write_map(root)
    if can_bus:
        write_can_bus(root, names[0], sample_counts[0])
    return root


def _calibration(channel: str) -> dict:
    if channel == "LIDAR_TOP":
        rotation, translation, intrinsic = quaternion(-math.pi / 2), list(LIDAR_OFFSET), []
    else:
        # Camera axes (x right, y down, z forward) in ego axes, then the camera's heading.
        rotation = _multiply(quaternion(math.radians(CAMERA_YAW_DEG[CAMERAS.index(channel)])), [0.5, -0.5, 0.5, -0.5])
        translation, intrinsic = [1.5, 0.0, 1.5], [[40.0, 0.0, 32.0], [0.0, 40.0, 18.0], [0.0, 0.0, 1.0]]
    record = {"token": f"cal{channel}", "sensor_token": f"sen{channel}", "camera_intrinsic": intrinsic}
    return {**record, "rotation": rotation, "translation": translation}


def _add_sample(root: Path, tables: dict, s: int, k: int, count: int) -> None:
    time_us = START_US + s * 100_000_000 + k * 500_000
    token = f"s{s}k{k}"
    tables["sample"].append(
        {
            "token": token,
            "timestamp": time_us,
            "scene_token": f"scene{s}",
            "prev": f"s{s}k{k - 1}" if k else "",
            "next": f"s{s}k{k + 1}" if k + 1 < count else "",
        }
    )
    position, yaw = _ego(s, k)
    for channel in (*CAMERAS, "LIDAR_TOP"):
        camera = channel != "LIDAR_TOP"
        suffix = "jpg" if camera else "pcd.bin"
        path = f"samples/{channel}/{token}.{suffix}"
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if camera:
            image = np.full((*IMAGE_SIZE_PX, 3), 40 + 20 * k + CAMERAS.index(channel), np.uint8)
            cv2.imwrite(str(file), image)
        else:
            np.zeros((4, 5), np.float32).tofile(file)
        size = IMAGE_SIZE_PX if camera else (0, 0)
        tables["ego_pose"].append(
            {"token": f"p{token}{channel}", "timestamp": time_us, "translation": position, "rotation": quaternion(yaw)}
        )
        tables["sample_data"].append(
            {
                "token": f"d{token}{channel}",
                "sample_token": token,
                "ego_pose_token": f"p{token}{channel}",
                "calibrated_sensor_token": f"cal{channel}",
                "timestamp": time_us,
                "fileformat": suffix[:3],
                "is_key_frame": True,
                "height": size[0],
                "width": size[1],
                "filename": path,
                "prev": "",
                "next": "",
            }
        )


def _add_instance(tables: dict, i: int, category, s, positions, size, yaw, attribute, points) -> None:
    there = [k for k, position in enumerate(positions) if position is not None]
    record = {"token": f"ins{i}", "category_token": f"cat{CATEGORIES.index(category)}", "nbr_annotations": len(there)}
    tables["instance"].append(
        {**record, "first_annotation_token": f"a{i}k{there[0]}", "last_annotation_token": f"a{i}k{there[-1]}"}
    )
    for k in there:
        tables["sample_annotation"].append(
            {
                "token": f"a{i}k{k}",
                "sample_token": f"s{s}k{k}",
                "instance_token": f"ins{i}",
                "visibility_token": "4",
                "attribute_tokens": [f"att{ATTRIBUTES.index(attribute)}"] if attribute else [],
                "translation": list(positions[k]),
                "size": list(size),
                "rotation": quaternion(yaw),
                "prev": f"a{i}k{k - 1}" if k - 1 in there else "",
                "next": f"a{i}k{k + 1}" if k + 1 in there else "",
                "num_lidar_pts": points,
                "num_radar_pts": 0,
            }
        )


def write_json(path: Path, content: object) -> None:
    """Write JSON, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_table(root: Path, table: str, edit: Callable[[list[dict]], object]) -> Path:
    """Change a table in place (``edit`` may also return new content) and return its file."""
    path = root / VERSION / f"{table}.json"
    records = json.loads(path.read_text(encoding="utf-8"))
    changed = edit(records)
    path.write_text(json.dumps(records if changed is None else changed), encoding="utf-8")
    return path


def write_can_bus(root: Path, scene: str, count: int) -> None:
    """Pose messages at 10 Hz from 0.05 s before the first sample; acceleration x is the message's number."""
    first = START_US - 50_000
    messages = [
        {
            "utime": first + 100_000 * m,
            "accel": [float(m), 0.1, 9.8],
            "rotation_rate": [0.0, 0.0, 0.01],
            "vel": [4.0, 0.0, 0.0],
            "orientation": [1.0, 0.0, 0.0, 0.0],
            "pos": [0.0, 0.0, 0.0],
        }
        for m in range(5 * count)
    ]
    write_json(root / "can_bus" / f"{scene}_pose.json", messages)


# Polygons of the tiny map, global metres; the walkway has a hole.
MAP_POLYGONS = {
    "drivable_area": ([(60.0, 190.0), (160.0, 190.0), (160.0, 210.0), (60.0, 210.0)], []),
    "ped_crossing": ([(130.0, 190.0), (136.0, 190.0), (136.0, 210.0), (130.0, 210.0)], []),
    "walkway": (
        [(60.0, 210.0), (160.0, 210.0), (160.0, 222.0), (60.0, 222.0)],
        [[(90.0, 213.0), (100.0, 213.0), (100.0, 219.0), (90.0, 219.0)]],
    ),
    "stop_line": ([(126.0, 200.0), (128.0, 200.0), (128.0, 210.0), (126.0, 210.0)], []),
    "carpark_area": ([(110.0, 170.0), (125.0, 175.0), (121.0, 188.0), (106.0, 183.0)], []),
}
MAP_LINES = {"road_divider": [(60.0, 200.0), (126.0, 200.0)], "lane_divider": [(60.0, 205.0), (120.0, 206.0)]}


def write_map(root: Path, location: str = LOCATION) -> None:
    """A map expansion of one polygon or line a layer, as the devkit's map API reads it."""
    nodes: list[dict] = []

    def node_tokens(points: list[tuple[float, float]]) -> list[str]:
        tokens = [f"n{len(nodes) + i}" for i in range(len(points))]
        nodes.extend({"token": token, "x": x, "y": y} for token, (x, y) in zip(tokens, points, strict=True))
        return tokens

    layers = ("road_segment", "road_block", "lane", "lane_connector", "traffic_light")
    content: dict = {"version": "1.3", "canvas_edge": [300.0, 300.0], **{layer: [] for layer in layers}}
    content |= {"polygon": [], "line": [], "node": nodes, "arcline_path_3": {}, "connectivity": {}}
    for layer, (exterior, holes) in MAP_POLYGONS.items():
        token = f"polygon-{layer}"
        rings = [{"node_tokens": node_tokens(hole)} for hole in holes]
        content["polygon"].append({"token": token, "exterior_node_tokens": node_tokens(exterior), "holes": rings})
        record = {"token": layer, "polygon_token": token, "polygon_tokens": [token], "stop_line_type": "STOP_SIGN"}
        content[layer] = [record]
    for layer, points in MAP_LINES.items():
        token = f"line-{layer}"
        content["line"].append({"token": token, "node_tokens": node_tokens(points)})
        content[layer] = [{"token": layer, "line_token": token}]
    write_json(root / "maps" / "expansion" / f"{location}.json", content)
