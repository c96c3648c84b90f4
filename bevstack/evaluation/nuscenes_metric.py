"""What the scores of nuScenes' own tasks share: tables, split and dataset that fit together, asked for at the start."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bevstack.datasets.nuscenes.split_names import scenes_of
from bevstack.datasets.nuscenes.taxonomy import detection_class
from bevstack.errors import InputError
from bevstack.evaluation.gathering import GatheredMetric
from bevstack.evaluation.nuscenes_scoring import ScoredSplit
from bevstack.evaluation.submission import MAX_BOXES_PER_SAMPLE, SubmittedBoxes, require_detection_classes
from bevstack.files import atomic_write, require_writable
from bevstack.models.heads import DenseDetectionHead, QueryDetectionHead

REFUSED_NAME = "results_refused.json"


class NuScenesMetric(GatheredMetric):
    """A metric on the samples of a split of nuScenes' tables.

    What can be wrong is found before the first prediction: tables and split where the metric is built, and that they
    are the dataset's own where it is told the dataset's metainfo.

    Args:
        data_root: dataset root.
        version: name of the table folder, as ``v1.0-trainval``.
        split: the split's name; also one of ``<root>/<version>/splits.json``.
        out_dir: where to write results; None writes nothing (validation while training).
        classes: names of the labels; None takes the dataset's ``metainfo["classes"]``.
        format_only: only write the file, for splits without annotations.

    Raises:
        InputError: no such root, version or split; nothing can be written to ``out_dir``; no annotations to score by,
            and not ``format_only``; a class outside nuScenes' ten.
    """

    results_name = "results.json"

    def __init__(
        self,
        data_root: str | os.PathLike,
        version: str,
        split: str,
        out_dir: str | os.PathLike | None = None,
        classes: Sequence[str] | None = None,
        format_only: bool = False,
    ) -> None:
        super().__init__()
        self.name = type(self).__name__
        if format_only and out_dir is None:
            raise InputError(self.name, "out_dir", "format_only writes a file and needs a folder")
        self.data_root, self.version, self.split = Path(data_root), version, split
        self.out_dir, self.format_only = None if out_dir is None else Path(out_dir), format_only
        self._classes = None if classes is None else tuple(classes)
        self._written = False
        if self._classes is not None:
            require_detection_classes(self._classes, self.name)
        self._require_tables()
        if self.out_dir is not None:
            require_writable(self.out_dir, "out_dir")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, from the constructor or else from the dataset."""
        if self._classes is None:
            names = self.named_classes(None)
            require_detection_classes(names, self.name)
            self._classes = names
        return self._classes

    @property
    def results_path(self) -> Path:
        """Where the submission is (or would be) written."""
        return Path(self.results_name) if self.out_dir is None else self.out_dir / self.results_name

    @property
    def scored(self) -> ScoredSplit:
        """The samples to score, as the dataset has them where it is known."""
        meta = self.dataset_meta or {}
        left_out = tuple(sorted(meta.get("left_out", ())))
        return ScoredSplit(
            str(self.data_root.resolve()), self.version, self.split, left_out, str(meta.get("lidar", ""))
        )

    def check_dataset(self, meta: Mapping[str, Any]) -> None:
        """Refuse a dataset other than the one scored by, or one that labels categories otherwise.

        Raises:
            InputError: names both values.
        """
        for field, own in (("version", self.version), ("split", self.split)):
            if field in meta and meta[field] != own:
                raise InputError(self.name, field, f"is {own!r}, but the dataset's is {meta[field]!r}")
        if "data_root" in meta and Path(meta["data_root"]).resolve() != self.data_root.resolve():
            raise InputError(self.name, "data_root", f"is {self.data_root}, but the dataset's is {meta['data_root']}")
        for name, categories in meta.get("categories", {}).items():
            for category in categories:
                if (scored := detection_class(category)) != name:
                    reason = f"the dataset labels {category} as {name!r}, nuScenes' score counts it as "
                    reason += f"{scored or 'none of its classes'!r}; CenterDistanceMetric scores the dataset's labels"
                    raise InputError(self.name, "classes", reason)
        if not self.format_only and meta.get("num_annotated", 1) == 0:
            raise InputError(self.name, "split", self._no_truth(f"split {self.split!r} of the dataset"))
        if meta.get("left_out"):
            words = f"{len(meta['left_out'])} samples of {self.version} are not indexed: scores over the rest of"
            warnings.warn(f"{self.name}: {words} {self.split!r} compare with nothing published", stacklevel=2)

    def check_model(self, model: Any) -> None:
        """Refuse a model of other classes, or one that may predict more boxes a sample than the challenge allows.

        Args:
            model: has ``heads`` by name, of which those that make boxes have a ``decoding``.
        """
        # only here: metrics do without models but for this check

        self.refuse_other_classes(model, self.classes)
        for name, head in dict(getattr(model, "heads", {})).items():
            if isinstance(head, (DenseDetectionHead, QueryDetectionHead)):
                if (most := head.decoding.max_num) > MAX_BOXES_PER_SAMPLE:
                    reason = f"{most} boxes a sample, but {self.name} takes {MAX_BOXES_PER_SAMPLE} at most"
                    raise InputError("model", f"heads.{name}.decoding.max_num", reason)

    def keep(self, results: list) -> Path | None:
        """The submission where it is written already, else a file of the boxes as they are, to look for the fault.

        It is no submission, and is called otherwise: boxes may be missing, doubled or not finite.
        """
        if self.out_dir is None or not results:
            return None
        if self._written:
            return self.results_path
        with atomic_write(self.out_dir / REFUSED_NAME) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump([{"token": boxes.token, "boxes": boxes.records()} for boxes in self.boxes_of(results)], file)
        return self.out_dir / REFUSED_NAME

    def boxes_of(self, results: Iterable) -> Iterable[SubmittedBoxes]:
        """The boxes of gathered results."""
        return results

    def _require_tables(self) -> None:
        # only here: the devkit behind it takes 2 s, and other formats' metrics do without this room
        from bevstack.datasets.nuscenes.table_files import read_json
        from bevstack.datasets.nuscenes.tables import read_splits, require_version  # only here: as above

        folder = require_version(self.data_root, self.version, "version")
        scenes = read_json(folder / "scene.json")
        if not isinstance(scenes, list) or not all(_is_named(scene) for scene in scenes):
            raise InputError(folder / "scene.json", "content", "must be a list of scenes with names and tokens")
        splits = read_splits(folder, scenes)
        if scenes_of(splits, self.split) is None:
            there = ", ".join(sorted(splits))
            raise InputError(folder, self.split, f"no such split, or none of its scenes; there are {there}")
        truth = folder / "sample_annotation.json"
        if not self.format_only and (not truth.is_file() or truth.stat().st_size < 100):
            if not truth.is_file() or not read_json(truth):
                raise InputError(self.name, "split", self._no_truth(f"version {self.version}"))

    @staticmethod
    def _no_truth(what: str) -> str:
        return (
            f"{what} has no annotated box to score by; format_only=True writes the submission file instead "
            "(tools/test.py --cfg-options test_evaluator.0.format_only=True)"
        )


def _is_named(scene: object) -> bool:
    return isinstance(scene, dict) and {"name", "token"} <= scene.keys()


def camera_submission_meta(use_external: bool = False) -> dict[str, bool]:
    """What a submission declares: cameras alone, and whether data beyond nuScenes was used."""
    meta = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
    return {**meta, "use_camera": True, "use_external": use_external}
