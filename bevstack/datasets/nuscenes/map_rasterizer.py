"""Rasterises map expansions into bitfields of :mod:`bevstack.datasets.nuscenes.map_tiles`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from bevstack.datasets.nuscenes.map_expansion import LINE_LAYERS, MapExpansion
from bevstack.datasets.nuscenes.map_tiles import TILES_FILE, TILES_VERSION
from bevstack.datasets.nuscenes.taxonomy import MAP_LAYERS
from bevstack.errors import InputError

CELL_M = 0.2
# get_map_mask draws lines with OpenCV's thickness 2, which covers 3 pixels (measured: 3.0 to 3.6, by angle); at the
# half metre of bevfusion's targets that is 1.5 m.
DIVIDER_WIDTH_M = 1.5
_MARGIN_M = 2.0
# 13 km x 13 km: nuScenes' largest map has 0.3e9 cells.
_MOST_CELLS = 2**32


def write_map_tiles(
    root: str | Path, locations: list[str], folder: Path, progress: Callable[[str], None] = print
) -> dict[str, int]:
    """Rasterise the six layers of each location that has a map expansion.

    Polygons and lines are the devkit's. As in its ``get_map_mask``, polygons that are not valid are skipped, except
    drivable areas; unlike there, a hole of one polygon does not cut another, and masks are exact at cell centres.

    Args:
        root: dataset root, with ``maps/expansion``.
        locations: of the version's logs.
        folder: where the tiles go; made here.
        progress: called with a line for each location.

    Returns:
        Location -> bytes of its tile. One warning names the locations without a map.

    Raises:
        InputError: a map expansion is outdated, malformed, or far too large.
    """
    entries: dict[str, dict] = {}
    expansion = Path(root) / "maps" / "expansion"
    for name in locations:
        if Path(name).name != name:
            raise InputError(expansion, "location", f"{name!r} of a log is no name of a map's file")
    found = [name for name in locations if name and (expansion / f"{name}.json").is_file()]
    missing = [name or "scenes without a location" for name in locations if name not in found]
    if missing:
        warnings.warn(
            f"{expansion}: no map expansion of {', '.join(missing)}: no map layers for their scenes", stacklevel=2
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name in found:
        progress(f"map {name}")
        field, origin = rasterize_map(MapExpansion.read(expansion / f"{name}.json"))
        np.save(folder / f"{name}.npy", field, allow_pickle=False)
        entries[name] = {"origin_m": origin.tolist(), "shape": list(field.shape)}
    header = {"tiles_version": TILES_VERSION, "cell_m": CELL_M, "layers": MAP_LAYERS, "locations": entries}
    (folder / TILES_FILE).write_text(json.dumps(header, indent=1), encoding="utf-8")
    return {name: (folder / f"{name}.npy").stat().st_size for name in found}


def rasterize_map(expansion: MapExpansion) -> tuple[np.ndarray, np.ndarray]:
    """Draw all layers of one map: a cell has a layer's bit where its centre lies in one of the layer's polygons.

    Returns:
        (rows, columns) uint8 bitfield and (2,) global metres of its low corner.

    Raises:
        InputError: a shape cannot be read, or the map is too large: often a single node lies far away.
    """
    shapes = {layer: list(_polygons(expansion, layer)) for layer in MAP_LAYERS if layer != "divider"}
    shapes["divider"] = [shape for layer in LINE_LAYERS for shape in _lines(expansion, layer)]
    points = [ring for layer in shapes.values() for rings in layer for ring in rings]
    if not points:
        return np.zeros((1, 1), dtype=np.uint8), np.zeros(2)
    everything = np.concatenate(points)
    origin = np.floor(everything.min(axis=0) - _MARGIN_M)
    columns, rows = np.ceil((everything.max(axis=0) + _MARGIN_M - origin) / CELL_M).astype(int).tolist()
    if rows * columns > _MOST_CELLS:
        far = everything[np.abs(everything - np.median(everything, axis=0)).max(axis=1).argmax()]
        reason = (
            f"the map would reach {columns * CELL_M / 1e3:.0f} km x {rows * CELL_M / 1e3:.0f} km, too far to draw; "
        )
        reason += f"({far[0]:.0f}, {far[1]:.0f}) lies farthest from the rest"
        raise InputError(expansion.path, f"node {expansion.node_at(far)}".strip(), reason)
    field = np.zeros((rows, columns), dtype=np.uint8)
    for bit, layer in enumerate(MAP_LAYERS):
        for rings in shapes[layer]:
            fill_polygon(field, [(ring - origin) / CELL_M for ring in rings], np.uint8(1 << bit))
    return field, origin


def fill_polygon(field: np.ndarray, rings: list[np.ndarray], bit: np.uint8) -> None:
    """Set ``bit`` of the cells whose centres lie in a polygon (even-odd rule, so that inner rings are holes).

    Exact at cell centres, which OpenCV's ``fillPoly`` is not: it adds every pixel that the border touches.

    Args:
        field: (rows, columns) uint8, changed in place; the polygon must lie inside.
        rings: closed rings (n, 2) of (column, row) in cells; cell (r, c) is centred at (c + 0.5, r + 0.5).
        bit: value to set.
    """
    start = np.concatenate([ring[:-1] for ring in rings])
    end = np.concatenate([ring[1:] for ring in rings])
    low, high = np.minimum(start, end), np.maximum(start, end)
    first_column, first_row = np.floor(low.min(axis=0)).astype(int).tolist()
    last_column, last_row = np.ceil(high.max(axis=0)).astype(int).tolist()
    # Each edge crosses the centre lines of rows [begin, begin + count); at every crossing the row changes between in
    # and out, from the first cell on whose centre lies right of it.
    begin = np.ceil(low[:, 1] - 0.5).astype(int)
    count = np.ceil(high[:, 1] - 0.5).astype(int) - begin
    edge = np.repeat(np.arange(len(start)), count)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + begin[edge]
    slope = (end - start)[edge]
    column = start[edge, 0] + slope[:, 0] * (row + 0.5 - start[edge, 1]) / slope[:, 1]
    change = np.zeros((last_row - first_row, last_column - first_column + 1), dtype=bool)
    np.logical_xor.at(change, (row - first_row, np.ceil(column - 0.5).astype(int) - first_column), True)
    inside = np.logical_xor.accumulate(change, axis=1)[:, :-1]
    field[first_row:last_row, first_column:last_column] |= inside * bit


def _polygons(expansion: MapExpansion, layer: str) -> Iterator[list[np.ndarray]]:
    """Rings (n, 2) in metres of each polygon of a layer."""
    for polygon in expansion.areas(layer):
        if not polygon.is_empty and (layer == "drivable_area" or polygon.is_valid):
            yield _rings(polygon)


def _lines(expansion: MapExpansion, layer: str) -> Iterator[list[np.ndarray]]:
    """Rings (n, 2) in metres of each line of a layer, drawn ``DIVIDER_WIDTH_M`` wide."""
    for line in expansion.lines(layer):
        if not line.is_empty:
            band = line.buffer(DIVIDER_WIDTH_M / 2, cap_style="flat", join_style="round")
            for polygon in getattr(band, "geoms", [band]):
                if not polygon.is_empty:
                    yield _rings(polygon)


def _rings(polygon) -> list[np.ndarray]:
    return [np.array(ring.coords)[:, :2] for ring in (polygon.exterior, *polygon.interiors)]
