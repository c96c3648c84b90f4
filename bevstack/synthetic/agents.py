"""What can move or be labelled: categories, sizes, meshes, attributes."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bevstack.synthetic import furniture, heavy_vehicles, people, vehicles
from bevstack.synthetic.lanes import Path
from bevstack.synthetic.shapes import Mesh

# nuScenes category: mean (length, width, height) in metres and relative spread
SIZES = {
    "vehicle.car": ((4.6, 1.92, 1.65), 0.07),
    "vehicle.emergency.police": ((4.9, 1.95, 1.6), 0.02),
    "vehicle.truck": ((7.2, 2.5, 3.1), 0.1),
    "vehicle.bus.rigid": ((11.2, 2.9, 3.4), 0.06),
    "vehicle.bus.bendy": ((17.0, 2.9, 3.4), 0.04),
    "vehicle.trailer": ((11.5, 2.6, 3.8), 0.06),
    "vehicle.construction": ((6.6, 2.7, 3.2), 0.08),
    "vehicle.motorcycle": ((2.1, 0.8, 1.45), 0.06),
    "vehicle.bicycle": ((1.75, 0.6, 1.15), 0.05),
    "human.pedestrian.adult": ((0.72, 0.66, 1.74), 0.06),
    "human.pedestrian.child": ((0.55, 0.5, 1.3), 0.08),
    "human.pedestrian.construction_worker": ((0.75, 0.7, 1.78), 0.05),
    "human.pedestrian.police_officer": ((0.75, 0.7, 1.8), 0.04),
    "human.pedestrian.stroller": ((0.95, 0.6, 1.1), 0.05),
    "movable_object.barrier": ((0.5, 2.3, 1.0), 0.1),
    "movable_object.trafficcone": ((0.42, 0.42, 0.85), 0.15),
    "movable_object.pushable_pullable": ((0.75, 0.65, 1.1), 0.1),
}


@dataclass
class Agent:
    """One labelled thing.

    It stands at ``pose`` (x, y, yaw), or follows ``path`` with arc length ``s`` (T,) and speed ``v`` (T,) at the
    traffic's time steps; ``behind`` metres after the leader that owns the path for a trailer. ``offset`` is a left
    shift from the path. ``mesh`` is there after :func:`give_shape` (the ego car has none), ``s`` and ``v`` are there
    once it has been driven or walked.
    """

    category: str
    size_lwh: np.ndarray
    mesh: Mesh = field(init=False, repr=False, compare=False)
    pose: tuple[float, float, float] = (0.0, 0.0, 0.0)
    path: Path | None = None
    s: np.ndarray = field(init=False, repr=False, compare=False)
    v: np.ndarray = field(init=False, repr=False, compare=False)
    behind: float = 0.0
    offset: float = 0.0
    parked: bool = False
    rider: bool = False
    posture: str = "standing"
    stride: float = 0.0
    limit: float = 8.0
    start_s: float = 0.0
    extra: dict = field(default_factory=dict)

    @property
    def course(self) -> Path:
        """The ``path`` of what moves. Raises ValueError for what stands."""
        if self.path is None:
            raise ValueError(f"a {self.category} that stands at {self.pose} follows no path")
        return self.path

    def poses(self, times: np.ndarray, clock: np.ndarray) -> np.ndarray:
        """(T, 3) x, y, yaw at ``times``, given the traffic's ``clock`` of ``s`` and ``v``."""
        if self.path is None:
            return np.tile(np.asarray(self.pose, float), (len(times), 1))
        s = self.travel(times, clock) - self.behind
        arm = 0.28 * self.size_lwh[0] if self.category.startswith("vehicle") else 0.3
        rear, front = self.path.at(s - arm), self.path.at(s + arm)
        yaw = np.arctan2(front[:, 1] - rear[:, 1], front[:, 0] - rear[:, 0])
        if self.extra.get("reverse"):
            yaw = yaw + np.pi
        middle = (rear + front) / 2
        middle = middle + self.offset * np.stack([-np.sin(yaw), np.cos(yaw)], -1)
        return np.concatenate([middle, yaw[:, None]], 1)

    def travel(self, times: np.ndarray, clock: np.ndarray) -> np.ndarray:
        """Arc length at ``times``: cubic between the traffic's steps, so that speed is continuous."""
        u, a, b, va, vb, _ = self._between(times, clock)
        return (
            (2 * u**3 - 3 * u**2 + 1) * a + (u**3 - 2 * u**2 + u) * va + (3 * u**2 - 2 * u**3) * b + (u**3 - u**2) * vb
        )

    def speed(self, times: np.ndarray, clock: np.ndarray) -> np.ndarray:
        """Speed along the path at ``times``, m/s: the derivative of :meth:`travel`."""
        if self.path is None:
            return np.zeros(len(times))
        u, a, b, va, vb, h = self._between(times, clock)
        return (6 * (u**2 - u) * (a - b) + (3 * u**2 - 4 * u + 1) * va + (3 * u**2 - 2 * u) * vb) / h

    def _between(self, times: np.ndarray, clock: np.ndarray) -> tuple:
        index = np.clip(np.searchsorted(clock, times, "right") - 1, 0, len(clock) - 2)
        h = clock[1] - clock[0]
        return (
            (np.asarray(times) - clock[index]) / h,
            self.s[index],
            self.s[index + 1],
            self.v[index] * h,
            self.v[index + 1] * h,
            h,
        )

    def attribute(self, speed: float) -> str | None:
        """The nuScenes attribute for a speed, None for things that have none."""
        if self.category.startswith("human"):
            if self.category.endswith("stroller"):
                return None
            if self.posture == "sitting":
                return "pedestrian.sitting_lying_down"
            return "pedestrian.moving" if speed > 0.2 else "pedestrian.standing"
        if self.category in ("vehicle.bicycle", "vehicle.motorcycle"):
            return "cycle.with_rider" if self.rider else "cycle.without_rider"
        if self.category.startswith("vehicle"):
            if self.parked:
                return "vehicle.parked"
            return "vehicle.moving" if speed > 0.3 else "vehicle.stopped"
        return None


