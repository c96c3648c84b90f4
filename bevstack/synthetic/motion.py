"""Driving: vehicles follow their paths, keep their distance, brake for what is ahead and wait at red lights."""

from __future__ import annotations

import numpy as np

from bevstack.synthetic.agents import Agent

STEP_S = 0.2
WARM_UP_S = 5.0
_LOOK = np.arange(14) * 1.6


def discs_of(pose: np.ndarray, size_lwh: np.ndarray) -> tuple[np.ndarray, float]:
    """A box as discs along its longer axis: centres (K, 2) and their common radius, metres."""
    length, width = float(size_lwh[0]), float(size_lwh[1])
    yaw = pose[2] if length >= width else pose[2] + np.pi / 2
    long, short = max(length, width), max(min(length, width), 0.3)
    count = int(np.clip(np.ceil(long / short), 1, 8))
    along = (np.arange(count) + 0.5) / count * long - long / 2
    return pose[:2] + along[:, None] * np.array([np.cos(yaw), np.sin(yaw)]), short / 2 + 0.1


def red_light(junction: int, first_road: bool, time: float, phases: np.ndarray) -> bool:
    """Whether an approach has red: the two roads of a junction take turns in a 26 s cycle."""
    at = (time + phases[junction]) % 26.0
    return not (at < 10.0 if first_road else 13.0 <= at < 23.0)


class _PathTable:
    """The movers' paths as padded arrays, so that one call finds points on all of them."""

    def __init__(self, movers: list[Agent]) -> None:
        paths = [mover.course for mover in movers]
        longest = max(len(path.xy) for path in paths)
        self.step = paths[0].step
        self.count = np.array([len(path.xy) for path in paths])
        self.xy = np.stack([np.pad(path.xy, ((0, longest - len(path.xy)), (0, 0)), mode="edge") for path in paths])
        self.speed = np.stack([np.pad(path.speed, (0, longest - len(path.speed)), mode="edge") for path in paths])
        ends = np.array([[path.yaw[0], path.yaw[-1]] for path in paths])
        self.direction = np.stack([np.cos(ends), np.sin(ends)], -1)
        self.offset = np.array([mover.offset for mover in movers])
        self.rows = np.arange(len(paths))

    def at(self, s: np.ndarray) -> np.ndarray:
        """Points (M, K, 2) at arc lengths (M, K); straight on beyond both ends."""
        last = (self.count - 1)[:, None]
        index = np.clip(s / self.step, 0, last - 1e-6)
        low = index.astype(np.int64)
        part = (index - low)[..., None]
        rows = self.rows[:, None]
        points = self.xy[rows, low] * (1 - part) + self.xy[rows, low + 1] * part
        end = last * self.step
        return (
            points
            + self.direction[:, None, 1] * np.maximum(s - end, 0)[..., None]
            + self.direction[:, None, 0] * np.minimum(s, 0)[..., None]
        )

    def limit(self, s: np.ndarray) -> np.ndarray:
        """Comfortable speed (M,) at arc lengths (M,)."""
        return self.speed[self.rows, np.clip((s / self.step).astype(np.int64), 0, self.count - 1)]


