"""The index of a nuScenes version: memory-mapped arrays that workers share, and what their rows mean.

An index lies in ``<index_root>/<version>/`` (``<root>/bevstack-index/<version>/`` by default): ``index.json`` (schema
version, hashes of the tables it was made from, names of scenes, cameras, categories, attributes, splits; dtype and
shape of each array) and one ``.npy`` file an array. It holds no pickle. ``tools/create_data.py`` writes it.

Rows: S samples in the order scene by scene, time inside a scene; A boxes in the order of their samples; N cameras;
sweeps, the camera images between key frames, sample by sample and camera by camera.
All positions are float64 metres in nuScenes' global frame, all times int64 microseconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from bevstack.datasets.ego_state import EgoState
from bevstack.datasets.nuscenes.camera_sweeps import ego_poses, older_images
from bevstack.datasets.nuscenes.index_files import (
    check_contents,
    check_shapes,
    check_tables,
    index_folder,
    open_arrays,
    read_header,
)
from bevstack.datasets.nuscenes.split_names import scenes_of
from bevstack.errors import InputError
from bevstack.structures.rigid_arrays import rigid_inverse


@dataclass(frozen=True)
class BoxRecords:
    """All G annotated boxes of a sample, in the global frame.

    ``center`` (G, 3) metres; ``wlh`` (G, 3) width, length, height; ``quaternion`` (G, 4) as (w, x, y, z), global from
    box; ``velocity`` (G, 3) m/s, NaN where unknown; ``category`` rows of ``index.categories``; ``attribute`` rows of
    ``index.attributes`` or -1; ``visibility`` 1 (0-40 %) to 4 (80-100 %), 0 unknown; ``instance`` rows of
    ``index.arrays["instance_token"]``; point counts.
    """

    center: np.ndarray
    wlh: np.ndarray
    quaternion: np.ndarray
    velocity: np.ndarray
    category: np.ndarray
    attribute: np.ndarray
    visibility: np.ndarray
    instance: np.ndarray
    num_lidar_pts: np.ndarray
    num_radar_pts: np.ndarray


class NuScenesIndex:
    """An opened index; make one with :meth:`open`. Pickling sends its place, not its arrays.

    Attributes:
        root, folder, version: where images and the index are, and which tables it was made from.
        cameras: names of the N cameras, in order; ``lidar`` is the lidar whose frame is the BEV's.
        scenes: per scene a dict with token, name, description, log, location, first_row, num_samples.
        categories: per category a dict with name and detection_name ("" where it has none); attributes: names.
        splits: split -> tokens of its scenes; left_out: token of each sample that is not indexed -> why.
        arrays: name -> memory-mapped array; names say what they hold, see the module's head and :class:`BoxRecords`.
    """

    def __init__(self, root: Path, folder: Path, header: dict, arrays: dict[str, np.ndarray]) -> None:
        self.root, self.folder, self.header, self.arrays = root, folder, header, arrays
        self.version: str = header["version"]
        self.cameras: list[str] = header["cameras"]
        self.lidar: str = header["lidar"]
        self.scenes: list[dict] = header["scenes"]
        self.categories: list[dict] = header["categories"]
        self.attributes: list[str] = header["attributes"]
        self.splits: dict[str, list[str]] = header["splits"]
        self.left_out: dict[str, str] = header["left_out"]

    @classmethod
    def open(
        cls, root: str | Path, version: str, index_root: str | Path | None = None, check: bool = True
    ) -> NuScenesIndex:
        """Open the index of ``version``.

        Args:
            root: dataset root; images are read below it.
            version: folder of the tables.
            index_root: folder of indices, ``<root>/bevstack-index`` by default.
            check: whether to check contents and that the tables have not changed since.

        Raises:
            InputError: there is no index, it has another schema version, was made from other tables, or is damaged.
        """
        root = Path(root)
        folder = index_folder(root, version, index_root)
        header = read_header(folder, root, version)
        arrays = open_arrays(folder, header)
        index = cls(root, folder, header, arrays)
        if check:
            check_shapes(folder, header, arrays)
            check_tables(root / version, header)
            check_contents(folder, header, arrays)
        return index

    def __len__(self) -> int:
        return len(self.arrays["sample_token"])

    def __reduce__(self):
        return NuScenesIndex.open, (self.root, self.version, self.folder.parent, False)

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Row of each sample token."""
        return {token.decode(): row for row, token in enumerate(self.arrays["sample_token"].tolist())}

    @property
    def can_bus_raw(self) -> np.ndarray:
        """(S, 16) float64, :class:`bevstack.datasets.ego_state.EgoState`; [7:16] are NaN without a CAN bus."""
        return self.arrays["can_bus_raw"]

    @property
    def can_bus_valid(self) -> np.ndarray:
        """(S,) bool: whether the sample has CAN-bus values."""
        return self.arrays["can_bus_valid"]

    def samples(self, split: str) -> np.ndarray:
        """(n,) int64 rows of a split's samples: scene by scene in the index's order, time inside a scene.

        Args:
            split: a name, or the first scenes of one (:func:`bevstack.datasets.nuscenes.split_names.scenes_of`).

        Raises:
            InputError: the version has no such split, or none of its scenes.
        """
        members = scenes_of(self.splits, split)
        if members is None:
            raise InputError(self.folder, "split", f"{split!r} is none of {', '.join(sorted(self.splits))}")
        wanted = set(members)
        chosen = np.array([scene["token"] in wanted for scene in self.scenes], dtype=bool)
        return np.flatnonzero(chosen[self.arrays["sample_scene"]])

    def token(self, row: int) -> str:
        """Sample token of a row."""
        return self.arrays["sample_token"][row].decode()

    def scene(self, row: int) -> dict:
        """Scene of a sample's row: token, name, log, location, first_row, num_samples."""
        return self.scenes[int(self.arrays["sample_scene"][row])]

    def global_from_bev(self, row: int) -> np.ndarray:
        """(4, 4) float64: the BEV frame (lidar at its own time) in the global frame."""
        return np.array(self.arrays["global_from_bev"][row])

    def image_paths(self, row: int) -> list[str]:
        """N absolute paths of a sample's images."""
        return [str(self.root / path.decode()) for path in self.arrays["camera_path"][row].tolist()]

    @property
    def has_sweeps(self) -> bool:
        """Whether there are camera images between key frames."""
        return len(self.arrays["sweep_path"]) > 0

    def sweeps(self, row: int, count: int, max_gap_seconds: float = 2.0) -> tuple[list[list[str]], np.ndarray]:
        """The ``count`` images that each camera took before a sample's own, across earlier key frames, oldest first.

        Args:
            row: of the sample.
            count: S. Where a scene has fewer older images, or none after a pause longer than ``max_gap_seconds``, the
                oldest one is repeated in front (the sample's own image where there is none at all).
            max_gap_seconds: see there.

        Returns:
            S lists of N absolute paths, and (S, N) float64 seconds since the camera's own image of the sample: 0 or
            less.
        """
        paths, seconds = [], np.zeros((count, len(self.cameras)))
        for n in range(len(self.cameras)):
            own = bytes(self.arrays["camera_path"][row, n]), int(self.arrays["camera_timestamp_us"][row, n])
            images = older_images(self.arrays, row, n, count, max_gap_seconds)
            images += [(images or [own])[-1]] * (count - len(images))
            paths.append([str(self.root / path.decode()) for path, _ in images[::-1]])
            seconds[:, n] = [(time - own[1]) * 1e-6 for _, time in images[::-1]]
        return [list(moment) for moment in zip(*paths, strict=True)], seconds

    def sweep_from_camera(self, row: int, seconds: np.ndarray) -> np.ndarray:
        """(S, N, 4, 4) float64: from each camera at its own image of a sample to where it was ``seconds`` (S, N) before
        (0 or less, as of :meth:`sweeps`), see :func:`bevstack.datasets.nuscenes.camera_sweeps.ego_poses`."""
        ego_from_camera = self.ego_from_camera(row)
        moved = np.empty((*seconds.shape, 4, 4))
        for n, from_camera in enumerate(ego_from_camera):
            times = self.arrays["camera_timestamp_us"][row, n] + np.rint(seconds[:, n] * 1e6)
            now = np.array(self.arrays["global_from_camera_ego"][row, n]) @ from_camera
            moved[:, n] = rigid_inverse(ego_poses(self.arrays, row, n, times) @ from_camera) @ now
        return moved

    def ego_from_camera(self, row: int) -> np.ndarray:
        """(N, 4, 4) float64: from each camera to the ego frame, whose z = 0 is the ground."""
        return np.array(self.arrays["ego_from_sensor"][self.arrays["camera_calibration"][row]])

    def camera_from_bev(self, row: int) -> np.ndarray:
        """(N, 4, 4) float64: from the BEV frame at lidar time to each camera at its own time."""
        global_from_camera = np.array(self.arrays["global_from_camera_ego"][row]) @ self.ego_from_camera(row)
        return rigid_inverse(global_from_camera) @ self.global_from_bev(row)

    def pixels_from_camera(self, row: int) -> np.ndarray:
        """(N, 3, 3) float64 intrinsics of a sample's cameras."""
        return np.array(self.arrays["intrinsics"][self.arrays["camera_calibration"][row]])

    def ego(self, row: int) -> EgoState:
        """The ego car at a sample: its pose, and the CAN bus where there is one."""
        return EgoState(np.array(self.can_bus_raw[row]), bool(self.can_bus_valid[row]), self.global_from_bev(row))

    def boxes(self, row: int) -> BoxRecords:
        """Annotated boxes of a sample, in the global frame."""
        low, high = self.arrays["box_offset"][row : row + 2].tolist()
        return BoxRecords(**{f: np.array(self.arrays[f"box_{f}"][low:high]) for f in BoxRecords.__dataclass_fields__})
