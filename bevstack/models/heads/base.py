"""The contract of every head on B_t."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor
from torch.nn import functional as F

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.structures import BEVDataSample, BEVFeatures, BEVRaster


class BEVHead(BaseModule):
    """A task on B_t. Knows neither the encoder nor any other head.

    Args:
        in_channels: C of B_t.
        grid: the head's own grid in metres (or its arguments); B_t is resampled to it.

    Attributes:
        requires: names of heads whose predictions this one reads in :meth:`predict`.
        history_frames: past frames (``bev.history``) that it reads; 0 for none.
    """

    requires: tuple[str, ...] = ()
    history_frames: int = 0

    def __new__(cls, *args, **kwargs) -> BEVHead:  # noqa: D102 - Python's own message differs from version to version
        missing = [name for name in ("forward", "loss", "predict") if name in cls.__abstractmethods__]
        if missing:
            names = " and ".join(f"{name}()" for name in missing)
            raise TypeError(f"{cls.__name__} lacks {names}; a head implements forward(), loss() and predict()")
        return super().__new__(cls)

    def __init__(self, in_channels: int, grid: BEVGrid | Mapping, init_cfg: Mapping | None = None) -> None:
        super().__init__(init_cfg)
        self.in_channels, self.grid = in_channels, BEVGrid.build(grid)

    @abstractmethod
    def forward(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """B_t (B, C, Y, X) to the head's raw outputs."""

    @abstractmethod
    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """Scalar losses by name (names contain "loss"), averaged over the batch."""

    @abstractmethod
    def predict(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> list[dict[str, object]]:
        """Per sample, the fields to be set on it (``pred_instances_3d``, ``pred_rasters``, ...)."""

    def resampled(self, bev: BEVFeatures) -> Tensor:
        """B_t on this head's grid, by metres: (B, C, Y, X); bilinear, zero where B_t does not reach."""
        return resample_bev(bev, self.grid)


def resample_bev(bev: BEVFeatures, grid: BEVGrid) -> Tensor:
    """Sample B_t bilinearly at the cell centres of another grid in the same BEV frame; zero outside B_t's extent."""
    if grid.same_as(bev.grid):
        return bev.features
    places = bev.grid.sampling_grid(grid.cell_centers(bev.features.device))
    places = places.unsqueeze(0).expand(bev.features.shape[0], -1, -1, -1)
    with torch.autocast(bev.features.device.type, enabled=False):
        return F.grid_sample(bev.features.float(), places, mode="bilinear", padding_mode="zeros", align_corners=False)


def target_raster(samples: Sequence[BEVDataSample], name: str, classes: Sequence[str], grid: BEVGrid) -> Tensor:
    """The true layers ``name`` of a batch: (B, K, Y, X) uint8.

    Raises:
        InputError: a sample has no such raster, or its classes or grid are not the head's; says what to change.
    """
    place = f"raster '{name}'"
    layers = []
    for sample in samples:
        raster: BEVRaster | None = sample.gt_rasters.get(name) if "gt_rasters" in sample else None
        if raster is None:
            there = f"the samples have {sorted(sample.get('gt_rasters', {})) or 'none'}"
            reason = f"not there: add the transform that makes it to the train pipeline ({there})"
            raise InputError("train pipeline", place, reason)
        if tuple(raster.classes) != tuple(classes):
            reason = f"has layers {list(raster.classes)}, the head {list(classes)}: give both the same in the config"
            raise InputError("train pipeline", place, reason)
        if not raster.grid.same_as(grid):
            reason = f"lies on {raster.grid}, the head on {grid}: give both the same grid in the config"
            raise InputError("train pipeline", place, reason)
        layers.append(raster.layers)
    return torch.stack(layers)
