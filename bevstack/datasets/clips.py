"""Which frames make a clip: the temporal queues, and the index that carries its epoch."""

from __future__ import annotations

import numpy as np


class ClipIndex(int):
    """A sample's number that carries the epoch it is drawn in.

    Samplers give these, so that a worker seeds a clip by the epoch it belongs to, whatever is prefetched and however
    long the worker lives. Everywhere else it is a plain int.
    """

    epoch: int

    def __new__(cls, index: int, epoch: int = 0) -> ClipIndex:
        """Number ``index``, drawn in ``epoch``."""
        value = super().__new__(cls, index)
        value.epoch = int(epoch)
        return value

    def __getnewargs__(self) -> tuple[int, int]:  # type: ignore[override]  # int's own takes one, this class two
        return int(self), self.epoch


def previous_rows(prev: np.ndarray, timestamp_us: np.ndarray, max_gap_seconds: float) -> np.ndarray:
    """(S,) row of each sample's predecessor in its stream, -1 at a scene's start and after a gap.

    Args:
        prev: (S,) row of the predecessor in the scene, -1 where there is none.
        timestamp_us: (S,) microseconds.
        max_gap_seconds: a longer pause ends a stream.
    """
    prev, times = np.asarray(prev, dtype=np.int64), np.asarray(timestamp_us)
    joined = (prev >= 0) & (times - times[prev] <= max_gap_seconds * 1e6)
    return np.where(joined, prev, -1)


def _walk_back(row: int, steps: int, previous: np.ndarray) -> list[int]:
    """Rows of the ``steps`` samples before ``row``, oldest first; -1 where the stream has none."""
    rows = []
    for _ in range(steps):
        row = int(previous[row]) if row >= 0 else -1
        rows.append(row)
    return rows[::-1]


def _filled(chosen: list[int]) -> tuple[list[int], int]:
    repeated = sum(row < 0 for row in chosen)
    return [chosen[repeated]] * repeated + chosen[repeated:], repeated


def random_queue(row: int, num_frames: int, previous: np.ndarray, rng: np.random.Generator) -> tuple[list[int], int]:
    """The paper's training queue: of the T samples before the keyframe, one is dropped.

    Source: docs/reference.md 4.5, Training queue, 4.1 M: frames of another scene are never among them.

    Args:
        row: the keyframe.
        num_frames: T.
        previous: predecessors, see :func:`previous_rows`.
        rng: drawn from once, whatever the scene holds.

    Returns:
        T rows, oldest first, the keyframe last; and how many at the front only repeat the oldest one there is.
    """
    candidates = _walk_back(row, num_frames, previous)
    del candidates[int(rng.integers(num_frames))]
    return _filled([*candidates, row])


def consecutive_queue(
    row: int, num_frames: int, previous: np.ndarray, rng: np.random.Generator
) -> tuple[list[int], int]:
    """The T - 1 samples before the keyframe and the keyframe: arguments and results as :func:`random_queue`.

    Nothing is drawn.
    """
    return _filled([*_walk_back(row, num_frames - 1, previous), row])
