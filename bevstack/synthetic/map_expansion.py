"""The map of a location: NuScenesMap JSON (version 1.3) and the drivable mask PNG, from the districts' polygons."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from shapely.geometry import LineString, Polygon, box

from bevstack.synthetic.lanes import Lane
from bevstack.synthetic.plan import District, straight_pieces

POLYGON_LAYERS = (
    "drivable_area",
    "road_segment",
    "road_block",
    "lane",
    "ped_crossing",
    "walkway",
    "stop_line",
    "carpark_area",
)
LAYERS = ("polygon", "line", "node", *POLYGON_LAYERS, "lane_connector", "road_divider", "lane_divider", "traffic_light")
MASK_RESOLUTION_M = 0.1


class _Recorder:
    """Adds nodes, polygons, lines and layer records, with tokens from the scene's name and a running number."""

    def __init__(self, origin: tuple[float, float], prefix: str) -> None:
        self.origin, self.prefix, self.number = np.asarray(origin), prefix, 0
        self.layers: dict[str, list[dict]] = {name: [] for name in LAYERS}
        self.arcs: dict[str, list[dict]] = {}
        self.links: dict[str, dict] = {}

    def token(self) -> str:
        """The next token."""
        self.number += 1
        return hashlib.md5(f"{self.prefix}/map/{self.number}".encode(), usedforsecurity=False).hexdigest()

    def nodes(self, points: np.ndarray) -> list[str]:
        """Add nodes at district coordinates; returns their tokens."""
        tokens = []
        for x, y in np.asarray(points)[:, :2] + self.origin:
            tokens.append(self.token())
            self.layers["node"].append({"token": tokens[-1], "x": round(float(x), 3), "y": round(float(y), 3)})
        return tokens

    def polygon(self, shape: Polygon) -> str:
        """Add a polygon (with holes); returns its token."""
        token = self.token()
        holes = [{"node_tokens": self.nodes(np.asarray(ring.coords)[:-1])} for ring in shape.interiors]
        self.layers["polygon"].append(
            {"token": token, "exterior_node_tokens": self.nodes(np.asarray(shape.exterior.coords)[:-1]), "holes": holes}
        )
        return token

    def line(self, points: np.ndarray) -> str:
        """Add a line; returns its token."""
        token = self.token()
        self.layers["line"].append({"token": token, "node_tokens": self.nodes(points)})
        return token

    def add(self, layer: str, **fields: object) -> str:
        """Add a record to a layer; returns its token."""
        token = self.token()
        self.layers[layer].append({"token": token, **fields})
        return token


def _arcs(line: np.ndarray) -> list[dict]:
    """A lane's centreline as nuScenes arc-line paths: straight pieces (the middle segment of each path)."""
    points = np.asarray(LineString(line).simplify(0.1).coords)
    out = []
    for a, b in zip(points[:-1], points[1:], strict=True):
        yaw = float(np.arctan2(*(b - a)[::-1]))
        out.append(
            {
                "start_pose": [float(a[0]), float(a[1]), yaw],
                "end_pose": [float(b[0]), float(b[1]), yaw],
                "shape": "LSR",
                "radius": 999.999,
                "segment_length": [0.0, float(np.hypot(*(b - a))), 0.0],
            }
        )
    return out


def _lane_polygon(lane: Lane, frame: Polygon) -> Polygon | None:
    strip = (
        LineString(lane.line)
        .simplify(0.1)
        .buffer(lane.width / 2, cap_style="flat", join_style="mitre")
        .intersection(frame)
    )
    return strip if strip.geom_type == "Polygon" and strip.area > 2 else None


