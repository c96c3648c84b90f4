"""The contracts of heads: on B_t, on boxes in B_t, on the cameras' image features."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from mmengine.model import BaseModule
from torch import Tensor

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid, sample_bev
from bevstack.structures import BEVDataSample, BEVFeatures, BEVRaster, CameraRig
from bevstack.structures.boxes import box_tensor


class _Head(BaseModule):
    """What all contracts share: a class that leaves a method out is refused when it is built, by name."""

    kind: ClassVar[str] = "a head"
    owed: ClassVar[tuple[str, ...]] = ()

    def __new__(cls, *args, **kwargs) -> _Head:  # noqa: D102 - Python's own message differs from version to version
        missing = [name for name in cls.owed if name in cls.__abstractmethods__]
        if missing:
            lacking, owed = (" and ".join(f"{name}()" for name in names) for names in (missing, cls.owed))
            owed = owed.replace(" and ", ", ", len(cls.owed) - 2)
            raise TypeError(f"{cls.__name__} lacks {lacking}; {cls.kind} implements {owed}")
        return super().__new__(cls)


class BEVHead(_Head):
    """A task on B_t. Knows neither the encoder nor any other head.

    Args:
        in_channels: C of B_t.
        grid: the head's own grid in metres (or its arguments); B_t is resampled to it.

    Attributes:
        requires: names of heads whose predictions this one reads in :meth:`predict`.
        class_layers: names of layers whose first dimension counts ``classes``, so many rows each, in their order.
        history_frames: past frames (``bev.history``) that it reads; 0 for none.
    """

    owed: ClassVar[tuple[str, ...]] = ("forward", "loss", "predict")
    requires: tuple[str, ...] = ()
    class_layers: ClassVar[tuple[str, ...]] = ()
    history_frames: int = 0

    def __init__(self, in_channels: int, grid: BEVGrid | Mapping, init_cfg: Mapping | None = None) -> None:
        super().__init__(init_cfg)
        self.in_channels, self.grid = in_channels, BEVGrid.build(grid)

    @abstractmethod
    def forward(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """B_t (B, C, Y, X) to the head's raw outputs."""

    @abstractmethod
    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """Compare raw outputs with the truth.

        Args:
            raw: :meth:`forward`'s, or :meth:`BoxHead.encode`'s of a head on boxes: named tensors, mostly (B, ...).
            samples: B, with their labels, in the current BEV frame.

        Returns:
            Scalar losses by name (names contain "loss"), averaged over the batch; scalars of other names are logged.
        """

    @abstractmethod
    def predict(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> list[dict[str, object]]:
        """Per sample, the fields to be set on it (``pred_instances_3d``, ``pred_rasters``, ...).

        Args:
            raw: :meth:`forward`'s, or :meth:`BoxHead.encode`'s of a head on boxes: named tensors, mostly (B, ...).
            samples: B, with the predictions of the heads that this one ``requires``.
        """

    def objects_beyond_grid(self, boxes: Sequence[Tensor]) -> Tensor:
        """How many true objects a head on objects learns nothing from, as their centres are off its grid: a scalar.

        ``ObjectRangeFilter`` leaves them out beforehand; any other number than 0 says that it has another range.

        Args:
            boxes: per sample (G, 9), metres of the BEV frame.
        """
        return (~self.grid.contains(torch.cat(list(boxes))[:, :2])).sum().float()

    def resampled(self, bev: BEVFeatures) -> Tensor:
        """B_t on this head's grid, by metres: (B, C, Y, X); bilinear, zero where B_t does not reach."""
        return resample_bev(bev, self.grid)


class LabelledBoxes(NamedTuple):
    """Boxes of one sample that a :class:`BoxHead` describes.

    Args:
        boxes: (n, 9) in the current BEV frame (:mod:`bevstack.geometry.boxes3d`); velocity NaN where unknown.
        labels: (n,) int64, index of the class; negative where it is none that the head knows.
        tracks: (n, M, 2) metres of the current BEV frame: where each was in the current frame and in M - 1 past ones,
            newest first; NaN where unknown. None where nobody knows.
    """

    boxes: Tensor
    labels: Tensor
    tracks: Tensor | None = None


class RecentFrames(NamedTuple):
    """M frames as the encoder made them, the current one first, on one grid in the current BEV frame.

    Args:
        features: (B, M, C', Y, X) float32, zero where not valid.
        valid: (B, M) bool.
        seconds: (B, M) how long before the current frame each was taken; NaN where unknown.
    """

    features: Tensor
    valid: Tensor
    seconds: Tensor


class BoxHead(BEVHead):
    """A task on boxes: what each of them is like, read from B_t, and from past frames, where it stands.

    ``raw`` of :meth:`loss` and :meth:`predict` is what :meth:`encode` makes of B_t. The boxes are described there: the
    true ones in training, those that another head has predicted otherwise.

    Args:
        in_channels, grid: see :class:`BEVHead`.
        detection: name of the head whose boxes are described.
    """

    kind = "a head on boxes"
    owed = ("encode", "describe", "loss", "predict")

    def __init__(
        self, in_channels: int, grid: BEVGrid | Mapping, detection: str = "detection", init_cfg: Mapping | None = None
    ) -> None:
        super().__init__(in_channels, grid, init_cfg)
        self.requires = (detection,)

    @abstractmethod
    def encode(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """B_t (B, C, Y, X) to what boxes are looked up in: named tensors (B, ...)."""

    @abstractmethod
    def describe(self, encoded: dict[str, Tensor], boxes: Sequence[LabelledBoxes]) -> list[dict[str, Tensor]]:
        """For each of B samples, named tensors (n, ...) that describe its n boxes in their order; n may be 0.

        Nothing in it depends on values: the same operations run for any boxes, so that it can be counted and exported.
        """

    def forward(  # type: ignore[override]  # a head on boxes needs the boxes, too
        self, bev: BEVFeatures, boxes: Sequence[LabelledBoxes]
    ) -> list[dict[str, Tensor]]:
        """B_t (B, C, Y, X) and boxes of B samples to a description of each box (:meth:`describe`)."""
        return self.describe(self.encode(bev), boxes)

    def recent_frames(self, bev: BEVFeatures) -> RecentFrames:
        """The current frame and ``history_frames`` past ones; where a sample lacks one it is zero and not valid.

        Raises:
            ValueError: B_t comes without what the encoder made of it.
        """
        if bev.encoded is None:
            raise ValueError(f"{type(self).__name__} compares past frames with bev.encoded, and there is none")
        now = resample_bev(bev.encoded, self.grid).float().unsqueeze(1)  # (B, 1, C', Y, X)
        batch, wanted, history = len(now), self.history_frames, bev.history
        features, valid = [now], [torch.ones(batch, 1, dtype=torch.bool, device=now.device)]
        seconds = [torch.zeros(batch, 1, device=now.device)]
        there = 0
        if history is not None:
            there = min(wanted, history.features.shape[1])
            frames = BEVFeatures(history.features[:, :there].flatten(0, 1), history.grid)
            frames = resample_bev(frames, self.grid).float().unflatten(0, (batch, there))
            valid.append(history.valid[:, :there])
            features.append(torch.where(valid[1][:, :, None, None, None], frames, 0.0))
            seconds.append(history.seconds[:, :there].float())
        if there < wanted:
            features.append(now.new_zeros(batch, wanted - there, *now.shape[2:]))
            valid.append(torch.zeros(batch, wanted - there, dtype=torch.bool, device=now.device))
            seconds.append(torch.full((batch, wanted - there), torch.nan, device=now.device))
        return RecentFrames(torch.cat(features, dim=1), torch.cat(valid, dim=1), torch.cat(seconds, dim=1))


class ImageHead(_Head):
    """A task on the cameras' image features, in the model's ``image_heads``.

    Args:
        in_channels: C of the image features, at every level.
    """

    kind = "a head on images"
    owed = ("forward", "loss")

    def __init__(self, in_channels: int, init_cfg: Mapping | None = None) -> None:
        super().__init__(init_cfg)
        self.in_channels = in_channels

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """L levels (B, N, C, h, w) of N cameras, finest first, to the head's raw outputs (B, N, ...)."""

    @abstractmethod
    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample], rig: CameraRig) -> dict[str, Tensor]:
        """Compare raw outputs with the truth.

        Args:
            raw: :meth:`forward`'s, named tensors (B, N, ...).
            samples: B, with the truth in the BEV frame.
            rig: of the N cameras' images that the features come from.

        Returns:
            Scalar losses by name (names contain "loss"), averaged over the batch.
        """

    def predict(self, raw: dict[str, Tensor], rig: CameraRig) -> list[dict[str, object]]:
        """Per sample of B, the fields to be set on it. A head that leaves this out only trains what is below it.

        Args:
            raw: :meth:`forward`'s, named tensors (B, N, ...).
            rig: of the N cameras' images that the features come from.
        """
        return [{} for _ in range(len(rig.camera_from_bev))]

    @property
    def predicts(self) -> bool:
        """Whether it says anything about a sample; a head that only trains what is below it is not run in a test."""
        return type(self).predict is not ImageHead.predict


def detected_boxes(samples: Sequence[BEVDataSample], device: torch.device | str) -> list[LabelledBoxes]:
    """The ``pred_instances_3d`` of samples, as boxes (n, 9) float32 and labels (n,) on a device."""
    found = [sample.pred_instances_3d for sample in samples]
    return [
        LabelledBoxes(box_tensor(one.bboxes_3d).to(device).float(), one.labels_3d.to(device).long()) for one in found
    ]


def resample_bev(bev: BEVFeatures, grid: BEVGrid) -> Tensor:
    """B_t (B, C, Y', X') at the cell centres of another grid of the same BEV frame: (B, C, Y, X).

    Bilinear, zero outside B_t's extent, in float32; B_t itself where both grids are the same.
    """
    if grid.same_as(bev.grid):
        return bev.features
    return sample_bev(bev.features, bev.grid, grid.cell_centers(bev.features.device).unsqueeze(0))


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
