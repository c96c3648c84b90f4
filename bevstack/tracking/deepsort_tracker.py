"""Tracking by motion and appearance (DeepSORT, Wojke et al. 2017) on the ground plane."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import shapely
import torch
from scipy.optimize import linear_sum_assignment
from scipy.stats import chi2

from bevstack.geometry.boxes3d import box_footprints
from bevstack.registry import TASK_UTILS
from bevstack.tracking.base import Tracker
from bevstack.tracking.detections import Detections
from bevstack.tracking.kalman import KalmanFilter

_REFUSED = 1e6  # the cost of a pair that may not be matched: above any sum of costs that may


@dataclass(frozen=True)
class KalmanTrack:
    """One object that is followed.

    Args:
        id: identity.
        name: class.
        mean, covariance: (9,), (9, 9) of :class:`KalmanFilter`, global.
        hits: frames in which it was seen.
        age: frames since it was last seen; 0 for this frame.
        confirmed: whether it is trusted.
        gallery: (P, E) embeddings of its last P sightings, newest last; (0, 0) without any.
    """

    id: int
    name: str
    mean: np.ndarray
    covariance: np.ndarray
    hits: int
    age: int
    confirmed: bool
    gallery: np.ndarray


def cosine_distance(gallery: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """Least cosine distance of each embedding to a gallery (Wojke et al. 2017, eq. 3).

    Args:
        gallery: (P, E), embeddings: (G, E), both of unit length.

    Returns:
        (G,) in [0, 2].
    """
    return 1.0 - (embeddings @ gallery.T).max(axis=1)


def footprint_iou(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union on the ground of boxes (A, 9) and (B, 9), turned as they are: (A, B)."""
    corners = (box_footprints(torch.from_numpy(np.asarray(table))).numpy() for table in (boxes, others))
    first, second = (shapely.polygons(table) for table in corners)
    first, second = first[:, None], second[None, :]
    common = shapely.area(shapely.intersection(first, second))
    union = shapely.area(first) + shapely.area(second) - common
    return common / np.maximum(union, 1e-12)


def assign(cost: np.ndarray, allowed: np.ndarray) -> list[tuple[int, int]]:
    """Match rows with columns one to one.

    Args:
        cost: (R, C); allowed: (R, C) bool.

    Returns:
        Pairs (row, column) of least total cost among those allowed; as many pairs as can be.
    """
    if not allowed.any():
        return []
    rows, columns = linear_sum_assignment(np.where(allowed, cost, _REFUSED))
    return [(int(r), int(c)) for r, c in zip(rows, columns, strict=True) if allowed[r, c]]


