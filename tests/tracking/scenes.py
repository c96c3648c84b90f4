"""Hand-made streams of detections in the global frame, and how well identities were kept."""

from __future__ import annotations

import numpy as np

from bevstack.tracking import Detections


def frame(time_s, places, velocities=None, names="car", scores=None, looks=None, scene="s") -> Detections:
    """One frame of boxes 4 m x 2 m x 1.5 m at places [(x, y)]; velocities NaN unless given."""
    boxes = np.full((len(places), 9), np.nan)
    boxes[:, :2] = np.reshape(places, (-1, 2))
    boxes[:, 2:7] = [0.0, 4.0, 2.0, 1.5, 0.0]
    if velocities is not None:
        boxes[:, 7:9] = np.reshape(velocities, (-1, 2))
    names = np.array([names] * len(places) if isinstance(names, str) else list(names), dtype=object)
    scores = np.full(len(places), 0.9) if scores is None else np.array(scores, float)
    looks = None if looks is None else np.array(looks, float).reshape(len(places), 3)
    return Detections(scene, time_s, boxes, scores, names, looks)


def identities(tracker, frames, state=None) -> list[list[int]]:
    """Identities of each frame's detections, from step to step."""
    answer = []
    for detections in frames:
        ids, state = tracker.step(state, detections)
        answer.append(ids.tolist())
    return answer
