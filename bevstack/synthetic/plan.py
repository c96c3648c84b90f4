"""The vocabulary of a ground plan: roads, crossings, car parks, districts, and the cutting of their shapes.

A district is a square of ``DISTRICT_SIZE_M`` metres, in its own coordinates [0, size]^2 (x east, y north).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from shapely.geometry import LineString, MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry
from shapely.ops import split, unary_union

DISTRICT_SIZE_M = 260.0


@dataclass
class Road:
    """One road: a centreline with lanes on both sides.

    ``line`` is (N, 2) metres at about 1 m spacing. Offsets are metres along the left normal of the line.
    ``traffic_side`` is +1 for traffic that keeps right, -1 for left: forward lane i lies at offset ``-traffic_side * (i
    + 0.5) * lane_width``.
    """

    line: np.ndarray
    forward: int
    backward: int
    lane_width: float
    traffic_side: int
    parking_forward: float = 0.0
    parking_backward: float = 0.0
    cuts: list[tuple[float, float, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        steps = np.hypot(*np.diff(self.line, axis=0).T)
        self.s = np.concatenate([[0.0], np.cumsum(steps)])
        tangent = np.gradient(self.line, axis=0)
        self.heading = np.unwrap(np.arctan2(tangent[:, 1], tangent[:, 0]))

    @property
    def length(self) -> float:
        """Length of the centreline in metres."""
        return float(self.s[-1])

    @property
    def width_forward(self) -> float:
        """Metres from the centreline to the kerb on the forward lanes' side."""
        return self.forward * self.lane_width + self.parking_forward + (0.3 if self.forward else 0.5)

    @property
    def width_backward(self) -> float:
        """Metres from the centreline to the kerb on the backward lanes' side."""
        return self.backward * self.lane_width + self.parking_backward + (0.3 if self.backward else 0.5)

    @property
    def left(self) -> float:
        """Offset of the left kerb (positive)."""
        return self.width_backward if self.traffic_side > 0 else self.width_forward

    @property
    def right(self) -> float:
        """Distance of the right kerb from the centreline (positive; its offset is minus this)."""
        return self.width_forward if self.traffic_side > 0 else self.width_backward

    def yaw_at(self, s: np.ndarray | float) -> np.ndarray:
        """Heading in radians at arc length ``s``."""
        return np.interp(s, self.s, self.heading)

    def at(self, s: np.ndarray | float, offset: np.ndarray | float = 0.0) -> np.ndarray:
        """Points (..., 2) at arc length ``s`` and left ``offset``, in metres."""
        yaw = self.yaw_at(s)
        x = np.interp(s, self.s, self.line[:, 0]) - np.sin(yaw) * offset
        y = np.interp(s, self.s, self.line[:, 1]) + np.cos(yaw) * offset
        return np.stack([x, y], axis=-1)

    def strip(self, s0: float, s1: float, offset0: float, offset1: float, step: float = 3.0) -> Polygon:
        """The polygon between two arc lengths and two offsets."""
        s = np.linspace(s0, s1, max(2, int(np.ceil((s1 - s0) / step)) + 1))
        return Polygon(np.concatenate([self.at(s, offset0), self.at(s[::-1], offset1)]))

    def sections(self) -> list[tuple[float, float, int, int]]:
        """Stretches between junctions: (s0, s1, junction at the start or -1, junction at the end or -1)."""
        cuts = sorted(self.cuts)
        start, junction, out = 0.0, -1, []
        for low, high, index in cuts:
            if low - start > 4.0:
                out.append((start, low, junction, index))
            start, junction = high, index
        if self.length - start > 4.0:
            out.append((start, self.length, junction, -1))
        return out


@dataclass
class Crossing:
    """A pedestrian crossing: its polygon and the two ends people walk between."""

    polygon: Polygon
    ends: np.ndarray
    road: int
    s: float
    junction: int
    stop_lines: list[int] = field(default_factory=list)


@dataclass
class CarPark:
    """A car park: area, access way, and bays as (x, y, yaw) with the car's nose along yaw."""

    polygon: Polygon
    driveway: Polygon
    bays: np.ndarray
    yaw: float


@dataclass
class District:
    """The whole ground plan; polygons are in district coordinates, metres."""

    roads: list[Road]
    junctions: list[np.ndarray]
    traffic_side: int
    drivable: list[Polygon]
    junction_areas: list[Polygon]
    walkways: list[Polygon]
    crossings: list[Crossing]
    stop_lines: list[tuple[Polygon, np.ndarray, int]]
    car_parks: list[CarPark]
    road_dividers: list[np.ndarray]
    lane_dividers: list[np.ndarray]
    walkway_width: float
    verge: float
    size: float = DISTRICT_SIZE_M

    def surface(self) -> BaseGeometry:
        """Everything that wheels or feet use, as one shape (to keep buildings and trees off it)."""
        return unary_union([*self.drivable, *self.walkways, *(park.polygon for park in self.car_parks)])


def polygons_of(shape: BaseGeometry, minimum_area: float = 1.0) -> list[Polygon]:
    """The polygons of any shape, without slivers."""
    if isinstance(shape, Polygon):
        parts = [shape]
    else:
        parts = [part for part in getattr(shape, "geoms", []) if isinstance(part, (Polygon, MultiPolygon))]
        parts = [piece for part in parts for piece in (part.geoms if isinstance(part, MultiPolygon) else [part])]
    return [part for part in parts if part.area >= minimum_area]


def without_holes(shape: BaseGeometry) -> list[Polygon]:
    """Cut a shape into polygons without holes.

    The devkit fills the holes of one record with zeros after the records before it, which would erase a walkway that
    lies inside another's hole.
    """
    done, waiting = [], polygons_of(shape)
    while waiting:
        polygon = waiting.pop()
        if not polygon.interiors:
            done.append(polygon)
            continue
        x, _ = Polygon(polygon.interiors[0]).centroid.coords[0]
        _, low, _, high = polygon.bounds
        waiting.extend(polygons_of(split(polygon, LineString([(x, low - 1), (x, high + 1)]))))
    return done


def straight_pieces(line: np.ndarray, tolerance: float = 0.12) -> list[np.ndarray]:
    """Cut a polyline into straight pieces (2, 2), each within ``tolerance`` metres of it.

    Straight pieces meet any patch at most once: the devkit's ``mask_for_lines`` cannot draw a MultiLineString on
    shapely 2.
    """
    points = np.asarray(LineString(line).simplify(tolerance).coords)
    return [points[i : i + 2] for i in range(len(points) - 1)]
