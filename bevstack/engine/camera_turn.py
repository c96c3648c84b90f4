"""How far a camera is turned from where its calibration says, found from how its picture changes while the car drives.

What stands still moves through a picture along lines that the car's motion and the camera's place prescribe (epipolar
lines: Longuet-Higgins 1981). Corners of one moment's picture are found again in the next one's (ORB, Rublee et al.
2011; then to a fraction of a pixel, Lucas and Kanade 1981), and for every turn of the camera to the side and up or down
it is counted how many of them keep to their lines. No neighbour is needed; a car that stands still tells nothing, and
what drives by itself is outvoted as long as most of what is seen stands still.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from bevstack.engine.camera_overlap import SeenCamera
from bevstack.structures.rigid_arrays import rigid_inverse

YAWS_DEG, PITCHES_DEG = np.arange(-28, 29) / 4, np.arange(-14, 15) / 4
"""Turns that are tried: about the camera's own axis down and about its axis to the right, as OpenCV counts them."""

_WELL_DEG = (1.0, 0.5)
_OUTER_DEG = (0.5, 0.5)
_LEAST_STEP_M, _LEAST_FLOW_PX, _CORNERS, _LEAST_MATCHES = 0.5, 1.5, 500, 8
_NEAR_PX, _LEAST_GAIN, _LEAST_SHARE = 0.3, 10.0, 0.02


@dataclass(frozen=True)
class CornersSeen:
    """A camera's picture at one moment, with what the next moment's is compared with.

    Args:
        camera: with its picture.
        places: (K, 2) float32 pixels as OpenCV counts them; descriptors: (K, 32) uint8, of its corners.
    """

    camera: SeenCamera
    places: np.ndarray
    descriptors: np.ndarray

    @classmethod
    def of(cls, camera: SeenCamera) -> CornersSeen:
        """Find the corners of a camera's picture, 500 at most."""
        everywhere: Any = None  # OpenCV's stubs do not know it
        found, descriptors = cv2.ORB.create(_CORNERS, fastThreshold=10).detectAndCompute(camera.grey, everywhere)
        if descriptors is None:
            return cls(camera, np.zeros((0, 2), np.float32), np.zeros((0, 32), np.uint8))
        return cls(camera, np.array([point.pt for point in found], np.float32), descriptors)


def fits_of_turns(before: CornersSeen, now: CornersSeen, before_from_now: np.ndarray) -> tuple[np.ndarray, int]:
    """How many corners fit each turn of a camera, and how many were found again.

    Args:
        before, now: the camera at two moments.
        before_from_now: (4, 4) metres: from the BEV frame now to the BEV frame then.

    Returns:
        (57, 29) float64 for :data:`YAWS_DEG` and :data:`PITCHES_DEG`: 1 for each corner on its line, falling to 0 at
        0.3 pixels from it; all 0, and no corner, where the car moved by less than half a metre or too few were found.
    """
    nothing = np.zeros((len(YAWS_DEG), len(PITCHES_DEG))), 0
    moved = rigid_inverse(before.camera.bev_from_camera) @ before_from_now @ now.camera.bev_from_camera
    if np.linalg.norm(before_from_now[:3, 3]) < _LEAST_STEP_M:
        return nothing
    then, here = _found_again(before, now)
    rays_then, rays_here = _rays(before.camera, then), _rays(now.camera, here)
    turned = rays_here @ (before.camera.pixels_from_camera @ moved[:3, :3]).T  # where a corner far away was then
    flow = np.linalg.norm(turned[:, :2] / turned[:, 2:] - then - 0.5, axis=1)
    kept = (turned[:, 2] > 0) & (flow > _LEAST_FLOW_PX)
    if kept.sum() < _LEAST_MATCHES:
        return nothing
    rays = rays_then[kept], rays_here[kept]

    def off(yaw: float, pitch: float) -> np.ndarray:
        return _off_lines(*rays, moved, _turn(yaw, pitch), before.camera, now.camera)

    by_yaw, by_pitch = (off(1, 0) - off(-1, 0)) / 2, (off(0, 1) - off(0, -1)) / 2  # pixels a degree
    distances = (
        off(0, 0)[:, None, None] + by_yaw[:, None, None] * YAWS_DEG[:, None] + by_pitch[:, None, None] * PITCHES_DEG
    )
    return np.maximum(1 - (distances / _NEAR_PX) ** 2, 0).sum(0), int(kept.sum())


