"""Who hides whom: the back-to-front order of things, and of the convex parts within a thing, seen from a point.

Two upright boxes that do not meet are separated by one of five planes (the four sides' normals, or a height). The box
on the camera's side of that plane can hide the other, never the reverse; drawing in any order that respects this is
exact.
"""

from __future__ import annotations

import numpy as np


def _reach(axis: np.ndarray, yaw: np.ndarray, half: np.ndarray) -> np.ndarray:
    """Half extent of boxes (N) along unit axes (M, 2): (M, N)."""
    forward = np.stack([np.cos(yaw), np.sin(yaw)], -1)
    left = np.stack([-forward[:, 1], forward[:, 0]], -1)
    return np.abs(axis @ forward.T) * half[:, 0] + np.abs(axis @ left.T) * half[:, 1]


def hides(centre: np.ndarray, yaw: np.ndarray, half: np.ndarray, z: np.ndarray, eye: np.ndarray) -> np.ndarray:
    """(N, N) bool: may box i hide box j from ``eye``?

    centre (N, 2), yaw (N,), half (N, 2) half length and half width, z (N, 2) bottom and top, eye (3,); one frame,
    metres. Only pairs whose horizontal viewing angles overlap count.
    """
    count = len(centre)
    forward = np.stack([np.cos(yaw), np.sin(yaw)], -1)
    left = np.stack([-forward[:, 1], forward[:, 0]], -1)
    best = np.full((count, count), -np.inf)
    first = np.zeros((count, count), bool)  # box i (rows) on the eye's side
    for axis, own in ((forward, half[:, 0]), (left, half[:, 1])):
        offset = np.einsum("ijk,ik->ij", centre[None] - centre[:, None], axis)  # j relative to i along i's axis
        reach = _reach(axis, yaw, half)
        eye_along = np.einsum("ik,ik->i", eye[None, :2] - centre, axis)
        gap = np.abs(offset) - reach - own[:, None]
        sign = np.where(offset >= 0, 1.0, -1.0)
        cut = (own[:, None] + (sign * offset - reach)) / 2  # along sign * axis, from i's centre
        i_near = sign * eye_along[:, None] < cut
        for values, near in ((gap, i_near), (gap.T, ~i_near.T)):
            better = values > best
            best = np.where(better, values, best)
            first = np.where(better, near, first)
    low_i, high_i, low_j, high_j = z[:, None, 0], z[:, None, 1], z[None, :, 0], z[None, :, 1]
    gap = np.maximum(low_j - high_i, low_i - high_j)
    i_low = (low_j - high_i) >= (low_i - high_j)
    cut = np.where(i_low, (high_i + low_j) / 2, (high_j + low_i) / 2)
    better = gap > best
    first = np.where(better, i_low == (eye[2] < cut), first)
    best = np.maximum(best, gap)
    distance = np.hypot(*(centre - eye[:2]).T)
    first = np.where(best < -0.4, distance[:, None] < distance[None, :], first)  # deep overlap: the nearer centre
    angle = np.arctan2(centre[:, 1] - eye[1], centre[:, 0] - eye[0])
    radius = np.hypot(*half.T)
    spread = np.where(distance > radius, np.arcsin(np.minimum(radius / np.maximum(distance, 1e-6), 1.0)), np.pi)
    apart = np.abs((angle[:, None] - angle[None] + np.pi) % (2 * np.pi) - np.pi)
    out = first & (apart < spread[:, None] + spread[None])
    np.fill_diagonal(out, False)
    return out & ~(out.T & (distance[:, None] > distance[None]))


def paint_order(front: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Indices back to front: no box is drawn before one that it may hide. Cycles are cut at the farthest box."""
    count = len(distance)
    waiting = front.sum(1).astype(np.int64)  # boxes behind i that are not drawn yet
    key = distance.astype(float).copy()
    order = np.empty(count, np.int64)
    open_ = np.ones(count, bool)
    for k in range(count):
        ready = np.where(open_ & (waiting == 0), key, -1.0)
        pick = int(np.argmax(ready))
        if ready[pick] < 0:
            pick = int(np.argmax(np.where(open_, key, -1.0)))
        order[k] = pick
        open_[pick] = False
        waiting -= front[:, pick]
    return order


def part_ranks(
    pairs: np.ndarray, owner: np.ndarray, part_start: np.ndarray, parts: int, eye_local: np.ndarray
) -> np.ndarray:
    """Rank of every part within its thing (0 drawn first).

    pairs (M, 5) of :class:`~bevstack.synthetic.shapes.Mesh`, owner (M,) the thing of each pair, part_start
    (N,) the first part of each thing, parts their number, eye_local (N, 3) the eye in each thing's frame.
    """
    along = eye_local[owner, pairs[:, 2].astype(np.int64)]
    low_near = along < pairs[:, 3]
    i_near = low_near == (pairs[:, 4] > 0)
    winner = part_start[owner] + np.where(i_near, pairs[:, 0], pairs[:, 1]).astype(np.int64)
    return np.bincount(winner, minlength=parts)


def separations(boxes: np.ndarray) -> np.ndarray:
    """For every pair of parts the axis and cut that separate them best: rows (i, j, axis, cut, 1 if i is the low
    one)."""
    i, j = np.triu_indices(len(boxes), 1)
    up, down = boxes[j, 0] - boxes[i, 1], boxes[i, 0] - boxes[j, 1]  # i low and j high, or the reverse
    axis = np.argmax(np.maximum(up, down), 1)
    at = np.arange(len(i))
    low_first = up[at, axis] >= down[at, axis]
    cut = np.where(low_first, boxes[i, 1, axis] + boxes[j, 0, axis], boxes[j, 1, axis] + boxes[i, 0, axis]) / 2
    return np.stack([i, j, axis, cut, np.where(low_first, 1.0, -1.0)], -1).astype(np.float32).reshape(-1, 5)
