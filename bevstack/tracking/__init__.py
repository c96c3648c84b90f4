"""Tracking by detection: identities for detections of successive frames, in the global frame."""

from bevstack.tracking.base import Tracker
from bevstack.tracking.centerpoint_tracker import CenterPointTracker
from bevstack.tracking.deepsort_tracker import DeepSortTracker
from bevstack.tracking.detections import Detections, detections_of
from bevstack.tracking.kalman import KalmanFilter
from bevstack.tracking.stream import track_samples

__all__ = [
    "CenterPointTracker",
    "DeepSortTracker",
    "Detections",
    "KalmanFilter",
    "Tracker",
    "detections_of",
    "track_samples",
]
