"""A tiny nuScenes root, tables only: two scenes of three samples, level poses, moving boxes of four classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

VERSION, SPLIT = "v1.0-tiny", "tiny_val"
CATEGORIES = ("vehicle.car", "human.pedestrian.adult", "movable_object.barrier", "vehicle.bicycle", "animal")
ATTRIBUTES = ("vehicle.moving", "pedestrian.standing", "cycle.with_rider")
_ATTRIBUTE_OF = {"vehicle.car": 0, "human.pedestrian.adult": 1, "vehicle.bicycle": 2}
_SIZES = {
    "vehicle.car": (1.9, 4.6, 1.7),
    "human.pedestrian.adult": (0.7, 0.7, 1.8),
    "movable_object.barrier": (2.0, 0.5, 1.0),
    "vehicle.bicycle": (0.6, 1.8, 1.4),
    "animal": (0.3, 0.8, 0.6),
}


def _yaw(angle: float) -> list[float]:
    return [float(np.cos(angle / 2)), 0.0, 0.0, float(np.sin(angle / 2))]


def write_root(root: Path, seed: int = 0) -> Path:
    """Write the tables and an empty map mask; returns ``root``."""
    import cv2

    rng = np.random.default_rng(seed)
    tables: dict[str, list[dict]] = {
        "category": [{"token": name, "name": name, "description": ""} for name in CATEGORIES],
        "attribute": [{"token": name, "name": name, "description": ""} for name in ATTRIBUTES],
        "visibility": [{"token": "4", "level": "v80-100", "description": ""}],
        "sensor": [{"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"}],
        "calibrated_sensor": [
            {
                "token": "calibration", "sensor_token": "lidar", "translation": [0.9, 0.0, 1.8],
                "rotation": _yaw(-np.pi / 2), "camera_intrinsic": [],
            }
        ],
        "log": [{"token": "log", "logfile": "log", "vehicle": "", "date_captured": "2020-01-01", "location": "here"}],
        "map": [{"token": "map", "log_tokens": ["log"], "category": "semantic_prior", "filename": "maps/mask.png"}],
        "instance": [], "ego_pose": [], "scene": [], "sample": [], "sample_data": [], "sample_annotation": [],
    }  # fmt: skip
    for scene in range(2):
        name = f"tiny-{scene}"
        samples = [f"{name}-{moment}" for moment in range(3)]
        tables["scene"].append(
            {
                "token": name, "name": name, "description": "", "log_token": "log", "nbr_samples": 3,
                "first_sample_token": samples[0], "last_sample_token": samples[-1],
            }
        )  # fmt: skip
        tracks = [(CATEGORIES[i % 5], *rng.uniform(-38, 38, 2), *rng.uniform(-2, 2, 2)) for i in range(12)]
        for moment, token in enumerate(samples):
            stamp = 1_600_000_000_000_000 + scene * 60_000_000 + moment * 500_000
            neighbours = {
                "prev": samples[moment - 1] if moment else "",
                "next": samples[moment + 1] if moment < 2 else "",
            }
            ego = np.array([100.0 * scene + 2 * moment, 50.0 + moment, 0.0])
            tables["ego_pose"].append(
                {"token": token, "timestamp": stamp, "rotation": _yaw(0.7), "translation": ego.tolist()}
            )
            tables["sample"].append({"token": token, "timestamp": stamp, "scene_token": name, **neighbours})
            tables["sample_data"].append(
                {
                    "token": f"{token}-lidar", "sample_token": token, "ego_pose_token": token, "timestamp": stamp,
                    "calibrated_sensor_token": "calibration", "fileformat": "pcd", "is_key_frame": True, "height": 0,
                    "width": 0, "filename": f"samples/LIDAR_TOP/{token}.bin",
                    **{side: f"{other}-lidar" if other else "" for side, other in neighbours.items()},
                }
            )  # fmt: skip
            for track, (category, x, y, vx, vy) in enumerate(tracks):
                at_rest = category == "movable_object.barrier"
                shift = np.zeros(2) if at_rest else np.array([vx, vy]) * 0.5 * moment
                tables["sample_annotation"].append(
                    {
                        "token": f"{token}-{track}", "sample_token": token, "instance_token": f"{name}-{track}",
                        "visibility_token": "4", "size": list(_SIZES[category]), "rotation": _yaw(float(track)),
                        "attribute_tokens": [ATTRIBUTES[_ATTRIBUTE_OF[category]]] if category in _ATTRIBUTE_OF else [],
                        "translation": [float(ego[0] + x + shift[0]), float(ego[1] + y + shift[1]), 0.8],
                        "num_lidar_pts": 5, "num_radar_pts": 0,
                        **{side: f"{other}-{track}" if other else "" for side, other in neighbours.items()},
                    }
                )  # fmt: skip
        for track, (category, *_) in enumerate(tracks):
            tables["instance"].append(
                {
                    "token": f"{name}-{track}", "category_token": category, "nbr_annotations": 3,
                    "first_annotation_token": f"{samples[0]}-{track}",
                    "last_annotation_token": f"{samples[-1]}-{track}",
                }
            )  # fmt: skip
    folder = root / VERSION
    folder.mkdir(parents=True)
    for table, records in tables.items():
        (folder / f"{table}.json").write_text(json.dumps(records))
    (folder / "splits.json").write_text(json.dumps({SPLIT: ["tiny-0", "tiny-1"], "one": ["tiny-1"], "nobody": []}))
    (root / "maps").mkdir()
    cv2.imwrite(str(root / "maps" / "mask.png"), np.zeros((8, 8), np.uint8))
    return root
