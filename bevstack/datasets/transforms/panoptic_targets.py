"""The panoptic BEV target: annotated objects as things, map layers as stuff, one owner a cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmcv.transforms.base import BaseTransform
from torch import Tensor

from bevstack.datasets.base import BEVDataset
from bevstack.datasets.transforms.bev_targets import footprint_cells, require_visibility, seen_enough
from bevstack.datasets.transforms.names import refuse_absent, taxonomy_of
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.registry import TRANSFORMS
from bevstack.structures.panoptic import panoptic_map


def thing_masks(boxes: Tensor, grid: BEVGrid) -> Tensor:
    """The cells that objects cover, before any cell has one owner.

    Args:
        boxes: (G, 9) in the grid's frame; they may reach over its border or lie outside.
        grid: the cells.

    Returns:
        (G, Y, X) bool: cells whose centres lie in the footprint; where there are none, the cell that holds the box's
        centre, so that an object smaller than a cell covers one. Nothing for a box that does not touch the grid.
    """
    masks = torch.zeros((len(boxes), *grid.shape), dtype=torch.bool)
    masks[footprint_cells(boxes, grid)] = True
    centers = boxes[:, :2].double()
    small = torch.nonzero(grid.contains(centers) & ~masks.flatten(1).any(1)).flatten()
    column, row = grid.cells_from_metres(centers[small]).long().unbind(-1)
    masks[small, row, column] = True
    return masks


@TRANSFORMS.register_module()
class MakePanopticMap(BaseTransform):
    """Make ``results["panoptic"]``, a :class:`bevstack.structures.PanopticMap`, from the boxes and a map raster.

    Comes after the BEV augmentation and after :class:`bevstack.datasets.transforms.LoadBEVMap`, and before the object
    filters, for boxes outside may reach into the grid. :func:`bevstack.structures.panoptic.panoptic_map` says who owns
    a cell.

    Args:
        grid: a :class:`bevstack.geometry.BEVGrid` or its arguments; the raster must lie on the same.
        things: classes of objects, in the order of the labels; None for all classes of the dataset.
        stuff: layers of the raster, in order of priority; None for the dataset's own ``taxonomy.stuff``.
        raster: name of the map raster.
        min_visibility: objects below this nuScenes visibility level are left out (0 or 1 keeps all).

    Raises:
        InputError: a class, a raster or a layer that is not there; in use, a raster on another grid.
    """

    def __init__(
        self,
        grid: BEVGrid | Mapping,
        things: Sequence[str] | None = None,
        stuff: Sequence[str] | None = None,
        raster: str = "map",
        min_visibility: int = 0,
    ) -> None:
        self.grid = BEVGrid.build(grid)
        self.things = None if things is None else tuple(things)
        self.stuff = None if stuff is None else tuple(stuff)
        self.raster, self.min_visibility = raster, min_visibility

    def check_dataset(self, dataset: BEVDataset) -> None:
        """Refuse a dataset that lacks a class, or does not know what is visible."""
        refuse_absent("MakePanopticMap.things", self.things or (), dataset.classes, "the dataset has the classes")
        require_visibility(dataset, self.min_visibility)

    def check_place(self, before: Sequence[object]) -> None:
        """Refuse a place before the map's raster is there, where stuff is named."""
        known = all(type(step).__module__.startswith("bevstack.") for step in before)
        made = [getattr(step, "name", "") for step in before if getattr(step, "makes_rasters", False)]
        if self.stuff and known and self.raster not in made:
            raise InputError("pipeline", "MakePanopticMap", self._no_raster(made))

    def _no_raster(self, made: Sequence[str]) -> str:
        reason = f"raster '{self.raster}' is not there: put LoadBEVMap before MakePanopticMap"
        return f"{reason} (there are {sorted(made) or 'none'})"

    def transform(self, results: dict) -> dict:
        """Add ``panoptic`` from ``boxes``, ``labels``, ``classes``, ``rasters`` and, where there, ``instance_ids``."""
        classes = tuple(results["classes"])
        things = classes if self.things is None else self.things
        stuff = taxonomy_of(results).stuff if self.stuff is None else self.stuff
        refuse_absent("MakePanopticMap.things", things, classes, "the dataset has the classes")
        labels = np.asarray(results["labels"], dtype=np.int64)
        new_from_old = np.array([*(things.index(name) if name in things else -1 for name in classes), -1])
        labels = new_from_old[labels]
        kept = (labels >= 0) & seen_enough(results, self.min_visibility)
        ids = np.asarray(results.get("instance_ids", np.arange(len(labels))), dtype=np.int64)
        boxes = torch.from_numpy(np.asarray(results["boxes"], dtype=np.float64).reshape(-1, 9)[kept])
        results["panoptic"] = panoptic_map(
            thing_masks(boxes, self.grid),
            torch.from_numpy(labels[kept]),
            torch.from_numpy(ids[kept]),
            self._stuff_layers(stuff, results.get("rasters", {})),
            (things, stuff),
            self.grid,
        )
        return results

    def _stuff_layers(self, stuff: Sequence[str], rasters: Mapping) -> Tensor:
        """(K, Y, X) the raster's layers in the order of priority."""
        if not stuff:
            return torch.zeros((0, *self.grid.shape), dtype=torch.uint8)
        if self.raster not in rasters:
            raise InputError("pipeline", "MakePanopticMap", self._no_raster(list(rasters)))
        raster = rasters[self.raster]
        if not raster.grid.same_as(self.grid):
            reason = f"raster '{self.raster}' lies on {raster.grid}, the panoptic map on {self.grid}"
            raise InputError("pipeline", "MakePanopticMap", f"{reason}: give both the same grid")
        refuse_absent("MakePanopticMap.stuff", stuff, raster.classes, f"raster '{self.raster}' has the layers")
        return raster.layers[[raster.classes.index(name) for name in stuff]]
