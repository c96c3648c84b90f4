"""Metrics as a file and as a table."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from bevstack.files import atomic_write

_SUMMARY = ("NDS", "mAP", "mAP_present", "NDS_present", "mATE", "mASE", "mAOE", "mAVE", "mAAE")
_BY_DETECTION_CLASS = ("AP", "ATE", "ASE", "AOE", "AVE", "AAE", "gt")
_BY_LAYER = ("iou", "iou_best", "best_threshold")
_BY_TRACKED_CLASS = ("AMOTA", "AMOTP", "MOTA", "track_recall", "IDS", "FRAG", "FP", "FN", "track_gt")
_COUNTS = ("IDS", "FRAG", "MT", "ML", "FP", "FN", "track_gt")
_BY_PANOPTIC_CLASS = ("PQ", "SQ", "RQ", "mask_AP", "mask_AP50", "iou_panoptic")
_BY_KEYPOINT_CLASS = ("keypoint_AP", "keypoint_AP50", "PCK@0.5m", "PCK@1m", "keypoint_matched", "keypoint_gt")
_BY_IMAGE_KEYPOINT = tuple(f"image_keypoint_{name}" for name in ("AP", "AP50", "AP75", "PCK@0.1", "PCK@0.2", "gt"))


def write_metrics(path: str | os.PathLike, metrics: Mapping[str, float]) -> None:
    """Write ``metrics`` as one flat JSON object, keys sorted, plain floats, null for what is not finite; atomic."""
    plain = {key: float(value) for key, value in metrics.items()}
    finite = {key: value if math.isfinite(value) else None for key, value in plain.items()}
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump(finite, file, indent=2, sort_keys=True, allow_nan=False)
        file.write("\n")


def _text(value: float, count: bool = False) -> str:
    if math.isnan(value):
        return "-"
    return f"{int(value)}" if count else f"{value:.3f}"


def _class_table(
    title: str, columns: tuple[str, ...], metrics: Mapping[str, float], rows: str = "class"
) -> Table | None:
    names = [key.split("/", 1)[1] for key in metrics if key.startswith(f"{columns[0]}/")]
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(rows)
    for column in columns:
        table.add_column(column.removeprefix("image_").removeprefix("keypoint_").replace("_", " "), justify="right")
    for name in names:
        counts = [column.endswith("gt") or column in _COUNTS for column in columns]
        values = [_text(metrics.get(f"{c}/{name}", math.nan), count) for c, count in zip(columns, counts, strict=True)]
        absent = columns[-1].endswith("gt") and metrics.get(f"{columns[-1]}/{name}") == 0
        table.add_row(name, *values, style="dim" if absent else None)
    return table if names else None


def print_table(metrics: Mapping[str, float], console: Console | None = None) -> None:
    """Print detection scores, segmentation scores and whatever else there is, each as one table.

    Classes without ground truth are dimmed; a value that does not exist is shown as "-".
    """
    console = console or Console()
    detection = _class_table("Detection (matching and errors of detection_cvpr_2019)", _BY_DETECTION_CLASS, metrics)
    segmentation = _class_table("BEV segmentation (IoU at 0.5, at best)", _BY_LAYER, metrics)
    keypoints = _class_table("Keypoints (OKS-AP, PCK of matched objects)", _BY_KEYPOINT_CLASS, metrics)
    in_images = _class_table("Keypoints in images (OKS-AP, PCK)", _BY_IMAGE_KEYPOINT, metrics, rows="keypoint")
    panoptic = _class_table("Panoptic BEV (PQ, AP of instances, IoU of owners)", _BY_PANOPTIC_CLASS, metrics)
    columns: tuple[str, ...] = _BY_PANOPTIC_CLASS + _BY_DETECTION_CLASS + _BY_LAYER + _BY_TRACKED_CLASS
    columns += _BY_KEYPOINT_CLASS + _BY_IMAGE_KEYPOINT
    known = {key for key in metrics if key.split("/", 1)[0] in columns and "/" in key}
    rest = [key for key in metrics if key not in known]
    rest.sort(key=lambda key: _SUMMARY.index(key) if key in _SUMMARY else len(_SUMMARY))
    tracking = _class_table("Tracking (nuScenes, tracking_nips_2019)", _BY_TRACKED_CLASS, metrics)
    for table in (detection, segmentation, panoptic, keypoints, in_images, tracking):
        if table is not None:
            console.print(table)
    if rest:
        summary = Table(title="Summary", title_justify="left", title_style="bold", show_header=False)
        for key in rest:
            value = _text(float(metrics[key]), count=key in _COUNTS)
            summary.add_row(key, value, style="bold" if key in ("NDS", "mAP") else None)
        console.print(summary)
