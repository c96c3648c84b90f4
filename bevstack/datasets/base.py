"""The seam between datasets and everything else: what a dataset answers, in typed records.

Samplers, transforms, loops, metrics and pictures know :class:`BEVDataset` and these records, and nothing of tables or
files. A format answers by deriving from :class:`bevstack.datasets.clip_dataset.ClipDataset`, which holds what all of
them share and leaves :class:`bevstack.datasets.format.DatasetFormat` to it. nuScenes' stands in
:mod:`bevstack.datasets.nuscenes`, a small one in docs/custom_dataset.md.

The BEV frame of a sample is the dataset's choice, with z up; nuScenes' is its lidar's (x right, y ahead). Metres,
seconds, radians; (height, width) of images in pixels. A token names a sample, "" stands for none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bevstack.geometry import BEVGrid


@dataclass(frozen=True)
class Taxonomy:
    """The names that a format brings: what transforms take where a config names nothing.

    Args:
        object_layers: layer of a raster -> classes that are painted into it
            (:class:`bevstack.datasets.transforms.RasteriseBoxes`).
        map_layers: layers of the map, in the order of :meth:`BEVDataset.map_raster`.
        stuff: map layers as stuff; the first that lies on a cell owns it
            (:class:`bevstack.datasets.transforms.MakePanopticMap`).
        scene_rules: task -> label -> regular expression. The first one found in a scene's description, in any case of
            letters, gives its label; "" is always found (:class:`bevstack.datasets.transforms.LoadSceneLabels`).
    """

    object_layers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    map_layers: tuple[str, ...] = ()
    stuff: tuple[str, ...] = ()
    scene_rules: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class SceneRecord:
    """One scene. ``location`` names the map that it lies on; ``description`` is in a person's words, or ""."""

    token: str
    name: str
    location: str = ""
    description: str = ""


@dataclass(frozen=True)
class CameraRecords:
    """The N cameras of a sample: their stored images, and where they stood.

    Args:
        names: N.
        image_paths: N files that exist.
        image_size_px: (N, 2) int64 (height, width) of the stored images.
        pixels_from_camera: (N, 3, 3) float64 intrinsics of the stored images.
        camera_from_bev: (N, 4, 4) float64 from the BEV frame to each camera (x right, y down, z ahead) at the moment of
            its own image.
    """

    names: Sequence[str]
    image_paths: Sequence[str]
    image_size_px: np.ndarray
    pixels_from_camera: np.ndarray
    camera_from_bev: np.ndarray


@dataclass(frozen=True)
class SweepRecords:
    """What N cameras took just before a sample: S images each, oldest first.

    Args:
        paths: S lists of N files.
        seconds: (S, N) float64 since the camera's image of the sample, 0 or less.
        sweep_from_camera: (S, N, 4, 4) float64 from the camera at the sample to the camera then.
        height_in_camera: (N, 4) float64: its product with (x, y, z, 1) of the camera's frame at the sample is the
            height above the ground.
    """

    paths: list[list[str]]
    seconds: np.ndarray
    sweep_from_camera: np.ndarray
    height_in_camera: np.ndarray


