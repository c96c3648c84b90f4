"""What all formats share: clips along streams, their seeds, and the pipeline that works on them.

The file is long because a sample is one thing: what is drawn for it, read of it and answered about it stands together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dataset import Compose
from torch.utils.data import Dataset

from bevstack.datasets.base import CameraRecords, ClipRecord, FrameRecord, ObjectRecords
from bevstack.datasets.clips import ClipIndex, consecutive_queue, previous_rows, random_queue
from bevstack.datasets.ego_state import CanBusForm, CorrectedCanBus
from bevstack.datasets.format import DatasetFormat, SampleTable
from bevstack.datasets.kept_samples import KeptSample
from bevstack.datasets.record_checks import check_samples, checked_cameras, checked_objects
from bevstack.errors import InputError
from bevstack.registry import TASK_UTILS, TRANSFORMS
from bevstack.structures.feature_store import FeatureStore
from bevstack.structures.rigid_arrays import rigid_inverse


@dataclass(frozen=True)
class _Draw:
    """Which frames make a clip, and the generators that go on from there."""

    row: int
    frame_rows: list[int]
    repeated: int
    rng: np.random.Generator
    stream_rng: np.random.Generator


class ClipDataset(DatasetFormat, Dataset):
    """Samples of a split, each with the T frames that lead to it: a :class:`bevstack.datasets.base.BEVDataset`.

    A format derives from it and implements :class:`bevstack.datasets.format.DatasetFormat`. Its constructor reads the
    files, then calls this one; it takes at least ``split``, ``test_mode`` and ``pipeline`` by these names.

    ``dataset[i]`` makes the dict of sample i and runs the pipeline on it (a pipeline may return None to refuse a
    sample: that is an error here). Keys of the dict:

    - ``frames``: T dicts, oldest first, of ``image_paths`` [N], ``pixels_from_camera`` (N, 3, 3) and
      ``camera_from_bev`` (N, 4, 4) float64, ``image_size_px`` (N, 2) int64 (height, width),
      ``previous_from_current`` (4, 4) float64 (from this frame's BEV frame to that of the frame before it),
      ``has_previous`` bool, ``seconds`` float since the previous frame, ``can_bus`` (18,) float64, ``token``.
      Where a transform asks for S camera sweeps (``num_sweeps``): ``sweep_paths`` [S][N], oldest first,
      ``sweep_seconds`` (S, N), ``sweep_from_camera`` (S, N, 4, 4) and ``height_in_camera`` (N, 4) float64, see
      :class:`bevstack.datasets.base.SweepRecords`.
      The frame before the first one is its sample's predecessor in the scene: with T = 1 that is what streaming needs.
    - of the keyframe, which is the last: ``token``, ``prev_token`` and ``next_token`` ("" at the ends of a stream),
      ``scene_token``, ``scene_name``, ``scene_description``, ``timestamp_s``, ``location``, ``has_map``,
      ``camera_names``, ``global_from_bev`` (4, 4) float64, ``augmented_from_bev`` (4, 4) identity, ``classes``; where
      the format has a point cloud, ``lidar_path``.
    - its boxes in the BEV frame: ``boxes`` (G, 9) float32 as LiDARInstance3DBoxes (x, y, z_bottom, l, w, h, yaw, vx,
      vy), velocity in BEV axes and NaN where unknown, ``labels`` (G,) int64; where the format knows them,
      ``attribute_names``, ``instance_ids``, ``visibility``, ``num_lidar_pts``, ``num_radar_pts``; ``rasters``, empty.
    - ``rng``: generator seeded from (seed, epoch, sample), from which every transform draws; ``stream_rng``: from
      (seed, epoch, scene), for what must stay the same along a stream.
    - ``dataset``: this dataset, for transforms that ask it (:class:`bevstack.datasets.base.BEVDataset`). It stays in
      the worker: what ``dataset[i]`` returns does not hold it.

    A clip always has T frames and never leaves its stream: a scene, cut where more than ``max_gap_seconds`` lie
    between neighbours. Where the stream has too few earlier frames, the oldest one chosen is repeated in front; the
    repeated frames and the one they repeat have ``has_previous`` False, identity motion and zero ``seconds``.

    A transform may have ``num_sweeps``, the camera sweeps it needs, ``check_dataset(dataset)``, which is called once
    and may refuse the dataset, and ``check_place(before)``, which may refuse the transforms that stand before it.

    Args:
        samples: all that the format has read.
        source: where from, for messages.
        split: name of the part that the dataset is.
        classes: names of the labels, in order.
        pipeline: transforms, built or as configs.
        num_frames: T.
        queue: ``random``: the paper's, of the T samples before the keyframe all but one drawn at random;
            ``consecutive``: the T - 1 samples before it.
        test_mode: consecutive queue, all boxes, the same random numbers every epoch.
        use_valid_flag: in training, leave out boxes without a single lidar or radar point, where these are counted.
        max_gap_seconds: a longer pause between two samples ends a stream.
        can_bus_form: makes a frame's ``can_bus`` of two :class:`bevstack.datasets.ego_state.EgoState`; a callable or
            the config of one in TASK_UTILS; :class:`bevstack.datasets.CorrectedCanBus` by default.
        seed: of all random choices.

    Raises:
        InputError: a class is named twice; there is no sample, or they are not in order; a pipeline asks for a map or
            sweeps where there are none, or its order makes no sense.
        ValueError: ``num_frames`` or ``queue`` make no sense.
    """

    def __init__(
        self,
        samples: SampleTable,
        source: str | Path,
        split: str,
        classes: Sequence[str],
        pipeline: Sequence[Mapping | Callable] = (),
        num_frames: int = 1,
        queue: str = "random",
        test_mode: bool = False,
        use_valid_flag: bool = True,
        max_gap_seconds: float = 2.0,
        can_bus_form: CanBusForm | Mapping | None = None,
        seed: int = 0,
    ) -> None:
        if num_frames < 1:
            raise ValueError(f"num_frames: {num_frames} must be at least 1")
        if queue not in ("random", "consecutive"):
            raise ValueError(f"queue: {queue!r} must be 'random' or 'consecutive'")
        self.source, self.split, self.classes = Path(source), split, tuple(classes)
        if len(set(self.classes)) != len(self.classes):
            raise InputError(self.source, "classes", "a class is named twice")
        self.num_frames, self.test_mode, self.seed = num_frames, test_mode, seed
        self.queue = "consecutive" if test_mode else queue
        self.use_valid_flag = use_valid_flag and not test_mode
        self.max_gap_seconds = max_gap_seconds
        check_samples(samples, self.source)
        self._scene, self._timestamp_us = np.asarray(samples.scene), np.asarray(samples.timestamp_us)
        self.rows = np.arange(len(self._scene)) if samples.rows is None else samples.rows
        self.previous = previous_rows(samples.predecessors(), self._timestamp_us, max_gap_seconds)
        self._next = np.full(len(self.previous), -1)
        self._next[self.previous[self.previous >= 0]] = np.flatnonzero(self.previous >= 0)
        form = can_bus_form or CorrectedCanBus()
        self.can_bus_form: CanBusForm = TASK_UTILS.build(dict(form)) if isinstance(form, Mapping) else form
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._store: FeatureStore | None = None
        self.pipeline = Compose([TRANSFORMS.build(t) if isinstance(t, Mapping) else t for t in pipeline])
        transforms = self.pipeline.transforms
        self.num_sweeps = max((getattr(transform, "num_sweeps", 0) for transform in transforms), default=0)
        if self.num_sweeps:
            self.require_sweeps()
        for place, transform in enumerate(transforms):
            if hasattr(transform, "check_place"):
                transform.check_place(transforms[:place])
            if hasattr(transform, "check_dataset"):
                transform.check_dataset(self)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Any:
        start = self.pipeline_dict(i)
        if self._store is not None:
            start["frames"][-1]["kept"] = KeptSample.find(self._store, int(i) % len(self), start["frames"][-1])
        results = self.pipeline(start)
        if results is None:
            raise InputError(self.source, self.token(self.rows[i]), "the pipeline returned no sample")
        if isinstance(results, dict):
            results.pop("dataset", None)
        return results

    def __deepcopy__(self, memo: dict) -> ClipDataset:
        """Itself: a pipeline that copies its dict does not copy, or open again, what the clips come from."""
        return self

    def __getstate__(self) -> dict:
        """Without what each process finds again for itself."""
        return {name: value for name, value in self.__dict__.items() if name != "row_of"}

    @property
    def metainfo(self) -> dict[str, Any]:
        """What evaluators, hooks and checkpoints ask: classes, split, name of the class."""
        return {"classes": self.classes, "split": self.split, "dataset": type(self).__name__}

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each sample's token, for all S samples."""
        return {self.token(row): row for row in range(len(self.previous))}

    @property
    def scene_rows(self) -> np.ndarray:
        """(n,) scene of each sample: a change means another scene."""
        return self._scene[self.rows]

    @property
    def scene_names(self) -> list[str]:
        """Name of each sample's scene."""
        scenes, first, place = np.unique(self.scene_rows, return_index=True, return_inverse=True)
        names = [self.scene(int(self.rows[i])).name for i in first]
        return [names[scene] for scene in place.tolist()]

    @property
    def locations(self) -> tuple[str, ...]:
        """The places that the samples' scenes lie in, each once, in order of the alphabet."""
        _, first = np.unique(self.scene_rows, return_index=True)
        return tuple(sorted({self.scene(int(self.rows[i])).location for i in first}))

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

    def keep_features(self, store: FeatureStore | None) -> None:
        """From now on keyframes have ``kept`` (:class:`bevstack.datasets.kept_samples.KeptSample`)."""
        self._store = store

    def clip(self, i: int) -> ClipRecord:
        """Sample i and the frames before it; i may be a :class:`bevstack.datasets.clips.ClipIndex`."""
        return self._clip(self._draw(i))

    def truth(self, token: str) -> ObjectRecords:
        """All annotated objects of the dataset's classes at a sample."""
        return self._objects(self.row_of[token])

    def camera_views(self, token: str) -> CameraRecords:
        """The cameras of a sample with their stored images."""
        return self._cameras_of(self.row_of[token])

    def earlier_tokens(self, token: str, count: int) -> list[str]:
        """Tokens of up to ``count`` samples before one in its stream, the newest first."""
        row = int(self.previous[self.row_of[token]])
        tokens: list[str] = []
        while row >= 0 and len(tokens) < count:
            tokens.append(self.token(row))
            row = int(self.previous[row])
        return tokens

    def past_centers(self, tokens: Sequence[str], instance_ids: np.ndarray) -> np.ndarray:
        """(G, M, 2) places of objects in M samples, in the first one's BEV frame
        (:meth:`bevstack.datasets.base.BEVDataset.past_centers`)."""
        wanted = np.asarray(instance_ids, dtype=np.int64).tolist()
        bev_from_global = rigid_inverse(self.global_from_bev(self.row_of[tokens[0]]))
        places = np.full((len(wanted), len(tokens), 2), np.nan)
        for m, token in enumerate(tokens):
            ids, annotated = self.annotated_centers(self.row_of[token])
            place_of = {instance: place for place, instance in enumerate(ids.tolist())}
            there = np.array([place_of.get(instance, -1) for instance in wanted], dtype=np.int64)
            centers = annotated[there[there >= 0]] @ bev_from_global[:3, :3].T + bev_from_global[:3, 3]
            places[there >= 0, m] = centers[:, :2]
        return places

    def pipeline_dict(self, i: int) -> dict[str, Any]:
        """The dict that the pipeline starts from: sample i with the keys that the class lists."""
        draw = self._draw(i)
        clip = self._clip(draw)
        frames = [_frame_keys(frame) for frame in clip.frames]
        results = {
            "frames": frames,
            "token": frames[-1]["token"],
            "prev_token": clip.prev_token,
            "next_token": clip.next_token,
            "scene_token": clip.scene.token,
            "scene_name": clip.scene.name,
            "timestamp_s": clip.timestamp_s,
            "location": clip.scene.location,
            "scene_description": clip.scene.description,
            "has_map": self.has_map(clip.scene.location),
            "camera_names": list(clip.frames[-1].cameras.names),
            "global_from_bev": clip.global_from_bev,
            "augmented_from_bev": np.eye(4),
            "classes": self.classes,
            "rasters": {},
            "rng": draw.rng,
            "stream_rng": draw.stream_rng,
            "dataset": self,
            **clip.objects.known(),
        }
        return {**results, "lidar_path": clip.lidar_path} if clip.lidar_path else results

    def _draw(self, i: int) -> _Draw:
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        epoch = i.epoch if isinstance(i, ClipIndex) else int(self._epoch[0])
        epoch = 0 if self.test_mode else epoch
        row = int(self.rows[int(i) % len(self)])
        rng = np.random.default_rng([self.seed, epoch, 0, row])
        choose = random_queue if self.queue == "random" else consecutive_queue
        frame_rows, repeated = choose(row, self.num_frames, self.previous, rng)
        stream_rng = np.random.default_rng([self.seed, epoch, 1, int(self._scene[row])])
        return _Draw(row, frame_rows, repeated, rng, stream_rng)

    def _clip(self, draw: _Draw) -> ClipRecord:
        row, frames = draw.row, []
        for t, frame_row in enumerate(draw.frame_rows):
            before = draw.frame_rows[t - 1] if t else int(self.previous[frame_row])
            before = -1 if t <= draw.repeated and draw.repeated else before
            frames.append(self._frame(frame_row, before, in_clip=t > 0 or self.num_frames == 1))
            if list(frames[t].cameras.names) != list(frames[0].cameras.names):
                raise InputError(self.source, frames[t].token, f"has other cameras than {frames[0].token}")
        return ClipRecord(
            frames=tuple(frames),
            scene=self.scene(row),
            prev_token=self._token(self.previous[row]),
            next_token=self._token(self._next[row]),
            timestamp_s=float(self._timestamp_us[row]) * 1e-6,
            global_from_bev=self.global_from_bev(row),
            objects=self._to_learn(self._objects(row)),
            lidar_path=self.lidar_path(row),
        )

    def _token(self, row: int) -> str:
        return self.token(row) if row >= 0 else ""

    def _objects(self, row: int) -> ObjectRecords:
        return checked_objects(self.objects(row), self.classes, self.source, self.token(row))

    def _cameras_of(self, row: int) -> CameraRecords:
        return checked_cameras(self.cameras(row), self.source, self.token(row))

    def _to_learn(self, objects: ObjectRecords) -> ObjectRecords:
        """All in test mode; else without those that nothing was seen of."""
        points = objects.num_points
        return objects if points is None or not self.use_valid_flag else objects.kept(points > 0)

    def _frame(self, row: int, before: int, in_clip: bool) -> FrameRecord:
        seconds, previous_from_current = 0.0, np.eye(4)
        if before >= 0:
            previous_from_current = rigid_inverse(self.global_from_bev(before)) @ self.global_from_bev(row)
            seconds = float(self._timestamp_us[row] - self._timestamp_us[before]) * 1e-6
        return FrameRecord(
            token=self.token(row),
            cameras=self._cameras_of(row),
            previous_from_current=previous_from_current,
            has_previous=before >= 0,
            seconds=seconds,
            # The first frame of a longer clip meets no memory, so its vector tells of no motion.
            can_bus=self.can_bus_form(self.ego(row), self.ego(before) if before >= 0 and in_clip else None),
            sweeps=self.sweeps(row, self.num_sweeps) if self.num_sweeps else None,
        )


def _frame_keys(frame: FrameRecord) -> dict[str, Any]:
    """A frame's keys in the pipeline's dict."""
    cameras, sweeps = frame.cameras, frame.sweeps
    keys = {
        "token": frame.token,
        "image_paths": list(cameras.image_paths),
        "image_size_px": cameras.image_size_px,
        "pixels_from_camera": cameras.pixels_from_camera,
        "camera_from_bev": cameras.camera_from_bev,
        "previous_from_current": frame.previous_from_current,
        "has_previous": frame.has_previous,
        "seconds": frame.seconds,
        "can_bus": frame.can_bus,
    }
    if sweeps is None:
        return keys
    return {
        "sweep_paths": sweeps.paths,
        "sweep_seconds": sweeps.seconds,
        "sweep_from_camera": sweeps.sweep_from_camera,
        "height_in_camera": sweeps.height_in_camera,
        **keys,
    }
