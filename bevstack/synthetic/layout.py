"""The ground plan of one district: roads, junctions, crossings, walkways, car parks, as polylines and polygons.

A district is a square of ``DISTRICT_SIZE_M`` metres, in its own coordinates [0, size]^2 (x east, y north). Its layout
is drawn from a random generator, so two scenes never share one.
"""

from __future__ import annotations

import numpy as np
from shapely.geometry import LineString, Point, Polygon, box
from shapely.geometry.base import BaseGeometry
from shapely.ops import unary_union

from bevstack.synthetic.plan import (
    DISTRICT_SIZE_M,
    CarPark,
    Crossing,
    District,
    Road,
    polygons_of,
    without_holes,
)

CORNER_RADIUS_M = 5.0


def _clip_line(line: np.ndarray, size: float, margin: float = 6.0) -> np.ndarray:
    """The part of a polyline inside the district (plus a margin) that holds its middle, resampled at 1 m."""
    inside = LineString(line).intersection(box(-margin, -margin, size + margin, size + margin))
    if inside.geom_type != "LineString":
        inside = max((g for g in inside.geoms if g.geom_type == "LineString"), key=lambda g: g.length)
    count = max(2, int(round(inside.length)))
    return np.asarray([inside.interpolate(t, normalized=True).coords[0] for t in np.linspace(0, 1, count + 1)])


def _draw_road(rng: np.random.Generator, line: np.ndarray, side: int, major: bool) -> Road:
    one_way = rng.random() < (0.08 if major else 0.2)
    most = 3 if major else 2
    forward = int(rng.integers(1, most + 1))
    backward = 0 if one_way else int(np.clip(forward + rng.integers(-1, 2), 1, most))
    forward = max(forward, 2) if one_way else forward
    parking = [rng.choice([0.0, 2.4], p=[0.5, 0.5]) for _ in range(2)]
    return Road(
        line,
        forward,
        backward,
        float(rng.uniform(3.1, 3.7)),
        side,
        float(parking[0]),
        float(parking[1]) if backward else 0.0,
    )


def _draw_roads(
    rng: np.random.Generator, side: int, size: float
) -> tuple[list[Road], list[tuple[int, float, int, float]]]:
    """A main road through the middle, one to three cross roads or T arms, sometimes a road beside the main one."""
    theta = rng.uniform(0, 2 * np.pi)
    t = np.arange(-size, size + 1.0)
    bend = rng.choice([0.0, 1.0], p=[0.35, 0.65]) * rng.uniform(3.0, 14.0)
    wave = rng.uniform(90.0, 150.0)
    if bend > 0:
        bend = min(bend, 0.014 * (wave / (2 * np.pi)) ** 2 * 2.0)
    shape = np.stack([t, bend * np.sin(2 * np.pi * t / wave / 1.6 + rng.uniform(0, 6.28)) + rng.uniform(-12, 12)], -1)
    turn = np.array([[np.cos(theta), -np.sin(theta)], [np.sin(theta), np.cos(theta)]])
    whole = shape @ turn.T + size / 2
    main = _draw_road(rng, _clip_line(whole, size), side, True)
    roads, joins = [main], []
    slots = rng.permutation([-62.0, 0.0, 62.0])[: rng.choice([1, 2, 3], p=[0.35, 0.45, 0.2])]
    for slot in np.sort(slots):
        s = float(np.clip(main.length / 2 + slot + rng.uniform(-12, 12), 45.0, main.length - 45.0))
        start, yaw = main.at(s), float(main.yaw_at(s)) + np.pi / 2 + np.deg2rad(rng.uniform(-14, 14))
        arms = rng.choice(["cross", "left", "right"], p=[0.6, 0.2, 0.2])
        reach = np.arange(0.0, 2 * size)
        curve = np.deg2rad(rng.uniform(-0.12, 0.12)) * np.clip(reach - 25.0, 0.0, 120.0)

        def arm(sign: float, yaw: float = yaw, curve: np.ndarray = curve, start: np.ndarray = start) -> np.ndarray:
            steps = np.stack([np.cos(yaw + sign * curve), np.sin(yaw + sign * curve)], -1) * sign
            return start + np.concatenate([[[0.0, 0.0]], np.cumsum(steps, axis=0)[:-1]])

        if arms == "cross":
            line = _clip_line(np.concatenate([arm(-1.0)[:0:-1], arm(1.0)]), size)
        else:
            sign = 1.0 if arms == "left" else -1.0
            raw = arm(sign)
            line = _clip_line(raw, size)
            if np.hypot(*(line[0] - start)) > np.hypot(*(line[-1] - start)):
                line = line[::-1].copy()
        if any(LineString(line).distance(LineString(other.line)) < 34.0 for other in roads[1:]):
            continue  # cross roads that would meet each other
        road = _draw_road(rng, line, side, rng.random() < 0.3)
        if arms != "cross":  # a T arm starts at the main road's centre
            road = Road(
                line,
                road.forward,
                road.backward or 1,
                road.lane_width,
                side,
                road.parking_forward,
                road.parking_backward,
            )
        roads.append(road)
        s_cross = float(LineString(line).project(Point(start)))
        joins.append((0, s, len(roads) - 1, s_cross))
    if rng.random() < 0.45:  # a second road, beside the main one
        offset = rng.choice([-1.0, 1.0]) * rng.uniform(62, 85)
        line = LineString(whole).offset_curve(offset)
        meets = line.geom_type == "LineString" and line.intersects(box(30, 30, size - 30, size - 30))
        if meets and line.intersection(box(-6, -6, size + 6, size + 6)).geom_type == "LineString":
            road = _draw_road(rng, _clip_line(np.asarray(line.coords), size), side, False)
            if road.length > 90:
                roads.append(road)
                for index in range(1, len(roads) - 1):
                    hit = LineString(roads[index].line).intersection(LineString(road.line))
                    if hit.geom_type == "Point":
                        joins.append(
                            (
                                index,
                                float(LineString(roads[index].line).project(hit)),
                                len(roads) - 1,
                                float(LineString(road.line).project(hit)),
                            )
                        )
    return roads, joins


