"""What the published BEVFormer learns of a velocity that nobody knows."""

from __future__ import annotations

import numpy as np
from mmcv.transforms.base import BaseTransform

from bevstack.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ZeroUnknownVelocity(BaseTransform):
    """Boxes of unknown velocity stand still, as in the reference's dataset (mmdet3d's ``NuScenesDataset``).

    So its head, which leaves out whole boxes with a value that is not finite, never meets one in training. Stands first
    in a training pipeline; what predictions are scored against does not change.
    """

    def transform(self, results: dict) -> dict:
        """Replace what is not finite of (vx, vy) in ``boxes`` (G, 9) by 0."""
        boxes = np.array(results["boxes"])
        boxes[~np.isfinite(boxes[:, 7:9]).all(axis=1), 7:9] = 0
        results["boxes"] = boxes
        return results
