"""Temperatures of heads: what counts as right, and where the temperature is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bevstack.engine.calibrate import calibrated_heads, calibration_of, gathered, with_temperatures
from bevstack.engine.models import build_model
from bevstack.evaluation.temperature import bin_logits, logit_counts
from bevstack.structures import BEVDataSample, BEVRaster
from tests.engine.front_door import CLASSES, GRID, small_config

TASKS = dict(time=("day", "night"))


def model_of(**temperatures):
    cfg = small_config()
    cfg.model.heads.scene = dict(type="SceneHead", in_channels=8, grid=GRID, tasks=TASKS)
    return build_model(with_temperatures(cfg, temperatures), "cpu").eval()


def test_temperatures_are_kept_where_the_heads_read_them():
    cfg = small_config()
    with_temperatures(cfg, {"boxes": 2.0, "map": 3.0})
    assert cfg.model.heads.boxes.decoding == dict(score_threshold=0.0, temperature=2.0)
    assert cfg.model.heads.map.temperature == 3.0
    with_temperatures(cfg, {})
    assert cfg.model.heads.boxes == small_config().model.heads.boxes
    assert cfg.model.heads.map == small_config().model.heads.map
    assert calibrated_heads(model_of()) == ["boxes", "map", "scene"]


def test_what_is_right_is_counted():
    # Expected by hand: of two layers of 120 cells, road is said with 0.9 and there in half of the cells, grass with
    # 0.2 and nowhere; the scene is said to be night with 0.7, and it is day.
    model = model_of()
    grid = model.heads["map"].grid
    sample = BEVDataSample(metainfo={"token": "a", "scene_name": "s"})
    said = torch.stack([torch.full(grid.shape, 0.9), torch.full(grid.shape, 0.2)])
    there = torch.zeros(2, *grid.shape, dtype=torch.uint8)
    there[0, :6] = 1
    sample.set_field({"map": BEVRaster(said, ("road", "grass"), grid)}, "pred_rasters")
    sample.set_field({"map": BEVRaster(there, ("road", "grass"), grid)}, "gt_rasters")
    sample.set_field({"time": {"names": TASKS["time"], "probabilities": torch.tensor([0.3, 0.7])}}, "pred_scene")
    sample.set_field({"time": "day"}, "gt_scene")
    counts = gathered(model, [sample, sample], CLASSES)
    found = {name: [tuple(row) for row in rows[rows[:, 0] > 0]] for name, rows in counts.items()}
    assert found == {"boxes": [], "map": [(240, 0), (240, 120)], "scene": [(2, 2), (2, 0)]}
    middles = bin_logits()[counts["scene"][:, 0] > 0]
    np.testing.assert_allclose(middles, [np.log(3 / 7), np.log(7 / 3)], atol=0.011)


def test_a_heads_numbers():
    # Expected: of 1,000 answers with 0.9 half are right (error 0.4); no temperature makes 0.9 say 0.5 but the largest,
    # which leaves logit 2.2 / 10: 0.555 (error 0.055).
    counts = logit_counts(np.full(1000, 0.9), np.arange(1000) % 2 == 0)
    numbers = calibration_of(counts, counts)
    assert numbers["temperature"] == pytest.approx(10, rel=0.01)
    assert numbers["before"] == pytest.approx(0.4, abs=2e-3) and numbers["after"] == pytest.approx(0.055, abs=2e-3)
    nothing = logit_counts(np.zeros(0), np.zeros(0, bool))
    assert list(calibration_of(counts, nothing)) == ["temperature"]


def test_heads_divide_their_logits():
    # Expected: the probabilities of logits halved; the boxes and their order as before.
    one, other = model_of(), model_of(boxes=2.0, map=2.0, scene=2.0)
    other.load_state_dict(one.state_dict())
    samples = [BEVDataSample()]
    logits = torch.randn(1, 2, *one.heads["map"].grid.shape)
    (rasters,) = other.heads["map"].predict({"logits": logits}, samples)
    torch.testing.assert_close(rasters["pred_rasters"]["map"].layers, (logits[0] / 2).sigmoid())
    (scene,) = other.heads["scene"].predict({"time": torch.tensor([[1.0, 3.0]])}, samples)
    expected = torch.tensor([0.5, 1.5]).softmax(0)
    torch.testing.assert_close(scene["pred_scene"]["time"]["probabilities"], expected)
    shape = one.heads["boxes"].grid.shape
    raw = {"heatmap": torch.randn(1, 2, *shape), "box": torch.randn(1, 10, *shape)}
    found, tempered = (model.heads["boxes"].predict(raw, samples)[0]["pred_instances_3d"] for model in (one, other))
    assert len(found) > 3 and torch.equal(found.bboxes_3d.tensor, tempered.bboxes_3d.tensor)
    torch.testing.assert_close(tempered.scores_3d, (found.scores_3d.logit() / 2).sigmoid())
