"""Who does not drive: parked rows, cycles at rest, work zones, rows of barriers, and people who walk, wait and sit."""

from __future__ import annotations

import numpy as np

from bevstack.synthetic.agents import give_shape, make_agent
from bevstack.synthetic.cast import Cast
from bevstack.synthetic.lanes import Path
from bevstack.synthetic.motion import WARM_UP_S


def parked_strips(cast: Cast) -> None:
    """Vehicles parked in a row along the kerb."""
    rng = cast.rng
    for road in cast.district.roads:
        for sign, lanes, park in (
            (-road.traffic_side, road.forward, road.parking_forward),
            (road.traffic_side, road.backward, road.parking_backward),
        ):
            if not park:
                continue
            fill = rng.uniform(0.25, 0.85)
            offset = sign * (lanes * road.lane_width + park / 2)
            turn = 0.0 if sign == -road.traffic_side else np.pi
            for s0, s1, _, _ in road.sections():
                s = s0 + 10.0
                while s < s1 - 10:
                    kind = str(
                        rng.choice(
                            ["vehicle.car", "vehicle.truck", "vehicle.trailer", "vehicle.bus.rigid"],
                            p=[0.8, 0.1, 0.06, 0.04],
                        )
                    )
                    if rng.random() < fill:
                        long = {
                            "vehicle.car": 5.9,
                            "vehicle.truck": 8.5,
                            "vehicle.trailer": 13.0,
                            "vehicle.bus.rigid": 13.0,
                        }[kind]
                        at = s + long / 2
                        yaw = float(road.yaw_at(at)) + turn + rng.normal(0, 0.02)
                        cast.stand(kind, (*road.at(at, offset + rng.normal(0, 0.08)), yaw), parked=True)
                        s += long + rng.exponential(0.6)
                    else:
                        s += rng.uniform(3, 9)


def parked_lots(cast: Cast) -> None:
    """Vehicles in the bays of car parks."""
    rng = cast.rng
    for park in cast.district.car_parks:
        fill = rng.uniform(0.25, 0.85)
        for x, y, yaw in park.bays:
            if rng.random() < fill:
                flip = np.pi if rng.random() < 0.3 else 0.0
                kind = "vehicle.car" if rng.random() < 0.93 else "vehicle.truck"
                if kind == "vehicle.car" or rng.random() < 0.5:
                    cast.stand(kind, (x, y, yaw + flip + rng.normal(0, 0.03)), gap=-0.35, parked=True)
                else:
                    cast.stand("vehicle.motorcycle", (x, y, yaw), parked=True)


def cycles_at_rest(cast: Cast) -> None:
    """Bicycles and motorcycles that stand in groups on walkways."""
    rng, district = cast.rng, cast.district
    for _ in range(int(rng.integers(1, 5))):
        road, s = cast.spot()
        sign = rng.choice([-1, 1])
        edge = (
            (road.left if sign > 0 else road.right) + district.verge + rng.choice([0.9, district.walkway_width - 0.5])
        )
        kind = "vehicle.bicycle" if rng.random() < 0.5 else "vehicle.motorcycle"
        turn = rng.choice([0.0, np.pi / 2]) + rng.normal(0, 0.15)
        for k in range(int(rng.integers(1, 6))):
            at = s + k * (0.95 if turn > 0.8 else 2.2)
            cast.stand(
                kind,
                (*road.at(at, sign * edge), float(road.yaw_at(at)) + turn + rng.normal(0, 0.05)),
                gap=0.0,
                parked=True,
            )


def rare_things(cast: Cast, rare: float) -> None:
    """Single vehicles of the rare kinds at rest beside the roads, about six times ``rare``, turned as they come."""
    rng, district = cast.rng, cast.district
    kinds = ("vehicle.truck", "vehicle.trailer", "vehicle.bus.rigid", "vehicle.construction", "vehicle.motorcycle")
    for _ in range(int(rng.poisson(6 * rare))):
        kind = str(rng.choice([*kinds, "vehicle.bicycle"]))
        road, s = cast.spot()
        sign = float(rng.choice([-1, 1]))
        edge = (road.left if sign > 0 else road.right) + district.verge + district.walkway_width + rng.uniform(2.0, 6.0)
        cast.stand(kind, (*road.at(s, sign * edge), rng.uniform(0, 2 * np.pi)), gap=0.2, parked=True)


