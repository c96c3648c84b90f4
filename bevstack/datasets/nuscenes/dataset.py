"""Clips of a nuScenes version, read from its index, as dicts that a pipeline works on."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.dataset import Compose
from torch.utils.data import Dataset

from bevstack.datasets.clips import ClipIndex, consecutive_queue, previous_rows, random_queue
from bevstack.datasets.nuscenes.can_bus import CanBusForm, CorrectedCanBus
from bevstack.datasets.nuscenes.index import NuScenesIndex, rigid_inverse
from bevstack.datasets.nuscenes.map_tiles import MapTiles
from bevstack.datasets.nuscenes.taxonomy import DETECTION_CLASSES
from bevstack.errors import InputError
from bevstack.registry import DATASETS, TASK_UTILS, TRANSFORMS


@DATASETS.register_module()
class NuScenesBEVDataset(Dataset):
    """Samples of a split, each with the T frames that lead to it.

    ``dataset[i]`` makes the dict of sample i and runs the pipeline on it (a pipeline may return None to refuse a
    sample: that is an error here). Keys of the dict:

    - ``frames``: T dicts, oldest first, of ``image_paths`` [N], ``pixels_from_camera`` (N, 3, 3) and
      ``camera_from_bev`` (N, 4, 4) float64, ``image_size_px`` (N, 2) int64 (height, width),
      ``previous_from_current`` (4, 4) float64 (from this frame's BEV frame to that of the frame before it),
      ``has_previous`` bool, ``seconds`` float since the previous frame, ``can_bus`` (18,) float64, ``token``.
      Where a transform asks for S camera sweeps (``num_sweeps``): ``sweep_paths`` [S][N], oldest first, and
      ``sweep_seconds`` (S, N) float64, time since the camera's image of the frame (see ``NuScenesIndex.sweeps``),
      ``sweep_from_camera`` (S, N, 4, 4) float64 from the camera now to the camera then, and ``height_in_camera`` (N, 4)
      float64: its product with (x, y, z, 1) of a camera's frame is the height above the ground in metres.
      The frame before the first one is its sample's predecessor in the scene: with T = 1 that is what streaming needs.
    - of the keyframe, which is the last: ``token``, ``prev_token`` and ``next_token`` ("" at the ends of a stream),
      ``scene_token``, ``scene_name``, ``scene_description``, ``timestamp_s``, ``location``, ``has_map``,
      ``camera_names``, ``lidar_path``,
      ``global_from_bev`` (4, 4) float64, ``augmented_from_bev`` (4, 4) identity; ``data_root``, ``version``,
      ``index_root``, ``classes``, ``split_mode`` ("train" or "test"), ``sample_index``.
    - its boxes in the BEV frame: ``boxes`` (G, 9) float32 as LiDARInstance3DBoxes (x, y, z_bottom, l, w, h, yaw, vx,
      vy), velocity in BEV axes and NaN where unknown, ``labels`` (G,) int64, ``attribute_names``, ``instance_ids``,
      ``visibility``, ``num_lidar_pts``, ``num_radar_pts``; ``rasters``, empty.
    - ``rng``: generator seeded from (seed, epoch, sample), from which every transform draws; ``stream_rng``: from
      (seed, epoch, scene), for what must stay the same along a stream.

    A clip always has T frames and never leaves its stream: a scene, cut where more than ``max_gap_seconds`` lie
    between neighbours. Where the stream has too few earlier frames, the oldest one chosen is repeated in front; the
    repeated frames and the one they repeat have ``has_previous`` False, identity motion and zero ``seconds``.

    Args:
        data_root: dataset root; images are read below it.
        version: folder of the tables.
        split: name of a split: the devkit's, one of the version's splits.json, or ``all``.
        pipeline: transforms, built or as configs.
        num_frames: T.
        queue: ``random``: the paper's, of the T samples before the keyframe all but one drawn at random;
            ``consecutive``: the T - 1 samples before it.
        test_mode: consecutive queue, all boxes, the same random numbers every epoch.
        classes: names of the labels, in order: detection classes of nuScenes or names of categories.
        use_valid_flag: in training, leave out boxes without a single lidar or radar point.
        max_gap_seconds: a longer pause between two samples ends a stream.
        can_bus_form: makes a frame's ``can_bus`` of two :class:`bevstack.datasets.nuscenes.can_bus.EgoState`; a
            callable or the config of one in TASK_UTILS; :class:`bevstack.datasets.CorrectedCanBus` by default.
        index_root: folder of indices, ``<data_root>/bevstack-index`` by default.
        seed: of all random choices.

    Raises:
        InputError: no index, an unknown split or class, or a pipeline that asks for a map or sweeps where there are
            none.
        ValueError: ``num_frames`` or ``queue`` make no sense.
    """

    def __init__(
        self,
        data_root: str | Path,
        version: str,
        split: str,
        pipeline: Sequence[Mapping | Callable] = (),
        num_frames: int = 1,
        queue: str = "random",
        test_mode: bool = False,
        classes: Sequence[str] = DETECTION_CLASSES,
        use_valid_flag: bool = True,
        max_gap_seconds: float = 2.0,
        can_bus_form: CanBusForm | Mapping | None = None,
        index_root: str | Path | None = None,
        seed: int = 0,
    ) -> None:
        if num_frames < 1:
            raise ValueError(f"num_frames: {num_frames} must be at least 1")
        if queue not in ("random", "consecutive"):
            raise ValueError(f"queue: {queue!r} must be 'random' or 'consecutive'")
        self.index = NuScenesIndex.open(data_root, version, index_root)
        self.index_root = index_root
        self.split, self.num_frames, self.test_mode, self.seed = split, num_frames, test_mode, seed
        self.queue = "consecutive" if test_mode else queue
        self.classes = tuple(classes)
        self.use_valid_flag = use_valid_flag and not test_mode
        self.rows = self.index.samples(split)
        self.previous = previous_rows(
            self.index.arrays["sample_prev"], self.index.arrays["sample_timestamp_us"], max_gap_seconds
        )
        self._next = np.full(len(self.index), -1)
        self._next[self.previous[self.previous >= 0]] = np.flatnonzero(self.previous >= 0)
        self._label_of_category = self._labels()
        build = can_bus_form if isinstance(can_bus_form, Mapping) else None
        self.can_bus_form: CanBusForm = TASK_UTILS.build(dict(build)) if build else can_bus_form or CorrectedCanBus()
        self.pipeline = Compose([TRANSFORMS.build(t) if isinstance(t, Mapping) else t for t in pipeline])
        self.max_gap_seconds, self.num_sweeps = max_gap_seconds, self._wanted_sweeps()
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._mapped_locations = self._check_maps()

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> dict:
        results = self.pipeline(self.clip(i))
        if results is None:
            raise InputError(self.index.folder, self.index.token(self.rows[i]), "the pipeline returned no sample")
        return results

    @property
    def metainfo(self) -> dict:
        """What evaluators and hooks ask of a dataset: classes, version, split, root."""
        return {
            "classes": self.classes,
            "version": self.index.version,
            "split": self.split,
            "data_root": str(self.index.root),
            "dataset": type(self).__name__,
        }

    @property
    def scene_rows(self) -> np.ndarray:
        """(n,) scene of each sample: a change means another scene."""
        return np.asarray(self.index.arrays["sample_scene"])[self.rows]

    @property
    def stream_starts(self) -> np.ndarray:
        """(n,) bool: the sample has no predecessor among the dataset's samples, so a stream starts with it."""
        before = self.previous[self.rows]
        starts = np.ones(len(self.rows), dtype=bool)
        starts[1:] = before[1:] != self.rows[:-1]
        return starts

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that seeds clips whose index carries none; workers that already run see it, too."""
        self._epoch[0] = epoch

    def clip(self, i: int) -> dict:
        """The dict of sample i before the pipeline; i may be a :class:`bevstack.datasets.clips.ClipIndex`."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        epoch = i.epoch if isinstance(i, ClipIndex) else int(self._epoch[0])
        epoch = 0 if self.test_mode else epoch
        sample_index = int(i) % len(self)
        row = int(self.rows[sample_index])
        scene_row = int(self.index.arrays["sample_scene"][row])
        rng = np.random.default_rng([self.seed, epoch, 0, row])
        choose = random_queue if self.queue == "random" else consecutive_queue
        frame_rows, repeated = choose(row, self.num_frames, self.previous, rng)
        frames = []
        for t, frame_row in enumerate(frame_rows):
            before = frame_rows[t - 1] if t else int(self.previous[frame_row])
            before = -1 if t <= repeated and repeated else before
            frames.append(self._frame(frame_row, before, in_clip=t > 0 or self.num_frames == 1))
        scene = self.index.scene(row)
        return {
            "frames": frames,
            "token": self.index.token(row),
            "prev_token": self._token(self.previous[row]),
            "next_token": self._token(self._next[row]),
            "scene_token": scene["token"],
            "scene_name": scene["name"],
            "timestamp_s": float(self.index.arrays["sample_timestamp_us"][row]) * 1e-6,
            "location": scene["location"],
            "scene_description": scene.get("description", ""),
            "has_map": scene["location"] in self._mapped_locations,
            "camera_names": list(self.index.cameras),
            "lidar_path": str(self.index.root / self.index.arrays["lidar_path"][row].decode()),
            "global_from_bev": self.index.global_from_bev(row),
            "augmented_from_bev": np.eye(4),
            "data_root": str(self.index.root),
            "version": self.index.version,
            "index_root": self.index_root,
            "classes": self.classes,
            "split_mode": "test" if self.test_mode else "train",
            "sample_index": sample_index,
            "rasters": {},
            "rng": rng,
            "stream_rng": np.random.default_rng([self.seed, epoch, 1, scene_row]),
            **self._boxes(row),
        }

    def _token(self, row: int) -> str:
        return self.index.token(row) if row >= 0 else ""

    def _frame(self, row: int, before: int, in_clip: bool) -> dict:
        index = self.index
        ego, seconds, previous_from_current = index.ego(row), 0.0, np.eye(4)
        if before >= 0:
            previous_from_current = rigid_inverse(index.global_from_bev(before)) @ ego.global_from_bev
            times = index.arrays["sample_timestamp_us"]
            seconds = float(times[row] - times[before]) * 1e-6
        sweeps = {}
        if self.num_sweeps:
            paths, times = index.sweeps(row, self.num_sweeps, self.max_gap_seconds)
            sweeps = {
                "sweep_paths": paths,
                "sweep_seconds": times,
                "sweep_from_camera": index.sweep_from_camera(row, times),
                "height_in_camera": index.ego_from_camera(row)[:, 2],
            }
        return {
            **sweeps,
            "token": index.token(row),
            "image_paths": index.image_paths(row),
            "image_size_px": index.arrays["camera_size_px"][row].astype(np.int64),
            "pixels_from_camera": index.pixels_from_camera(row),
            "camera_from_bev": index.camera_from_bev(row),
            "previous_from_current": previous_from_current,
            "has_previous": before >= 0,
            "seconds": seconds,
            # The first frame of a longer clip meets no memory, so its vector tells of no motion.
            "can_bus": self.can_bus_form(ego, index.ego(before) if before >= 0 and in_clip else None),
        }

    def _boxes(self, row: int) -> dict:
        boxes = self.index.boxes(row)
        labels = self._label_of_category[boxes.category]
        keep = labels >= 0
        if self.use_valid_flag:
            keep &= boxes.num_lidar_pts + boxes.num_radar_pts > 0
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
        return {
            "boxes": table[keep].astype(np.float32),
            "labels": labels[keep],
            "attribute_names": [names[a] for a in boxes.attribute[keep].tolist()],
            "instance_ids": boxes.instance[keep].astype(np.int64),
            "visibility": boxes.visibility[keep].astype(np.int64),
            "num_lidar_pts": boxes.num_lidar_pts[keep].astype(np.int64),
            "num_radar_pts": boxes.num_radar_pts[keep].astype(np.int64),
        }

    def _labels(self) -> np.ndarray:
        """Label of each category's row, -1 where it has none."""
        names = [(c["detection_name"], c["name"]) for c in self.index.categories]
        known = {*DETECTION_CLASSES, *(name for pair in names for name in pair if name)}
        for name in self.classes:
            if name not in known:
                near = difflib.get_close_matches(name, sorted(known), n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise InputError(self.index.folder, "classes", f"{name!r} is no class or category{hint}")
        if len(set(self.classes)) != len(self.classes):
            raise InputError(self.index.folder, "classes", "a class is named twice")
        labels = [next((self.classes.index(n) for n in reversed(pair) if n in self.classes), -1) for pair in names]
        return np.array(labels, dtype=np.int64)

    def _wanted_sweeps(self) -> int:
        """The most sweeps that a transform asks for."""
        wanted = max((getattr(transform, "num_sweeps", 0) for transform in self.pipeline.transforms), default=0)
        if wanted and not self.index.has_sweeps:
            reason = "there are none between the key frames; make a synthetic set with --sweeps, or unpack the sweeps/"
            reason += " of nuScenes below the root, then run create_data again"
            raise InputError(self.index.folder, "camera sweeps", reason)
        return wanted

    def _check_maps(self) -> tuple[str, ...]:
        """Locations that have map tiles; all of the split's must, where a transform needs a map."""
        tiles = MapTiles.open(self.index.root, self.index.version, self.index_root)
        if any(getattr(transform, "needs_map", False) for transform in self.pipeline.transforms):
            for location in sorted({self.index.scenes[row]["location"] for row in set(self.scene_rows.tolist())}):
                tiles.require(location)
        return tiles.locations
