"""The ego car at a sample, and BEVFormer's ``can_bus`` 18-vector made of two such moments.

A CAN bus is never required. Ego motion always comes from poses; only accelerations, rotation rates and velocities come
from the bus, and are zero without it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from bevstack.registry import TASK_UTILS
from bevstack.structures.rigid_arrays import rigid_inverse

CAN_BUS_SIZE = 18


@dataclass(frozen=True)
class EgoState:
    """The ego car at one sample: what a CAN-bus form may use.

    Args:
        raw: (16,) float64: [0:3] ego translation in metres, global axes, at lidar time; [3:7] ego rotation as a
            quaternion (w, x, y, z), global from ego; [7:10] acceleration in m/s^2, [10:13] rotation rate in rad/s,
            [13:16] velocity in m/s, the last three in ego axes, NaN where there is no CAN bus.
        has_can_bus: whether [7:16] are there.
        global_from_bev: (4, 4) float64.
    """

    raw: np.ndarray
    has_can_bus: bool
    global_from_bev: np.ndarray

    @classmethod
    def of_bev_pose(cls, global_from_bev: np.ndarray, ego_from_bev: np.ndarray | None = None) -> EgoState:
        """The state where nothing but a pose is known; of its quaternion w is not negative.

        Args:
            global_from_bev: (4, 4) float64.
            ego_from_bev: (4, 4) where the BEV frame stands in the car; None where it stands for the car's own.
        """
        pose = global_from_bev if ego_from_bev is None else global_from_bev @ rigid_inverse(ego_from_bev)
        quaternion = Rotation.from_matrix(pose[:3, :3]).as_quat()[[3, 0, 1, 2]]
        quaternion = -quaternion if quaternion[0] < 0 else quaternion
        return cls(np.array([*pose[:3, 3], *quaternion, *[np.nan] * 9]), False, global_from_bev)

    @property
    def yaw(self) -> float:
        """Heading of the ego car in radians from the global x axis, in (-pi, pi]."""
        w, x, y, z = self.raw[3:7]
        return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))


CanBusForm = Callable[[EgoState, EgoState | None], np.ndarray]
"""From a frame's state and that of the frame before it (None where there is none) to its (18,) float64 vector."""


@TASK_UTILS.register_module()
class CorrectedCanBus:
    """The 18-vector free of the reference's faults (docs/reference.md 4.1 A, G, H, K).

    [0:3] ego translation since the previous frame, metres, in the axes of the current BEV frame; [3:7] ego rotation as
    a quaternion (w, x, y, z); [7:10] acceleration, [10:13] rotation rate, [13:16] velocity of the newest message at or
    before the sample (zeros without a CAN bus); [16] zero, as absolute heading says nothing about a scene;
    [17] change of heading since the previous frame in degrees, in (-180, 180]. Without a previous frame [0:3] and [17]
    are zero.
    """

    def __call__(self, current: EgoState, previous: EgoState | None) -> np.ndarray:
        """(18,) float64 of one frame; ``previous`` is the frame before it, None where there is none."""
        vector = np.zeros(CAN_BUS_SIZE)
        vector[3:7] = current.raw[3:7]
        if current.has_can_bus:
            vector[7:16] = current.raw[7:16]
        if previous is not None:
            bev_from_global = current.global_from_bev[:3, :3].T
            vector[0:3] = bev_from_global @ (current.raw[0:3] - previous.raw[0:3])
            turn_deg = np.degrees(current.yaw - previous.yaw)
            vector[17] = 180.0 - (180.0 - turn_deg) % 360.0
        return vector
