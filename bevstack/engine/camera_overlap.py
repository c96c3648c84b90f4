"""What two neighbouring cameras see of the same place, and how far their calibrations disagree about where it is.

Both images are drawn on one grid of directions, seen from halfway between the two cameras: below the horizon as the
ground would be seen, above it as what is far away. Where both see, one picture is moved over the other until they agree
best (normalised correlation of what is left without the local mean, masked: Padfield 2012). How far it had to be moved
up or down is the disagreement in pitch and roll, to a fifth of a degree; to the side it is that in yaw, and what stands
near and upright moves sideways, too, so that this is several times less exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from bevstack.structures.rigid_arrays import rigid_inverse

STEP_DEG = 0.15
REACH_DEG = 6.0
"""Farthest disagreement that is looked for, up, down and to each side."""

_LEAST_OVERLAP_DEG = 4.0
_TOP_DEG, _BOTTOM_DEG, _WIDEST_DEG = 8.0, -18.0, 50.0
_FAR_M = 60.0
_LEAST_SCORE, _LEAST_PEAK, _LEAST_SHARE = 0.35, 0.05, 0.35


@dataclass(frozen=True)
class SeenCamera:
    """A camera and its image.

    Args:
        grey: (H, W) uint8.
        pixels_from_camera: (3, 3), of this image.
        bev_from_camera: (4, 4) metres.
    """

    grey: np.ndarray
    pixels_from_camera: np.ndarray
    bev_from_camera: np.ndarray

    @property
    def yaw_range(self) -> tuple[float, float]:
        """From where to where it looks around, radians counter-clockwise from +x, the smaller one first."""
        width = self.grey.shape[1]
        across = np.linspace(0, width, 17)
        points = np.stack([across, np.full(17, self.pixels_from_camera[1, 2]), np.ones(17)])
        rays = self.bev_from_camera[:3, :3] @ np.linalg.inv(self.pixels_from_camera) @ points
        yaws = np.unwrap(np.arctan2(rays[1], rays[0]))
        return float(yaws.min()), float(yaws.max())

    def picture_of(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What it shows of places (h, w, 3) in metres of the BEV frame: (h, w) float32, and a mask where it does."""
        camera_from_bev = rigid_inverse(self.bev_from_camera)
        local = points @ camera_from_bev[:3, :3].T + camera_from_bev[:3, 3]
        pixels = local @ self.pixels_from_camera.T
        depth = np.maximum(pixels[..., 2], 1e-6)
        u, v = pixels[..., 0] / depth - 0.5, pixels[..., 1] / depth - 0.5  # OpenCV's pixel i has its centre at i
        height, width = self.grey.shape
        seen = (local[..., 2] > 0.5) & (u > 1) & (u < width - 2) & (v > 1) & (v < height - 2)
        drawn = cv2.remap(self.grey, u.astype(np.float32), v.astype(np.float32), cv2.INTER_LINEAR)
        return drawn.astype(np.float32), seen


def neighbours(cameras: list[SeenCamera | None]) -> Iterator[tuple[int, int, tuple[float, float]]]:
    """Pairs of cameras that see the same 4 degrees or more around, with from where to where (radians)."""
    ranges = [None if camera is None else camera.yaw_range for camera in cameras]
    for one, own in enumerate(ranges):
        for other in range(one + 1, len(ranges)):
            theirs = ranges[other]
            if own is None or theirs is None:
                continue
            turned = [(theirs[0] + turn, theirs[1] + turn) for turn in (-2 * np.pi, 0, 2 * np.pi)]
            shared = [(max(own[0], first), min(own[1], last)) for first, last in turned]
            widest = max(shared, key=lambda ends: ends[1] - ends[0])
            if widest[1] - widest[0] > np.radians(_LEAST_OVERLAP_DEG):
                yield one, other, widest


