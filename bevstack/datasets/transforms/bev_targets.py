"""BEV segmentation targets, in the orientation of BEV tensors: row grows with +y (front), column with +x (right).

The map comes from the dataset (:meth:`bevstack.datasets.base.BEVDataset.map_raster`), objects from their boxes. Both
follow the BEV augmentation, and both come after it in a pipeline.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmcv.transforms.base import BaseTransform
from torch import Tensor

from bevstack.datasets.base import BEVDataset, Taxonomy
from bevstack.datasets.transforms.names import refuse_absent, taxonomy_of
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.geometry.boxes3d import box_footprints, points_in_footprint
from bevstack.registry import TRANSFORMS
from bevstack.structures import BEVRaster

_NO_VISIBILITY = "the dataset does not know how visible its objects are"


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
        layers: layer name -> classes painted into it; None for the dataset's own ``taxonomy.object_layers`` (nuScenes':
            one layer ``vehicle`` of the vehicle classes).
        min_visibility: objects below this nuScenes visibility level are left out. 0 or 1 keeps all (Lift-Splat-Shoot,
            PointBeV without visibility filter), 2 keeps those seen to more than 40 % (PointBeV's visibility filter).
        mark_centers: see :func:`rasterise_boxes`.

    Raises:
        InputError: a class that the dataset does not have, or no layers at all.
    """

    makes_rasters = True

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
        self.layers = None if layers is None else {key: tuple(names) for key, names in layers.items()}
        self.min_visibility = min_visibility
        self.mark_centers = mark_centers

    def check_dataset(self, dataset: BEVDataset) -> None:
        """Refuse a dataset that lacks a class, or does not know what is visible."""
        self._layers(dataset.taxonomy, dataset.classes)
        require_visibility(dataset, self.min_visibility)

    def _layers(self, taxonomy: Taxonomy, classes: Sequence[str]) -> Mapping[str, Sequence[str]]:
        layers = taxonomy.object_layers if self.layers is None else self.layers
        if not layers:
            raise InputError("pipeline", "RasteriseBoxes.layers", "name them: the dataset has none of its own")
        for names in layers.values():
            refuse_absent("RasteriseBoxes.layers", names, classes, "the dataset has the classes")
        return layers

    def transform(self, results: dict) -> dict:
        """Add ``rasters[name]`` from ``boxes``, ``labels``, ``classes`` and ``visibility``."""
        boxes = torch.from_numpy(np.asarray(results["boxes"], dtype=np.float64))
        labels, classes = np.asarray(results["labels"]), tuple(results["classes"])
        layers = self._layers(taxonomy_of(results), classes)
        seen = seen_enough(results, self.min_visibility)
        members = np.zeros((len(layers), len(labels)), dtype=bool)
        for row, names in zip(members, layers.values(), strict=True):
            row[:] = np.isin(labels, [classes.index(name) for name in names]) & seen
        painted = rasterise_boxes(boxes, torch.from_numpy(members), self.grid, self.mark_centers)
        results.setdefault("rasters", {})[self.name] = BEVRaster(painted, tuple(layers), self.grid)
        return results


def require_visibility(dataset: BEVDataset, min_visibility: int) -> None:
    """Refuse a dataset that does not know how visible its objects are, where that is asked (:func:`seen_enough`)."""
    if min_visibility > 1 and dataset.clip(0).objects.visibility is None:
        raise InputError("pipeline", "min_visibility", _NO_VISIBILITY)


def seen_enough(results: Mapping, min_visibility: int) -> np.ndarray:
    """(G,) bool: objects whose nuScenes visibility level is at least ``min_visibility``; all for 0 or 1.

    Raises:
        InputError: the dataset does not know how visible objects are.
    """
    if min_visibility <= 1:
        return np.ones(len(results["labels"]), dtype=bool)
    if "visibility" not in results:
        raise InputError("pipeline", "min_visibility", _NO_VISIBILITY)
    return np.asarray(results["visibility"]) >= min_visibility


@TRANSFORMS.register_module()
class LoadBEVMap(BaseTransform):
    """Cut the map around the ego, as the dataset has it, into ``rasters["map"]``, uint8 0 / 1.

    The augmented BEV frame is related to the map by ``global_from_bev @ inv(augmented_from_bev)``, a similarity.

    Args:
        grid: a :class:`bevstack.geometry.BEVGrid` or its arguments.
        layers: which of the dataset's ``taxonomy.map_layers``, in this order; None for all.
        name: under which the raster is kept.

    Raises:
        InputError: the map has no such layer, or the dataset no map of one of its locations.
    """

    makes_rasters = True

    def __init__(self, grid: BEVGrid | Mapping, layers: Sequence[str] | None = None, name: str = "map") -> None:
        self.grid = BEVGrid.build(grid)
        self.layers = None if layers is None else tuple(layers)
        self.name = name

    def check_dataset(self, dataset: BEVDataset) -> None:
        """Refuse a dataset without a map of all its locations, or without a layer."""
        for location in dataset.locations:
            dataset.require_map(location)
        self._layers(dataset.taxonomy)

    def _layers(self, taxonomy: Taxonomy) -> tuple[str, ...]:
        layers = taxonomy.map_layers if self.layers is None else self.layers
        refuse_absent("LoadBEVMap.layers", layers, taxonomy.map_layers, "the dataset's map has the layers")
        return layers

    def transform(self, results: dict) -> dict:
        """Add ``rasters[name]`` from ``dataset``, ``location``, ``global_from_bev`` and ``augmented_from_bev``."""
        dataset = results["dataset"]
        layers, there = self._layers(dataset.taxonomy), dataset.taxonomy.map_layers
        bev_from_augmented = np.linalg.inv(results.get("augmented_from_bev", np.eye(4)))
        dataset.require_map(results["location"])
        cut = dataset.map_raster(results["location"], results["global_from_bev"] @ bev_from_augmented, self.grid)
        chosen = torch.as_tensor(np.asarray(cut), dtype=torch.uint8)
        if layers != there:
            chosen = chosen[[there.index(layer) for layer in layers]]
        results.setdefault("rasters", {})[self.name] = BEVRaster(chosen, layers, self.grid)
        return results
