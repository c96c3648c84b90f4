"""The nuScenes tracking score as an mmengine metric: a tracker led over detections, and the official numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from bevstack.errors import InputError
from bevstack.evaluation.gathering import as_dict
from bevstack.evaluation.nuscenes_metric import NuScenesMetric, camera_submission_meta
from bevstack.evaluation.submission import SubmittedBoxes, check_submission, submitted_boxes
from bevstack.evaluation.tracking_scoring import TRACKING_CLASSES, require_motmetrics, score_tracks
from bevstack.files import atomic_write
from bevstack.geometry.boxes3d import BOX_SIZE
from bevstack.registry import METRICS, TASK_UTILS
from bevstack.structures.poses import boxes_in_global
from bevstack.tracking import Detections, Tracker, detections_of

TRACKS_NAME = "tracking_nusc.json"


@METRICS.register_module()
class NuScenesTrackingMetric(NuScenesMetric):
    """AMOTA, AMOTP, IDS and the rest by the devkit's own code, and the official submission file.

    Reads of each predicted sample what the detection metric reads (``pred_instances_3d``, ``token``,
    ``global_from_bev``, ``augmented_from_bev``), its ``scene_token`` and ``timestamp_s`` and, where a head makes them,
    ``pred_instances_3d.embeddings``. The samples of all ranks are gathered, put in the order of time scene by scene,
    and tracked once, on the main rank; so their order and the number of ranks do not matter.

    Args:
        data_root, version, split, out_dir, classes, format_only: of
            :class:`bevstack.evaluation.nuscenes_metric.NuScenesMetric`; the file is ``tracking_nusc.json``.
        tracker: of :mod:`bevstack.tracking`, or its config.

    Raises:
        InputError: as there; motmetrics is not installed; results that the challenge would refuse (the boxes are kept
            in ``results_refused.json``).
    """

    results_name = TRACKS_NAME

    def __init__(
        self,
        data_root: str | os.PathLike,
        version: str,
        split: str,
        tracker: Tracker | Mapping,
        out_dir: str | os.PathLike | None = None,
        classes: Sequence[str] | None = None,
        format_only: bool = False,
    ) -> None:
        super().__init__(data_root, version, split, out_dir, classes, format_only)
        if not format_only:
            require_motmetrics()
        self.tracker: Tracker = TASK_UTILS.build(dict(tracker)) if isinstance(tracker, Mapping) else tracker

    def process(self, data_batch: Any, data_samples: Sequence[Any]) -> None:
        """Keep one batch's predicted boxes, moved to the global frame."""
        for sample in map(as_dict, data_samples):
            if "pred_instances_3d" not in sample:
                reason = "the model predicts no boxes: leave this metric out, or add a detection head"
                raise InputError("NuScenesTrackingMetric", "pred_instances_3d", reason)
            own = sample["pred_instances_3d"]["bboxes_3d"]
            boxes = boxes_in_global(sample, own)
            detections = detections_of(sample, self.classes, boxes)
            with_velocity = own.tensor.shape[1] == BOX_SIZE
            submitted = submitted_boxes(
                sample["token"], boxes, detections.scores, detections.names, with_velocity=with_velocity
            )
            self.results.append((submitted, detections))

    def compute_metrics(self, results: list[tuple[SubmittedBoxes, Detections]]) -> dict[str, float]:
        """Check all samples' boxes, track them, write the submission, score it (keys: :func:`score_tracks`)."""
        scored, self._written = self.scored, False
        tokens = scored.tokens()
        submitted = check_submission(self.boxes_of(results), tokens, self.split, self.results_path)
        records = self.tracked({boxes.token: detections for boxes, detections in results}, submitted)
        if self.out_dir is not None:
            self._write({token: records[token] for token in tokens})
            self._written = True
        return {} if self.format_only else score_tracks(scored, records)

    def boxes_of(self, results: Iterable[tuple[SubmittedBoxes, Detections]]) -> Iterable[SubmittedBoxes]:
        """The boxes of gathered results."""
        return (boxes for boxes, _ in results)

    def tracked(
        self, detections: Mapping[str, Detections], submitted: Mapping[str, SubmittedBoxes]
    ) -> dict[str, list[dict]]:
        """Lead the tracker over all scenes; the submission's boxes by sample token."""
        state, records = None, {}
        order = sorted(detections, key=lambda token: (detections[token].scene_token, detections[token].timestamp_s))
        for token in order:
            ids, state = self.tracker.step(state, detections[token])
            records[token] = _records(submitted[token], ids)
        return records

    def _write(self, records: Mapping[str, list[dict]]) -> None:
        with atomic_write(self.results_path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            json.dump({"meta": camera_submission_meta(), "results": records}, file)
            file.write("\n")


def _records(boxes: SubmittedBoxes, ids: np.ndarray) -> list[dict]:
    """A sample's entry of the tracking submission: boxes of the seven classes that have an identity."""
    chosen = [row for row in np.flatnonzero(ids >= 0) if boxes.names[row] in TRACKING_CLASSES]
    return [
        {
            "sample_token": boxes.token,
            "translation": boxes.translation[row].tolist(),
            "size": boxes.size_wlh[row].tolist(),
            "rotation": boxes.rotation[row].tolist(),
            "velocity": boxes.velocity[row].tolist(),
            "tracking_id": str(ids[row]),
            "tracking_name": boxes.names[row],
            "tracking_score": float(boxes.scores[row]),
        }
        for row in chosen
    ]