def draw_size(rng: np.random.Generator, category: str) -> np.ndarray:
    """A length, width and height for a category."""
    mean, spread = SIZES[category]
    size = np.asarray(mean) * (1 + rng.normal(0, spread, 3).clip(-2 * spread, 2 * spread))
    if category == "vehicle.car":
        size *= rng.choice([1.0, 0.9, 1.08], p=[0.6, 0.2, 0.2])
    elif category == "vehicle.truck":
        if rng.random() < 0.4:
            size = np.array([5.5, 2.0, 1.95]) * (1 + rng.normal(0, 0.03, 3))  # a pick-up
        else:
            size[0] *= rng.choice([0.85, 1.0, 1.3])
    elif category == "vehicle.trailer" and rng.random() < 0.3:
        size = np.array([5.0, 2.2, 2.3]) * (1 + rng.normal(0, 0.1, 3))
    return size


def make_agent(
    rng: np.random.Generator,
    category: str,
    *,
    pose: tuple[float, float, float] = (0.0, 0.0, 0.0),
    path: Path | None = None,
    offset: float = 0.0,
    parked: bool = False,
    rider: bool = False,
    posture: str = "standing",
    limit: float = 8.0,
    start_s: float = 0.0,
) -> Agent:
    """An agent of a category with a drawn size; the arguments are fields of :class:`Agent`. :func:`give_shape` adds the
    mesh."""
    size = draw_size(rng, category)
    agent = Agent(
        category,
        size,
        pose=pose,
        path=path,
        offset=offset,
        parked=parked,
        rider=rider,
        posture=posture,
        limit=limit,
        start_s=start_s,
    )
    if category in ("vehicle.motorcycle", "vehicle.bicycle") and agent.rider:
        size[2] = rng.uniform(1.6, 1.85)
    elif category == "movable_object.barrier":
        size[0] = min(size[0], 0.55)
    elif category == "movable_object.trafficcone":
        size[1] = size[0]
    elif category.startswith("human") and not category.endswith("stroller"):
        agent.stride = rng.uniform(4.5, 6.0)
        if agent.posture == "sitting":
            size[2] *= 0.75
            size[0] = 0.9
        elif agent.posture == "standing":
            size[0] *= 0.72
    return agent


def give_shape(rng: np.random.Generator, agent: Agent, lit: bool) -> Agent:
    """Build the agent's mesh; lamps burn if ``lit`` and somebody drives."""
    category, size, lit = agent.category, agent.size_lwh, lit and not agent.parked
    if category in ("vehicle.car", "vehicle.emergency.police"):
        agent.mesh = vehicles.car(rng, size, lit)
    elif category == "vehicle.truck":
        agent.mesh = heavy_vehicles.truck(rng, size, lit)
    elif category.startswith("vehicle.bus"):
        agent.mesh = heavy_vehicles.bus(rng, size, lit, bendy=category.endswith("bendy"))
    elif category == "vehicle.trailer":
        agent.mesh = heavy_vehicles.trailer(rng, size, lit)
    elif category == "vehicle.construction":
        agent.mesh = heavy_vehicles.construction(rng, size, lit)
    elif category == "vehicle.motorcycle":
        agent.mesh = people.motorcycle(rng, size, lit, agent.rider)
    elif category == "vehicle.bicycle":
        agent.mesh = people.bicycle(rng, size, lit, agent.rider)
    elif category in ("human.pedestrian.stroller", "movable_object.pushable_pullable"):
        agent.mesh = people.stroller(rng, size)
    elif category.startswith("human"):
        agent.mesh = people.pedestrian(rng, size, agent.posture)
    elif category == "movable_object.barrier":
        agent.mesh = furniture.barrier(rng, size)
    else:
        agent.mesh = furniture.cone(rng, size)
    return agent
