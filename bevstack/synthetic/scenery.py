"""What stands around the roads and is not labelled: buildings, trees, lamps, signals, signs, fences, bushes, boxes."""

from __future__ import annotations

import numpy as np
import shapely
from shapely.geometry import Polygon
from shapely.geometry.base import BaseGeometry
from shapely.ops import unary_union

from bevstack.synthetic import furniture
from bevstack.synthetic.plan import District
from bevstack.synthetic.shapes import Mesh
from bevstack.synthetic.things import Thing

_REACH_M = 105.0


class _Site:
    """Free land: keeps new things off surfaces, off each other, and within sight of the ego car's way."""

    def __init__(self, district: District, way: np.ndarray, taken_xy: np.ndarray) -> None:
        self.district, self.way = district, way
        self.surface = district.surface()
        self.blocked = self.surface.buffer(0.6)
        shapely.prepare(self.blocked)
        self.taken = taken_xy
        self.footprints: BaseGeometry = Polygon()  # of the buildings
        self.rects: list[tuple[np.ndarray, float]] = []
        self.things: list[Thing] = []

    def near(self, xy: np.ndarray, reach: float = _REACH_M) -> bool:
        return bool(((self.way - xy) ** 2).sum(1).min() < reach**2)

    def clear_of_buildings(self, xy: np.ndarray, radius: float) -> bool:
        return all(np.hypot(*(xy - centre)) > radius + r for centre, r in self.rects)

    def clear_of_agents(self, xy: np.ndarray, gap: float) -> bool:
        return not len(self.taken) or float(((self.taken - xy) ** 2).sum(1).min()) > gap**2

    def put(self, mesh: Mesh, xy: np.ndarray, yaw: float) -> None:
        self.things.append(Thing(mesh, (float(xy[0]), float(xy[1]), float(yaw))))


def _rectangle(xy: np.ndarray, yaw: float, length: float, width: float) -> Polygon:
    c, s = np.cos(yaw), np.sin(yaw)
    corner = np.array([(1, 1), (1, -1), (-1, -1), (-1, 1)]) * (length / 2, width / 2)
    return Polygon(xy + corner @ np.array([[c, s], [-s, c]]))


def _buildings(site: _Site, rng: np.random.Generator) -> None:
    district = site.district
    placed: list[Polygon] = []
    density, tall = rng.uniform(0.45, 0.95), rng.choice([7.0, 14.0, 28.0], p=[0.3, 0.45, 0.25])
    setback = rng.uniform(0.8, 6.0)
    for row in range(2):
        for road in district.roads:
            for sign in (-1.0, 1.0):
                s = rng.uniform(2, 12)
                while s < road.length - 4:
                    length, depth = rng.uniform(9, 30), rng.uniform(9, 22)
                    if rng.random() < density:
                        edge = (
                            (road.left if sign > 0 else road.right)
                            + district.verge
                            + district.walkway_width
                            + setback
                            + rng.uniform(0, 2.5)
                        )
                        xy = road.at(s + length / 2, sign * (edge + depth / 2 + row * 26.0))
                        yaw = float(road.yaw_at(s + length / 2))
                        if site.near(xy):
                            shape = _rectangle(xy, yaw, length, depth)
                            if not site.blocked.intersects(shape) and not any(
                                shape.intersects(other) for other in placed
                            ):
                                agents = site.taken
                                inside = (
                                    shapely.contains_xy(shape.buffer(1.5), agents[:, 0], agents[:, 1]).any()
                                    if len(agents)
                                    else False
                                )
                                if not inside:
                                    placed.append(shape.buffer(0.5))
                                    site.rects.append((xy, float(np.hypot(length, depth) / 2)))
                                    height = float(np.clip(rng.gamma(3.0, tall / 3.0), 3.5, 60.0)) * (
                                        1.3 if row else 1.0
                                    )
                                    site.put(furniture.building(rng, np.array([length, depth, height])), xy, yaw)
                    s += length + rng.exponential(3.0)
    site.footprints = unary_union(placed) if placed else Polygon()
    shapely.prepare(site.footprints)


def _tree(site: _Site, rng: np.random.Generator, xy: np.ndarray) -> None:
    clear, height = rng.uniform(2.3, 3.4), rng.uniform(5.0, 10.0)
    site.put(furniture.tree_trunk(rng, clear + 0.3), xy, 0.0)
    site.put(furniture.tree_crown(rng, rng.uniform(1.4, 3.0), (clear + 0.31, height)), xy, rng.uniform(0, 6.28))


