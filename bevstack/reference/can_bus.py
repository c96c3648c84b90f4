"""The published ``can_bus`` vector, faults included, as a form that the dataset can be told to use."""

from __future__ import annotations

import numpy as np

from bevstack.datasets.ego_state import CAN_BUS_SIZE, CorrectedCanBus, EgoState
from bevstack.registry import TASK_UTILS


@TASK_UTILS.register_module()
class ReferenceCanBus:
    """The 18-vector that published BEVFormer weights were trained on; each fault has its own switch.

    With every switch False this is :class:`bevstack.datasets.CorrectedCanBus`. Not reproduced: the reference takes
    acceleration, rotation rate and velocity from the message *after* the sample (docs/reference.md 4.1 K).

    Args:
        quaternion_w: [3:7] is four times w of the ego rotation (4.1 A).
        absolute_yaw: [16] is the ego's heading in radians, 0 ... 2 pi, from the global x axis (4.1 H).
        global_axis_deltas: [0:3] is the translation since the previous frame along global axes (4.1 H).
        unwrapped_yaw_change: [17] is the difference of two headings in 0 ... 360 degrees, so that it jumps by 360 where
            the heading passes zero (4.1 G).
    """

    def __init__(
        self,
        quaternion_w: bool = True,
        absolute_yaw: bool = True,
        global_axis_deltas: bool = True,
        unwrapped_yaw_change: bool = True,
    ) -> None:
        self.quaternion_w, self.absolute_yaw = quaternion_w, absolute_yaw
        self.global_axis_deltas, self.unwrapped_yaw_change = global_axis_deltas, unwrapped_yaw_change
        self._corrected = CorrectedCanBus()

    def __call__(self, current: EgoState, previous: EgoState | None) -> np.ndarray:
        """(18,) float64 of one frame; ``previous`` is the frame before it, None where there is none."""
        vector = self._corrected(current, previous)
        heading = np.mod(current.yaw, 2 * np.pi)
        if self.quaternion_w:
            vector[3:7] = current.raw[3]
        if self.absolute_yaw:
            vector[CAN_BUS_SIZE - 2] = heading
        if previous is not None and self.global_axis_deltas:
            vector[0:3] = current.raw[0:3] - previous.raw[0:3]
        if previous is not None and self.unwrapped_yaw_change:
            vector[CAN_BUS_SIZE - 1] = np.degrees(heading - np.mod(previous.yaw, 2 * np.pi))
        return vector
