"""The metrics file and the table."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from rich.console import Console

from bevstack.errors import InputError
from bevstack.evaluation.report import print_table, write_metrics


def test_file_is_flat_sorted_plain(tmp_path):
    # Expected: plain JSON of the values put in; NaN and infinity have no JSON form and become null.
    values = {"mAP": np.float32(0.5), "NDS": torch.tensor(0.25), "AVE/barrier": math.nan, "gt/car": 3, "x": -math.inf}
    write_metrics(tmp_path / "deep" / "metrics.json", values)
    text = (tmp_path / "deep" / "metrics.json").read_text()
    pairs = json.loads(text, object_pairs_hook=list)
    assert pairs == [("AVE/barrier", None), ("NDS", 0.25), ("gt/car", 3.0), ("mAP", 0.5), ("x", None)]


def test_unwritable_place_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="metrics.json: file: cannot be written"):
        write_metrics(tmp_path / "file" / "metrics.json", {"a": 1})


def test_table_shows_every_number():
    metrics = {"NDS": 0.4321, "mAP": 0.2, "loss": 1.5, "mIoU/map": 0.6543}
    metrics |= {"AP/car": 0.875, "ATE/car": 0.125, "AVE/car": math.nan, "gt/car": 12.0}
    metrics |= {"image_keypoint_AP/front_left": 0.2468, "image_keypoint_PCK@0.1/front_left": 0.1357}
    metrics |= {"image_keypoint_gt/front_left": 77.0, "image_keypoint_AP75/front_left": 0.9}
    metrics |= {"iou/divider": 0.3333, "iou_best/divider": 0.4, "best_threshold/divider": 0.45}
    out = io.StringIO()
    print_table(metrics, Console(file=out, width=120))
    text = out.getvalue()
    for shown in ("0.432", "0.875", "0.125", "12", "0.333", "0.450", "0.654", "1.500", "divider", "loss"):
        assert shown in text
    for shown in ("front_left", "0.247", "0.136", "77", "0.900", "PCK@0.1", "Keypoints in images"):
        assert shown in text
    assert text.index("NDS") < text.index("loss")