def work_zone(cast: Cast) -> None:
    """Cones, barriers, machines and workers along one stretch, on the outer lane or beside the road."""
    rng, district = cast.rng, cast.district
    found = cast.stretch(34.0)
    if found is None:
        return
    road, low, high = found
    sign = float(rng.choice([-1, 1]))
    edge = road.left if sign > 0 else road.right
    inside = rng.random() < 0.6
    width = rng.uniform(2.6, 3.4) if inside else rng.uniform(4.0, 7.0)
    inner = edge - width if inside else edge + district.verge + district.walkway_width + 0.8
    length = rng.uniform(12, min(34.0, high - low - 20))
    s0 = rng.uniform(low + 14, high - 4 - length)
    border = "movable_object.barrier" if rng.random() < 0.6 else "movable_object.trafficcone"
    step = 2.7 if border.endswith("barrier") else rng.uniform(1.6, 3.0)
    for s in np.arange(s0, s0 + length, step):
        cast.stand(border, (*road.at(s, sign * inner), float(road.yaw_at(s)) + np.pi / 2), gap=0.02)
    for s in (s0, s0 + length):
        for o in np.arange(inner + 1.2, inner + width, 2.6):
            kind = "movable_object.barrier" if rng.random() < 0.5 else "movable_object.trafficcone"
            cast.stand(kind, (*road.at(s, sign * o), float(road.yaw_at(s)) + rng.normal(0, 0.1)), gap=0.05)
    if inside:
        for k in range(6):  # the taper that leads traffic away
            s = s0 - 2.0 - 2.0 * k
            cast.stand("movable_object.trafficcone", (*road.at(s, sign * (inner + width * (k + 1) / 7)), 0.0), gap=0.1)
    for _ in range(int(rng.integers(1, 4))):
        s = rng.uniform(s0 + 3, s0 + length - 3)
        yaw = (
            float(road.yaw_at(s))
            + rng.choice([0.0, np.pi])
            + (rng.normal(0, 0.15) if inside else rng.uniform(-0.7, 0.7))
        )
        cast.stand(
            "vehicle.construction", (*road.at(s, sign * (inner + max(width / 2, 1.7))), yaw), gap=0.1, parked=True
        )
    for _ in range(int(rng.integers(1, 5))):
        s, o = rng.uniform(s0, s0 + length), inner + rng.uniform(0.7, width)
        cast.stand("human.pedestrian.construction_worker", (*road.at(s, sign * o), rng.uniform(0, 6.28)), gap=0.2)
    for _ in range(int(rng.integers(0, 6))):
        s, o = rng.uniform(s0, s0 + length), inner + rng.uniform(0.5, width)
        cast.stand("movable_object.trafficcone", (*road.at(s, sign * o), rng.uniform(0, 6.28)), gap=0.1)


def barrier_rows(cast: Cast) -> None:
    """A row of barriers along a kerb."""
    rng, district = cast.rng, cast.district
    road, s = cast.spot()
    sign = float(rng.choice([-1, 1]))
    offset = sign * (
        (road.left if sign > 0 else road.right) + rng.choice([-0.3, 0.3, district.walkway_width + district.verge + 0.4])
    )
    for k in range(int(rng.integers(4, 15))):
        at = s + 2.65 * k
        kind = "movable_object.barrier" if rng.random() < 0.93 else "movable_object.trafficcone"
        cast.stand(kind, (*road.at(at, offset), float(road.yaw_at(at)) + np.pi / 2 + rng.normal(0, 0.03)), gap=0.02)


def _walk_path(points: np.ndarray) -> Path:
    line = np.asarray(points, float)
    s = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    at = np.arange(0.0, max(s[-1], 1.0), 0.5)
    xy = np.stack([np.interp(at, s, line[:, 0]), np.interp(at, s, line[:, 1])], -1)
    tangent = np.gradient(xy, axis=0)
    return Path(xy, np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0])), np.full(len(xy), 2.0), [], [])


def _person(rng: np.random.Generator) -> str:
    return str(
        rng.choice(
            [
                "human.pedestrian.adult",
                "human.pedestrian.child",
                "human.pedestrian.police_officer",
                "human.pedestrian.construction_worker",
            ],
            p=[0.88, 0.07, 0.01, 0.04],
        )
    )


