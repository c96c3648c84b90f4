"""The contract of every tracker."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bevstack.tracking.detections import Detections

MATCH_LIMITS_M = {
    "car": 4.0,
    "truck": 4.0,
    "bus": 5.5,
    "trailer": 3.0,
    "pedestrian": 1.0,
    "motorcycle": 13.0,
    "bicycle": 3.0,
}
"""Largest distance of a match half a second apart, metres, for the seven classes of the nuScenes tracking task: the
99.9th percentile of the velocity error on the training set as CenterPoint's published configuration states it."""


@dataclass(frozen=True)
class StreamState:
    """What a tracker remembers of a stream between two frames; a value, handed in and out.

    Args:
        scene_token, timestamp_s: of the newest frame.
        next_id: the identity that the next new track gets; never given twice in a stream.
        tracks: the tracker's own.
    """

    scene_token: str
    timestamp_s: float
    next_id: int
    tracks: Any


class Tracker(ABC):
    """Gives detections of successive frames identities. Keeps nothing between calls.

    Args:
        limits_m: largest distance of a match, by class; classes that are not named are not tracked.
        min_score: detections below are not tracked.
        max_age: a track may be matched again up to this many frames after it was last seen.
        max_gap_s: a longer pause between two frames starts everything anew, and so does another scene, or a frame that
            is no later than the one before it.

    Raises:
        ValueError: ``max_age`` is below 1, or a limit is not positive.
    """

    def __init__(
        self,
        limits_m: Mapping[str, float] | None = None,
        min_score: float = 0.0,
        max_age: int = 3,
        max_gap_s: float = 2.0,
    ) -> None:
        self.limits_m = dict(MATCH_LIMITS_M if limits_m is None else limits_m)
        if max_age < 1:
            raise ValueError(f"max_age: {max_age} must be at least 1")
        wrong = [name for name, limit in self.limits_m.items() if not limit > 0]
        if wrong:
            raise ValueError(f"limits_m: {wrong[0]} must be positive, not {self.limits_m[wrong[0]]}")
        self.min_score, self.max_age, self.max_gap_s = min_score, max_age, max_gap_s

    def step(self, state: StreamState | None, detections: Detections) -> tuple[np.ndarray, StreamState]:
        """Follow the stream by one frame.

        Args:
            state: what the step before returned; None at a stream's start.
            detections: of this frame, global.

        Returns:
            (G,) int64 identity of each detection, -1 where it has none (class not tracked, score too low, track not
            yet trusted), and the state for the next frame. Identities go on counting where a stream starts anew.
        """
        known = np.array([name in self.limits_m for name in detections.names], dtype=bool)
        kept = np.flatnonzero(known & (detections.scores >= self.min_score))
        kept = kept[np.argsort(-detections.scores[kept], kind="stable")]
        seconds = 0.0 if state is None else detections.timestamp_s - state.timestamp_s
        if state is not None and state.scene_token == detections.scene_token and 0 < seconds <= self.max_gap_s:
            tracks = state.tracks
        else:
            tracks, seconds = self.no_tracks(), 0.0
        next_id = 0 if state is None else state.next_id
        ids, tracks, next_id = self.follow(tracks, detections.take(kept), seconds, next_id)
        answer = np.full(len(detections), -1, dtype=np.int64)
        answer[kept] = ids
        return answer, StreamState(detections.scene_token, detections.timestamp_s, next_id, tracks)

    @abstractmethod
    def no_tracks(self) -> Any:
        """The tracks of a stream that has just begun."""

    @abstractmethod
    def follow(
        self, tracks: Any, detections: Detections, seconds: float, next_id: int
    ) -> tuple[np.ndarray, Any, int]:
        """One frame of a running stream.

        Args:
            tracks: of the frame before; not changed.
            detections: of this frame: tracked classes, best scores first.
            seconds: since the frame before; 0 where the stream has just begun.
            next_id: the first free identity.

        Returns:
            (G,) identities, -1 for none; the tracks after this frame; the next free identity.
        """
