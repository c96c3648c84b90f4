"""Choose which annotated objects a sample keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from mmcv.transforms.base import BaseTransform

from bevstack.datasets.base import BEVDataset
from bevstack.datasets.transforms.names import refuse_absent
from bevstack.geometry import BEVGrid
from bevstack.registry import TRANSFORMS

OBJECT_KEYS = (
    "boxes",
    "labels",
    "attribute_names",
    "instance_ids",
    "num_lidar_pts",
    "num_radar_pts",
    "visibility",
    "past_centers",
)
"""Keys of a pipeline's dict that hold one entry for each annotated object."""


def keep_objects(results: dict, keep: np.ndarray) -> dict:
    """Keep the objects where ``keep`` (G,) bool is True, in every per-object array or list of ``results``."""
    for key in OBJECT_KEYS:
        if key in results:
            values = results[key]
            if isinstance(values, np.ndarray):
                results[key] = values[keep]
            else:
                results[key] = [value for value, kept in zip(values, keep, strict=True) if kept]
    return results


@TRANSFORMS.register_module()
class ObjectRangeFilter(BaseTransform):
    """Keep the objects whose centre lies on the grid (x and y; height is not looked at).

    Comes after the BEV augmentation, and after :class:`bevstack.datasets.transforms.RasteriseBoxes`, for a box may
    reach into the grid from outside.

    Args:
        grid: a :class:`bevstack.geometry.BEVGrid` or its arguments; only its ranges matter.
    """

    def __init__(self, grid: BEVGrid | Mapping) -> None:
        self.grid = BEVGrid.build(grid)

    def transform(self, results: dict) -> dict:
        """Filter all per-object entries."""
        centers = torch.from_numpy(np.asarray(results["boxes"], dtype=np.float64)[:, :2])
        return keep_objects(results, self.grid.contains(centers).numpy())


@TRANSFORMS.register_module()
class ObjectNameFilter(BaseTransform):
    """Keep the objects of some classes and number them by their place in ``classes``.

    A dataset's own ``classes`` do so for everything; this one serves where rasters are painted from more classes than
    boxes are learned of. ``results["classes"]`` names the labels before and after.

    Args:
        classes: names to keep, in the order of the new labels.

    Raises:
        InputError: a name that the dataset does not have.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)

    def check_dataset(self, dataset: BEVDataset) -> None:
        """Refuse a dataset that lacks a class."""
        refuse_absent("ObjectNameFilter.classes", self.classes, dataset.classes, "the dataset has the classes")

    def transform(self, results: dict) -> dict:
        """Filter all per-object entries, renumber ``labels``, set ``classes``."""
        known = tuple(results["classes"])
        refuse_absent("ObjectNameFilter.classes", self.classes, known, "the dataset has the classes")
        # The last entry serves label -1 (an object outside the detection classes).
        new_from_old = np.array([*(self.classes.index(n) if n in self.classes else -1 for n in known), -1])
        results["labels"] = new_from_old[np.asarray(results["labels"], dtype=np.int64)]
        results["classes"] = self.classes
        return keep_objects(results, results["labels"] >= 0)
