"""A map expansion in nuScenes' form, read and checked: the shapes of the layers that are drawn, of any location.

The devkit's own reader knows nuScenes' four cities alone and ends in a traceback where a converter's map is not whole;
what it makes of a whole one is what is made here (a test compares them).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard, cast

import numpy as np
from shapely import LineString, Polygon

from bevstack.datasets.nuscenes.table_files import read_json
from bevstack.errors import InputError

AREA_LAYERS = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area")
LINE_LAYERS = ("road_divider", "lane_divider")
OLDEST_VERSION = (1, 3)


class MapExpansion:
    """The polygons and lines of one location; make it with :meth:`read`."""

    def __init__(self, path: Path, layers: dict[str, list[dict]], shapes: dict[str, dict[str, dict]]) -> None:
        self.path, self._layers, self._shapes = path, layers, shapes

    @classmethod
    def read(cls, path: Path) -> MapExpansion:
        """Read ``maps/expansion/<location>.json``.

        Raises:
            InputError: it is no map expansion of version 1.3 or later, or one of the lists that are read (``node``,
                ``polygon``, ``line`` and the layers) is missing or holds something that is no record.
        """
        content = read_json(path)
        if not isinstance(content, dict):
            raise InputError(path, "content", "must be an object of map layers")
        version = str(content.get("version", "1.0"))
        if not re.fullmatch(r"\d+(\.\d+)*", version):
            raise InputError(path, "version", f"{version!r:.40} is no version, as 1.3 is one")
        if tuple(int(number) for number in version.split(".")) < OLDEST_VERSION:
            raise InputError(path, "version", f"{version} is outdated; 1.3 or later is read")
        shapes = {}
        for table in ("node", "polygon", "line"):
            records = _records(path, content, table)
            shapes[table] = {_token(path, table, row, record): record for row, record in enumerate(records)}
        return cls(path, {name: _records(path, content, name) for name in (*AREA_LAYERS, *LINE_LAYERS)}, shapes)

    def areas(self, layer: str) -> Iterator[Polygon]:
        """Polygons of one of :data:`AREA_LAYERS`, in global metres; one without nodes is empty.

        Raises:
            InputError: a reference that leads nowhere, a ring of one or two nodes, a node without coordinates.
        """
        for row, record in enumerate(self._layers[layer]):
            many = layer == "drivable_area"
            tokens = self._field(
                layer, row, record, "polygon_tokens" if many else "polygon_token", list if many else str
            )
            for token in tokens if isinstance(tokens, list) else [tokens]:
                polygon = self._find("polygon", token, f"{_name(layer, row, record)}.polygon_token")
                exterior = self._ring(token, polygon.get("exterior_node_tokens"), "exterior_node_tokens")
                holes = polygon.get("holes", [])
                if not isinstance(holes, list) or not all(isinstance(hole, dict) for hole in holes):
                    raise InputError(self.path, f"polygon.{token}.holes", "must be a list of records")
                rings = [self._ring(token, hole.get("node_tokens"), "holes") for hole in holes]
                yield Polygon(exterior, [ring for ring in rings if len(ring)])

    def lines(self, layer: str) -> Iterator[LineString]:
        """Lines of one of :data:`LINE_LAYERS`, in global metres; one without nodes is empty.

        Raises:
            InputError: a reference that leads nowhere, a line of one node, a node without coordinates.
        """
        for row, record in enumerate(self._layers[layer]):
            token = self._field(layer, row, record, "line_token", str)
            line = self._find("line", token, f"{_name(layer, row, record)}.line_token")
            yield LineString(self._points(f"line.{token}.node_tokens", line.get("node_tokens"), least=2))

    def node_at(self, place: np.ndarray) -> str:
        """Token of the node at (2,) global metres, for messages."""
        nodes = self._shapes["node"].items()
        return next((token for token, node in nodes if (node.get("x"), node.get("y")) == tuple(place.tolist())), "")

    def _ring(self, polygon: object, tokens: object, field: str) -> np.ndarray:
        return self._points(f"polygon.{polygon}.{field}", tokens, least=3)

    def _points(self, field: str, tokens: object, least: int) -> np.ndarray:
        """(n, 2) metres of a list of nodes: none, or at least ``least``."""
        if not isinstance(tokens, list):
            raise InputError(self.path, field, f"must be a list of nodes, not {tokens!r:.40}")
        if 0 < len(tokens) < least:
            raise InputError(self.path, field, f"has {len(tokens)} node(s) where it takes {least} or none")
        return np.array([self._place(token, field) for token in tokens], dtype=np.float64).reshape(-1, 2)

    def _place(self, token: object, field: str) -> tuple[float, float]:
        node = self._find("node", token, field)
        x, y = node.get("x"), node.get("y")
        if not _is_finite(x) or not _is_finite(y):
            raise InputError(self.path, f"node.{token}", f"x and y must be numbers, not {(x, y)!r:.60}")
        return x, y

    def _find(self, table: str, token: object, field: str) -> dict:
        if not isinstance(token, str) or token not in self._shapes[table]:
            raise InputError(self.path, field, f"{token!r:.60} is no token of the map's {table} list")
        return self._shapes[table][token]

    def _field(self, layer: str, row: int, record: dict, field: str, kind: type) -> object:
        value = record.get(field)
        if not isinstance(value, kind):
            what = "is missing" if field not in record else f"must be a {'list' if kind is list else 'token'}"
            raise InputError(self.path, f"{_name(layer, row, record)}.{field}", what)
        return value


def _is_finite(value: object) -> TypeGuard[float]:
    return type(value) in (int, float) and math.isfinite(cast(float, value))


def _records(path: Path, content: dict, name: str) -> list[dict]:
    records = content.get(name)
    if records is None:
        raise InputError(path, name, "this list is missing; write [] where there is nothing of it")
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise InputError(path, name, "must be a list of records")
    return records


def _token(path: Path, table: str, row: int, record: dict) -> str:
    token = record.get("token")
    if not isinstance(token, str):
        raise InputError(path, f"{table}[{row}].token", "is missing or no text")
    return token


def _name(layer: str, row: int, record: dict) -> str:
    token = record.get("token")
    return f"{layer}.{token}" if isinstance(token, str) else f"{layer}[{row}]"
