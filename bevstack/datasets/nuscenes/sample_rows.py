"""Which samples an index holds, in which order, and the sensors that saw every one of them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bevstack.datasets.nuscenes.camera_sweeps import FolderListing
from bevstack.datasets.nuscenes.tables import CheckedTables, bev_lidar, read_splits
from bevstack.datasets.nuscenes.taxonomy import CAMERAS, detection_class
from bevstack.errors import InputError


@dataclass(frozen=True)
class IndexChoices:
    """What a user chooses of a version.

    Args:
        cameras: names of the cameras to index, in order; None for all that key frames come from.
        lidar: whose frame is the BEV's; None for LIDAR_TOP, or else the first lidar.
        skip_missing: leave samples out of which a key frame or an image is not there; else that is an error.
        every: index every n-th sample of each scene alone, where samples are too many a second.
        velocity_gap_s: a neighbouring annotation farther away in time gives no velocity (the devkit's 1.5 s).
        own_categories: names of categories that are near nuScenes' own, and meant so.
        strict: refuse what cannot be right (:mod:`bevstack.datasets.nuscenes.plausibility`), else warn.
    """

    cameras: Sequence[str] | None = None
    lidar: str | None = None
    skip_missing: bool = False
    every: int = 1
    velocity_gap_s: float = 1.5
    own_categories: Sequence[str] = ()
    strict: bool = False


class SampleRows:
    """Samples scene by scene in order of time, and their sensors.

    Attributes:
        samples: records, in the index's order; row_of: token -> place.
        scenes: per scene what the index's header says of it. Of scenes with one name, each gets its token behind it.
        cameras, lidar: channels.
        splits: split -> tokens of its scenes.
        left_out: token of each sample that is left out -> why.

    Raises:
        InputError: no camera, no lidar, none of the chosen name; a key frame or an image is missing and may not be.
    """

    def __init__(self, nusc: CheckedTables, choices: IndexChoices) -> None:
        self.nusc, self.choices = nusc, choices
        self.table = Path(nusc.table_root) / "sample_data.json"
        if choices.every < 1 or choices.velocity_gap_s <= 0:
            raise InputError("create_data", "--every, --velocity-gap", "must be positive")
        chains = [(scene, self._chain(scene)) for scene in nusc.scene]
        self.cameras, self.lidar = self._sensors([sample for _, chain in chains for sample in chain])
        reason = f"not every {choices.every}th sample of its scene"
        skipped = [s["token"] for _, chain in chains for k, s in enumerate(chain) if k % choices.every]
        self.left_out: dict[str, str] = dict.fromkeys(skipped, reason)
        self._find_missing([s for _, chain in chains for s in chain[:: choices.every]])
        self.samples: list[dict] = []
        self.scenes: list[dict] = []
        self._bus_names: list[str] = []
        same_name = Counter(scene["name"] for scene in nusc.scene)
        for scene, chain in chains:
            kept = [sample for sample in chain if sample["token"] not in self.left_out]
            if kept:
                name = scene["name"] if same_name[scene["name"]] == 1 else f"{scene['name']}.{scene['token']}"
                self.scenes.append(
                    {**self._scene(scene), "name": name, "first_row": len(self.samples), "num_samples": len(kept)}
                )
                self._bus_names.append(scene["name"])
                self.samples += kept
        if not self.samples:
            raise InputError(self.table, "filename", "not one sample has all its images below the root")
        twice = [name for name, count in same_name.items() if count > 1]
        if twice:
            warnings.warn(f"several scenes are called {', '.join(twice)}: each gets its token behind it", stacklevel=2)
        self.row_of = {sample["token"]: row for row, sample in enumerate(self.samples)}
        left = {scene["token"] for scene in self.scenes}
        splits = read_splits(nusc.table_root, nusc.scene)
        self.splits = {name: there for name, tokens in splits.items() if (there := [t for t in tokens if t in left])}

    def names(self) -> dict:
        """What the header says about names."""
        categories = [{"name": c["name"], "detection_name": detection_class(c["name"])} for c in self.nusc.category]
        return {
            "cameras": self.cameras,
            "lidar": self.lidar,
            "scenes": self.scenes,
            "categories": categories,
            "attributes": [a["name"] for a in self.nusc.attribute],
            "splits": self.splits,
            "left_out": self.left_out,
        }

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays of numbers with one row a sample."""
        scene_row = np.repeat(np.arange(len(self.scenes)), [s["num_samples"] for s in self.scenes])
        rows = np.arange(len(self.samples))
        starts = np.r_[True, scene_row[1:] != scene_row[:-1]]
        return {
            "sample_timestamp_us": np.array([s["timestamp"] for s in self.samples], dtype=np.int64),
            "sample_scene": scene_row.astype(np.int32),
            "sample_prev": np.where(starts, -1, rows - 1).astype(np.int32),
            "sample_next": np.where(np.r_[starts[1:], True], -1, rows + 1).astype(np.int32),
        }

    def scene_times(self) -> list[tuple[str, np.ndarray]]:
        """Per scene its name and its samples' timestamps."""
        times = np.array([s["timestamp"] for s in self.samples], dtype=np.int64)
        parts = [times[s["first_row"] : s["first_row"] + s["num_samples"]] for s in self.scenes]
        return list(zip(self._bus_names, parts, strict=True))

    def _chain(self, scene: dict) -> list[dict]:
        samples, token = [], scene["first_sample_token"]
        while token:
            samples.append(self.nusc.get("sample", token))
            token = samples[-1]["next"]
        return samples

    def _scene(self, scene: dict) -> dict:
        log = self.nusc.get("log", scene["log_token"]) if scene["log_token"] else {}
        description = str(scene.get("description") or "")
        place = {"log": str(log.get("logfile") or ""), "location": log.get("location", "")}
        return {"token": scene["token"], "description": description, **place}

    def _sensors(self, samples: Sequence[dict]) -> tuple[list[str], str]:
        """The cameras in order, and the lidar."""
        used = {channel for sample in samples for channel in sample["data"]}
        modality = {sensor["channel"]: sensor["modality"] for sensor in self.nusc.sensor if sensor["channel"] in used}
        cameras = [channel for channel, kind in modality.items() if kind == "camera"]
        lidars = [channel for channel, kind in modality.items() if kind == "lidar"]
        for found, what in ((cameras, "a camera"), (lidars, "a lidar, whose frame is the BEV's")):
            if not found:
                raise InputError(self.table, "calibrated_sensor_token", f"no key frame comes from {what}")
        chosen = [("--cameras", name, cameras) for name in self.choices.cameras or ()]
        chosen += [("--lidar", self.choices.lidar, lidars)] if self.choices.lidar else []
        for option, name, there in chosen:
            if name not in there:
                raise InputError(self.table, option, f"no key frame comes from {name}; there are {', '.join(there)}")
        if self.choices.cameras:
            if len(set(self.choices.cameras)) != len(self.choices.cameras):
                raise InputError(self.table, "--cameras", "a camera is named twice")
            cameras = list(self.choices.cameras)
        elif set(cameras) == set(CAMERAS):
            cameras = list(CAMERAS)
        return cameras, self.choices.lidar or bev_lidar(lidars)

    def _find_missing(self, samples: Sequence[dict]) -> None:
        """Note the samples that lack a key frame or an image in ``left_out``, or refuse them."""
        folders, images = FolderListing(Path(self.nusc.dataroot), self.table), 0
        lacking: Counter[str] = Counter()
        by_choice = len(self.left_out)
        first: InputError | None = None
        for sample in samples:
            for channel in (*self.cameras, self.lidar):
                error = None
                if channel not in sample["data"]:
                    lacking[channel] += 1
                    error = InputError(self.table, f"sample {sample['token']}", f"has no key frame of {channel}")
                elif channel != self.lidar:
                    name = self.nusc.get("sample_data", sample["data"][channel])["filename"]
                    if not folders.has(name):
                        images += 1
                        reason = f"is missing or no file, yet {self.table.name} names it"
                        error = InputError(folders.root / name, "image", reason)
                if error is not None:
                    first = first or error
                    self.left_out.setdefault(sample["token"], f"{error.field} of {channel}: {error.reason}")
        if first is None:
            return
        parts = [f"{count} lack a key frame of {channel}" for channel, count in lacking.items()]
        parts += [f"{images} image files are missing"] if images else []
        count = f"{len(self.left_out) - by_choice} of {len(samples)} samples are not whole: {', '.join(parts)}"
        if not self.choices.skip_missing:
            hint = "--skip-missing leaves them out" + (", --cameras chooses cameras" if lacking else "")
            raise InputError(first.file, first.field, f"{first.reason} ({count}; {hint})")
        warnings.warn(f"{self.table}: {count}; they are left out of all splits", stacklevel=2)
