"""The painted ground of a district: a texture from the same polygons as the map, with smaller copies for the
distance."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from shapely.geometry import Polygon

from bevstack.synthetic.plan import District, Road

RESOLUTION_M = 0.1
LEVEL_RATIO = 2.0**0.5
LEVELS = 9
_SHIFT = 4


@dataclass
class GroundTexture:
    """``levels[k]`` (rows y, columns x, 3) uint8 BGR at ``RESOLUTION_M * LEVEL_RATIO**k`` metres a pixel; row 0 is y =
    0."""

    levels: list[np.ndarray]
    resolutions: list[float]

    def mean_colour(self) -> np.ndarray:
        """Mean BGR of the whole ground."""
        return self.levels[-1].reshape(-1, 3).mean(0)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], cell_px: float) -> np.ndarray:
    """Smooth random field (rows, columns) float32, mean 0 and about 1 in spread, with blobs of ``cell_px``."""
    rows, columns = int(shape[0] / cell_px) + 3, int(shape[1] / cell_px) + 3
    return cv2.resize(
        rng.standard_normal((rows, columns)).astype(np.float32), shape[::-1], interpolation=cv2.INTER_CUBIC
    )


def _pixels(points: np.ndarray) -> np.ndarray:
    return np.round((np.asarray(points)[:, :2] / RESOLUTION_M - 0.5) * (1 << _SHIFT)).astype(np.int32)


def _fill(image: np.ndarray, polygon: Polygon, colour: tuple) -> None:
    rings = [_pixels(polygon.exterior.coords), *(_pixels(ring.coords) for ring in polygon.interiors)]
    cv2.fillPoly(image, rings, colour, cv2.LINE_8, _SHIFT)


def _line(
    image: np.ndarray, points: np.ndarray, width_m: float, colour: tuple, dash: tuple[float, float] | None = None
) -> None:
    thick = max(1, int(round(width_m / RESOLUTION_M)))
    points = np.asarray(points)
    if dash is None:
        cv2.polylines(image, [_pixels(points)], False, colour, thick, cv2.LINE_AA, _SHIFT)
        return
    s = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    pieces = []
    for start in np.arange(0.5, s[-1] - dash[0], sum(dash)):
        at = np.linspace(start, start + dash[0], 3)
        pieces.append(_pixels(np.stack([np.interp(at, s, points[:, 0]), np.interp(at, s, points[:, 1])], -1)))
    cv2.polylines(image, pieces, False, colour, thick, cv2.LINE_AA, _SHIFT)


def _tint(rng: np.random.Generator, low: float, high: float, spread: float = 0.05) -> tuple:
    return tuple(float(v) for v in np.clip(rng.uniform(low, high) * (1 + rng.normal(0, spread, 3)), 0, 1) * 255)


def _zebra(
    image: np.ndarray, road: Road, polygon: Polygon, s: float, style: int, white: tuple, rng: np.random.Generator
) -> None:
    half = polygon.area / max(road.left + road.right, 1.0) / 2
    if style == 0:  # stripes along the road
        for offset in np.arange(-road.right + 0.5, road.left - 0.4, 1.1):
            stripe = road.strip(s - half + 0.1, s + half - 0.1, offset, offset + 0.55)
            cv2.fillPoly(image, [_pixels(stripe.exterior.coords)], white, cv2.LINE_AA, _SHIFT)
        return
    if style == 2:
        _fill(image, road.strip(s - half, s + half, -road.right, road.left), _tint(rng, 0.4, 0.55, 0.2))
    for edge in (-half + 0.15, half - 0.15):
        _line(image, np.stack([road.at(s + edge, -road.right + 0.2), road.at(s + edge, road.left - 0.2)]), 0.3, white)


def _arrow(image: np.ndarray, road: Road, s: float, offset: float, sign: float, white: tuple) -> None:
    shape = np.array([(-1.6, 0.09), (0.4, 0.09), (0.4, 0.38), (1.6, 0.0), (0.4, -0.38), (0.4, -0.09), (-1.6, -0.09)])
    yaw = float(road.yaw_at(s))
    c, n = np.cos(yaw) * sign, np.sin(yaw) * sign
    points = road.at(s, offset) + shape @ np.array([[c, n], [-n, c]])
    cv2.fillPoly(image, [_pixels(points)], white, cv2.LINE_AA, _SHIFT)


def _paint_roads(image: np.ndarray, district: District, rng: np.random.Generator, white: tuple) -> None:
    yellow = tuple(float(v) * rng.uniform(0.75, 1.0) for v in (40.0, 180.0, 225.0))
    middle = yellow if rng.random() < 0.6 else white
    double, edged = rng.random() < 0.6, rng.random() < 0.55
    for line in district.road_dividers:
        line = np.asarray(line)
        if double:
            tangent = np.gradient(line, axis=0)
            normal = np.stack([-tangent[:, 1], tangent[:, 0]], -1) / np.maximum(np.hypot(*tangent.T), 1e-6)[:, None]
            for side in (-0.14, 0.14):
                _line(image, line + normal * side, 0.12, middle)
        else:
            _line(image, line, 0.2, middle)
    dash = ((3.0, 4.0), (2.0, 3.0), (3.0, 6.0))[rng.integers(3)]
    for line in district.lane_dividers:
        _line(image, line, 0.15, white, dash)
    for road in district.roads:
        for s0, s1, at_start, at_end in road.sections():
            s = np.linspace(s0, s1, max(2, int(s1 - s0) // 2))
            for sign, lanes, park in (
                (-road.traffic_side, road.forward, road.parking_forward),
                (road.traffic_side, road.backward, road.parking_backward),
            ):
                edge = sign * lanes * road.lane_width
                if park:
                    _line(image, road.at(s, edge), 0.1, white)
                    for at in np.arange(s0 + 6, s1 - 6, 6.2):
                        _line(image, np.stack([road.at(at, edge), road.at(at, edge + sign * park)]), 0.1, white)
                elif edged:
                    _line(image, road.at(s, edge + sign * 0.05), 0.12, white if lanes else middle)
                ahead = sign == -road.traffic_side
                if lanes and (at_end if ahead else at_start) >= 0 and s1 - s0 > 40:
                    for lane in range(lanes):
                        at = s1 - 14 if ahead else s0 + 14
                        _arrow(image, road, at, sign * (lane + 0.5) * road.lane_width, 1.0 if ahead else -1.0, white)


def paint_ground(
    district: District, rng: np.random.Generator, wet: bool, light: np.ndarray | None = None
) -> GroundTexture:
    """Paint a district's ground.

    ``wet`` darkens the surfaces (rain). ``light`` (rows, columns) float32 multiplies the result (lamp light at night),
    at any resolution; it is stretched over the district.
    """
    side = int(round(district.size / RESOLUTION_M))
    shape, coarse = (side, side), (side // 4, side // 4)
    mix = smooth_noise(rng, coarse, 40) * 0.7 + smooth_noise(rng, coarse, 8) * 0.45
    mix = (1 / (1 + np.exp(-2.5 * mix)))[..., None]
    greens = [
        np.array([0.16, 0.34, 0.27]),
        np.array([0.2, 0.42, 0.36]),
        np.array([0.28, 0.38, 0.46]),
        np.array([0.46, 0.48, 0.5]),
        np.array([0.3, 0.33, 0.34]),
    ]
    a, b = (greens[k] * rng.uniform(0.8, 1.15) * 255 for k in rng.choice(len(greens), 2, replace=False))
    image = (a.astype(np.float32) * mix + b.astype(np.float32) * (1 - mix)).astype(np.uint8)
    image = cv2.resize(image, shape[::-1], interpolation=cv2.INTER_LINEAR)
    white = _tint(rng, 0.78, 0.92, 0.02)
    # walkways with joints
    pavement = _tint(rng, 0.45, 0.68, 0.07)
    mask = np.zeros(shape, np.uint8)
    for polygon in district.walkways:
        _fill(image, polygon, pavement)
        _fill(mask, polygon, (255,))
    joint = int(rng.choice([8, 12, 16, 20]))
    for lines in (np.s_[::joint], np.s_[:, ::joint]):
        image[lines][mask[lines] > 0] = np.multiply(pavement, 0.78).astype(np.uint8)
    # asphalt with patches, edged by the kerb
    asphalt = _tint(rng, 0.22, 0.42, 0.03)
    for polygon in district.drivable:
        _fill(image, polygon, asphalt)
    for _ in range(int(rng.integers(4, 14))):
        road = district.roads[rng.integers(len(district.roads))]
        s, offset = rng.uniform(5, road.length - 12), rng.uniform(-road.right + 0.5, road.left - 3)
        _fill(
            image,
            road.strip(s, s + rng.uniform(2, 14), offset, offset + rng.uniform(1, 3)),
            tuple(np.multiply(asphalt, rng.uniform(0.75, 1.15))),
        )
    kerb = tuple(np.multiply(pavement, 1.1).clip(0, 255))
    for polygon in district.drivable:
        for ring in (polygon.exterior, *polygon.interiors):
            cv2.polylines(image, [_pixels(ring.coords)], True, kerb, 2, cv2.LINE_AA, _SHIFT)
    for park in district.car_parks:
        colour = asphalt if rng.random() < 0.5 else _tint(rng, 0.3, 0.55, 0.06)
        _fill(image, park.polygon, tuple(np.multiply(colour, rng.uniform(0.85, 1.15))))
        _fill(image, park.driveway, colour)
        for x, y, yaw in park.bays:
            c, n = np.cos(yaw), np.sin(yaw)
            for across in (-1.35, 1.35):
                ends = np.array([(-2.5, across), (2.5, across)]) @ np.array([[c, n], [-n, c]]) + (x, y)
                _line(image, ends, 0.1, white)
    _paint_roads(image, district, rng, white)
    style = int(rng.choice([0, 1, 2], p=[0.65, 0.2, 0.15]))
    for crossing in district.crossings:
        _zebra(image, district.roads[crossing.road], crossing.polygon, crossing.s, style, white, rng)
    for _, paint, _ in district.stop_lines:
        _line(image, paint, 0.45, white)
    for _ in range(int(rng.integers(3, 10))):
        road = district.roads[rng.integers(len(district.roads))]
        spot = road.at(rng.uniform(5, road.length - 5), rng.uniform(-road.right + 1, road.left - 1))
        cv2.circle(
            image, tuple(int(v) for v in spot / RESOLUTION_M), 4, tuple(np.multiply(asphalt, 0.6)), -1, cv2.LINE_AA
        )
    # a factor in bytes: 128 leaves a colour as it is
    grain = 1.0 + 0.05 * smooth_noise(rng, coarse, 18) + 0.05 * smooth_noise(rng, coarse, 3)
    if wet:
        grain *= 0.72 + 0.1 * np.clip(smooth_noise(rng, coarse, 12), -1, 1)
    if light is not None:
        grain *= cv2.resize(light, coarse[::-1], interpolation=cv2.INTER_LINEAR) * 0.5
    factor = cv2.resize(np.clip(grain * 128, 0, 255).astype(np.uint8), shape[::-1], interpolation=cv2.INTER_LINEAR)
    tile = np.clip(rng.normal(128, 6.5, (256, 256)), 0, 255).astype(np.uint8)
    repeat = -(-side // 256)
    factor = cv2.multiply(factor, np.tile(tile, (repeat, repeat))[:side, :side], scale=1 / 128)
    image = cv2.multiply(image, cv2.merge([factor] * 3), scale=1 / 128)
    if light is not None:
        image = cv2.convertScaleAbs(image, alpha=2.0)  # the light was halved to fit a byte
    levels, resolutions, current = [image], [RESOLUTION_M], image
    for _ in range(1, LEVELS):
        size = max(8, int(round(current.shape[0] / LEVEL_RATIO)))
        current = cv2.resize(current, (size, size), interpolation=cv2.INTER_AREA)
        levels.append(current)
        resolutions.append(district.size / size)
    return GroundTexture(levels, resolutions)
