"""What a dataset format implements: the answers that depend on its files, sample by sample."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bevstack.datasets.base import CameraRecords, ObjectRecords, SceneRecord, SweepRecords, Taxonomy
from bevstack.datasets.ego_state import EgoState
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid


@dataclass(frozen=True)
class SampleTable:
    """All S samples that a format has read, scene by scene and in order of time inside a scene.

    Args:
        scene: (S,) int number of each sample's scene.
        timestamp_us: (S,) int64 microseconds.
        rows: (n,) those that make up the dataset, in order; None for all.
        prev: (S,) row of each sample's predecessor in its scene, -1 at a scene's start; None for the row before.
    """

    scene: np.ndarray
    timestamp_us: np.ndarray
    rows: np.ndarray | None = None
    prev: np.ndarray | None = None

    def predecessors(self) -> np.ndarray:
        """(S,) int64: ``prev``, or the row before where it lies in the same scene."""
        if self.prev is not None:
            return np.asarray(self.prev, dtype=np.int64)
        scene = np.asarray(self.scene)
        rows = np.arange(len(scene), dtype=np.int64)
        return np.where(np.r_[False, scene[1:] == scene[:-1]], rows - 1, -1)


class DatasetFormat(ABC):
    """One format's reading of its files. Rows are those of its :class:`SampleTable`.

    What is abstract every format has; the rest is answered here for one that has no such thing.
    """

    taxonomy = Taxonomy()
    """The names that the format brings."""

    source: Path
    classes: tuple[str, ...]

    @abstractmethod
    def token(self, row: int) -> str:
        """Name of a row's sample, unique."""

    @abstractmethod
    def scene(self, row: int) -> SceneRecord:
        """The scene that a row's sample lies in."""

    @abstractmethod
    def global_from_bev(self, row: int) -> np.ndarray:
        """(4, 4) float64: a row's BEV frame in a frame that stands still along its scene."""

    @abstractmethod
    def cameras(self, row: int) -> CameraRecords:
        """The cameras of a row's sample: the same ones, in the same order, for every row."""

    @abstractmethod
    def objects(self, row: int) -> ObjectRecords:
        """All annotated objects of :attr:`classes` at a row's sample."""

    def annotated_centers(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """``instance_ids`` (G,) and (G, 3) float64 global centres of what is annotated at a row's sample."""
        objects, pose = self.objects(row), self.global_from_bev(row)
        if objects.instance_ids is None:
            raise InputError(self.source, "instance_ids", "this dataset does not tell objects again: it has no past")
        centers = objects.boxes[:, :3].astype(np.float64)
        centers[:, 2] += objects.boxes[:, 5] / 2
        return objects.instance_ids, centers @ pose[:3, :3].T + pose[:3, 3]

    def ego(self, row: int) -> EgoState:
        """The ego car at a row's sample; without more knowledge its BEV frame's pose."""
        return EgoState.of_bev_pose(self.global_from_bev(row))

    def lidar_path(self, row: int) -> str:
        """The point cloud of a row's sample, "" without one."""
        return ""

    def require_sweeps(self) -> None:
        """Raise :class:`InputError` where there are no camera images between the samples."""
        reason = "this dataset has none: leave LoadCameraSweeps out of the pipeline"
        raise InputError(self.source, "camera sweeps", reason)

    def sweeps(self, row: int, count: int) -> SweepRecords:
        """The ``count`` images that each camera took before a row's own."""
        raise InputError(self.source, "camera sweeps", f"{type(self).__name__} does not say where they are")

    def has_map(self, location: str) -> bool:
        """Whether there is a map of a location."""
        return False

    def require_map(self, location: str) -> None:
        """Raise :class:`InputError` where there is no map of a location."""
        if not self.has_map(location):
            reason = f"there is no map of {location!r}; leave map layers out of the config"
            raise InputError(self.source, "location", reason)

    def map_raster(self, location: str, global_from_bev: np.ndarray, grid: BEVGrid) -> np.ndarray:
        """(K, Y, X) uint8 the map around a pose, see :meth:`bevstack.datasets.base.BEVDataset.map_raster`."""
        raise InputError(self.source, "map", f"{type(self).__name__} does not say how it is drawn")
