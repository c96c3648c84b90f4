"""Where each annotated object was in the samples before, for heads that look back along an agent's track."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from mmcv.transforms.base import BaseTransform

from bevstack.datasets.clips import previous_rows
from bevstack.datasets.nuscenes.index import NuScenesIndex, rigid_inverse
from bevstack.registry import TRANSFORMS


def centers_at(index: NuScenesIndex, rows: Sequence[int], instances: np.ndarray) -> np.ndarray:
    """Where instances were annotated in some samples, in the BEV frame of the first of these.

    Args:
        index: of the version.
        rows: M samples; -1 for one that is not there. The first must be there.
        instances: (G,) rows of ``index.arrays["instance_token"]``.

    Returns:
        (G, M, 2) float64 metres: x and y of the boxes' centres; NaN where a sample does not show the instance.
    """
    instances = np.asarray(instances, dtype=np.int64)
    bev_from_global = rigid_inverse(index.global_from_bev(rows[0]))
    places = np.full((len(instances), len(rows), 2), np.nan)
    for m, row in enumerate(rows):
        if row < 0 or not len(instances):
            continue
        boxes = index.boxes(row)
        place_of = {instance: place for place, instance in enumerate(boxes.instance.tolist())}
        there = np.array([place_of.get(instance, -1) for instance in instances.tolist()])
        centers = boxes.center[there[there >= 0]] @ bev_from_global[:3, :3].T + bev_from_global[:3, 3]
        places[there >= 0, m] = centers[:, :2]
    return places


@TRANSFORMS.register_module()
class LoadPastCenters(BaseTransform):
    """Add ``past_centers`` (G, M, 2): each object's centre now and in the M - 1 samples before, in today's BEV frame.

    Metres (x, y), the newest first (frame 0 is the keyframe); NaN where the object was not annotated or the stream has
    no such sample. In a clip of several frames these are the frames before the keyframe, whatever the queue has left
    out; a clip of one frame looks back along its stream, as the streaming loops' memory does. The places follow the
    BEV augmentation and the object filters, whether these come before or after.

    Args:
        num_frames: M, the keyframe included.
        max_gap_seconds: a longer pause between two samples ends a stream; the dataset's own.

    Raises:
        ValueError: ``num_frames`` is not positive.
    """

    def __init__(self, num_frames: int, max_gap_seconds: float = 2.0) -> None:
        if num_frames < 1:
            raise ValueError(f"LoadPastCenters: num_frames: {num_frames} must be at least 1")
        self.num_frames, self.max_gap_seconds = num_frames, max_gap_seconds
        self._opened: tuple[tuple, NuScenesIndex, np.ndarray] | None = None

    def transform(self, results: dict) -> dict:
        """Add ``past_centers``; reads ``instance_ids``, ``frames`` and where the dataset lies."""
        index, previous = self._open(results)
        centers = centers_at(index, self._rows(results, index, previous), results["instance_ids"])
        matrix = np.asarray(results.get("augmented_from_bev", np.eye(4)))
        results["past_centers"] = centers @ matrix[:2, :2].T + matrix[:2, 3]
        return results

    def _open(self, results: dict) -> tuple[NuScenesIndex, np.ndarray]:
        """The dataset's index, opened once, and each of its samples' predecessor in the stream."""
        place = str(results["data_root"]), results["version"], str(results.get("index_root") or "")
        if self._opened is None or self._opened[0] != place:
            index_root = Path(place[2]) if place[2] else None
            index = NuScenesIndex.open(place[0], place[1], index_root, check=False)  # the dataset has checked it
            arrays = index.arrays
            before = previous_rows(arrays["sample_prev"], arrays["sample_timestamp_us"], self.max_gap_seconds)
            self._opened = place, index, before
        return self._opened[1:]

    def _rows(self, results: dict, index: NuScenesIndex, previous: np.ndarray) -> list[int]:
        """M rows, the keyframe's first, -1 where there is no such sample."""
        frames = results["frames"]
        rows = [index.row_of[frames[-1]["token"]]]
        for step in range(1, self.num_frames):
            if len(frames) == 1:
                rows.append(int(previous[rows[-1]]) if rows[-1] >= 0 else -1)
            elif rows[-1] >= 0 and step < len(frames) and frames[-step]["has_previous"]:
                rows.append(index.row_of[frames[-1 - step]["token"]])
            else:
                rows.append(-1)
        return rows