def turn_deg(fits: np.ndarray, corners: float) -> np.ndarray:
    """(2,) yaw and pitch in degrees by which a camera is turned from where it is said to be; NaN where nothing says so.

    A turn is believed where clearly more corners fit it than any turn of a degree to the side and half a degree up or
    down: by 10 and by a fiftieth of all. One at the end of what is tried is not.

    Args:
        fits: (57, 29), sums of :func:`fits_of_turns`.
        corners: how many were found again in all.
    """
    row, column = np.unravel_index(int(fits.argmax()), fits.shape)
    turn = np.array([YAWS_DEG[row], PITCHES_DEG[column]])
    well = fits[np.ix_(np.abs(YAWS_DEG) <= _WELL_DEG[0], np.abs(PITCHES_DEG) <= _WELL_DEG[1])].max()
    gain = fits[row, column] - well
    last = np.array([YAWS_DEG[-1], PITCHES_DEG[-1]]) - _OUTER_DEG
    told = gain > max(_LEAST_GAIN, _LEAST_SHARE * corners) and bool((np.abs(turn) <= last).all())
    return turn if told else np.full(2, np.nan)


def _found_again(before: CornersSeen, now: CornersSeen) -> tuple[np.ndarray, np.ndarray]:
    """Places (K, 2) of the same corners in both pictures: each other's best match, and clearly better than the next."""
    empty = np.zeros((0, 2)), np.zeros((0, 2))
    if min(len(before.places), len(now.places)) < 2:
        return empty
    matcher = cv2.BFMatcher(cv2.NORM_HAMMING)
    back = {match.queryIdx: match.trainIdx for match in matcher.match(now.descriptors, before.descriptors)}
    pairs = [
        (first.queryIdx, first.trainIdx)
        for first, second in matcher.knnMatch(before.descriptors, now.descriptors, k=2)
        if first.distance < 0.8 * second.distance and back[first.trainIdx] == first.queryIdx
    ]
    if not pairs:
        return empty
    old, new = np.array(pairs).T
    start, guess = before.places[old, None], now.places[new, None]
    finer, found, _ = cv2.calcOpticalFlowPyrLK(
        before.camera.grey, now.camera.grey, start, guess.copy(), winSize=(13, 13), maxLevel=0,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW, criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 0.01),
    )  # fmt: skip
    kept = (found[:, 0] == 1) & (np.abs(finer - guess).max((1, 2)) < 3)
    return start[kept, 0].astype(np.float64), finer[kept, 0].astype(np.float64)


def _rays(camera: SeenCamera, places: np.ndarray) -> np.ndarray:
    """(K, 3) of places (K, 2) in OpenCV's pixels, whose pixel i has its centre at i."""
    points = np.concatenate([places + 0.5, np.ones((len(places), 1))], axis=1)
    return points @ np.linalg.inv(camera.pixels_from_camera).T


def _turn(yaw_deg: float, pitch_deg: float) -> np.ndarray:
    """(3, 3): a camera's axes turned about its own y, then its own x."""
    return cv2.Rodrigues(np.radians([0.0, yaw_deg, 0]))[0] @ cv2.Rodrigues(np.radians([pitch_deg, 0.0, 0]))[0]


def _off_lines(
    then: np.ndarray, here: np.ndarray, moved: np.ndarray, turn: np.ndarray, before: SeenCamera, now: SeenCamera
) -> np.ndarray:
    """(K,) signed pixels of rays (K, 3) from their epipolar lines (Sampson's distance), with the camera turned."""
    rotation, shift = turn @ moved[:3, :3] @ turn.T, turn @ moved[:3, 3]
    x, y, z = shift / np.linalg.norm(shift)
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ rotation
    lines_then, lines_here = here @ essential.T, then @ essential
    # a line's slope a pixel: that of a ray's first two places over the focal lengths
    focal_then, focal_here = (np.diag(camera.pixels_from_camera)[:2] for camera in (before, now))
    slope = np.sqrt(((lines_then[:, :2] / focal_then) ** 2 + (lines_here[:, :2] / focal_here) ** 2).sum(1))
    return (then * lines_then).sum(1) / np.maximum(slope, 1e-12)
