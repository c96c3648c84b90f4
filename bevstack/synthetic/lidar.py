"""A spinning lidar: 32 beams, about 1084 shots a turn, cast against the ground and the same parts that are drawn."""

from __future__ import annotations

import numpy as np

from bevstack.synthetic.cameras import LIDAR_TRANSLATION, LIDAR_YAW, yaw_matrix
from bevstack.synthetic.things import ThingStack

BEAMS = 32
SHOTS = 1084
ELEVATION_DEG = (-30.67, 10.67)
GROUND_RANGE_M = 70.0
RANGE_M = 100.0
NOISE_M = 0.015


class Lidar:
    """The ray table of one sensor. ``directions`` (BEAMS * SHOTS, 3) in the lidar frame (x right, y forward, z up)."""

    def __init__(self, shots: int = SHOTS) -> None:
        self.shots = shots
        self.azimuth = (np.arange(shots) + 0.5) * 2 * np.pi / shots - np.pi
        self.elevation = np.deg2rad(np.linspace(*ELEVATION_DEG, BEAMS))
        ce, se = np.cos(self.elevation)[:, None], np.sin(self.elevation)[:, None]
        self.directions = np.stack(
            [ce * np.cos(self.azimuth), ce * np.sin(self.azimuth), np.broadcast_to(se, (BEAMS, shots))], -1
        )
        self.directions = self.directions.reshape(-1, 3)

    def _windows(self, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rays that may meet each of the boxes with corners (P, 8, 3): flat (owner, ray) lists."""
        azimuth = np.arctan2(corners[..., 1], corners[..., 0])
        middle = np.arctan2(corners[..., 1].mean(1), corners[..., 0].mean(1))
        spread = (azimuth - middle[:, None] + np.pi) % (2 * np.pi) - np.pi
        low, high = spread.min(1), spread.max(1)
        around = high - low > np.pi
        low, high = np.where(around, -np.pi, low), np.where(around, np.pi - 1e-9, high)
        step = 2 * np.pi / self.shots
        first = np.floor((middle + low + np.pi) / step - 0.5).astype(np.int64)
        count = np.minimum(np.ceil((high - low) / step).astype(np.int64) + 2, self.shots)
        flat = np.hypot(corners[..., 0], corners[..., 1])
        z = corners[..., 2]
        # the nearest point of a box's faces may be nearer than its corners: bound by half for tall, wide boxes
        near = np.maximum(flat.min(1) * np.cos(np.minimum((high - low) / 2, 1.5)), 0.1)
        rise = np.where(z.max(1) > 0, np.arctan2(z.max(1), near), np.arctan2(z.max(1), flat.max(1)))
        fall = np.where(z.min(1) < 0, np.arctan2(z.min(1), near), np.arctan2(z.min(1), flat.max(1)))
        beam = self.elevation[1] - self.elevation[0]
        b0 = np.clip(np.floor((fall - self.elevation[0]) / beam).astype(np.int64), 0, BEAMS)
        b1 = np.clip(np.ceil((rise - self.elevation[0]) / beam).astype(np.int64) + 1, 0, BEAMS)
        beams = np.maximum(b1 - b0, 0)
        sizes = count * beams
        owner = np.repeat(np.arange(len(corners)), sizes)
        place = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        columns = count[owner]
        ray = (b0[owner] + place // columns) * self.shots + (first[owner] + place % columns) % self.shots
        return owner, ray

    def scan(
        self, ego: np.ndarray, stack: ThingStack, poses: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cast all rays. Returns points (K, 5) float32 (x, y, z, intensity, ring) in the lidar frame, and the thing
        each met (-1: ground)."""
        turn = yaw_matrix(ego[2])
        origin = turn @ np.asarray(LIDAR_TRANSLATION) + [ego[0], ego[1], 0.0]
        yaw = ego[2] + LIDAR_YAW
        centres = stack.centres(poses)
        close = np.hypot(*(centres - origin[:2]).T) - stack.radius < RANGE_M
        parts = np.flatnonzero(close[stack.part_owner])
        owner = stack.part_owner[parts]
        # lidar_from_local: a turn about z and a shift
        angle = poses[owner, 2] - yaw
        c, s = np.cos(angle), np.sin(angle)
        delta = poses[owner, :2] - origin[:2]
        cy, sy = np.cos(yaw), np.sin(yaw)
        shift = np.stack(
            [
                cy * delta[:, 0] + sy * delta[:, 1],
                -sy * delta[:, 0] + cy * delta[:, 1],
                np.full(len(owner), -origin[2]),
            ],
            -1,
        )
        picks = np.array([[(i >> k) & 1 for k in range(3)] for i in range(8)])
        corner = stack.boxes[parts][:, picks, np.arange(3)]
        corners = (
            np.stack(
                [
                    c[:, None] * corner[..., 0] - s[:, None] * corner[..., 1],
                    s[:, None] * corner[..., 0] + c[:, None] * corner[..., 1],
                    corner[..., 2],
                ],
                -1,
            )
            + shift[:, None]
        )
        planes = stack.planes[parts]
        normal = np.stack(
            [
                c[:, None] * planes[..., 0] - s[:, None] * planes[..., 1],
                s[:, None] * planes[..., 0] + c[:, None] * planes[..., 1],
                planes[..., 2],
            ],
            -1,
        )
        level = planes[..., 3] + np.einsum("pij,pj->pi", normal, shift)
        place, ray = self._windows(corners)
        direction = self.directions[ray].astype(np.float32)
        table = np.concatenate([normal, level[..., None]], -1).astype(np.float32)[place]
        along = np.einsum("rkc,rc->rk", table[..., :3], direction)
        bound = table[..., 3]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = bound / along
        enter = np.where(along < -1e-9, t, np.float32(0.0)).max(1)
        leave = np.where(along > 1e-9, t, np.float32(RANGE_M)).min(1)
        leave[((np.abs(along) <= 1e-9) & (bound < 0)).any(1)] = -1.0
        met = np.flatnonzero((enter < leave) & (enter > 0.5))
        depth = np.full(BEAMS * self.shots, np.inf, np.float32)
        np.minimum.at(depth, ray[met], enter[met])
        hit = np.full(BEAMS * self.shots, -1, np.int64)
        first = met[enter[met] == depth[ray[met]]][::-1]
        hit[ray[first]] = place[first]
        with np.errstate(divide="ignore"):
            ground = np.where(self.directions[:, 2] < 0, -origin[2] / self.directions[:, 2], np.inf)
        ground = np.where(ground < GROUND_RANGE_M, ground, np.inf)
        on_ground = ground < depth
        depth = np.minimum(ground, depth)
        hit[on_ground] = -1
        keep = np.isfinite(depth) & (rng.random(len(depth)) > 0.03)
        noise = rng.normal(0, NOISE_M, len(depth))
        base = np.where(hit >= 0, stack.reflect[parts[np.maximum(hit, 0)]] if len(parts) else 0.0, 0.12)
        intensity = np.clip(base * 120 + rng.normal(0, 6, len(depth)), 0, 255)
        index = np.flatnonzero(keep)
        points = np.empty((len(index), 5), np.float32)
        points[:, :3] = self.directions[index] * (depth + noise)[index, None]
        points[:, 3] = np.round(intensity[index])
        points[:, 4] = index // self.shots
        thing = np.where(hit[index] >= 0, owner[np.maximum(hit[index], 0)] if len(parts) else -1, -1)
        return points, thing


def count_points(points: np.ndarray, centre: np.ndarray, size_lwh: np.ndarray, yaw: np.ndarray) -> np.ndarray:
    """How many lidar points (K, >=3) lie in each box: centre (B, 3), length-width-height (B, 3), yaw (B,), one frame;
    bounds included."""
    xyz = points[:, :3].astype(np.float64)
    order = np.argsort(xyz[:, 0], kind="stable")
    xyz = xyz[order]
    reach = np.hypot(size_lwh[:, 0], size_lwh[:, 1]) / 2 + 1e-6
    start = np.searchsorted(xyz[:, 0], centre[:, 0] - reach, "left")
    end = np.searchsorted(xyz[:, 0], centre[:, 0] + reach, "right")
    out = np.zeros(len(centre), np.int64)
    near = np.hypot(centre[:, 0], centre[:, 1]) - reach < RANGE_M
    for k in np.flatnonzero(near & (end > start)):
        part = xyz[start[k] : end[k]] - centre[k]
        part = part[np.abs(part[:, 1]) <= reach[k]]
        c, s = np.cos(yaw[k]), np.sin(yaw[k])
        half = size_lwh[k] / 2
        out[k] = int(
            np.count_nonzero(
                (np.abs(c * part[:, 0] + s * part[:, 1]) <= half[0])
                & (np.abs(-s * part[:, 0] + c * part[:, 1]) <= half[1])
                & (np.abs(part[:, 2]) <= half[2])
            )
        )
    return out