def drive(
    movers: list[Agent],
    walkers: list[Agent],
    still: list[Agent],
    first_roads: list[int],
    phases: np.ndarray,
    clock: np.ndarray,
) -> None:
    """Fill ``s`` and ``v`` of every mover over ``clock`` (uniform, STEP_S apart).

    The rule is the intelligent driver model (Treiber, Hennecke, Helbing 2000) towards the nearest thing on the mover's
    own path ahead, a red light's stop line counting as one. ``walkers`` must have their motion already.
    """
    count, steps = len(movers), len(clock)
    table = _PathTable(movers)
    s = np.array([m.start_s for m in movers], float)
    limits = np.array([m.limit for m in movers])
    v = np.minimum(limits, table.limit(s)) * 0.7
    front = np.array([m.size_lwh[0] / 2 for m in movers])
    corridor = np.array([m.size_lwh[1] / 2 + 0.15 for m in movers])
    records = np.zeros((2, steps, count))
    along, radius, owner = [], [], []
    for k, mover in enumerate(movers):
        body, trail = mover.size_lwh.copy(), mover.extra.get("trail", 0.0)
        body[0] += trail
        centres, r = discs_of(np.zeros(3), body)
        along.append(centres[:, 0] - trail / 2)
        radius.append(np.full(len(centres), r))
        owner.append(np.full(len(centres), k))
    along, owner = np.concatenate(along), np.concatenate(owner)
    fixed = [discs_of(np.asarray(agent.pose), agent.size_lwh) for agent in still]
    fixed_xy = np.concatenate([np.zeros((0, 2)), *(centres for centres, _ in fixed)])
    walks = np.stack([w.poses(clock, clock) for w in walkers], 1) if walkers else np.zeros((steps, 0, 3))
    walk_v = np.stack([w.v for w in walkers], 1) if walkers else np.zeros((steps, 0))
    others = len(fixed_xy) + walks.shape[1]
    radius = np.concatenate([*(np.full(len(c), r) for c, r in fixed), np.full(walks.shape[1], 0.45), *radius])
    everyone = np.concatenate([np.full(others, -1), owner])
    foreign = everyone[None] != np.arange(count)[:, None]
    reach2 = (radius[None] + corridor[:, None]) ** 2
    for step, time in enumerate(clock):
        records[0, step], records[1, step] = s, v
        ends = table.at(s[:, None] + np.array([-1.0, 1.0]))
        heading = np.arctan2(ends[:, 1, 1] - ends[:, 0, 1], ends[:, 1, 0] - ends[:, 0, 0])
        unit = np.stack([np.cos(heading), np.sin(heading)], -1)
        shift = table.offset[:, None] * np.stack([-unit[:, 1], unit[:, 0]], -1)
        middle = ends.mean(1) + shift
        xy = np.concatenate([fixed_xy, walks[step, :, :2], middle[owner] + along[:, None] * unit[owner]])
        speed = np.concatenate([np.zeros(len(fixed_xy)), walk_v[step], v[owner]])
        yaws = np.concatenate([np.zeros(len(fixed_xy)), walks[step, :, 2], heading[owner]])
        look = table.at(s[:, None] + front[:, None] + 0.4 + _LOOK) + shift[:, None]
        apart = look[:, :, None] - xy[None, None]
        blocked = ((apart * apart).sum(-1) < reach2[:, None]) & foreign[:, None]
        hit = blocked.any(2)
        first = np.argmax(hit, 1)
        some = hit[np.arange(count), first]
        who = np.argmax(blocked[np.arange(count), first], 1)
        gap = np.where(some, _LOOK[first] + 0.2, 1e3)
        leader = np.where(some, np.maximum(0.0, speed[who] * np.cos(yaws[who] - heading)), limits)
        for k, mover in enumerate(movers):
            for stop_s, junction, road in mover.course.stops:
                left = stop_s - s[k] - front[k]
                if (
                    -1.0 < left < 28.0
                    and left > v[k] ** 2 / 9.0 - 1.0
                    and red_light(junction, road == first_roads[junction], time, phases)
                ):
                    if left < gap[k]:
                        gap[k], leader[k] = max(left, 0.05), 0.0
                    break
        wish = np.maximum(np.minimum(limits, table.limit(s)), 0.5)
        desired = 1.6 + np.maximum(0.0, v * 1.1 + v * (v - leader) / 3.5)
        push = 1.5 * (1 - (v / wish) ** 4 - (desired / np.maximum(gap, 0.1)) ** 2)
        before, v = v, np.maximum(0.0, v + np.clip(push, -6.0, 1.8) * STEP_S)
        v[(gap < 0.4) & (leader < 0.3)] = 0.0
        s = s + (before + v) / 2 * STEP_S
    for k, mover in enumerate(movers):
        mover.s, mover.v = records[0, :, k], records[1, :, k]


def colliding(
    fixed: list[Agent], movers: list[Agent], clock: np.ndarray, from_s: float, depth_m: float = 0.05
) -> list[int]:
    """Indices of the movers to leave out so that nobody drives into anybody from ``from_s`` seconds on.

    Bodies are discs (:func:`discs_of`); overlap by more than ``depth_m`` counts. ``fixed`` agents always stay; of two
    movers the later one goes.
    """
    times = clock[clock >= from_s][::3]

    def bodies(agents: list[Agent]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        xy, radius, owner = [np.zeros((len(times), 0, 2))], [np.zeros(0)], [np.zeros(0, np.int64)]
        for k, agent in enumerate(agents):
            pose = agent.poses(times, clock)
            centres, r = discs_of(np.zeros(3), agent.size_lwh)
            c, s = np.cos(pose[:, 2:]), np.sin(pose[:, 2:])
            x, y = centres.T
            xy.append(pose[:, None, :2] + np.stack([c * x - s * y, s * x + c * y], -1))
            radius.append(np.full(len(centres), r))
            owner.append(np.full(len(centres), k))
        return np.concatenate(xy, 1), np.concatenate(radius), np.concatenate(owner)

    xy, radius, owner = bodies(movers)
    there, reach, _ = bodies(fixed)
    gone: list[int] = []
    for k in range(len(movers)):
        mine = owner == k
        others = (owner < k) & ~np.isin(owner, gone)
        near_xy, near_r = np.concatenate([there, xy[:, others]], 1), np.concatenate([reach, radius[others]])
        apart = np.hypot(*np.moveaxis(xy[:, mine][:, :, None] - near_xy[:, None], -1, 0))
        if (
            apart < radius[mine][None, :, None] + near_r - 0.2 - depth_m
        ).any():  # discs are 0.1 m wider than the bodies
            gone.append(k)
    return gone
