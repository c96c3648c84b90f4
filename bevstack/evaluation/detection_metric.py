"""The nuScenes detection score as an mmengine metric."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from bevstack.errors import InputError
from bevstack.evaluation.gathering import as_dict
from bevstack.evaluation.nuscenes_metric import NuScenesMetric, camera_submission_meta
from bevstack.evaluation.nuscenes_scoring import default_attribute_errors, score_boxes
from bevstack.evaluation.submission import SubmittedBoxes, check_submission, submitted_boxes, write_submission
from bevstack.geometry.boxes3d import BOX_SIZE
from bevstack.registry import METRICS
from bevstack.structures.poses import boxes_in_global

RESULTS_NAME = "results_nusc.json"


@METRICS.register_module()
class NuScenesDetectionMetric(NuScenesMetric):
    """NDS, mAP and true-positive errors by the devkit's own code, and the official submission file.

    Reads of each predicted sample ``pred_instances_3d`` (``bboxes_3d`` LiDARInstance3DBoxes with 9 values in the
    augmented BEV frame, ``scores_3d``, ``labels_3d`` and, where a head predicts them, ``attribute_names``) and the
    metainfo ``token``, ``global_from_bev``, ``augmented_from_bev``. The samples must be those of the split, each once;
    their order and the number of ranks do not matter.

    Args:
        data_root, version, split, out_dir, classes, format_only: of
            :class:`bevstack.evaluation.nuscenes_metric.NuScenesMetric`; the file is ``results_nusc.json``.
        use_external: declared in the submission: whether data beyond nuScenes was used.

    Raises:
        InputError: as there; results that the challenge would refuse (then no submission is written, and the boxes are
            kept in ``results_refused.json``).
    """

    results_name = RESULTS_NAME

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
        super().__init__(data_root, version, split, out_dir, classes, format_only)
        self.use_external = use_external

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
        scored, self._written = self.scored, False
        submitted = check_submission(results, scored.tokens(), self.split, self.results_path)
        if self.out_dir is not None:
            write_submission(self.results_path, submitted, camera_submission_meta(self.use_external))
            self._written = True
        if self.format_only:
            return {}
        return score_boxes(scored, submitted) | default_attribute_errors(scored, submitted)