def people(cast: Cast, clock: np.ndarray, level: float) -> None:
    """Pedestrians on walkways and crossings; ``level`` scales how many, ``clock`` (T,) times their motion."""
    rng, district = cast.rng, cast.district
    middle = district.verge + district.walkway_width / 2
    spread = district.walkway_width / 2 - 0.5
    for _ in range(int(rng.poisson(11 * level)) + 3):  # along walkways
        found = cast.stretch(14.0)
        if found is None:
            continue
        road, s0, s1 = found
        sign = float(rng.choice([-1, 1]))
        offset = sign * ((road.left if sign > 0 else road.right) + middle + rng.uniform(-spread, spread))
        line = road.at(np.linspace(s0 + 2, s1 - 2, int(s1 - s0)), offset)
        line = line if rng.random() < 0.5 else line[::-1]
        pace, start = rng.uniform(0.8, 1.7), rng.uniform(0, s1 - s0 - 6)
        for k in range(int(rng.choice([1, 2, 3], p=[0.7, 0.22, 0.08]))):
            path = _walk_path(
                line
                + rng.normal(0, 0.05)
                + 0.75 * k * np.array([-np.sin(road.yaw_at(s0)), np.cos(road.yaw_at(s0))]) * (-sign)
            )
            _walker(cast, path, start + rng.uniform(-0.5, 0.5), pace, clock, 0.0)
    for crossing in district.crossings:  # over crossings, and waiting at them
        for _ in range(int(rng.poisson(0.45 * level))):
            ends = crossing.ends if rng.random() < 0.5 else crossing.ends[::-1]
            along = (ends[1] - ends[0]) / np.hypot(*(ends[1] - ends[0]))
            side = np.array([-along[1], along[0]]) * rng.uniform(-1.2, 1.2)
            path = _walk_path(np.stack([ends[0] - along * 1.0 + side, ends[1] + along * 1.5 + side]))
            _walker(cast, path, 0.0, rng.uniform(1.0, 1.8), clock, rng.uniform(-WARM_UP_S, clock[-1] - 2))
        for _ in range(int(rng.poisson(0.45 * level))):
            end = crossing.ends[rng.integers(2)]
            spot = end + rng.normal(0, 0.9, 2)
            cast.stand(_person(rng), (*spot, rng.uniform(0, 6.28)), gap=0.15)
    for _ in range(int(rng.poisson(5 * level)) + 1):  # standing and sitting about, often in groups
        road, s = cast.spot()
        sign = float(rng.choice([-1, 1]))
        offset = sign * ((road.left if sign > 0 else road.right) + middle + rng.uniform(-spread, spread + 1.0))
        posture = "sitting" if rng.random() < 0.12 else "standing"
        for _ in range(int(rng.choice([1, 2, 3, 5], p=[0.55, 0.25, 0.13, 0.07]))):
            kind = "movable_object.pushable_pullable" if rng.random() < 0.06 else _person(rng)
            spot = road.at(s + rng.normal(0, 0.8), offset + rng.normal(0, 0.5))
            facing = float(road.yaw_at(s)) - sign * np.pi / 2 if posture == "sitting" else rng.uniform(0, 6.28)
            cast.stand(kind, (*spot, facing), gap=0.1, posture=posture)


def _walker(cast: Cast, path: Path, start: float, pace: float, clock: np.ndarray, leave: float) -> None:
    rng = cast.rng
    s = np.clip(start + pace * np.maximum(clock - leave, 0.0), 0.0, path.length)
    at = path.at(s[len(s) // 2])
    if not cast.near(at) or path.length < 3:
        return
    agent = make_agent(rng, _person(rng), path=path, posture="moving")
    agent.s = s
    agent.v = np.where((clock >= leave) & (s < path.length - 1e-6), pace, 0.0)
    agent.stride = pace * 4.2 / max(agent.size_lwh[2], 1.0)
    cast.walkers.append(give_shape(rng, agent, cast.lit))
    if rng.random() < 0.03:
        push = make_agent(rng, "human.pedestrian.stroller", path=path)
        push.s, push.v, push.behind = agent.s, agent.v, -0.95
        cast.walkers.append(give_shape(rng, push, cast.lit))
