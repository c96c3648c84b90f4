"""A cast of agents: whoever joins stands in nobody, near enough to the ego car's way and off its path."""

from __future__ import annotations

import numpy as np

from bevstack.synthetic.agents import Agent, give_shape, make_agent
from bevstack.synthetic.motion import discs_of
from bevstack.synthetic.plan import District, Road

NEAR_EGO_M = 60.0


class Cast:
    """Collects agents that do not stand in one another, near enough to the ego car's way and off its path."""

    def __init__(
        self, rng: np.random.Generator, district: District, way: np.ndarray, lane: np.ndarray, lit: bool
    ) -> None:
        self.rng, self.district, self.way, self.lane, self.lit = rng, district, way, lane, lit
        self.still: list[Agent] = []
        self.movers: list[Agent] = []
        self.walkers: list[Agent] = []
        self._xy = np.zeros((0, 2))
        self._r = np.zeros(0)

    def near(self, xy: np.ndarray, reach: float = NEAR_EGO_M) -> bool:
        """Whether a point comes within ``reach`` metres of the ego car."""
        return bool(((self.way - xy) ** 2).sum(1).min() < reach**2)

    def spot(self, reach: float = 40.0) -> tuple[Road, float]:
        """A random road and arc length, preferably within ``reach`` metres of the ego car's way."""
        for _ in range(8):
            road = self.district.roads[self.rng.integers(len(self.district.roads))]
            s = self.rng.uniform(12, road.length - 12)
            if self.near(road.at(s), reach):
                break
        return road, float(s)

    def stretch(self, shortest: float, reach: float = 40.0) -> tuple[Road, float, float] | None:
        """A random stretch between junctions, at least ``shortest`` metres long, preferably near the ego car's way."""
        for _ in range(8):
            road, s = self.spot(reach)
            for s0, s1, _, _ in road.sections():
                if s0 <= s <= s1 and s1 - s0 >= shortest:
                    return road, s0, s1
        return None

    def free(self, pose: np.ndarray, size: np.ndarray, gap: float, keep_lane: bool = True) -> bool:
        """Whether a box meets nobody, and (``keep_lane``) leaves the ego car's lane open."""
        centres, radius = discs_of(pose, size)
        if not (4 < pose[0] < self.district.size - 4 and 4 < pose[1] < self.district.size - 4):
            return False
        if (
            len(self._xy)
            and (np.hypot(*(centres[:, None] - self._xy[None]).transpose(2, 0, 1)) < radius + self._r + gap).any()
        ):
            return False
        if keep_lane and (((centres[:, None] - self.lane[None]) ** 2).sum(-1).min() < (radius + 1.25) ** 2):
            return False
        return True

    def occupy(self, pose: np.ndarray, size: np.ndarray) -> None:
        """Take the room of a box at ``pose`` (x, y, yaw), ``size`` (l, w, h)."""
        centres, radius = discs_of(pose, size)
        self._xy = np.concatenate([self._xy, centres])
        self._r = np.concatenate([self._r, np.full(len(centres), radius)])

    def stand(
        self,
        category: str,
        pose: tuple[float, float, float],
        gap: float = 0.3,
        keep_lane: bool = True,
        parked: bool = False,
        posture: str = "standing",
    ) -> bool:
        """Put a thing that does not move; False where there is no room."""
        if not self.near(np.asarray(pose[:2])):
            return False
        x, y, yaw = (float(v) for v in pose)
        agent = make_agent(self.rng, category, pose=(x, y, yaw), parked=parked, posture=posture)
        if not self.free(np.asarray(pose), agent.size_lwh, gap, keep_lane):
            return False
        self.occupy(np.asarray(pose), agent.size_lwh)
        self.still.append(give_shape(self.rng, agent, self.lit))
        return True