def _car_parks(
    rng: np.random.Generator, roads: list[Road], used: BaseGeometry, gap: float, size: float
) -> list[CarPark]:
    parks: list[CarPark] = []
    inside = box(4, 4, size - 4, size - 4)
    for _ in range(14):
        if len(parks) >= 3:
            break
        road = roads[rng.integers(len(roads))]
        s, length = rng.uniform(30, road.length - 30), rng.uniform(26, 52)
        depth = rng.choice([17.0, 28.5, 34.0])
        sign = rng.choice([-1.0, 1.0])
        edge = (road.left if sign > 0 else road.right) + gap
        origin, yaw = road.at(s, sign * edge), float(road.yaw_at(s))
        along = np.array([np.cos(yaw), np.sin(yaw)])
        out = np.array([-np.sin(yaw), np.cos(yaw)]) * sign
        corner = [
            origin + along * a + out * o
            for a, o in ((-length / 2, 0), (length / 2, 0), (length / 2, depth), (-length / 2, depth))
        ]
        area = Polygon(corner)
        if not inside.contains(area) or area.buffer(1.0).intersects(used.buffer(gap - 1.6)):
            continue
        if any(area.distance(park.polygon) < 4 for park in parks):
            continue
        gate = rng.uniform(-length / 4, length / 4)
        drive = Polygon(
            [
                origin + along * (gate + a) + out * o
                for a, o in ((-3.2, -gap - 1.5), (3.2, -gap - 1.5), (3.2, 0.6), (-3.2, 0.6))
            ]
        )
        bays = []
        rows = [(2.6, 1), (14.2, -1), (19.6, 1), (31.2, -1)]
        width = rng.uniform(2.6, 3.0)
        for centre, nose in rows:
            if centre + 2.6 > depth:
                continue
            for a in np.arange(-length / 2 + width / 2 + 0.4, length / 2 - width / 2, width):
                if centre < 5 and abs(a - gate) < 4.6:
                    continue
                point = origin + along * a + out * centre
                bays.append((*point, np.arctan2(out[1], out[0]) + (np.pi if nose > 0 else 0.0)))
        parks.append(CarPark(area, drive, np.asarray(bays).reshape(-1, 3), yaw))
    return parks


def draw_district(rng: np.random.Generator, traffic_side: int, size: float = DISTRICT_SIZE_M) -> District:
    """Draw one district.

    ``traffic_side`` is +1 where traffic keeps right, -1 where it keeps left. Every polygon lies in [0, size]^2.
    """
    roads, joins = _draw_roads(rng, traffic_side, size)
    square = box(0, 0, size, size)
    verge, walk = float(rng.choice([0.15, 0.15, 1.0, 1.6])), float(rng.uniform(2.2, 4.0))
    junctions, junction_shapes = [], []
    for number, (a, s_a, b, s_b) in enumerate(joins):
        first, second = roads[a], roads[b]
        angle = abs(np.sin(float(first.yaw_at(s_a)) - float(second.yaw_at(s_b))))
        for road, s, other in ((first, s_a, second), (second, s_b, first)):
            reach = max(other.left, other.right) / max(angle, 0.7) + CORNER_RADIUS_M
            road.cuts.append((s - reach, s + reach, number))
        junctions.append(first.at(s_a))
    bodies = [road.strip(0, road.length, -road.right, road.left, 2.0) for road in roads]
    union = unary_union([body.buffer(0) for body in bodies])
    union = union.buffer(CORNER_RADIUS_M, quad_segs=5).buffer(-CORNER_RADIUS_M, quad_segs=5)
    ring = union.buffer(verge + walk, quad_segs=4).difference(union.buffer(verge, quad_segs=4))
    parks = _car_parks(rng, roads, union, verge + walk + 0.4, size)
    drives = unary_union([park.driveway for park in parks]) if parks else Polygon()
    walk_shape = ring.difference(drives).difference(unary_union([p.polygon for p in parks])) if parks else ring
    for a, s_a, b, s_b in joins:
        junction_shapes.append(
            unary_union(
                [
                    road.strip(max(0.0, cut[0]), min(road.length, cut[1]), -road.right, road.left)
                    for road, s in ((roads[a], s_a), (roads[b], s_b))
                    for cut in road.cuts
                    if cut[0] < s < cut[1]
                ]
            )
        )
    crossings, stop_lines = _crossings(rng, roads, square)
    road_dividers, lane_dividers = _dividers(roads, crossings, size)
    drivable = union.union(drives).intersection(square)
    clip = [polygon for polygon in without_holes(walk_shape.intersection(square).simplify(0.08)) if polygon.area > 3]
    return District(
        roads,
        junctions,
        traffic_side,
        polygons_of(drivable.simplify(0.05)),
        [polygons_of(shape.intersection(square))[0] for shape in junction_shapes],
        clip,
        crossings,
        stop_lines,
        parks,
        road_dividers,
        lane_dividers,
        walk,
        verge,
        size,
    )


