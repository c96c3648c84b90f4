"""The table of detections of a submission that was written earlier, from that file and nuScenes' tables alone.

Boxes stay in the global axes and are moved to the ego car, from which ranges are measured: distances, angles and speeds
are the same in every frame.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.structures import InstanceData

from bevstack.datasets.nuscenes.taxonomy import DETECTION_CLASSES
from bevstack.errors import InputError
from bevstack.evaluation.detection_table import DetectionTable, detection_record
from bevstack.evaluation.nuscenes_scoring import ScoredSplit
from bevstack.structures import BEVDataSample
from bevstack.structures.boxes import lidar_boxes

if TYPE_CHECKING:
    from nuscenes.eval.common.data_classes import EvalBoxes


def submitted_table(path: str | os.PathLike, scored: ScoredSplit) -> DetectionTable:
    """The table of a submission (``results_nusc.json`` of ``tools/test.py``) beside a split's truth.

    Args:
        path: of the file.
        scored: the split that it is of.

    Raises:
        InputError: the file is no submission, or lacks a sample of the split; bad tables.
    """
    from nuscenes.eval.common.data_classes import EvalBoxes  # only here: the devkit takes 2 s
    from nuscenes.eval.detection.data_classes import DetectionBox

    tokens, results = scored.tokens(), _read(Path(path))
    absent = [token for token in tokens if token not in results]
    if absent:
        raise InputError(path, "results", f"lacks {len(absent)} samples of split {scored.split!r}, first {absent[0]}")
    try:
        predicted = EvalBoxes.deserialize({token: results[token] for token in tokens}, DetectionBox)
    except (KeyError, TypeError, ValueError, AssertionError) as error:
        raise InputError(path, "results", f"are no boxes of a submission: {error}") from error
    true, seen = _truth(scored, tokens), _visibility(scored, tokens)
    scored.with_ego_distance(predicted)
    scored.with_ego_distance(true)
    records = []
    for token in tokens:
        sample = BEVDataSample(metainfo={"token": token, "scene_name": _scene_name(scored, token)})
        sample.pred_instances_3d = _instances(predicted[token])
        scores = torch.tensor([box.detection_score for box in predicted[token]], dtype=torch.float64)
        sample.pred_instances_3d.scores_3d = scores
        sample.gt_instances_3d = _instances(true[token])
        points = torch.tensor([box.num_pts for box in true[token]], dtype=torch.long)
        sample.gt_instances_3d.num_lidar_pts = points
        levels = [seen.get((token, *map(float, box.translation)), 0) for box in true[token]]
        sample.gt_instances_3d.visibility = torch.tensor(levels, dtype=torch.long)
        records.append(detection_record(sample, DETECTION_CLASSES))
    return DetectionTable.of_records([record for record in records if record is not None], DETECTION_CLASSES)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
    except FileNotFoundError:
        raise InputError(path, "submission", "no such file; tools/test.py writes it") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(path, "results", f"cannot be read ({error})") from None
    if not isinstance(results, dict):
        raise InputError(path, "results", "must be an object of lists by the samples' tokens")
    return results


def _truth(scored: ScoredSplit, tokens: Sequence[str]) -> EvalBoxes:
    from nuscenes.eval.common.loaders import load_gt_of_sample_tokens  # only here: the devkit takes 2 s
    from nuscenes.eval.detection.data_classes import DetectionBox

    with contextlib.redirect_stderr(io.StringIO()):  # the devkit's progress bar
        return load_gt_of_sample_tokens(scored.tables, tokens, DetectionBox, verbose=False)


def _visibility(scored: ScoredSplit, tokens: Sequence[str]) -> dict[tuple, int]:
    """nuScenes' level of each annotated box, by its sample and place, as the devkit's boxes have no name."""
    wanted = set(tokens)
    levels: dict[tuple, int] = {}
    for row in scored.tables.sample_annotation:
        level = str(row.get("visibility_token", ""))
        if row["sample_token"] in wanted and level.isdigit():
            place = (row["sample_token"], *map(float, row["translation"]))
            levels[place] = int(level)
    return levels


def _scene_name(scored: ScoredSplit, token: str) -> str:
    tables = scored.tables
    return tables.get("scene", tables.get("sample", token)["scene_token"])["name"]


def _instances(boxes: Sequence[Any]) -> InstanceData:
    """The devkit's boxes around the ego car, as a sample holds them; z plays no part."""
    rows = [
        [*box.ego_translation[:2], 0.0, box.size[1], box.size[0], box.size[2], _yaw(box.rotation), *box.velocity[:2]]
        for box in boxes
    ]
    labels = [DETECTION_CLASSES.index(box.detection_name) for box in boxes]
    table = torch.from_numpy(np.array(rows, np.float64).reshape(-1, 9)).float()
    return InstanceData(bboxes_3d=lidar_boxes(table), labels_3d=torch.tensor(labels, dtype=torch.long))


def _yaw(rotation: Sequence[float]) -> float:
    """Radians of a quaternion's (w, x, y, z) first axis on the ground."""
    w, x, y, z = rotation
    return float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))
