"""Steps through a scene's moments: fires the sensors, writes their files, and collects the rows of the tables."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass

import cv2
import numpy as np

from bevstack.synthetic.cameras import (
    CAMERA_NAMES,
    LIDAR_NAME,
    LIDAR_TRANSLATION,
    LIDAR_YAW,
    NATIVE_SIZE_PX,
    quaternion_of,
    yaw_matrix,
    yaw_quaternion,
)
from bevstack.synthetic.lidar import Lidar, count_points
from bevstack.synthetic.renderer import Renderer
from bevstack.synthetic.things import ThingStack
from bevstack.synthetic.traffic import Traffic

SCENE_TABLES = (
    "log",
    "scene",
    "sample",
    "calibrated_sensor",
    "ego_pose",
    "sample_data",
    "sample_annotation",
    "instance",
)
"""Tables that each scene adds rows to; the others are the same for every dataset."""

KEYFRAME_S = 0.5


SWEEP_HZ = 12


ANNOTATION_RANGE_M = 80.0


LEAST_SEEN_PX = 60  # of a 1600x900 image: what an annotator would find without a lidar point


JPEG_QUALITY = 88


@dataclass(frozen=True)
class SceneTask:
    """What one worker needs to make one scene. ``origin`` is the district's south-west corner on its location's map,
    metres; ``rare`` how many more there are of rare kinds (:func:`bevstack.synthetic.traffic.populate`)."""

    root: str
    index: int
    seed: int
    name: str
    location: str
    origin: tuple[float, float]
    condition: str
    frames: int
    image_size: tuple[int, int]
    sweeps: bool
    start_us: int
    rig: str = "sedan"
    rare: float = 0.0
    cameras: int = 6


def token_of(*names: object) -> str:
    """A 32-digit token from names: the same names give the same token."""
    return hashlib.md5("/".join(str(name) for name in names).encode(), usedforsecurity=False).hexdigest()


def visibility_level(seen_px: int, whole_px: int) -> str:
    """nuScenes' visibility token from visible and total outline pixels over all cameras: 1 (0-40 %) to 4 (80-100 %)."""
    share = seen_px / whole_px if whole_px else 0.0
    return "1" if share < 0.4 else "2" if share < 0.6 else "3" if share < 0.8 else "4"


