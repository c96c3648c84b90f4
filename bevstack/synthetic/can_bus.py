"""CAN bus messages of a scene, as the CAN bus expansion of nuScenes has them, from the ego car's true motion."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from bevstack.synthetic.cameras import yaw_quaternion
from bevstack.synthetic.traffic import EGO_WHEELBASE_M, Traffic

STEERING_RATIO = 15.2


def _round(values: Iterable[float]) -> list[float]:
    return [round(float(v), 6) for v in values]


def write_can_bus(
    folder: Path, scene: str, traffic: Traffic, origin: np.ndarray, start_us: int, seconds: float
) -> None:
    """Write all messages of a scene to ``folder``.

    pose (50 Hz): position and orientation in the map frame; velocity, acceleration and rotation rate in the ego frame.
    ms_imu (100 Hz), steeranglefeedback (100 Hz), zoesensors and zoe_veh_info (20 Hz), vehicle_monitor (2 Hz), route,
    meta.
    """

    def motion(rate: float) -> tuple[np.ndarray, list[int], np.ndarray, np.ndarray, np.ndarray]:
        times = np.arange(-0.1, seconds + 0.1, 1 / rate)
        pose = traffic.ego_poses(times)
        step = 0.02
        before, after = traffic.ego_poses(times - step), traffic.ego_poses(times + step)
        turn = (np.unwrap(np.stack([before[:, 2], after[:, 2]]), axis=0)[1] - before[:, 2]) / (2 * step)
        speed = traffic.ego.speed(times, traffic.clock)
        push = (traffic.ego.speed(times + step, traffic.clock) - traffic.ego.speed(times - step, traffic.clock)) / (
            2 * step
        )
        stamps = [start_us + int(round(t * 1e6)) for t in times]
        return pose, stamps, speed, push, turn

    pose, stamps, speed, push, turn = motion(50)
    messages: dict[str, list] = {
        "pose": [
            {
                "accel": _round([push[k], speed[k] * turn[k], 9.81]),
                "orientation": _round(yaw_quaternion(pose[k, 2])),
                "pos": _round([pose[k, 0] + origin[0], pose[k, 1] + origin[1], 0.0]),
                "rotation_rate": _round([0.0, 0.0, turn[k]]),
                "utime": stamps[k],
                "vel": _round([speed[k], 0.0, 0.0]),
            }
            for k in range(len(stamps))
        ]
    }
    pose, stamps, speed, push, turn = motion(100)
    messages["ms_imu"] = [
        {
            "linear_accel": _round([push[k], speed[k] * turn[k], 9.81]),
            "q": _round(yaw_quaternion(pose[k, 2])),
            "rotation_rate": _round([0.0, 0.0, turn[k]]),
            "utime": stamps[k],
        }
        for k in range(len(stamps))
    ]
    wheel = np.arctan2(turn * EGO_WHEELBASE_M, np.maximum(speed, 0.5)) * STEERING_RATIO
    messages["steeranglefeedback"] = [
        {"utime": stamps[k], "value": round(float(wheel[k]), 6)} for k in range(len(stamps))
    ]
    pose, stamps, speed, push, turn = motion(20)
    wheel = np.arctan2(turn * EGO_WHEELBASE_M, np.maximum(speed, 0.5)) * STEERING_RATIO
    turns = speed / 0.305  # wheel radius; rad/s
    messages["zoesensors"] = [
        {
            "brake_sensor": round(float(max(-push[k], 0) / 8), 6),
            "steering_sensor": round(float(np.degrees(wheel[k])), 6),
            "throttle_sensor": round(float(max(push[k], 0) / 4), 6),
            "utime": stamps[k],
        }
        for k in range(len(stamps))
    ]
    messages["zoe_veh_info"] = [
        {
            **{
                f"{corner}_wheel_speed": round(float(turns[k] * 60 / (2 * np.pi)), 4)
                for corner in ("FL", "FR", "RL", "RR")
            },
            "left_solar": 0.0,
            "right_solar": 0.0,
            "longitudinal_accel": round(float(push[k]), 6),
            "transversal_accel": round(float(speed[k] * turn[k]), 6),
            "meanEffTorque": 400.0,
            "odom": round(float(k), 1),
            "odom_speed": round(float(speed[k] * 3.6), 4),
            "pedal_cc": round(float(max(push[k], 0) * 100), 3),
            "regen": 0.0,
            "requestedTorqueAfterProc": 400.0,
            "steer_corrected": round(float(np.degrees(wheel[k])), 4),
            "steer_offset_can": 0.0,
            "steer_raw": round(float(np.degrees(wheel[k])), 4),
            "utime": stamps[k],
        }
        for k in range(len(stamps))
    ]
    pose, stamps, speed, push, turn = motion(2)
    messages["vehicle_monitor"] = [
        {
            "available_distance": 150,
            "battery_level": 80,
            "brake": int(126 * min(max(-push[k], 0) / 8, 1)),
            "brake_switch": 1,
            "gear_position": 7,
            "left_signal": 0,
            "rear_left_rpm": round(float(turns[0]), 3),
            "rear_right_rpm": round(float(turns[0]), 3),
            "right_signal": 0,
            "steering": 0.0,
            "steering_speed": 0.0,
            "throttle": int(200 * min(max(push[k], 0) / 4, 1)),
            "utime": stamps[k],
            "vehicle_speed": round(float(speed[k] * 3.6), 3),
            "yaw_rate": round(float(np.degrees(turn[k])), 4),
        }
        for k in range(len(stamps))
    ]
    way = traffic.ego.course.xy + origin
    messages["route"] = [_round(point) for point in way]
    meta = {
        name: {
            "message_count": len(rows),
            "message_freq": round((len(rows) - 1) / (seconds + 0.2), 3),
            "timespan": seconds + 0.2,
        }
        for name, rows in messages.items()
        if name != "route"
    }
    for name, content in {**messages, "meta": meta}.items():
        (folder / f"{scene}_{name}.json").write_text(json.dumps(content))
