"""Who is in a scene: the ego car's drive, traffic on the lanes, parked rows, people, cycles, work zones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bevstack.synthetic.agents import Agent, give_shape, make_agent
from bevstack.synthetic.bystanders import (
    barrier_rows,
    cycles_at_rest,
    parked_lots,
    parked_strips,
    people,
    rare_things,
    work_zone,
)
from bevstack.synthetic.cast import Cast
from bevstack.synthetic.lanes import Lane, Path, draw_path
from bevstack.synthetic.motion import STEP_S, WARM_UP_S, colliding, drive
from bevstack.synthetic.plan import District

EGO_SIZE_LWH = np.array([4.08, 1.73, 1.56])
EGO_WHEELBASE_M = 2.59


@dataclass
class Traffic:
    """All agents of a scene and the ego car, on a common ``clock`` (seconds from the first keyframe)."""

    agents: list[Agent]
    ego: Agent
    clock: np.ndarray
    turns: list[str]

    def ego_poses(self, times: np.ndarray) -> np.ndarray:
        """(T, 3) x, y, yaw of the ego frame (rear axle) at ``times``."""
        s = self.ego.travel(times, self.clock)
        rear, front = self.ego.course.at(s), self.ego.course.at(s + EGO_WHEELBASE_M)
        return np.concatenate([rear, np.arctan2(front[:, 1] - rear[:, 1], front[:, 0] - rear[:, 0])[:, None]], 1)

    def poses(self, times: np.ndarray) -> np.ndarray:
        """(T, A, 3) poses of all agents at ``times``."""
        return np.stack([agent.poses(times, self.clock) for agent in self.agents], 1)

    def speeds(self, times: np.ndarray) -> np.ndarray:
        """(T, A) speeds in m/s."""
        return np.stack([agent.speed(times, self.clock) for agent in self.agents], 1)


def draw_ego_path(
    rng: np.random.Generator, lanes: list[Lane], district: District, seconds: float
) -> tuple[Path, float, float]:
    """A path, a start arc length and a wished speed that keep the ego car well inside the district."""
    starts = [i for i, lane in enumerate(lanes) if not lane.connector and not lane.predecessors and lane.length > 15]
    starts = starts or [i for i, lane in enumerate(lanes) if not lane.connector]
    best, best_score = None, -1e9
    for _ in range(40):
        prefer = str(rng.choice(["left", "right", "straight"], p=[0.4, 0.35, 0.25]))
        path = draw_path(rng, lanes, int(starts[rng.integers(len(starts))]), prefer=prefer)
        limit = rng.uniform(5.0, 10.5)
        pace = 0.7 * limit  # what traffic and lights usually leave of the wish
        reach = pace * (seconds + WARM_UP_S)
        if path.length < 60:
            continue
        anchor = path.turns[0][0] if path.turns and rng.random() < 0.85 else path.length / 2
        start = float(
            np.clip(anchor - pace * (WARM_UP_S + rng.uniform(0.1, 0.7) * seconds), 5.0, max(6.0, path.length - 20))
        )
        at = path.at(np.linspace(start + pace * WARM_UP_S, start + reach, 12))
        margin = np.minimum(at, district.size - at).min()
        score = min(margin, 62.0) + rng.uniform(0, 6)
        if score > best_score:
            best, best_score = (path, start, limit), score
    if best is None:
        path = draw_path(rng, lanes, starts[0])
        best = (path, path.length / 3, 5.0)
    return best


def _drivers(cast: Cast, lanes: list[Lane], level: float, rare: float) -> None:
    rng = cast.rng
    roads = [i for i, lane in enumerate(lanes) if not lane.connector]
    weight = np.array([lanes[i].length for i in roads])
    kinds = [
        "vehicle.car",
        "vehicle.truck",
        "vehicle.bus.rigid",
        "vehicle.bus.bendy",
        "vehicle.trailer",
        "vehicle.motorcycle",
        "vehicle.bicycle",
        "vehicle.construction",
        "vehicle.emergency.police",
    ]
    chance = np.array([0.55, 0.11, 0.085, 0.02, 0.055, 0.075, 0.075, 0.022, 0.008])
    chance[1:] *= 1 + rare
    for _ in range(int(rng.poisson(60 * level)) + 14):
        kind = str(rng.choice(kinds, p=chance / chance.sum()))
        lane = int(roads[rng.choice(len(roads), p=weight / weight.sum())])
        path = draw_path(rng, lanes, lane)
        s = rng.uniform(0, lanes[lane].length)
        limit = rng.uniform(6.0, 12.0)
        offset, behind = 0.0, None
        if kind == "vehicle.trailer":
            behind, kind = make_agent(rng, "vehicle.trailer"), "vehicle.truck"
        rider = kind in ("vehicle.motorcycle", "vehicle.bicycle")
        if kind == "vehicle.bicycle":
            limit = rng.uniform(2.5, 5.5)
            offset = -cast.district.traffic_side * rng.uniform(0.6, 1.1)
        agent = make_agent(rng, kind, path=path, rider=rider, start_s=s, limit=limit, offset=offset)
        size = agent.size_lwh.copy()
        yaw = float(np.interp(s / path.step, np.arange(len(path.yaw)), path.yaw))
        centre = path.at(s)
        if behind is not None:
            gap = (agent.size_lwh[0] + behind.size_lwh[0]) / 2 + 0.6
            behind.path, behind.behind = path, gap
            agent.extra["trail"] = behind.size_lwh[0] + 0.6
            size[0] += behind.size_lwh[0] + 0.6
            centre = path.at(s - behind.size_lwh[0] / 2)
            if s < behind.size_lwh[0]:
                continue
        pose = np.array([*centre, yaw])
        if not cast.near(centre, 58.0) or not cast.free(pose, size, 1.2, keep_lane=False):
            continue
        cast.occupy(pose, size)
        cast.movers.append(give_shape(rng, agent, cast.lit))
        if behind is not None:
            behind.extra["leader"] = agent
            cast.movers.append(give_shape(rng, behind, cast.lit))


def populate(
    rng: np.random.Generator, district: District, lanes: list[Lane], seconds: float, lit: bool, rare: float = 0.0
) -> Traffic:
    """Fill a district with traffic and let it run for ``seconds`` (after a warm-up that forms queues).

    ``rare``: how many more there are of the kinds that are rare; 1 doubles what else than cars drives, and puts about
    six more of them beside the roads. At 0 the scene is as it would be without it.
    """
    clock = np.arange(-WARM_UP_S, seconds + 1.0, STEP_S)
    path, start, limit = draw_ego_path(rng, lanes, district, seconds)
    ego = Agent("vehicle.car", EGO_SIZE_LWH, path=path, start_s=start, limit=limit)
    reach = start + limit * (seconds + WARM_UP_S)
    way = path.at(np.arange(start + 0.4 * limit * WARM_UP_S, reach, 4.0))
    cast = Cast(rng, district, way, path.at(np.arange(max(0.0, start - 5), reach + 12, 1.5)), lit)
    cast.occupy(np.array([*path.at(start), path.yaw[int(start / path.step)]]), EGO_SIZE_LWH + [4.0, 0, 0])
    level = float(rng.choice([0.45, 0.8, 1.2], p=[0.25, 0.5, 0.25]))
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.15, 0.4, 0.3, 0.15]))):
        work_zone(cast)
    for _ in range(int(rng.choice([0, 1, 2], p=[0.4, 0.4, 0.2]))):
        barrier_rows(cast)
    _drivers(cast, lanes, level, rare)
    parked_strips(cast)
    parked_lots(cast)
    cycles_at_rest(cast)
    people(cast, clock, level)
    if rare:
        rare_things(cast, rare)
    first_roads = [
        min(lane.road for lane in lanes if lane.connector and lane.junction == j)
        if any(lane.connector and lane.junction == j for lane in lanes)
        else 0
        for j in range(len(district.junctions))
    ]
    phases = rng.uniform(0, 26.0, max(1, len(district.junctions)))
    for stop_s, junction, road in path.stops:  # most drives meet green: a car that waits sees little
        arrival = (stop_s - start) / (0.7 * limit) - WARM_UP_S
        if stop_s > start and rng.random() < 0.75:
            phases[junction] = ((0.0 if road == first_roads[junction] else 13.0) + 4.0 - arrival) % 26.0
    leaders = [m for m in cast.movers if "leader" not in m.extra]
    block = [a for a in cast.still if ((a.path is None) and not a.parked) or a.category == "vehicle.construction"]
    drive([ego, *leaders], cast.walkers, block, first_roads, phases, clock)
    for mover in cast.movers:
        if "leader" in mover.extra:
            mover.s, mover.v = mover.extra["leader"].s, mover.extra["leader"].v
    parked = [agent for agent in cast.still if agent.category.startswith("vehicle")]
    gone = {id(cast.movers[k]) for k in colliding([ego, *parked], cast.movers, clock, -0.6)}
    stay = [m for m in cast.movers if id(m) not in gone and id(m.extra.get("leader")) not in gone]
    now = ego.travel(np.array([0.0, seconds]), clock)
    turns = [name for at, name in path.turns if now[0] - 5 < at < now[1]]
    return Traffic([*stay, *cast.still, *cast.walkers], ego, clock, turns)
