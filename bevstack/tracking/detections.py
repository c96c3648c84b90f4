"""What a tracker sees of one frame: its detections in the global frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevstack.errors import InputError
from bevstack.geometry.boxes3d import BOX_SIZE, OrientedBoxes
from bevstack.structures.poses import boxes_in_global


@dataclass(frozen=True)
class Detections:
    """The G detections of one frame.

    Args:
        scene_token: of the frame's scene.
        timestamp_s: when the frame was taken.
        boxes: (G, 9) float64 in the global frame: (x, y, z_bottom, l, w, h, yaw, vx, vy), velocity NaN where unknown.
        scores: (G,) float64.
        names: (G,) class names.
        embeddings: (G, E) float64 of unit length, what each object looks like; None where no head makes them.
        token: the frame's own token.

    Raises:
        ValueError: the arrays do not have one row each for the same objects.
    """

    scene_token: str
    timestamp_s: float
    boxes: np.ndarray
    scores: np.ndarray
    names: np.ndarray
    embeddings: np.ndarray | None = None
    token: str = ""

    def __post_init__(self) -> None:
        number = len(self.scores)
        if self.boxes.shape != (number, BOX_SIZE) or self.names.shape != (number,):
            raise ValueError(f"{number} scores, but boxes {self.boxes.shape} and names {self.names.shape}")
        if self.embeddings is not None and (self.embeddings.ndim != 2 or len(self.embeddings) != number):
            raise ValueError(f"{number} scores, but embeddings {self.embeddings.shape}")

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, indices: np.ndarray) -> Detections:
        """The detections of given indices (n,), in their order."""
        embeddings = None if self.embeddings is None else self.embeddings[indices]
        chosen = self.boxes[indices], self.scores[indices], self.names[indices]
        return Detections(self.scene_token, self.timestamp_s, *chosen, embeddings, self.token)

    @property
    def velocities(self) -> np.ndarray:
        """(G, 2) metres per second, 0 where unknown."""
        return np.nan_to_num(self.boxes[:, 7:9], nan=0.0)


def detections_of(
    sample: Any, classes: Sequence[str] | None = None, boxes: OrientedBoxes | None = None
) -> Detections:
    """The predicted boxes of a sample in the global frame.

    Args:
        sample: a ``BEVDataSample``, or the dict of its fields and metainfo: ``pred_instances_3d`` (``bboxes_3d``,
            ``scores_3d``, ``labels_3d`` and, where a head makes them, ``embeddings`` (G, E)); ``scene_token``,
            ``timestamp_s``, ``global_from_bev``, ``augmented_from_bev``.
        classes: names of the labels; the sample's own ``classes`` by default.
        boxes: the predicted boxes in the global frame, where they have been moved there already.

    Raises:
        InputError: the sample has no predicted boxes, or lacks a part of its metainfo.
    """
    info = sample if isinstance(sample, Mapping) else sample.metainfo
    for field in ("scene_token", "timestamp_s", *(() if classes else ("classes",))):
        if field not in info:
            raise InputError("tracker", field, f"sample {info.get('token')} has none")
    if "pred_instances_3d" not in sample:
        raise InputError("tracker", "pred_instances_3d", "nothing to track: the model predicts no boxes")
    instances = sample["pred_instances_3d"] if isinstance(sample, Mapping) else sample.pred_instances_3d
    boxes = boxes_in_global(sample, instances["bboxes_3d"]) if boxes is None else boxes
    names = np.array(tuple(classes or info["classes"]), dtype=object)
    labels = instances["labels_3d"].detach().cpu().numpy().astype(np.int64)
    embeddings = None
    if "embeddings" in instances:
        embeddings = instances["embeddings"].detach().cpu().double().numpy()
    return Detections(
        scene_token=info["scene_token"],
        timestamp_s=float(info["timestamp_s"]),
        boxes=boxes.upright().numpy(),
        scores=instances["scores_3d"].detach().cpu().double().numpy(),
        names=names[labels],
        embeddings=embeddings,
        token=info.get("token", ""),
    )