def map_records(district: District, lanes: list[Lane], origin: tuple[float, float], prefix: str) -> dict[str, object]:
    """All map-expansion records of one district placed at ``origin``; plus ``mask``, its drivable polygons in district
    metres."""
    out, frame = _Recorder(origin, prefix), box(0, 0, district.size, district.size)
    area = out.add("drivable_area", polygon_tokens=[out.polygon(p) for p in district.drivable])
    for shape in district.junction_areas:
        out.add("road_segment", polygon_token=out.polygon(shape), is_intersection=True, drivable_area_token=area)
    segments, blocks = {}, {}
    for index, road in enumerate(district.roads):
        for number, (s0, s1, _, _) in enumerate(road.sections()):
            shape = road.strip(s0, s1, -road.right, road.left).simplify(0.1).intersection(frame)
            if shape.geom_type != "Polygon" or shape.is_empty:
                continue
            segment = out.add(
                "road_segment", polygon_token=out.polygon(shape), is_intersection=False, drivable_area_token=area
            )
            segments[index, number] = segment
            for forward, count, side in (
                (True, road.forward, -road.traffic_side),
                (False, road.backward, road.traffic_side),
            ):
                reach = side * count * road.lane_width
                half = (
                    road.strip(s0, s1, min(0.0, reach), max(0.0, reach)).simplify(0.1).intersection(frame)
                    if count
                    else None
                )
                if half is not None and half.geom_type == "Polygon" and not half.is_empty:
                    ends = [
                        out.line(np.stack([road.at(s, 0.0), road.at(s, reach)]))
                        for s in ((s0, s1) if forward else (s1, s0))
                    ]
                    blocks[index, number, forward] = out.add(
                        "road_block",
                        polygon_token=out.polygon(half),
                        from_edge_line_token=ends[0],
                        to_edge_line_token=ends[1],
                        road_segment_token=segment,
                    )
    _add_lanes(out, lanes, origin, frame)
    any_segment = next(iter(segments.values()), "")
    crossing_tokens: dict[int, list[str]] = {}
    for crossing in district.crossings:
        token = out.add("ped_crossing", polygon_token=out.polygon(crossing.polygon), road_segment_token=any_segment)
        for stop in crossing.stop_lines:
            crossing_tokens.setdefault(stop, []).append(token)
    for shape in district.walkways:
        out.add("walkway", polygon_token=out.polygon(shape))
    for index, (shape, _, _) in enumerate(district.stop_lines):
        cue = crossing_tokens.get(index, [])
        out.add(
            "stop_line",
            polygon_token=out.polygon(shape),
            stop_line_type="PED_CROSSING" if cue else "STOP_SIGN",
            ped_crossing_tokens=cue,
            traffic_light_tokens=[],
            road_block_token="",
        )
    for park in district.car_parks:
        out.add("carpark_area", polygon_token=out.polygon(park.polygon), orientation=park.yaw, road_block_token="")
    for line in district.road_dividers:
        for piece in straight_pieces(line):
            out.add("road_divider", line_token=out.line(piece), road_segment_token=any_segment)
    for line in district.lane_dividers:
        for piece in straight_pieces(line):
            token = out.line(piece)
            kinds = [
                {"node_token": node, "segment_type": "SINGLE_DASHED_WHITE"}
                for node in out.layers["line"][-1]["node_tokens"]
            ]
            out.add("lane_divider", line_token=token, lane_divider_segments=kinds)
    mask = (
        [np.asarray(p.exterior.coords) for p in district.drivable],
        [np.asarray(r.coords) for p in district.drivable for r in p.interiors],
    )
    return {
        "layers": out.layers,
        "arcline_path_3": out.arcs,
        "connectivity": out.links,
        "mask": mask,
        "size": district.size,
        "origin": origin,
    }


def _add_lanes(out: _Recorder, lanes: list[Lane], origin: tuple[float, float], frame: Polygon) -> None:
    tokens: dict[int, str] = {}
    for index, lane in enumerate(lanes):
        shape = _lane_polygon(lane, frame)
        if shape is None:
            continue
        polygon = out.polygon(shape)
        if lane.connector:
            tokens[index] = out.add("lane_connector", polygon_token=polygon)
        else:

            def end(point: np.ndarray, ahead: np.ndarray, half: float = lane.width / 2) -> str:
                normal = np.array([-ahead[1], ahead[0]]) / max(float(np.hypot(*ahead)), 1e-6)
                return out.line(np.stack([point + normal * half, point - normal * half]))

            tokens[index] = out.add(
                "lane",
                polygon_token=polygon,
                lane_type="CAR",
                from_edge_line_token=end(lane.line[0], lane.line[1] - lane.line[0]),
                to_edge_line_token=end(lane.line[-1], lane.line[-1] - lane.line[-2]),
                left_lane_divider_segments=[],
                right_lane_divider_segments=[],
            )
        out.arcs[tokens[index]] = _arcs(lane.line + np.asarray(origin))
    for index, token in tokens.items():
        out.links[token] = {
            "incoming": [tokens[j] for j in lanes[index].predecessors if j in tokens],
            "outgoing": [tokens[j] for j in lanes[index].successors if j in tokens],
        }


def write_location(root: Path, location: str, mask_file: str, records: list[dict], extent: tuple[float, float]) -> None:
    """Write one location's map JSON (``maps/expansion``) and its drivable mask (0.1 m a pixel, north up) from its
    districts."""
    merged: dict[str, object] = {"version": "1.3", "canvas_edge": [float(v) for v in extent]}
    for layer in LAYERS:
        merged[layer] = [row for record in records for row in record["layers"][layer]]
    for key in ("arcline_path_3", "connectivity"):
        merged[key] = {token: row for record in records for token, row in record[key].items()}
    (root / "maps" / "expansion" / f"{location}.json").write_text(json.dumps(merged, separators=(",", ":")))
    width, height = (int(round(v / MASK_RESOLUTION_M)) for v in extent)
    mask = np.zeros((height, width), np.uint8)
    for record in records:
        x0, y0 = record["origin"]
        side = int(round(record["size"] / MASK_RESOLUTION_M))
        tile = np.zeros((side, side), np.uint8)
        for rings, value in ((record["mask"][0], 255), (record["mask"][1], 0)):
            cv2.fillPoly(tile, [np.round(ring / MASK_RESOLUTION_M).astype(np.int32) for ring in rings], (value,))
        column, row = int(round(x0 / MASK_RESOLUTION_M)), height - int(round(y0 / MASK_RESOLUTION_M)) - side
        mask[row : row + side, column : column + side] = tile[::-1]
    Image.fromarray(mask).save(root / mask_file, compress_level=1)
