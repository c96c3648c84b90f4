"""A scene head is added to a trained model, and trained, scored and drawn by the tools; nothing else moves by a bit."""

from __future__ import annotations

import json

import torch

from bevstack.engine.checkpoint import read_checkpoint
from bevstack.engine.config import load_config
from bevstack.engine.test import main as score
from bevstack.engine.train import main as train
from bevstack.engine.visualize import main as visualize
from tests.integration.conftest import FRAMES, VAL_SCENES

LOCATIONS = ("boston-seaport", "singapore-hollandvillage", "singapore-onenorth", "singapore-queenstown")
FROZEN = ("backbone", "neck", "encoder", "temporal_fusion", "bev_neck", "heads.detection", "heads.map", "heads.vehicle")


def with_scene_head(trained, checkpoint: str):
    """The trained configuration with one head more and everything else frozen."""
    cfg = load_config(trained.config)
    tasks = dict(time=("day", "night"), weather=("dry", "rain"), location=LOCATIONS)
    grid = cfg.model.heads.detection.grid
    cfg.model.heads.scene = dict(type="SceneHead", in_channels=64, grid=grid, image_channels=96, tasks=tasks)
    cfg.model.update(frozen=FROZEN, loss_balancing=dict(type="UncertaintyWeights"))
    cfg.optim_wrapper.paramwise_cfg = dict(custom_keys={"balancing.log_variance": dict(decay_mult=0.0)})
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset.pipeline.insert(-1, dict(type="LoadSceneLabels"))
    cfg.test_evaluator.append(dict(type="SceneMetric"))
    cfg.load_from, cfg.train_cfg.max_epochs = checkpoint, 1
    return cfg


def test_a_head_added_to_a_trained_model(trained, tmp_path, capfd):
    checkpoint = json.loads((trained.work_dir / "train_summary.json").read_text())["checkpoint"]
    config = tmp_path / "scene.py"
    with_scene_head(trained, checkpoint).dump(config)
    assert train([str(config), "--work-dir", str(tmp_path / "run")]) == 0
    # 2 layer norms, a hidden layer and three classifiers of two tensors each; one log variance a head
    printed = "".join(capfd.readouterr())
    assert f"{checkpoint}: new weights, not in the file: heads.scene (12), balancing (1)\n" in printed
    assert "requires_grad" not in printed, "no line for every tensor that is frozen"

    # Expected: the file that training started from; its averaged weights are what was loaded.
    after = json.loads((tmp_path / "run" / "train_summary.json").read_text())["checkpoint"]
    before, now = read_checkpoint(checkpoint)["state_dict"], read_checkpoint(after)
    new = set(now["state_dict"]) - set(before)
    assert len(new) == 13 and all(name.startswith(("heads.scene.", "balancing.")) for name in new)
    for name, value in before.items():
        assert torch.equal(now["state_dict"][name], value), name
        assert torch.equal(now["ema_state_dict"][f"module.{name}"], value), name
    logs = [json.loads(line) for path in (tmp_path / "run").glob("*/vis_data/scalars.json") for line in open(path)]
    assert all({"scene.loss_time", "weight.scene", "weight.map", "task.detection"} <= set(log) for log in logs)

    # Every other head scores what it scored, to the last digit.
    assert score([str(trained.config), checkpoint, "--out", str(tmp_path / "before")]) == 0
    assert score([str(config), after, "--out", str(tmp_path / "after")]) == 0
    old, new = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("before", "after"))
    assert old.keys() <= new.keys()
    assert [key for key in old if new[key] != old[key] and key != "train_seconds"] == []
    assert {f"scene_{score}/{task}" for score in ("accuracy", "f1") for task in ("time", "location")} <= new.keys()

    assert visualize([str(config), after, "--out", str(tmp_path / "vis"), "--format", "none"]) == 0
    assert len(list((tmp_path / "vis").glob("*/*.png"))) == VAL_SCENES * FRAMES