@dataclass(frozen=True)
class ObjectRecords:
    """G annotated objects of a sample in its BEV frame; None is what a format does not know.

    Args:
        boxes: (G, 9) float32 as LiDARInstance3DBoxes (x, y, z_bottom, l, w, h, yaw, vx, vy), velocity in BEV axes and
            NaN where unknown.
        labels: (G,) int64 places in the dataset's ``classes``.
        instance_ids: (G,) int64, the same number for the same object all along a scene.
        attribute_names: G names, "" for none.
        visibility: (G,) int64, nuScenes' levels 1 (0-40 %) to 4 (80-100 %), 0 unknown.
        num_lidar_pts, num_radar_pts: (G,) int64 points on the object.
    """

    boxes: np.ndarray
    labels: np.ndarray
    instance_ids: np.ndarray | None = None
    attribute_names: Sequence[str] | None = None
    visibility: np.ndarray | None = None
    num_lidar_pts: np.ndarray | None = None
    num_radar_pts: np.ndarray | None = None

    def known(self) -> dict[str, Any]:
        """The fields that are not None, by name."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def kept(self, keep: np.ndarray) -> ObjectRecords:
        """Those where ``keep`` (G,) bool is True."""
        chosen: dict[str, Any] = {
            name: value[keep] if isinstance(value, np.ndarray) else [v for v, k in zip(value, keep, strict=True) if k]
            for name, value in self.known().items()
        }
        return replace(self, **chosen)

    @property
    def num_points(self) -> np.ndarray | None:
        """(G,) int64 lidar and radar points together; None where neither was counted."""
        counts = [count for count in (self.num_lidar_pts, self.num_radar_pts) if count is not None]
        return np.sum(counts, axis=0, dtype=np.int64) if counts else None


@dataclass(frozen=True)
class FrameRecord:
    """One frame of a clip.

    Args:
        token: of the sample.
        cameras: what they saw.
        previous_from_current: (4, 4) float64 from this frame's BEV frame to that of the frame before it; identity
            where there is none.
        has_previous: whether there is one.
        seconds: since then, 0 where there is none.
        can_bus: (18,) float64, see :mod:`bevstack.datasets.ego_state`.
        sweeps: camera images before the frame, None unless a transform asks for them.
    """

    token: str
    cameras: CameraRecords
    previous_from_current: np.ndarray
    has_previous: bool
    seconds: float
    can_bus: np.ndarray
    sweeps: SweepRecords | None = None


@dataclass(frozen=True)
class ClipRecord:
    """A sample with the T frames that lead to it, oldest first. The last one is the keyframe.

    Args:
        frames: T.
        scene: that all of them lie in.
        prev_token, next_token: the samples around the keyframe in its stream, "" at the stream's ends.
        timestamp_s: of the keyframe.
        global_from_bev: (4, 4) float64 of the keyframe.
        objects: of the keyframe: all of them in test mode, those to learn from in training.
        lidar_path: of the keyframe's point cloud, "" without one.
    """

    frames: tuple[FrameRecord, ...]
    scene: SceneRecord
    prev_token: str
    next_token: str
    timestamp_s: float
    global_from_bev: np.ndarray
    objects: ObjectRecords
    lidar_path: str = ""


class BEVDataset(Protocol):
    """What everything else asks of a dataset of n samples. Samples are numbered scene by scene, in order of time.

    A stream is a scene, or the part of one between two pauses that are too long to carry a memory across. What is asked
    of a token that the dataset does not know raises ``KeyError``.
    """

    @property
    def source(self) -> Path:
        """Where it was read from, for messages."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, in order."""

    @property
    def taxonomy(self) -> Taxonomy:
        """Other names that the format brings."""

    @property
    def metainfo(self) -> dict[str, Any]:
        """Plain values for evaluators, hooks and checkpoints: at least ``classes`` and ``split``."""

    @property
    def scene_rows(self) -> np.ndarray:
        """(n,) int number of each sample's scene: a change means another scene."""

    @property
    def scene_names(self) -> list[str]:
        """Name of each sample's scene."""

    @property
    def stream_starts(self) -> np.ndarray:
        """(n,) bool: the sample has no predecessor among the dataset's samples, so a stream starts with it."""

    @property
    def locations(self) -> tuple[str, ...]:
        """The places that the samples' scenes lie in, each once."""

    def __len__(self) -> int:
        """Number of samples."""

    def __getitem__(self, i: int) -> Any:
        """What the pipeline makes of sample i."""

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that seeds clips whose index carries none."""

    def clip(self, i: int) -> ClipRecord:
        """Sample i and the frames before it; i may be a :class:`bevstack.datasets.clips.ClipIndex`."""

    def truth(self, token: str) -> ObjectRecords:
        """All annotated objects of the dataset's classes at a sample: what predictions are scored against."""

    def earlier_tokens(self, token: str, count: int) -> list[str]:
        """Tokens of up to ``count`` samples before one in its stream, the newest first."""

    def past_centers(self, tokens: Sequence[str], instance_ids: np.ndarray) -> np.ndarray:
        """Where objects were annotated in some samples, in the BEV frame of the first of these.

        Args:
            tokens: M samples of one scene.
            instance_ids: (G,) as of :class:`ObjectRecords`.

        Returns:
            (G, M, 2) float64 metres, x and y of the boxes' centres; NaN where a sample does not show the object.
        """

    def camera_views(self, token: str) -> CameraRecords:
        """The cameras of a sample with their stored images."""

    def has_map(self, location: str) -> bool:
        """Whether there is a map of a location."""

    def require_map(self, location: str) -> None:
        """Raise :class:`bevstack.errors.InputError` where there is no map of a location."""

    def map_raster(self, location: str, global_from_bev: np.ndarray, grid: BEVGrid) -> np.ndarray:
        """The map around a pose.

        Args:
            location: whose map.
            global_from_bev: (4, 4) float64; its planar part is used, which may rotate, mirror and scale.
            grid: the BEV cells.

        Returns:
            (K, Y, X) uint8, 0 or 1, the ``taxonomy.map_layers`` in BEV orientation (row = y, column = x); 0 outside.
        """
