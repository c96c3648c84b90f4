"""Map rasters ready to be cut out: one bitfield a location, memory-mapped, made once from the map expansion.

A location's ``.npy`` holds uint8 (rows, columns): bit k of a cell is layer k of ``MAP_LAYERS``, row r grows with global
y, column c with global x, and cell (r, c) covers ``origin_m + [c, c + 1) x [r, r + 1)`` cells of ``cell_m`` metres.
:mod:`bevstack.datasets.nuscenes.map_rasterizer` writes them.
"""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from bevstack.datasets.nuscenes.index_files import index_folder
from bevstack.datasets.nuscenes.taxonomy import MAP_LAYERS
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid

TILES_FOLDER, TILES_FILE, TILES_VERSION = "map-tiles", "tiles.json", 1
_BITS = (1 << np.arange(len(MAP_LAYERS), dtype=np.uint8))[:, None, None]


class MapTiles:
    """The opened map tiles of a version; make them with :meth:`open`."""

    def __init__(self, root: Path, folder: Path, cell_m: float, locations: dict[str, dict]) -> None:
        self.root, self.folder, self.cell_m = root, folder, cell_m
        self._origins = {name: np.array(entry["origin_m"], dtype=np.float64) for name, entry in locations.items()}
        self._fields = {name: _open_field(folder / f"{name}.npy", entry) for name, entry in locations.items()}

    @classmethod
    def open(cls, root: str | Path, version: str, index_root: str | Path | None = None) -> MapTiles:
        """Open the tiles that ``tools/create_data.py`` put beside the index; without map expansion there are none.

        Raises:
            InputError: the tiles were made by another program version, for other layers, or are damaged.
        """
        folder = index_folder(root, version, index_root) / TILES_FOLDER
        path = folder / TILES_FILE
        if not path.is_file():
            return cls(Path(root), folder, 1.0, {})
        try:
            header = json.loads(path.read_text(encoding="utf-8"))
            version_found, layers = header["tiles_version"], tuple(header["layers"])
            cell_m, locations = float(header["cell_m"]), dict(header["locations"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(path, "content", f"is no list of map tiles: {error!r}") from None
        if version_found != TILES_VERSION or layers != MAP_LAYERS:
            raise InputError(
                path, "tiles_version", "was made by another version of this program; run create_data again"
            )
        return cls(Path(root), folder, cell_m, locations)

    def has(self, location: str) -> bool:
        """Whether there are tiles of ``location``."""
        return location in self._fields

    def require(self, location: str) -> None:
        """Raise :class:`InputError` where there are no tiles of ``location``."""
        if location in self._fields:
            return
        path = self.root / "maps" / "expansion" / f"{location}.json"
        if not location:
            path, way = self.root, "their log names no location"
        elif path.is_file():
            way = "the map expansion is there, but not drawn: run create_data again, without --no-maps"
        else:
            way = "put the map expansion there and run create_data again"
        what = f"there is no map of {location!r}" if location else "there is no map of some scenes"
        raise InputError(path, "location", f"{what}; {way}, or leave map layers out of the config")

    def layers(self, location: str, global_from_bev: np.ndarray, grid: BEVGrid) -> np.ndarray:
        """Cut the six layers around a BEV frame, taking the map cell under each BEV cell's centre.

        Args:
            location: of the sample.
            global_from_bev: (4, 4); its planar part is used, which may rotate, mirror and scale.
            grid: the BEV cells.

        Returns:
            (6, Y, X) uint8, 0 or 1, in BEV orientation (row = y, column = x); 0 outside the map.

        Raises:
            InputError: there are no tiles of ``location``.
        """
        self.require(location)
        field = self._fields[location]
        # Pixel coordinates in which integers are cell centres, as OpenCV has them.
        cell_x, cell_y = grid.cell_m
        metres = np.array(
            [[cell_x, 0, grid.x_range_m[0] + cell_x / 2], [0, cell_y, grid.y_range_m[0] + cell_y / 2], [0, 0, 1]]
        )
        planar = np.asarray(global_from_bev, dtype=np.float64)[np.ix_([0, 1], [0, 1, 3])] @ metres
        planar[:, 2] -= self._origins[location]
        field_from_bev = planar / self.cell_m
        field_from_bev[:, 2] -= 0.5
        rows, columns = grid.shape
        corners = field_from_bev @ np.array([[0, columns, 0, columns], [0, 0, rows, rows], [1, 1, 1, 1]])
        low = np.clip(np.floor(corners.min(axis=1)) - 1, 0, field.shape[::-1]).astype(int)
        high = np.clip(np.ceil(corners.max(axis=1)) + 2, 0, field.shape[::-1]).astype(int)
        if (high <= low).any():
            return np.zeros((len(MAP_LAYERS), rows, columns), dtype=np.uint8)
        patch = np.ascontiguousarray(field[low[1] : high[1], low[0] : high[0]])
        field_from_bev[:, 2] -= low
        cut: np.ndarray = cv2.warpAffine(
            patch, field_from_bev, (columns, rows), flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP, borderValue=(0,)
        )
        return ((cut & _BITS) > 0).astype(np.uint8)


def _open_field(path: Path, entry: dict) -> np.ndarray:
    try:
        field = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(path, "array", f"cannot be read: {error}") from None
    if field.dtype != np.uint8 or list(field.shape) != entry.get("shape"):
        raise InputError(path, "array", f"is {field.dtype} {field.shape}, {TILES_FILE} says {entry.get('shape')}")
    return field
