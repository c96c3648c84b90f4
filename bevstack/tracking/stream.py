"""A tracker led along a stream of samples: identities and trails on the samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from bevstack.structures import BEVDataSample
from bevstack.tracking.base import StreamState, Tracker
from bevstack.tracking.detections import detections_of


def track_samples(
    tracker: Tracker, samples: Iterable[BEVDataSample], trail_length: int = 12
) -> Iterator[BEVDataSample]:
    """Give the predicted boxes of samples identities, one sample after the other.

    Args:
        tracker: any.
        samples: with ``pred_instances_3d``, in the order of time; scenes one after the other.
        trail_length: places that a trail holds at most, this frame's included.

    Yields:
        Copies of the samples with ``pred_instances_3d.track_ids`` (G,) int64, -1 where a box has no identity, and the
        field ``track_trails``: by identity of this frame's boxes, (P, 3) float64 metres in the global frame, where it
        was seen (the middle of its lower face), oldest first, this frame last.

    Raises:
        InputError: a sample has no predicted boxes or no place and time.
    """
    state: StreamState | None = None
    trails: dict[int, np.ndarray] = {}
    for sample in samples:
        detections = detections_of(sample)
        previous = state
        ids, state = tracker.step(state, detections)
        if previous is not None and previous.scene_token != state.scene_token:
            trails = {}
        for identity, box in zip(ids.tolist(), detections.boxes, strict=True):
            if identity >= 0:
                past = trails.get(identity, np.zeros((0, 3)))
                trails[identity] = np.concatenate([past, box[None, :3]])[-trail_length:]
        tracked = sample.new()
        instances = sample.pred_instances_3d.new()
        instances.track_ids = torch.from_numpy(ids).to(instances.labels_3d.device)
        tracked.pred_instances_3d = instances
        shown = [identity for identity in ids.tolist() if identity >= 0]
        tracked.set_field({identity: trails[identity] for identity in shown}, "track_trails")
        yield tracked
