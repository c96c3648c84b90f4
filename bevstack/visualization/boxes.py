"""What a painter needs to know of boxes: corners, colours and scores as numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bevstack.geometry.boxes3d import box_corners, box_footprints


@dataclass(frozen=True)
class DrawnBoxes:
    """Boxes to draw.

    Args:
        boxes: (G, 9) or (G, 7) in the BEV frame: (x, y, z_bottom, l, w, h, yaw[, vx, vy]).
        names: G class names.
        scores: (G,) or None for ground truth.
    """

    boxes: np.ndarray
    names: tuple[str, ...]
    scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def of_instances(cls, instances: Any, classes: Sequence[str], score_thr: float | None = None) -> DrawnBoxes:
        """Take mmengine instances (``bboxes_3d``, ``labels_3d``, ``scores_3d`` where predicted); lowest scores first.

        Boxes below ``score_thr`` and boxes whose label is negative (to be ignored) are left out.
        """
        boxes = instances["bboxes_3d"].tensor.detach().cpu().double().numpy()
        labels = np.asarray(instances["labels_3d"].detach().cpu()).astype(int)
        scores = instances["scores_3d"].detach().cpu().double().numpy() if "scores_3d" in instances else None
        keep = np.flatnonzero(labels >= 0)
        if scores is not None:
            keep = keep[scores[keep] >= (score_thr or 0.0)]
            keep = keep[np.argsort(scores[keep], kind="stable")]
        names = tuple(classes[label] if label < len(classes) else f"label {label}" for label in labels[keep])
        return cls(boxes[keep], names, None if scores is None else scores[keep])

    def within(self, x_range_m: tuple[float, float], y_range_m: tuple[float, float]) -> DrawnBoxes:
        """The boxes whose centre lies in the extent."""
        low, high = np.array([x_range_m, y_range_m]).T
        keep = np.flatnonzero(((self.boxes[:, :2] >= low) & (self.boxes[:, :2] <= high)).all(axis=1))
        names = tuple(self.names[index] for index in keep)
        return DrawnBoxes(self.boxes[keep], names, None if self.scores is None else self.scores[keep])

    @property
    def corners(self) -> np.ndarray:
        """(G, 8, 3) metres, in the order of :data:`bevstack.geometry.boxes3d.EDGES`: the lower face first."""
        return box_corners(torch.from_numpy(self.boxes)).numpy()

    @property
    def footprints(self) -> np.ndarray:
        """(G, 4, 2) metres (x, y) of the lower face's corners: front left, front right, rear right, rear left."""
        return box_footprints(torch.from_numpy(self.boxes)).numpy()
