"""Velocity tracking (CenterPoint, Yin et al. 2021, section 4.2): nearest centres after moving detections back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bevstack.registry import TASK_UTILS
from bevstack.tracking.base import Tracker
from bevstack.tracking.detections import Detections


@dataclass(frozen=True)
class PointTracks:
    """R tracks as points on the ground.

    Args:
        ids: (R,) int64.
        xy: (R, 2) metres, global: where last seen, moved on by the velocity in frames in which it was not.
        velocity: (R, 2) metres per second, global.
        names: (R,) class names.
        ages: (R,) frames since the track was last seen; 0 for this frame.
    """

    ids: np.ndarray
    xy: np.ndarray
    velocity: np.ndarray
    names: np.ndarray
    ages: np.ndarray

    def take(self, indices: np.ndarray) -> PointTracks:
        """The tracks of given indices (n,), in their order."""
        return PointTracks(*(getattr(self, name)[indices] for name in self.__dataclass_fields__))


def greedy_matches(distance: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Each detection in turn takes the nearest track that is still free.

    Args:
        distance: (G, R) metres, infinite where a match is not allowed; best detections first.
        limits: (G,) largest distance of a match.

    Returns:
        (G,) index of the track, -1 for none.
    """
    free, matches = np.array(distance, dtype=np.float64), np.full(len(distance), -1, dtype=np.int64)
    for row in range(len(distance) if free.shape[1] else 0):
        nearest = int(free[row].argmin())
        if free[row, nearest] <= limits[row] and np.isfinite(free[row, nearest]):
            matches[row] = nearest
            free[:, nearest] = np.inf
    return matches


@TASK_UTILS.register_module()
class CenterPointTracker(Tracker):
    """Each detection, moved back to the frame before by its own velocity, takes the nearest track of its class.

    Detections choose in the order of their scores. A track that nothing matches moves on by its last velocity until
    ``max_age`` frames have passed. Every detection that finds no track begins one, and every track is reported at once.

    Args:
        limits_m, min_score, max_age, max_gap_s: see :class:`Tracker`.
    """

    def no_tracks(self) -> PointTracks:
        """A table of R = 0 tracks."""
        return PointTracks(
            np.zeros(0, np.int64), np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0, object), np.zeros(0, np.int64)
        )

    def follow(
        self, tracks: PointTracks, detections: Detections, seconds: float, next_id: int
    ) -> tuple[np.ndarray, PointTracks, int]:
        """One frame of a running stream (:meth:`Tracker.follow`): (G,) identities, tracks, the next free identity."""
        xy, velocity = detections.boxes[:, :2], detections.velocities
        before = xy - velocity * seconds
        distance = np.linalg.norm(before[:, None] - tracks.xy[None], axis=-1)
        distance[detections.names[:, None] != tracks.names[None]] = np.inf
        limits = np.array([self.limits_m[name] for name in detections.names])
        matches = greedy_matches(distance, limits)
        ids = np.full(len(detections), -1, dtype=np.int64)
        ids[matches >= 0] = tracks.ids[matches[matches >= 0]]
        new = ids < 0
        ids[new] = next_id + np.arange(new.sum())
        seen = PointTracks(ids, xy, velocity, detections.names, np.zeros(len(ids), np.int64))
        lost = np.setdiff1d(np.flatnonzero(tracks.ages + 1 < self.max_age), matches)
        left = tracks.take(lost)
        unseen = PointTracks(left.ids, left.xy + left.velocity * seconds, left.velocity, left.names, left.ages + 1)
        pairs = ((getattr(seen, name), getattr(unseen, name)) for name in PointTracks.__dataclass_fields__)
        return ids, PointTracks(*(np.concatenate(pair) for pair in pairs)), next_id + int(new.sum())
