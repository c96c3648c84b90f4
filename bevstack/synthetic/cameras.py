"""The sensor rig: six cameras and a lidar where nuScenes mounts them, or five or seven cameras, and when each fires.

Mounting poses and intrinsics are nuScenes' own (public calibration, rounded), each scene with its own small deviation.
Camera frames are x right, y down, z forward; the ego frame is x forward, y left, z up, its origin under the rear axle.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CAMERA_NAMES = ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "CAM_BACK", "CAM_BACK_LEFT", "CAM_BACK_RIGHT")
LIDAR_NAME = "LIDAR_TOP"
LIDAR_TRANSLATION = (0.9437, 0.0, 1.8402)
LIDAR_YAW = -np.pi / 2  # lidar x points to the right of the car, lidar y forward
NATIVE_SIZE_PX = (1600, 900)

# name: translation (m), yaw (deg, left positive), focal length (px at 1600x900), principal point, lead on lidar (s)
_MOUNTS = {
    "CAM_FRONT": ((1.7008, 0.0159, 1.5110), -0.3, 1266.4, (816.3, 491.5), 0.0355),
    "CAM_FRONT_RIGHT": ((1.5508, -0.4934, 1.4957), -56.4, 1260.8, (808.0, 495.3), 0.0276),
    "CAM_FRONT_LEFT": ((1.5239, 0.4946, 1.5093), 55.2, 1272.6, (826.6, 479.8), 0.0431),
    "CAM_BACK": ((0.0283, 0.0035, 1.5791), 179.9, 809.2, (829.2, 481.8), 0.0104),
    "CAM_BACK_LEFT": ((1.0357, 0.4848, 1.5910), 108.6, 1256.7, (792.1, 492.8), 0.0005),
    "CAM_BACK_RIGHT": ((1.0149, -0.4806, 1.5624), -110.6, 1259.5, (807.3, 501.2), 0.0201),
}

# five: none looks back, two look more to the sides, as on Waymo's cars (Sun et al. 2020). seven: the six, and one that
# looks far ahead through a narrow lens. Those that the six have keep their places in the order.
_SIDES = {
    "CAM_SIDE_LEFT": ((1.0357, 0.4848, 1.5910), 100.0, 1000.0, (800.0, 490.0), 0.0005),
    "CAM_SIDE_RIGHT": ((1.0149, -0.4806, 1.5624), -100.0, 1000.0, (800.0, 490.0), 0.0201),
}
_NARROW = {"CAM_FRONT_NARROW": ((1.7008, 0.12, 1.5110), 0.0, 2600.0, (800.0, 480.0), 0.0355)}
_SETS = {
    5: {**{name: _MOUNTS[name] for name in CAMERA_NAMES[:3]}, **_SIDES},
    6: _MOUNTS,
    7: {**_MOUNTS, **_NARROW},
}
CAMERA_SETS = {number: tuple(mounts) for number, mounts in _SETS.items()}
"""Names of five, six or seven cameras."""

# the same cameras on another car: higher by metres; factors of the places along and across it, of focal lengths
_RIGS = {
    "sedan": (0.0, 1.0, 1.0, 1.0),
    "suv": (0.35, 1.1, 1.15, 1.0),
    "truck": (1.2, 1.6, 2.2, 0.95),
    "bus": (1.5, 2.4, 2.4, 0.9),
}
RIGS = tuple(_RIGS)
"""Names of the cars that the cameras may be mounted on; nuScenes' is the sedan."""


@dataclass
class Camera:
    """One calibrated camera: ``intrinsic`` (3, 3) at the rendered size, ``translation`` (3,), ``rotation`` (3, 3)
    ego_from_camera."""

    name: str
    intrinsic: np.ndarray
    translation: np.ndarray
    rotation: np.ndarray
    seconds_before_lidar: float
    width_px: int
    height_px: int


def yaw_matrix(yaw: float) -> np.ndarray:
    """Rotation (3, 3) about z."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def quaternion_of(rotation: np.ndarray) -> list[float]:
    """Unit quaternion (w, x, y, z) of a rotation matrix, w >= 0 (Shepperd's method)."""
    m = rotation
    squares = np.array(
        [
            1 + m[0, 0] + m[1, 1] + m[2, 2],
            1 + m[0, 0] - m[1, 1] - m[2, 2],
            1 - m[0, 0] + m[1, 1] - m[2, 2],
            1 - m[0, 0] - m[1, 1] + m[2, 2],
        ]
    )
    k = int(np.argmax(squares))
    r = np.sqrt(squares[k])
    d21, d02, d10 = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    s10, s20, s21 = m[1, 0] + m[0, 1], m[0, 2] + m[2, 0], m[2, 1] + m[1, 2]
    rows = ((r * r, d21, d02, d10), (d21, r * r, s10, s20), (d02, s10, r * r, s21), (d10, s20, s21, r * r))
    q = np.array(rows[k]) / (2 * r)
    q = q if q[0] >= 0 else -q
    return [float(v) for v in q / np.linalg.norm(q)]


def yaw_quaternion(yaw: float) -> list[float]:
    """Unit quaternion (w, x, y, z) of a rotation about z."""
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def build_rig(
    rng: np.random.Generator, width_px: int, height_px: int, car: str = "sedan", cameras: int = 6
) -> list[Camera]:
    """The cameras of one scene at an image size, each a little off its nominal mounting (1 cm, 0.3 degrees, 0.3 %
    focal), on one of :data:`RIGS` and of one of :data:`CAMERA_SETS`. What is drawn, and the lidar, are the same on
    every car: the generator has drawn for six cameras afterwards."""
    higher, longer, wider, focal_factor = _RIGS[car]
    scale_x, scale_y = width_px / NATIVE_SIZE_PX[0], height_px / NATIVE_SIZE_PX[1]
    rig, nominal, six = [], _SETS[cameras], rng
    extra = np.random.default_rng(cameras)  # what a seventh camera draws
    for place, (name, mount) in enumerate(nominal.items()):
        rng = six if place < len(_MOUNTS) else extra
        translation, yaw_deg, focal, centre, early = mount
        translation = (translation[0] * longer, translation[1] * wider, translation[2] + higher)
        focal = focal * focal_factor * (1 + rng.normal(0, 0.003))
        intrinsic = np.array(
            [
                [focal * scale_x, 0, (centre[0] + rng.normal(0, 4)) * scale_x],
                [0, focal * scale_y, (centre[1] + rng.normal(0, 4)) * scale_y],
                [0, 0, 1.0],
            ]
        )
        pitch, roll = np.deg2rad(rng.normal(0, 0.3, 2))
        axes = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # ego_from_camera, looking ahead
        cp, sp, cr, sr = np.cos(pitch), np.sin(pitch), np.cos(roll), np.sin(roll)
        tilt = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]]) @ np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1.0]])
        rotation = yaw_matrix(np.deg2rad(yaw_deg + rng.normal(0, 0.3))) @ axes @ tilt
        rig.append(
            Camera(
                name, intrinsic, np.asarray(translation) + rng.normal(0, 0.01, 3), rotation, early, width_px, height_px
            )
        )
    for _ in range(len(_MOUNTS) - len(nominal)):
        six.normal(0, 1, 9)
    return rig
