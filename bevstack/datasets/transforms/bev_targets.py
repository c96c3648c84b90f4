"""BEV segmentation targets, in the orientation of BEV tensors: row grows with +y (front), column with +x (right).

The map comes from tiles (:mod:`bevstack.datasets.nuscenes.map_tiles`), objects from their boxes. Both follow the BEV
augmentation, and both come after it in a pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms.base import BaseTransform
from torch import Tensor

from bevstack.datasets.nuscenes.taxonomy import MAP_LAYERS, VEHICLE_CLASSES
from bevstack.geometry import BEVGrid
from bevstack.geometry.boxes3d import box_footprints, points_in_footprint
from bevstack.registry import TRANSFORMS


def footprint_cells(boxes: Tensor, grid: BEVGrid) -> tuple[Tensor, Tensor, Tensor]:
    """Cells whose centres lie in the boxes' footprints.

    Args:
        boxes: (G, 9) in the grid's frame; they may reach over its border or lie outside.
        grid: the cells.

    Returns:
        Three equally long int64 tensors: box, row, column of every such pair of box and cell.
    """
    footprints = grid.cells_from_metres(box_footprints(boxes.double()))
    limit = torch.tensor([grid.shape[1], grid.shape[0]])
    low = footprints.amin(1).floor().long().clamp(min=torch.zeros(2, dtype=torch.long), max=limit)
    high = footprints.amax(1).ceil().long().clamp(min=torch.zeros(2, dtype=torch.long), max=limit)
    width, height = (high - low).unbind(-1)
    counts = width * height
    box = torch.repeat_interleave(torch.arange(len(boxes)), counts)
    place = torch.arange(len(box)) - (counts.cumsum(0) - counts)[box]
    column = low[box, 0] + place % width[box]
    row = low[box, 1] + torch.div(place, width[box], rounding_mode="floor")
    centers = grid.metres_from_cells(torch.stack([column, row], dim=-1).double() + 0.5)
    inside = points_in_footprint(centers.unsqueeze(1), boxes.double()[box]).squeeze(1)
    return box[inside], row[inside], column[inside]


def rasterise_boxes(boxes: Tensor, layer_of_box: Tensor, grid: BEVGrid, mark_centers: bool = False) -> Tensor:
    """Paint boxes on a BEV grid.

    Args:
        boxes: (G, 9) in the grid's frame.
        layer_of_box: (K, G) bool, which boxes belong to which layer.
        grid: the cells; a cell is on when its centre lies in a footprint.
        mark_centers: also turn on the cell that holds a box's centre, so that what is smaller than a cell shows.

    Returns:
        (K, Y, X) uint8, 0 or 1; row = y, column = x.
    """
    layers = torch.zeros((len(layer_of_box), *grid.shape), dtype=torch.uint8)
    box, row, column = footprint_cells(boxes, grid)
    if mark_centers:
        centers = boxes[:, :2].double()
        marked = torch.nonzero(grid.contains(centers)).flatten()
        cells = grid.cells_from_metres(centers[marked]).long()
        box, row, column = torch.cat([box, marked]), torch.cat([row, cells[:, 1]]), torch.cat([column, cells[:, 0]])
    for layer, members in zip(layers, layer_of_box, strict=True):
        chosen = members[box]
        layer[row[chosen], column[chosen]] = 1
    return layers


@TRANSFORMS.register_module()
class RasteriseBoxes(BaseTransform):
    """Paint annotated objects into ``rasters[name]``, a :class:`bevstack.structures.BEVRaster` of uint8 0 / 1.

    Comes after the BEV augmentation and before the object filters, for boxes outside may reach into the grid.

    Args:
        grid: a :class:`bevstack.geometry.BEVGrid` or its arguments.
        name: under which the raster is kept.
        layers: layer name -> detection classes painted into it. Default: one layer ``vehicle`` of the vehicle classes.
        min_visibility: objects below this nuScenes visibility level are left out. 0 or 1 keeps all (Lift-Splat-Shoot,
            PointBeV without visibility filter), 2 keeps those seen to more than 40 % (PointBeV's visibility filter).
        mark_centers: see :func:`rasterise_boxes`.

    Raises:
        ValueError: in use, a class that the dataset does not have.
    """

    def __init__(
        self,
        grid: BEVGrid | Mapping,
        name: str = "vehicle",
        layers: Mapping[str, Sequence[str]] | None = None,
        min_visibility: int = 0,
        mark_centers: bool = False,
    ) -> None:
        self.grid = BEVGrid.build(grid)
        self.name = name
        self.layers = {"vehicle": VEHICLE_CLASSES} if layers is None else {k: tuple(v) for k, v in layers.items()}
        self.min_visibility = min_visibility
        self.mark_centers = mark_centers

    def transform(self, results: dict) -> dict:
        """Add ``rasters[name]`` from ``boxes``, ``labels``, ``classes`` and ``visibility``."""
        from bevstack.structures import BEVRaster

        boxes = torch.from_numpy(np.asarray(results["boxes"], dtype=np.float64))
        labels, classes = np.asarray(results["labels"]), tuple(results["classes"])
        seen = np.ones(len(labels), dtype=bool)
        if self.min_visibility > 1:
            seen = np.asarray(results["visibility"]) >= self.min_visibility
        members = np.zeros((len(self.layers), len(labels)), dtype=bool)
        for row, (layer, names) in zip(members, self.layers.items(), strict=True):
            unknown = [name for name in names if name not in classes]
            if unknown:
                raise ValueError(f"RasteriseBoxes: layer {layer}: {unknown} not among the classes {list(classes)}")
            row[:] = np.isin(labels, [classes.index(name) for name in names]) & seen
        painted = rasterise_boxes(boxes, torch.from_numpy(members), self.grid, self.mark_centers)
        results.setdefault("rasters", {})[self.name] = BEVRaster(painted, tuple(self.layers), self.grid)
        return results


@TRANSFORMS.register_module()
class LoadBEVMap(BaseTransform):
    """Cut the map around the ego out of the map tiles into ``rasters["map"]``, uint8 0 / 1.

    The augmented BEV frame is related to the map by ``global_from_bev @ inv(augmented_from_bev)``, a similarity; the
    tiles are opened on first use, in the worker.

    Args:
        grid: a :class:`bevstack.geometry.BEVGrid` or its arguments.
        layers: which of :data:`MAP_LAYERS`, in this order.
        data_root, version: of the dataset; None takes ``results["data_root"]`` and ``results["version"]``.
        index_root: where the tiles lie; None takes ``results["index_root"]``, and without it the data root.
        name: under which the raster is kept.

    Raises:
        ValueError: an unknown layer.
        InputError: in use, tiles or a location that are missing.
    """

    needs_map = True
    """Lets a dataset say at once that its locations have no map."""

    def __init__(
        self,
        grid: BEVGrid | Mapping,
        layers: Sequence[str] = MAP_LAYERS,
        data_root: str | Path | None = None,
        version: str | None = None,
        index_root: str | Path | None = None,
        name: str = "map",
    ) -> None:
        unknown = [layer for layer in layers if layer not in MAP_LAYERS]
        if unknown:
            raise ValueError(f"LoadBEVMap: {unknown} not among the map layers {list(MAP_LAYERS)}")
        self.grid = BEVGrid.build(grid)
        self.layers = tuple(layers)
        self.data_root, self.version, self.index_root = data_root, version, index_root
        self.name = name
        self._tiles = None

    def __getstate__(self) -> dict:
        """Open tiles stay in the process that opened them."""
        return {**self.__dict__, "_tiles": None}

    def transform(self, results: dict) -> dict:
        """Add ``rasters[name]`` from ``location``, ``global_from_bev`` and ``augmented_from_bev``."""
        from bevstack.structures import BEVRaster

        if self._tiles is None:
            from bevstack.datasets.nuscenes.map_tiles import MapTiles

            root = results["data_root"] if self.data_root is None else self.data_root
            version = results["version"] if self.version is None else self.version
            self._tiles = MapTiles.open(root, version, self.index_root or results.get("index_root"))
        bev_from_augmented = np.linalg.inv(results.get("augmented_from_bev", np.eye(4)))
        layers = self._tiles.layers(results["location"], results["global_from_bev"] @ bev_from_augmented, self.grid)
        chosen = torch.as_tensor(np.asarray(layers), dtype=torch.uint8)
        if self.layers != MAP_LAYERS:
            chosen = chosen[[MAP_LAYERS.index(layer) for layer in self.layers]]
        results.setdefault("rasters", {})[self.name] = BEVRaster(chosen, self.layers, self.grid)
        return results
