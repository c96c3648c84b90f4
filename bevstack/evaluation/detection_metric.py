"""The nuScenes detection score as an mmengine metric."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bevstack.errors import InputError
from bevstack.evaluation.gathering import GatheredMetric, as_dict
from bevstack.evaluation.nuscenes_scoring import default_attribute_errors, open_tables, score_boxes, split_tokens
from bevstack.evaluation.submission import (
    SubmittedBoxes,
    check_submission,
    require_detection_classes,
    submitted_boxes,
    write_submission,
)
from bevstack.geometry.boxes3d import BOX_SIZE
from bevstack.registry import METRICS
from bevstack.structures.poses import boxes_in_global

RESULTS_NAME = "results_nusc.json"


@METRICS.register_module()
class NuScenesDetectionMetric(GatheredMetric):
    """NDS, mAP and true-positive errors by the devkit's own code, and the official submission file.

    Reads of each predicted sample ``pred_instances_3d`` (``bboxes_3d`` LiDARInstance3DBoxes with 9 values in the
    augmented BEV frame, ``scores_3d``, ``labels_3d`` and, where a head predicts them, ``attribute_names``) and the
    metainfo ``token``, ``global_from_bev``, ``augmented_from_bev``. The samples must be those of the split, each once;
    their order and the number of ranks do not matter.

    Args:
        data_root: dataset root.
        version: name of the table folder, as ``v1.0-trainval``.
        split: the split's name; also one of ``<root>/<version>/splits.json``.
        out_dir: where to write ``results_nusc.json``; None writes nothing (validation while training).
        classes: names of the labels; None takes the dataset's ``metainfo["classes"]``.
        format_only: only write the file, for splits without annotations.
        use_external: declared in the submission: whether data beyond nuScenes was used.

    Raises:
        InputError: a class outside nuScenes' ten; results that the challenge would refuse (then nothing is written).
    """

    def __init__(
        self,
        data_root: str | os.PathLike,
        version: str,
        split: str,
        out_dir: str | os.PathLike | None = None,
        classes: Sequence[str] | None = None,
        format_only: bool = False,
        use_external: bool = False,
    ) -> None:
        super().__init__()
        if format_only and out_dir is None:
            raise InputError("NuScenesDetectionMetric", "out_dir", "format_only writes a file and needs a folder")
        self.data_root, self.version, self.split = Path(data_root), version, split
        self.out_dir = None if out_dir is None else Path(out_dir)
        self.format_only, self.use_external = format_only, use_external
        self._classes = None if classes is None else tuple(classes)
        if self._classes is not None:
            require_detection_classes(self._classes, "NuScenesDetectionMetric")

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, from the constructor or else from the dataset."""
        if self._classes is None:
            names = self.named_classes(None)
            require_detection_classes(names, "NuScenesDetectionMetric")
            self._classes = names
        return self._classes

    @property
    def results_path(self) -> Path:
        """Where the submission is (or would be) written."""
        return Path(RESULTS_NAME) if self.out_dir is None else self.out_dir / RESULTS_NAME

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Move one batch's predicted boxes to the global frame and keep them."""
        self.results.extend(self._submitted(as_dict(sample)) for sample in data_samples)

    def _submitted(self, sample: dict[str, Any]) -> SubmittedBoxes:
        if "pred_instances_3d" not in sample:
            reason = "the model predicts no boxes: leave this metric out, or add a detection head"
            raise InputError("NuScenesDetectionMetric", "pred_instances_3d", reason)
        instances = sample["pred_instances_3d"]
        scores = instances["scores_3d"].detach().cpu().double().numpy()
        labels = instances["labels_3d"].detach().cpu().numpy().astype(np.int64)
        attributes = instances["attribute_names"] if "attribute_names" in instances else None
        known = len(self.classes)
        names = [self.classes[label] if 0 <= label < known else f"label {label}" for label in labels]
        boxes = boxes_in_global(sample, instances["bboxes_3d"])
        with_velocity = instances["bboxes_3d"].tensor.shape[1] == BOX_SIZE
        return submitted_boxes(sample["token"], boxes, scores, names, attributes, with_velocity)

    def compute_metrics(self, results: list[SubmittedBoxes]) -> dict[str, float]:
        """Check all samples' boxes, write the submission, score it.

        Keys: :func:`score_boxes`, and where a head predicts attributes :func:`default_attribute_errors`.
        """
        tables = open_tables(self.data_root, self.version)
        tokens = split_tokens(tables, self.split)
        submitted = check_submission(results, tokens, self.split, self.results_path)
        if self.out_dir is not None:
            meta = dict.fromkeys(("use_camera", "use_lidar", "use_radar", "use_map", "use_external"), False)
            meta.update(use_camera=True, use_external=self.use_external)
            write_submission(self.results_path, submitted, meta)
        if self.format_only:
            return {}
        return score_boxes(tables, self.split, submitted) | default_attribute_errors(tables, self.split, submitted)