def disagreement_deg(
    one: SeenCamera, other: SeenCamera, shared: tuple[float, float], ground_z_m: float
) -> tuple[float, float]:
    """How far what the other shows lies to the right of, and below, what the one shows, in degrees.

    Args:
        one, other: neighbours.
        shared: from where to where both look, radians.
        ground_z_m: height of the ground in the BEV frame.

    Returns:
        Each NaN where the pictures do not tell: too little to be seen, or the same wherever it is moved.
    """
    middle = (one.bev_from_camera[:3, 3] + other.bev_from_camera[:3, 3]) / 2
    directions, below = _directions(shared)
    height = max(float(middle[2]) - ground_z_m, 0.1)
    reach = np.where(below > 0.02, height / np.maximum(below, 1e-3), _FAR_M)
    points = middle + directions * np.minimum(reach, _FAR_M)[..., None]
    (drawn, seen), (other_drawn, other_seen) = one.picture_of(points), other.picture_of(points)
    both = int((seen & other_seen).sum())
    if both < 200:
        return float("nan"), float("nan")
    scores = _correlations(_local(drawn, seen), _inner(seen), _local(other_drawn, other_seen), _inner(other_seen))
    row, column = divmod(int(scores.argmax()), scores.shape[1])
    best, middle_px, degree = scores[row, column], scores.shape[0] // 2, round(1 / STEP_DEG)
    if best < _LEAST_SCORE:
        return float("nan"), float("nan")
    beside = max(scores[row, max(column - degree, 0)], scores[row, min(column + degree, scores.shape[1] - 1)])
    above = max(scores[max(row - degree, 0), column], scores[min(row + degree, scores.shape[0] - 1), column])
    yaw = (column - middle_px) * STEP_DEG if best - beside > _LEAST_PEAK else float("nan")
    pitch = (row - middle_px) * STEP_DEG if best - above > _LEAST_PEAK else float("nan")
    return float(yaw), float(pitch)


def _directions(shared: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """(h, w, 3) unit directions of the grid, yaw falling to the right, and how far down each points."""
    wide_deg = min(np.degrees(shared[1] - shared[0]) + 2 * (REACH_DEG + 1), _WIDEST_DEG)
    columns, rows = int(wide_deg / STEP_DEG), int((_TOP_DEG - _BOTTOM_DEG) / STEP_DEG)
    yaw = sum(shared) / 2 - np.radians((np.arange(columns) + 0.5 - columns / 2) * STEP_DEG)
    up = np.radians(_TOP_DEG - (np.arange(rows) + 0.5) * STEP_DEG)[:, None]
    directions = np.stack(
        [np.cos(up) * np.cos(yaw), np.cos(up) * np.sin(yaw), np.broadcast_to(np.sin(up), (rows, columns))], axis=-1
    )
    return directions, -directions[..., 2]


def _local(picture: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """A picture without its local mean, in units of its local deviation; exposure plays no part."""
    filled = np.where(seen, picture, picture[seen].mean()).astype(np.float32)
    rest = filled - cv2.blur(filled, (15, 15))
    deviation = np.sqrt(np.maximum(cv2.blur(rest * rest, (31, 31)), 0))
    return rest / (deviation + 4)


def _inner(seen: np.ndarray) -> np.ndarray:
    return cv2.erode(seen.astype(np.float32), np.ones((9, 9)))


def _correlations(one: np.ndarray, mask: np.ndarray, other: np.ndarray, other_mask: np.ndarray) -> np.ndarray:
    """Correlation coefficients over all shifts up to the reach, no shift in the middle; -1 where too little is left."""
    shape = (2 * one.shape[0], 2 * one.shape[1])
    one, other = one * mask, other * other_mask
    parts = [np.fft.rfft2(part, shape) for part in (one, mask, other, other_mask, one * one, other * other)]
    a, a_mask, b, b_mask, a_square, b_square = parts
    count, a_sum, b_sum, product, a_power, b_power = (
        np.fft.irfft2(np.conj(x) * y, shape)
        for x, y in ((a_mask, b_mask), (a, b_mask), (a_mask, b), (a, b), (a_square, b_mask), (a_mask, b_square))
    )
    count = np.maximum(count, 1e-3)
    spread = np.maximum(a_power - a_sum**2 / count, 0) * np.maximum(b_power - b_sum**2 / count, 0)
    found = (product - a_sum * b_sum / count) / np.sqrt(np.maximum(spread, 1e-6))
    found = np.where(count > _LEAST_SHARE * max(float(count[0, 0]), 1.0), found, -1.0)
    reach = int(REACH_DEG / STEP_DEG)
    shifted = np.roll(found, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    return cv2.GaussianBlur(shifted.astype(np.float32), (0, 0), 1.0)
