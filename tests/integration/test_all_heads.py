"""``configs/multitask/all_heads.py`` on the tiny set: one command trains every head, one scores, one draws."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from bevstack.engine.config import load_config
from tests.integration.conftest import FRAMES, REPOSITORY, shrunken
from tests.integration.pages import logs_of, run

HEADS = ("detection", "map", "vehicle", "masks", "keypoints", "behaviour", "scene", "appearance")


@pytest.fixture
def config(tiny):
    path = tiny.config.with_name("all_heads.py")
    cfg = shrunken(load_config(REPOSITORY / "configs" / "multitask" / "all_heads.py"), tiny.root)
    cfg.train_cfg.max_epochs = 1
    cfg.dump(path)
    return path


@pytest.mark.slow
def test_every_head_trains_is_scored_and_drawn(config, tmp_path):
    assert run("tools/train.py", [str(config), "--work-dir", str(tmp_path)]) == 0
    for log in logs_of(tmp_path):
        assert np.isfinite(log["loss"])
        assert {name.split(".")[0] for name in log if ".loss" in name or ".d0.loss" in name} >= set(HEADS)
    checkpoint = json.loads((tmp_path / "train_summary.json").read_text())["checkpoint"]
    assert run("tools/test.py", [str(config), checkpoint, "--out", str(tmp_path)]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    expected = {"NDS", "mAP", "mIoU/map", "iou/vehicle", "PQ", "mask_AP50", "keypoint_AP50", "PCK@1m", "behaviour_f1"}
    assert expected | {"scene_accuracy/time", "scene_accuracy/weather"} <= set(metrics)
    out = tmp_path / "vis"
    arguments = [str(config), checkpoint, "--out", str(out), "--max-samples", "1", "--format", "none"]
    assert run("tools/visualize.py", arguments) == 0
    (picture,) = out.glob("*/*.png")
    assert np.asarray(Image.open(picture).convert("RGB")).std() > 10 and FRAMES > 1