class SceneRecorder:
    """Steps through the scene's moments and collects rows."""

    def __init__(
        self, task: SceneTask, traffic: Traffic, stack: ThingStack, renderer: Renderer, rng: np.random.Generator
    ) -> None:
        self.task, self.traffic, self.stack, self.renderer, self.rng = task, traffic, stack, renderer, rng
        self.lidar = Lidar()
        self.rows: dict[str, list] = {name: [] for name in SCENE_TABLES}
        self.calibrated: dict[str, str] = {}
        self.gait = np.array([agent.stride for agent in traffic.agents])
        self.logfile = f"synthetic-{task.name}"

    def write(self) -> dict[str, object]:
        """All rows of the scene; files are written on the way."""
        task, traffic, rig = self.task, self.traffic, self.renderer.rig
        self._static_rows()
        key_times = np.arange(task.frames) * KEYFRAME_S
        samples = [token_of(task.seed, task.name, "sample", frame) for frame in range(task.frames)]
        shots = self._schedule(key_times)
        times = np.array([time for time, _, _, _ in shots])
        self.ego, self.poses, self.speeds = traffic.ego_poses(times), traffic.poses(times), traffic.speeds(times)
        seen = np.zeros((task.frames, self.stack.count), np.int64)
        whole = np.zeros_like(seen)
        per_channel: dict[str, list[dict]] = {name: [] for name in (*(camera.name for camera in rig), LIDAR_NAME)}
        points_in = np.zeros((task.frames, len(traffic.agents)), np.int64)
        for row, (time, frame, index, key) in enumerate(shots):
            if index < 0:
                points_in[frame] = self._scan(row, time, samples[frame], per_channel[LIDAR_NAME])
                continue
            image, _, whole_px, seen_px = self._shoot(index, row, time)
            if key:
                whole[frame] += whole_px
                seen[frame] += seen_px
            name = rig[index].name
            per_channel[name].append(self._data_row(name, row, time, samples[frame], key, image))
        for rows in per_channel.values():
            for before, after in zip(rows[:-1], rows[1:], strict=True):
                before["next"], after["prev"] = after["token"], before["token"]
            self.rows["sample_data"] += rows
        for frame, time in enumerate(key_times):
            self.rows["sample"].append(
                {
                    "token": samples[frame],
                    "timestamp": self._microseconds(time),
                    "prev": samples[frame - 1] if frame else "",
                    "next": samples[frame + 1] if frame + 1 < task.frames else "",
                    "scene_token": self.scene_token,
                }
            )
        self._annotate([row for row, shot in enumerate(shots) if shot[2] < 0], samples, seen, whole, points_in)
        self.rows["scene"].append(
            {
                "token": self.scene_token,
                "log_token": self.rows["log"][0]["token"],
                "nbr_samples": task.frames,
                "first_sample_token": samples[0],
                "last_sample_token": samples[-1],
                "name": task.name,
                "description": self._description(),
            }
        )
        return {"tables": self.rows, "images": sum(len(v) for v in per_channel.values()) - task.frames}

    def _microseconds(self, time: float) -> int:
        return self.task.start_us + int(round(time * 1e6))

    def _static_rows(self) -> None:
        task = self.task
        self.scene_token = token_of(task.seed, task.name, "scene")
        self.rows["log"].append(
            {
                "token": token_of(task.seed, task.name, "log"),
                "logfile": self.logfile,
                "vehicle": "synthetic",
                "date_captured": "2025-01-01",
                "location": task.location,
            }
        )
        for camera in self.renderer.rig:
            self._calibrate(camera.name, camera.translation, quaternion_of(camera.rotation), camera.intrinsic.tolist())
        self._calibrate(LIDAR_NAME, np.asarray(LIDAR_TRANSLATION), quaternion_of(yaw_matrix(LIDAR_YAW)), [])

    def _calibrate(self, name: str, translation: np.ndarray, rotation: list[float], intrinsic: list) -> None:
        token = token_of(self.task.seed, self.task.name, "calibrated", name)
        self.calibrated[name] = token
        self.rows["calibrated_sensor"].append(
            {
                "token": token,
                "sensor_token": token_of("sensor", name),
                "translation": translation.tolist(),
                "rotation": rotation,
                "camera_intrinsic": intrinsic,
            }
        )

    def _schedule(self, key_times: np.ndarray) -> list[tuple[float, int, int, bool]]:
        """Every exposure in order: (time in whole microseconds, keyframe it belongs to, camera or -1 for the lidar,
        keyframe or sweep)."""
        jitter = self.rng.uniform(0, 1.5e-3, (len(key_times), len(CAMERA_NAMES)))
        jitter = np.concatenate([jitter, jitter[:, :1]], axis=1)  # a seventh camera fires as the first one does
        early = [camera.seconds_before_lidar for camera in self.renderer.rig]
        shots = []
        for frame, time in enumerate(key_times):
            shots += [(round(time - early[k] - jitter[frame, k], 6), frame, k, True) for k in range(len(early))]
            shots.append((round(float(time), 6), frame, -1, True))
            if self.task.sweeps and frame + 1 < len(key_times):
                half = SWEEP_HZ // 2
                shots += [
                    (round(time + step / SWEEP_HZ - early[k], 6), frame + 1, k, False)
                    for step in range(1, half)
                    for k in range(len(early))
                ]
        return shots

    def _shoot(self, index: int, row: int, time: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        phase = np.zeros(self.stack.count)
        moving = self.stack.agents >= 0
        who = self.stack.agents[moving]
        phase[moving] = np.where(self.speeds[row, who] > 0.1, self.gait[who] * time + who * 1.7, 0.0)
        return self.renderer.render(index, self.ego[row], self.stack.poses(self.poses[row]), phase, self.rng)

    def _data_row(
        self, name: str, row: int, time: float, sample: str, key: bool, image: np.ndarray | None
    ) -> dict[str, object]:
        task, stamp = self.task, self._microseconds(time)
        kind, ending = ("pcd", "pcd.bin") if name == LIDAR_NAME else ("jpg", "jpg")
        folder = "samples" if key else "sweeps"
        file = f"{folder}/{name}/{self.logfile}__{name}__{stamp}.{ending}"
        token = token_of(task.seed, task.name, name, stamp)
        ego = self.ego[row]
        self.rows["ego_pose"].append(
            {
                "token": token,
                "timestamp": stamp,
                "rotation": yaw_quaternion(ego[2]),
                "translation": [float(ego[0] + task.origin[0]), float(ego[1] + task.origin[1]), 0.0],
            }
        )
        if image is not None:
            done, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            if not done:
                raise RuntimeError(f"OpenCV could not encode {file}")
            with open(os.path.join(task.root, file), "wb") as out:
                out.write(data.tobytes())
        size = (0, 0) if image is None else image.shape[:2]
        return {
            "token": token,
            "sample_token": sample,
            "ego_pose_token": token,
            "calibrated_sensor_token": self.calibrated[name],
            "timestamp": stamp,
            "fileformat": kind,
            "is_key_frame": key,
            "height": int(size[0]),
            "width": int(size[1]),
            "filename": file,
            "prev": "",
            "next": "",
        }

    def _scan(self, moment: int, time: float, sample: str, rows: list[dict]) -> np.ndarray:
        """One lidar turn; returns the number of points in every agent's box."""
        ego, poses = self.ego[moment], self.stack.poses(self.poses[moment])
        points, _ = self.lidar.scan(ego, self.stack, poses, self.rng)
        row = self._data_row(LIDAR_NAME, moment, time, sample, True, None)
        with open(os.path.join(self.task.root, str(row["filename"])), "wb") as out:
            out.write(points.tobytes())
        rows.append(row)
        agents = poses[: len(self.traffic.agents)]
        size = np.array([agent.size_lwh for agent in self.traffic.agents])
        origin = yaw_matrix(ego[2]) @ np.asarray(LIDAR_TRANSLATION) + [ego[0], ego[1], 0.0]
        yaw = ego[2] + LIDAR_YAW
        delta = np.concatenate([agents[:, :2], size[:, 2:] / 2], 1) - origin
        centre = delta @ yaw_matrix(yaw)
        return count_points(points, centre, size, agents[:, 2] - yaw)

    def _annotate(
        self, moments: list[int], samples: list[str], seen: np.ndarray, whole: np.ndarray, points_in: np.ndarray
    ) -> None:
        task, traffic = self.task, self.traffic
        poses, speeds, ego = self.poses[moments], self.speeds[moments], self.ego[moments]
        least = LEAST_SEEN_PX * task.image_size[0] * task.image_size[1] / (NATIVE_SIZE_PX[0] * NATIVE_SIZE_PX[1])
        for k, agent in enumerate(traffic.agents):
            distance = np.hypot(*(poses[:, k, :2] - ego[:, :2]).T)
            listed = [
                f
                for f in range(len(moments))
                if distance[f] < ANNOTATION_RANGE_M and (points_in[f, k] or seen[f, k] > least)
            ]
            if not listed:
                continue
            instance = token_of(task.seed, task.name, "instance", k)
            tokens = [token_of(task.seed, task.name, "annotation", k, f) for f in listed]
            for place, f in enumerate(listed):
                x, y, yaw = poses[f, k]
                attribute = agent.attribute(float(speeds[f, k]))
                length, width, height = (float(v) for v in agent.size_lwh)
                self.rows["sample_annotation"].append(
                    {
                        "token": tokens[place],
                        "sample_token": samples[f],
                        "instance_token": instance,
                        "visibility_token": visibility_level(int(seen[f, k]), int(whole[f, k])),
                        "attribute_tokens": [token_of("attribute", attribute)] if attribute else [],
                        "translation": [float(x + task.origin[0]), float(y + task.origin[1]), height / 2],
                        "size": [width, length, height],
                        "rotation": yaw_quaternion(float(yaw)),
                        "prev": tokens[place - 1] if place else "",
                        "next": tokens[place + 1] if place + 1 < len(listed) else "",
                        "num_lidar_pts": int(points_in[f, k]),
                        "num_radar_pts": 0,
                    }
                )
            self.rows["instance"].append(
                {
                    "token": instance,
                    "category_token": token_of("category", agent.category),
                    "nbr_annotations": len(listed),
                    "first_annotation_token": tokens[0],
                    "last_annotation_token": tokens[-1],
                }
            )

    def _description(self) -> str:
        words = [] if self.task.condition == "day" else [self.task.condition.capitalize()]
        words += [f"turn {turn}" if turn != "straight" else "junction" for turn in self.traffic.turns]
        kinds = {agent.category for agent in self.traffic.agents}
        for category, word in (
            ("vehicle.construction", "construction"),
            ("vehicle.bus.rigid", "bus"),
            ("vehicle.trailer", "trailer"),
        ):
            if category in kinds:
                words.append(word)
        if sum(agent.parked for agent in self.traffic.agents) > 15:
            words.append("parked cars")
        return ", ".join(words) or "straight road"
