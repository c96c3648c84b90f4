"""The lane graph of a district: lanes along roads, connectors through junctions, and paths that vehicles drive."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bevstack.synthetic.plan import District, Road


@dataclass
class Lane:
    """One lane or junction connector: ``line`` (N, 2) metres in driving direction, about 1 m apart.

    ``stop_s`` is the arc length at which a front bumper waits (None where nothing makes it wait); ``junction`` is the
    junction at the lane's end (-1: none), for a connector the junction it crosses.
    """

    line: np.ndarray
    width: float
    road: int
    section: int
    index: int
    forward: bool
    junction: int
    connector: bool = False
    turn: str = "straight"
    stop_s: float | None = None
    successors: list[int] = field(default_factory=list)
    predecessors: list[int] = field(default_factory=list)

    @property
    def length(self) -> float:
        """Arc length in metres."""
        return float(np.hypot(*np.diff(self.line, axis=0).T).sum())


@dataclass
class Path:
    """A drivable polyline: ``xy`` (N, 2) at 0.5 m, ``speed`` (N,) the fastest comfortable m/s, ``stops`` (s, junction,
    approach road)."""

    xy: np.ndarray
    yaw: np.ndarray
    speed: np.ndarray
    stops: list[tuple[float, int, int]]
    turns: list[tuple[float, str]]
    step: float = 0.5

    @property
    def length(self) -> float:
        """Arc length in metres."""
        return (len(self.xy) - 1) * self.step

    def at(self, s: np.ndarray | float) -> np.ndarray:
        """Points (..., 2) at arc length ``s``; straight on beyond both ends."""
        s = np.asarray(s, float)
        index = np.clip(s / self.step, 0, len(self.xy) - 1)
        x = np.interp(index, np.arange(len(self.xy)), self.xy[:, 0])
        y = np.interp(index, np.arange(len(self.xy)), self.xy[:, 1])
        beyond = np.where(s > self.length, s - self.length, np.minimum(s, 0.0))
        yaw = np.where(s > self.length, self.yaw[-1], self.yaw[0])
        return np.stack([x + np.cos(yaw) * beyond, y + np.sin(yaw) * beyond], -1)

    def limit(self, s: np.ndarray | float) -> np.ndarray:
        """The fastest comfortable speed at arc length ``s``, m/s."""
        return self.speed[np.clip((np.asarray(s) / self.step).astype(int), 0, len(self.speed) - 1)]


def _resample(line: np.ndarray, step: float) -> np.ndarray:
    s = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(line, axis=0).T))])
    keep = np.concatenate([[True], np.diff(s) > 1e-6])
    s, line = s[keep], line[keep]
    at = np.arange(0.0, s[-1], step)
    return np.stack([np.interp(at, s, line[:, 0]), np.interp(at, s, line[:, 1])], -1)


def _turn_name(angle: float) -> str:
    if abs(angle) < np.deg2rad(40):
        return "straight"
    return "left" if angle > 0 else "right"


def _connect(start: np.ndarray, yaw0: float, end: np.ndarray, yaw1: float) -> np.ndarray:
    """A cubic Bezier curve between two poses."""
    gap = float(np.hypot(*(end - start)))
    reach = gap * (0.36 if abs(np.cos(yaw1 - yaw0)) > 0.8 else 0.52)
    p1 = start + reach * np.array([np.cos(yaw0), np.sin(yaw0)])
    p2 = end - reach * np.array([np.cos(yaw1), np.sin(yaw1)])
    t = np.linspace(0, 1, max(4, int(gap * 1.3)))[:, None]
    return (1 - t) ** 3 * start + 3 * (1 - t) ** 2 * t * p1 + 3 * (1 - t) * t**2 * p2 + t**3 * end


def _road_lanes(number: int, road: Road, stopping: dict[tuple[int, int, bool], float]) -> list[Lane]:
    lanes = []
    for section, (s0, s1, at_start, at_end) in enumerate(road.sections()):
        s = np.linspace(s0, s1, max(3, int(s1 - s0)))
        for count, side, forward in (
            (road.forward, -road.traffic_side, True),
            (road.backward, road.traffic_side, False),
        ):
            for index in range(count):
                line = road.at(s, side * (index + 0.5) * road.lane_width)
                junction = at_end if forward else at_start
                lane = Lane(
                    line if forward else line[::-1].copy(), road.lane_width, number, section, index, forward, junction
                )
                if junction >= 0:
                    lane.stop_s = lane.length - stopping.get((number, junction, forward), 1.5)
                lanes.append(lane)
    return lanes


def build_lanes(district: District) -> list[Lane]:
    """Every lane and connector of a district, linked by ``successors`` and ``predecessors`` (indices into the list)."""
    stopping: dict[tuple[int, int, bool], float] = {}
    for crossing in district.crossings:
        if crossing.junction >= 0:
            road = district.roads[crossing.road]
            for s0, s1, at_start, at_end in road.sections():
                if s0 <= crossing.s <= s1:
                    ahead = crossing.junction == at_end and abs(crossing.s - s1) < 8
                    behind = crossing.junction == at_start and abs(crossing.s - s0) < 8
                    if ahead or behind:
                        stopping[(crossing.road, crossing.junction, ahead)] = 6.5
    lanes: list[Lane] = []
    for number, road in enumerate(district.roads):
        lanes += _road_lanes(number, road, stopping)
    keep_right = district.traffic_side > 0
    base = len(lanes)
    for junction, centre in enumerate(district.junctions):
        incoming = [i for i in range(base) if lanes[i].junction == junction]
        outgoing = [
            i
            for i in range(base)
            if np.hypot(*(lanes[i].line[0] - centre)) < 32
            and any(
                lanes[i].road == lanes[j].road
                and lanes[i].forward == lanes[j].forward
                and abs(lanes[i].section - lanes[j].section) == 1
                for j in incoming
            )
            or (_starts_at(district, lanes[i], junction))
        ]
        for i in incoming:
            end, before = lanes[i].line[-1], lanes[i].line[-3]
            yaw0 = float(np.arctan2(*(end - before)[::-1]))
            for j in sorted(set(outgoing)):
                start, after = lanes[j].line[0], lanes[j].line[2]
                yaw1 = float(np.arctan2(*(after - start)[::-1]))
                angle = float((yaw1 - yaw0 + np.pi) % (2 * np.pi) - np.pi)
                turn = _turn_name(angle)
                if abs(angle) > np.deg2rad(140):
                    continue
                most_in = _lane_count(district, lanes[i]) - 1
                most_out = _lane_count(district, lanes[j]) - 1
                if turn == "straight":
                    fits = lanes[j].index == min(lanes[i].index, most_out)
                elif (turn == "right") == keep_right:
                    fits = lanes[i].index == most_in and lanes[j].index == most_out
                else:
                    fits = lanes[i].index == 0 and lanes[j].index == 0
                if not fits:
                    continue
                curve = _connect(end, yaw0, start, yaw1)
                lanes.append(
                    Lane(
                        curve,
                        lanes[i].width,
                        lanes[i].road,
                        -1,
                        0,
                        True,
                        junction,
                        True,
                        turn,
                        successors=[j],
                        predecessors=[i],
                    )
                )
                lanes[i].successors.append(len(lanes) - 1)
                lanes[j].predecessors.append(len(lanes) - 1)
    return lanes


def _lane_count(district: District, lane: Lane) -> int:
    road = district.roads[lane.road]
    return road.forward if lane.forward else road.backward


def _starts_at(district: District, lane: Lane, junction: int) -> bool:
    sections = district.roads[lane.road].sections()
    _, _, at_start, at_end = sections[lane.section]
    return (at_start if lane.forward else at_end) == junction


def draw_path(
    rng: np.random.Generator, lanes: list[Lane], start: int, length: float = 300.0, prefer: str | None = None
) -> Path:
    """A path that begins with lane ``start`` and follows successors, drawn at random (the first turn ``prefer``-ed if
    given)."""
    pieces: list[np.ndarray] = []
    stops: list[tuple[float, int, int]] = []
    turns: list[tuple[float, str]] = []
    total, current = 0.0, start
    while True:
        lane = lanes[current]
        if lane.stop_s is not None and lane.successors:
            stops.append((total + lane.stop_s, lane.junction, lane.road))
        if lane.connector:
            turns.append((total, lane.turn))
        pieces.append(lane.line if not pieces else lane.line[1:])
        total += lane.length
        if not lane.successors or total > length:
            break
        wanted = [j for j in lane.successors if prefer and lanes[j].turn == prefer] if not turns else []
        options = wanted or lane.successors
        current = int(options[rng.integers(len(options))])
    xy = _resample(np.concatenate(pieces), 0.5)
    tangent = np.gradient(xy, axis=0)
    yaw = np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))
    kernel = np.ones(9) / 9
    bend = np.abs(np.convolve(np.pad(np.gradient(yaw) / 0.5, 4, mode="edge"), kernel, "valid"))
    limit = np.sqrt(2.2 / np.maximum(bend, 1e-4))
    for index in range(len(limit) - 2, -1, -1):  # brake in time for what comes
        limit[index] = min(limit[index], np.sqrt(limit[index + 1] ** 2 + 2 * 1.6 * 0.5))
    return Path(xy, yaw, np.minimum(limit, 20.0), stops, turns)