def _crossings(rng: np.random.Generator, roads: list[Road], square: Polygon) -> tuple[list, list]:
    """Crossings and stop lines at the arms of junctions, and a few crossings between junctions."""
    crossings: list[Crossing] = []
    stop_lines: list[tuple[Polygon, np.ndarray, int]] = []
    for index, road in enumerate(roads):
        for s0, s1, at_start, at_end in road.sections():
            for s_junction, sign, junction in ((s0, 1.0, at_start), (s1, -1.0, at_end)):
                if junction < 0 or s1 - s0 < 16:
                    continue
                width, has_crossing = rng.uniform(3.0, 4.5), rng.random() < 0.8
                near = s_junction + sign * 0.4
                far = near + sign * (width if has_crossing else 0.0)
                lines = []
                lanes, side = (road.forward, -road.traffic_side) if sign < 0 else (road.backward, road.traffic_side)
                if lanes:
                    a, b = far + sign * 0.8, far + sign * 2.6
                    reach = side * lanes * road.lane_width
                    polygon = road.strip(min(a, b), max(a, b), min(0.0, reach), max(0.0, reach))
                    if square.contains(polygon):
                        paint = np.stack(
                            [road.at(a + sign * 0.3, side * 0.15), road.at(a + sign * 0.3, reach - side * 0.1)]
                        )
                        lines.append(len(stop_lines))
                        stop_lines.append((polygon, paint, junction))
                if has_crossing:
                    polygon = road.strip(min(near, far), max(near, far), -road.right, road.left)
                    if square.contains(polygon):
                        middle = (near + far) / 2
                        ends = np.stack([road.at(middle, -road.right - 1.0), road.at(middle, road.left + 1.0)])
                        crossings.append(Crossing(polygon, ends, index, middle, junction, lines))
            if s1 - s0 > 60 and rng.random() < 0.35:
                middle = rng.uniform(s0 + 25, s1 - 25)
                polygon = road.strip(middle - 1.8, middle + 1.8, -road.right, road.left)
                if square.contains(polygon):
                    ends = np.stack([road.at(middle, -road.right - 1.0), road.at(middle, road.left + 1.0)])
                    crossings.append(Crossing(polygon, ends, index, middle, -1))
    return crossings, stop_lines


def _dividers(roads: list[Road], crossings: list[Crossing], size: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Road dividers (between directions) and lane dividers (between lanes of one direction), as polylines.

    They end before the crossing at a junction's arm.
    """
    road_dividers: list[np.ndarray] = []
    lane_dividers: list[np.ndarray] = []
    frame = box(0, 0, size, size)

    def add(out: list[np.ndarray], road: Road, s0: float, s1: float, offset: float) -> None:
        s = np.linspace(s0, s1, max(2, int((s1 - s0) / 2)))
        piece = LineString(road.at(s, offset)).intersection(frame)
        if piece.geom_type == "LineString" and piece.length > 2:
            out.append(np.asarray(piece.coords))

    for index, road in enumerate(roads):
        for s0, s1, _, _ in road.sections():
            low, high = s0, s1
            for crossing in crossings:
                if crossing.road == index and crossing.junction >= 0:
                    reach = crossing.polygon.area / (road.left + road.right) / 2 + 0.6
                    if 0 < crossing.s - s0 < 8:
                        low = crossing.s + reach
                    elif 0 < s1 - crossing.s < 8:
                        high = crossing.s - reach
            if high - low < 4:
                continue
            if road.forward and road.backward:
                add(road_dividers, road, low, high, 0.0)
            for lanes, sign in ((road.forward, -road.traffic_side), (road.backward, road.traffic_side)):
                for lane in range(1, lanes):
                    add(lane_dividers, road, low, high, sign * lane * road.lane_width)
    return road_dividers, lane_dividers
