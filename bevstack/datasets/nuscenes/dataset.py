"""nuScenes' format: clips of a version, read from its index and its map tiles."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bevstack.datasets.base import CameraRecords, ObjectRecords, SceneRecord, SweepRecords, Taxonomy
from bevstack.datasets.clip_dataset import ClipDataset
from bevstack.datasets.ego_state import EgoState
from bevstack.datasets.format import SampleTable
from bevstack.datasets.nuscenes.index import NuScenesIndex
from bevstack.datasets.nuscenes.map_tiles import MapTiles
from bevstack.datasets.nuscenes.taxonomy import (
    DETECTION_CLASSES,
    MAP_LAYERS,
    SCENE_RULES,
    STUFF_PRIORITY,
    VEHICLE_CLASSES,
)
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.registry import DATASETS
from bevstack.structures.rigid_arrays import rigid_inverse


@DATASETS.register_module()
class NuScenesBEVDataset(ClipDataset):
    """A split of a version in nuScenes' format; the BEV frame is the lidar's at each keyframe.

    Args:
        data_root: dataset root; images are read below it.
        version: folder of the tables.
        split: name of a split: the devkit's, one of the version's splits.json, or ``all``.
        pipeline: transforms, built or as configs.
        classes: the labels, in order: detection classes of nuScenes or names of categories; or label -> those that
            it gathers, as ``dict(vehicle=("car", "truck"), person=("pedestrian",))``.
        index_root: folder of indices, ``<data_root>/bevstack-index`` by default.
        cameras: names of the cameras to see by, in order; None for all of the index. A model's ``num_cameras`` has to
            fit.
        **options: of :class:`bevstack.datasets.clip_dataset.ClipDataset`.

    Raises:
        InputError: no index, an unknown split, class or camera, a category in two classes, or a pipeline that asks for
            a map or sweeps where there are none.
        ValueError: see :class:`bevstack.datasets.clip_dataset.ClipDataset`.
    """

    taxonomy = Taxonomy({"vehicle": VEHICLE_CLASSES}, MAP_LAYERS, STUFF_PRIORITY, SCENE_RULES)

    def __init__(
        self,
        data_root: str | Path,
        version: str,
        split: str,
        pipeline: Sequence[Mapping | Callable] = (),
        classes: Sequence[str] | Mapping[str, Sequence[str]] = DETECTION_CLASSES,
        index_root: str | Path | None = None,
        cameras: Sequence[str] | None = None,
        **options: Any,
    ) -> None:
        self.index, self.index_root = NuScenesIndex.open(data_root, version, index_root), index_root
        self._opened_tiles: MapTiles | None = None
        self._cameras = self._camera_places(cameras)
        self._label_of_category = self._labels(classes)
        arrays = self.index.arrays
        samples = SampleTable(
            scene=arrays["sample_scene"],
            timestamp_us=arrays["sample_timestamp_us"],
            rows=self.index.samples(split),
            prev=arrays["sample_prev"],
        )
        super().__init__(samples, self.index.folder, split, tuple(classes), pipeline, **options)
        self._warn_of_nothing_to_learn()

    def __getstate__(self) -> dict:
        """Opened map tiles stay in the process that opened them."""
        return {**super().__getstate__(), "_opened_tiles": None}

    @property
    def metainfo(self) -> dict[str, Any]:
        """What evaluators, hooks and checkpoints ask: classes, version, split, root; the categories of each class, the
        sensors, how many boxes are annotated, and which samples of the version are not indexed."""
        offset = self.index.arrays["box_offset"]
        categories = {
            name: [
                c["name"] for c, label in zip(self.index.categories, self._label_of_category, strict=True) if label == k
            ]
            for k, name in enumerate(self.classes)
        }
        return {
            **super().metainfo,
            "version": self.index.version,
            "data_root": str(self.index.root),
            "categories": categories,
            "cameras": tuple(self.index.cameras[n] for n in self._cameras),
            "lidar": self.index.lidar,
            "num_annotated": int((offset[self.rows + 1] - offset[self.rows]).sum()),
            "left_out": tuple(self.index.left_out),
        }

    @property
    def row_of(self) -> dict[str, int]:
        """Row of each sample's token, for all samples of the index."""
        return self.index.row_of

    def token(self, row: int) -> str:
        """The sample's token in the tables."""
        return self.index.token(row)

    def scene(self, row: int) -> SceneRecord:
        """The scene as the tables have it; its location is the log's."""
        scene = self.index.scene(row)
        return SceneRecord(scene["token"], scene["name"], scene["location"], scene.get("description", ""))

    def global_from_bev(self, row: int) -> np.ndarray:
        """(4, 4) float64: the lidar at its own time in nuScenes' global frame."""
        return self.index.global_from_bev(row)

    def ego(self, row: int) -> EgoState:
        """The ego car, with the CAN bus where there is one."""
        return self.index.ego(row)

    def cameras(self, row: int) -> CameraRecords:
        """Key frames of the cameras."""
        index, chosen = self.index, self._cameras
        paths = index.image_paths(row)
        return CameraRecords(
            names=[index.cameras[n] for n in chosen],
            image_paths=[paths[n] for n in chosen],
            image_size_px=index.arrays["camera_size_px"][row].astype(np.int64)[chosen],
            pixels_from_camera=index.pixels_from_camera(row)[chosen],
            camera_from_bev=index.camera_from_bev(row)[chosen],
        )

    def lidar_path(self, row: int) -> str:
        """The key frame's sweep of the lidar."""
        return str(self.index.root / self.index.arrays["lidar_path"][row].decode())

    def objects(self, row: int) -> ObjectRecords:
        """Annotated boxes of the dataset's classes, brought from the global to the lidar's frame."""
        boxes = self.index.boxes(row)
        labels = self._label_of_category[boxes.category]
        bev_from_global = rigid_inverse(self.index.global_from_bev(row))
        rotation = bev_from_global[:3, :3]
        center = boxes.center @ rotation.T + bev_from_global[:3, 3]
        w, x, y, z = boxes.quaternion.T
        forward = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], axis=1) @ rotation.T
        velocity = boxes.velocity @ rotation.T
        width, length, height = boxes.wlh.T
        table = np.stack(
            [center[:, 0], center[:, 1], center[:, 2] - height / 2, length, width, height,
             np.arctan2(forward[:, 1], forward[:, 0]), velocity[:, 0], velocity[:, 1]], axis=1,
        )  # fmt: skip
        names = [*self.index.attributes, ""]
        objects = ObjectRecords(
            boxes=table.astype(np.float32),
            labels=labels,
            instance_ids=boxes.instance.astype(np.int64),
            attribute_names=[names[a] for a in boxes.attribute.tolist()],
            visibility=boxes.visibility.astype(np.int64),
            num_lidar_pts=boxes.num_lidar_pts.astype(np.int64),
            num_radar_pts=boxes.num_radar_pts.astype(np.int64),
        )
        return objects.kept(labels >= 0)

    def annotated_centers(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Instance rows (G,) and global centres (G, 3) of all boxes, whatever their class."""
        boxes = self.index.boxes(row)
        return boxes.instance, boxes.center

    def require_sweeps(self) -> None:
        """Raise :class:`InputError` where the index holds no images between key frames."""
        if not self.index.has_sweeps:
            reason = "there are none between the key frames; make a synthetic set with --sweeps, or unpack the sweeps/"
            reason += " of nuScenes below the root, then run create_data again"
            raise InputError(self.index.folder, "camera sweeps", reason)

    def sweeps(self, row: int, count: int) -> SweepRecords:
        """Camera images before a key frame, across earlier ones; a pause longer than ``max_gap_seconds`` ends them."""
        paths, seconds = self.index.sweeps(row, count, self.max_gap_seconds)
        from_camera, chosen = self.index.sweep_from_camera(row, seconds), self._cameras
        paths = [[moment[n] for n in chosen] for moment in paths]
        heights = self.index.ego_from_camera(row)[chosen, 2]
        return SweepRecords(paths, seconds[:, chosen], from_camera[:, chosen], heights)

    @property
    def _tiles(self) -> MapTiles:
        """The version's map tiles, opened once in each process that asks."""
        if self._opened_tiles is None:
            self._opened_tiles = MapTiles.open(self.index.root, self.index.version, self.index_root)
        return self._opened_tiles

    def has_map(self, location: str) -> bool:
        """Whether there are map tiles of a location."""
        return self._tiles.has(location)

    def require_map(self, location: str) -> None:
        """Raise :class:`InputError` where there are no map tiles of a location."""
        self._tiles.require(location)

    def map_raster(self, location: str, global_from_bev: np.ndarray, grid: BEVGrid) -> np.ndarray:
        """(6, Y, X) the layers around a pose (:meth:`bevstack.datasets.nuscenes.map_tiles.MapTiles.layers`)."""
        return self._tiles.layers(location, global_from_bev, grid)

    def _warn_of_nothing_to_learn(self) -> None:
        """Say so where the split has boxes, but none of the classes, or in training none with a point."""
        arrays = self.index.arrays
        in_split = np.zeros(len(arrays["sample_token"]), dtype=bool)
        in_split[self.rows] = True
        boxes = np.repeat(in_split, np.diff(arrays["box_offset"]))
        categories = arrays["box_category"][boxes]
        of_classes = self._label_of_category[categories] >= 0
        place = f"{self.index.folder}: split {self.split!r}"
        if len(categories) and not of_classes.any():
            there = ", ".join(self.index.categories[category]["name"] for category in np.unique(categories))
            warnings.warn(f"{place} has no box of the classes; it has {there}", stacklevel=3)
        elif len(categories) and self.use_valid_flag:
            points = arrays["box_num_lidar_pts"][boxes] + arrays["box_num_radar_pts"][boxes]
            if not points[of_classes].any():
                reason = "all boxes of the classes have 0 points, so none is learned"
                warnings.warn(f"{place}: {reason}; use_valid_flag=False keeps them", stacklevel=3)

    def _camera_places(self, cameras: Sequence[str] | None) -> list[int]:
        """Places of the chosen cameras in the index."""
        there = self.index.cameras
        if cameras is None:
            return list(range(len(there)))
        for name in cameras:
            if name not in there:
                raise InputError(
                    self.index.folder, "cameras", f"{name!r} is no camera of the index: {', '.join(there)}"
                )
        if not cameras or len(set(cameras)) != len(cameras):
            raise InputError(self.index.folder, "cameras", "name at least one camera, and each once")
        return [there.index(name) for name in cameras]

    def _labels(self, classes: Sequence[str] | Mapping[str, Sequence[str]]) -> np.ndarray:
        """Label of each category's row, -1 where it has none. A category's own name comes before its class's."""
        names = [(c["detection_name"], c["name"]) for c in self.index.categories]
        known = {*DETECTION_CLASSES, *(name for pair in names for name in pair if name)}
        label_of: dict[str, int] = {}
        for label, (own, gathered) in enumerate(_gathered(classes).items()):
            for name in gathered:
                if name not in known:
                    near = difflib.get_close_matches(name, sorted(known), n=1)
                    hint = f"; did you mean {near[0]}?" if near else ""
                    raise InputError(self.index.folder, "classes", f"{name!r} is no class or category{hint}")
                if label_of.setdefault(name, label) != label:
                    raise InputError(self.index.folder, "classes", f"{name!r} is in {own!r} and in another class")
        labels = [next((label_of[name] for name in reversed(pair) if name in label_of), -1) for pair in names]
        return np.array(labels, dtype=np.int64)


def _gathered(classes: Sequence[str] | Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Label -> classes and categories that it gathers."""
    if not isinstance(classes, Mapping):
        return {name: (name,) for name in classes}
    return {own: (names,) if isinstance(names, str) else tuple(names) for own, names in classes.items()}