def _along_roads(site: _Site, rng: np.random.Generator, lit: bool) -> list[np.ndarray]:
    """Rows beside the kerb: lamps, trees, signs, boxes. Returns where the lamps hang."""
    district = site.district
    lamps = []
    trees, lamp_gap = rng.random() < 0.7, rng.uniform(22, 36)
    edge_gap = district.verge + 0.45
    for road in district.roads:
        for sign in (-1.0, 1.0):
            edge = road.left if sign > 0 else road.right
            for s0, s1, _, _ in road.sections():
                for s in np.arange(s0 + rng.uniform(2, 8), s1 - 1, lamp_gap):
                    xy = road.at(s, sign * (edge + edge_gap))
                    if site.near(xy) and site.clear_of_agents(xy, 1.2):
                        pole, height = furniture.lamp_post(rng)
                        inward = float(road.yaw_at(s)) - sign * np.pi / 2
                        site.put(pole, xy, 0.0)
                        site.put(furniture.lamp_arm(height, lit), xy, inward)
                        lamps.append(xy + 2.2 * np.array([np.cos(inward), np.sin(inward)]))
                gap = rng.uniform(7, 16)
                for s in np.arange(s0 + rng.uniform(3, 10), s1 - 2, gap):
                    kind = rng.random()
                    xy = road.at(s, sign * (edge + edge_gap + (0.1 if kind < 0.6 else district.walkway_width - 0.7)))
                    if not site.near(xy, 90.0) or not site.clear_of_agents(xy, 1.1):
                        continue
                    if kind < 0.55 and trees:
                        _tree(site, rng, xy)
                    elif kind < 0.68:
                        site.put(furniture.sign(rng), xy, float(road.yaw_at(s)) + rng.choice([0.0, np.pi]))
                    elif kind < 0.85:
                        site.put(
                            furniture.street_box(rng), xy, float(road.yaw_at(s)) + rng.choice([0, 1, 2, 3]) * np.pi / 2
                        )
    for crossing in district.crossings:
        for end in crossing.ends:
            if crossing.junction >= 0 and rng.random() < 0.7 and site.near(end) and site.clear_of_agents(end, 0.8):
                road = district.roads[crossing.road]
                away = float(road.yaw_at(crossing.s)) + (0.0 if crossing.s < road.length / 2 else np.pi)
                site.put(furniture.traffic_light(rng, int(rng.integers(3))), end + rng.normal(0, 0.3, 2), away)
    return lamps


def _open_land(site: _Site, rng: np.random.Generator) -> None:
    """Trees, bushes, boxes and fences on what is left."""
    size = site.district.size
    spots = rng.uniform(2, size - 2, (int(rng.integers(150, 420)), 2))
    free = ~(
        shapely.contains_xy(site.blocked, spots[:, 0], spots[:, 1])
        | shapely.contains_xy(site.footprints, spots[:, 0], spots[:, 1])
    )
    for xy in spots[free]:
        if not site.near(xy, 80.0) or not site.clear_of_agents(xy, 2.0):
            continue
        kind = rng.random()
        if kind < 0.45:
            _tree(site, rng, xy)
        elif kind < 0.9:
            site.put(furniture.bush(rng, rng.uniform(0.4, 1.4), rng.uniform(0.5, 1.7)), xy, rng.uniform(0, 6.28))
        else:
            site.put(furniture.street_box(rng), xy, rng.uniform(0, 6.28))
    for road in site.district.roads:
        if rng.random() > 0.5:
            continue
        sign = float(rng.choice([-1, 1]))
        offset = sign * (
            (road.left if sign > 0 else road.right) + site.district.verge + site.district.walkway_width + 0.45
        )
        colour, height = np.full(3, rng.uniform(0.15, 0.7)) + rng.normal(0, 0.05, 3), rng.uniform(0.9, 2.0)
        start = rng.uniform(10, road.length - 40)
        style = int(rng.integers(1 << 30))
        for s in np.arange(start, start + rng.uniform(15, 60), 3.0):
            xy = road.at(s, offset)
            covered = shapely.contains_xy(site.footprints, *xy) or shapely.contains_xy(site.surface, *xy)
            if s < road.length - 5 and not covered and site.near(xy, 85.0) and site.clear_of_agents(xy, 1.8):
                site.put(
                    furniture.fence(np.random.default_rng(style), 2.95, np.clip(colour, 0.05, 0.9), height),
                    xy,
                    float(road.yaw_at(s)),
                )


def place_scenery(
    rng: np.random.Generator, district: District, way: np.ndarray, agents_xy: np.ndarray, lit: bool
) -> tuple[list[Thing], np.ndarray]:
    """Everything unlabelled within sight of the ego car's ``way`` (K, 2), clear of the agents at ``agents_xy`` (A, 2).

    Returns the things and the lamps' places (L, 2).
    """
    site = _Site(district, way, agents_xy)
    _buildings(site, rng)
    lamps = _along_roads(site, rng, lit)
    _open_land(site, rng)
    return site.things, np.asarray(lamps).reshape(-1, 2)


def lamp_light(lamps: np.ndarray, size: float, rng: np.random.Generator, base: float = 0.55) -> np.ndarray:
    """Light over a district at 1 m (rows y, columns x): ``base`` plus a pool under every lamp."""
    side = int(size)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) + 0.5
    light = np.full((side, side), base, np.float32)
    for lamp in lamps:
        x0, x1, y0, y1 = (int(np.clip(v, 0, side)) for v in (lamp[0] - 24, lamp[0] + 24, lamp[1] - 24, lamp[1] + 24))
        part = (slice(y0, y1), slice(x0, x1))
        light[part] += (
            2.6 * rng.uniform(0.6, 1.2) * np.exp(-((x[part] - lamp[0]) ** 2 + (y[part] - lamp[1]) ** 2) / (2 * 7.0**2))
        )
    return light