@TASK_UTILS.register_module()
class DeepSortTracker(Tracker):
    """Kalman filter, embeddings, matching cascade, and a last stage by overlap or distance.

    1. Every track moves on to this frame. 2. Cascade: confirmed tracks choose first that were seen last, by
    ``motion_weight * d1 + (1 - motion_weight) * d2`` with d1 the squared Mahalanobis distance on the ground over its
    gate and d2 the cosine distance to the track's gallery over ``max_cosine_distance``, both at most 1 (eq. 5, 6).
    3. What is left of tentative tracks and of tracks seen in the frame before is matched by overlap or distance alone.
    4. The rest of the detections begin tentative tracks, which a missed frame ends. Only objects of one class match.

    Args:
        limits_m, min_score, max_age, max_gap_s: see :class:`Tracker`; distances are from where a track is expected. In
            the cascade they grow with the frames since it was last seen: a track of unknown speed has a wide gate, and
            would else cross the street within a second.
        min_hits: sightings that confirm a track. Tentative tracks are reported only within the first ``min_hits``
            frames of a stream, as nothing could be confirmed before.
        gate_probability: of a true match to lie within the Mahalanobis gate.
        max_cosine_distance: gate of the appearance.
        motion_weight: lambda of eq. 5; without embeddings motion counts alone.
        gallery_size: embeddings kept for each track.
        last_stage: ``distance`` (of centres, at most ``limits_m``) or ``iou`` (of footprints, at least ``min_iou``).
        min_iou: see above.
        kalman: the filter, or its arguments.

    Raises:
        ValueError: an option that makes no sense.
    """

    def __init__(
        self,
        limits_m: Mapping[str, float] | None = None,
        min_score: float = 0.0,
        max_age: int = 6,
        max_gap_s: float = 2.0,
        min_hits: int = 2,
        gate_probability: float = 0.99,
        max_cosine_distance: float = 0.4,
        motion_weight: float = 0.3,
        gallery_size: int = 20,
        last_stage: str = "distance",
        min_iou: float = 0.1,
        kalman: KalmanFilter | Mapping | None = None,
    ) -> None:
        super().__init__(limits_m, min_score, max_age, max_gap_s)
        if last_stage not in ("distance", "iou"):
            raise ValueError(f"last_stage: '{last_stage}' is neither 'distance' nor 'iou'")
        if not 0 <= motion_weight <= 1:
            raise ValueError(f"motion_weight: {motion_weight} must lie between 0 and 1")
        if not 0 < gate_probability < 1:
            raise ValueError(f"gate_probability: {gate_probability} must lie between 0 and 1")
        self.min_hits, self.gallery_size = min_hits, gallery_size
        self.gate = float(chi2.ppf(gate_probability, df=2))
        self.max_cosine_distance, self.motion_weight = max_cosine_distance, motion_weight
        self.last_stage, self.min_iou = last_stage, min_iou
        self.kalman = kalman if isinstance(kalman, KalmanFilter) else KalmanFilter(**(kalman or {}))

    def no_tracks(self) -> tuple[int, tuple[KalmanTrack, ...]]:
        """No frame seen, no tracks."""
        return 0, ()

    def follow(
        self, tracks: tuple[int, tuple[KalmanTrack, ...]], detections: Detections, seconds: float, next_id: int
    ) -> tuple[np.ndarray, tuple[int, tuple[KalmanTrack, ...]], int]:
        """One frame of a running stream (:meth:`Tracker.follow`): (G,) identities, tracks, the next free identity.

        The tracks go with the number of frames since the stream's start.
        """
        frames = tracks[0] + 1
        moved = [self._moved(track, seconds) for track in tracks[1]]
        pairs = self._matches(moved, detections)
        ids = np.full(len(detections), -1, dtype=np.int64)
        followed = []
        for index, track in enumerate(moved):
            if index in pairs:
                track = self._seen(track, detections, pairs[index])
                if track.confirmed or frames <= self.min_hits:
                    ids[pairs[index]] = track.id
                followed.append(track)
            elif track.confirmed and track.age < self.max_age:
                followed.append(track)
        for row in sorted(set(range(len(detections))) - set(pairs.values())):
            mean, covariance = self.kalman.initiate(detections.boxes[row])
            gallery = self._gallery(np.zeros((0, 0)), detections, row)
            confirmed = self.min_hits <= 1
            followed.append(
                KalmanTrack(next_id, detections.names[row], mean, covariance, 1, 0, confirmed, gallery)
            )
            if confirmed or frames <= self.min_hits:
                ids[row] = next_id
            next_id += 1
        return ids, (frames, tuple(followed)), next_id

    def _moved(self, track: KalmanTrack, seconds: float) -> KalmanTrack:
        mean, covariance = self.kalman.predict(track.mean, track.covariance, seconds)
        return replace(track, mean=mean, covariance=covariance, age=track.age + 1)

    def _seen(self, track: KalmanTrack, detections: Detections, row: int) -> KalmanTrack:
        mean, covariance = self.kalman.update(track.mean, track.covariance, detections.boxes[row])
        hits = track.hits + 1
        confirmed = track.confirmed or hits >= self.min_hits
        gallery = self._gallery(track.gallery, detections, row)
        return KalmanTrack(track.id, track.name, mean, covariance, hits, 0, confirmed, gallery)

    def _gallery(self, gallery: np.ndarray, detections: Detections, row: int) -> np.ndarray:
        if detections.embeddings is None:
            return gallery
        newest = detections.embeddings[row : row + 1]
        return np.concatenate([gallery, newest])[-self.gallery_size :] if len(gallery) else newest

    def _matches(self, tracks: Sequence[KalmanTrack], detections: Detections) -> dict[int, int]:
        """Detection of each track that has one, by index: cascade by age, then the last stage."""
        pairs: dict[int, int] = {}
        for age in range(1, self.max_age + 1):
            of_age = [index for index, track in enumerate(tracks) if track.confirmed and track.age == age]
            pairs |= self._stage(tracks, of_age, detections, pairs, self._combined_cost)
        rest = [i for i, track in enumerate(tracks) if i not in pairs and (not track.confirmed or track.age == 1)]
        pairs |= self._stage(tracks, rest, detections, pairs, self._overlap_cost)
        return pairs

    def _stage(self, tracks, chosen, detections, pairs, cost_of) -> dict[int, int]:
        """Matches of the chosen tracks with detections that no pair has yet."""
        free = np.setdiff1d(np.arange(len(detections)), list(pairs.values()))
        if not chosen or not len(free):
            return {}
        left = detections.take(free)
        costs = np.stack([cost_of(tracks[index], left) for index in chosen])
        same = np.array([[tracks[index].name == name for name in left.names] for index in chosen])
        return {chosen[row]: int(free[column]) for row, column in assign(costs, same & (costs <= 1))}

    def _combined_cost(self, track: KalmanTrack, detections: Detections) -> np.ndarray:
        """(G,) cost in [0, 1], infinite beyond either gate or too far away."""
        gaps = np.linalg.norm(detections.boxes[:, :2] - track.mean[:2], axis=1)
        near = gaps <= self.limits_m[track.name] * track.age
        motion = self.kalman.ground_distance(track.mean, track.covariance, detections.boxes[:, :2]) / self.gate
        if detections.embeddings is None or not len(track.gallery):
            return np.where(near & (motion <= 1), motion, np.inf)
        looks = cosine_distance(track.gallery, detections.embeddings) / self.max_cosine_distance
        cost = self.motion_weight * motion + (1 - self.motion_weight) * looks
        return np.where(near & (motion <= 1) & (looks <= 1), cost, np.inf)

    def _overlap_cost(self, track: KalmanTrack, detections: Detections) -> np.ndarray:
        """(G,) cost in [0, 1], infinite where too far apart."""
        if self.last_stage == "distance":
            gaps = np.linalg.norm(detections.boxes[:, :2] - track.mean[:2], axis=1)
            return gaps / self.limits_m[track.name]
        overlap = footprint_iou(track.mean[None], detections.boxes)[0]
        return np.where(overlap >= self.min_iou, 1 - overlap, np.inf)
