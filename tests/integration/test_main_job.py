"""The main job by its command lines, on a tiny synthetic set: index, train, resume, test, draw; and two processes."""

from __future__ import annotations

import json
import shutil
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from bevstack.datasets.nuscenes.index import NuScenesIndex
from bevstack.datasets.nuscenes.taxonomy import DETECTION_CLASSES
from bevstack.engine import test as test_tool
from bevstack.engine import train as train_tool
from bevstack.engine.checkpoint import read_checkpoint
from tests.integration.conftest import FRAMES, TRAIN_SCENES, VAL_SCENES, printed_by, run_command

STEPS_PER_EPOCH = TRAIN_SCENES * FRAMES // 2
LAYERS = ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider", "vehicle")


def val_tokens(tiny) -> list[str]:
    index = NuScenesIndex.open(tiny.root, "v1.0-mini")
    return [index.token(row) for row in index.samples("val")]


def test_training_writes_what_it_should(trained):
    assert sorted(path.name for path in trained.work_dir.glob("epoch_*.pth")) == ["epoch_1.pth", "epoch_2.pth"]
    assert (trained.work_dir / "last_checkpoint").read_text() == str(trained.work_dir / "epoch_2.pth")
    summary = json.loads((trained.work_dir / "train_summary.json").read_text())
    assert summary["steps"] == 2 * STEPS_PER_EPOCH and summary["epochs"] == 2 and summary["train_seconds"] > 0
    assert summary["checkpoint"] == str(trained.work_dir / "epoch_2.pth") and summary["precision"] == "float32"
    logs = [json.loads(line) for path in trained.work_dir.glob("*/vis_data/scalars.json") for line in open(path)]
    assert len(logs) == 2 * STEPS_PER_EPOCH
    for log in logs:
        assert np.isfinite(log["loss"]) and log["detection.loss_heatmap"] > 0 and log["map.loss_cell"] > 0
    first, last = (read_checkpoint(trained.work_dir / f"epoch_{n}.pth")["state_dict"] for n in (1, 2))
    moved = [name for name in first if not torch.equal(first[name], last[name])]
    assert {"encoder", "heads"} <= {name.split(".")[0] for name in moved}


def test_resuming_ends_at_the_same_weights(trained, tmp_path, capsys):
    # Expected: the uninterrupted training of the fixture, bit for bit (R1).
    for name in ("epoch_1.pth", "last_checkpoint"):
        shutil.copy(trained.work_dir / name, tmp_path / name)
    assert train_tool.main([str(trained.config), "--work-dir", str(tmp_path), "--resume"]) == 0
    assert f"resuming {tmp_path / 'epoch_1.pth'}" in capsys.readouterr().out
    straight, resumed = (read_checkpoint(folder / "epoch_2.pth") for folder in (trained.work_dir, tmp_path))
    assert resumed["meta"]["iter"] == straight["meta"]["iter"] == 2 * STEPS_PER_EPOCH
    assert set(straight["state_dict"]) == set(resumed["state_dict"])
    for name, value in straight["state_dict"].items():
        assert torch.equal(resumed["state_dict"][name], value), name


def test_scoring(trained, tmp_path):
    printed, _ = printed_by("tools/test.py", trained.config, trained.work_dir / "epoch_2.pth", "--out", tmp_path)
    assert "NDS" in printed and "drivable_area" in printed and str(tmp_path / "metrics.json") in printed
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    expected = {"NDS", "mAP", "mAP_present", "mATE", "mASE", "mAOE", "mAVE", "mAAE", "train_seconds"}
    expected |= {f"AP/{name}" for name in DETECTION_CLASSES}
    expected |= {f"{key}/{layer}" for key in ("iou", "iou_best") for layer in LAYERS}
    assert expected <= set(metrics)
    assert all(value is None or np.isfinite(value) for value in metrics.values())
    assert 0 <= metrics["NDS"] <= 1 and 0 <= metrics["iou/drivable_area"] <= 1
    summary = json.loads((trained.work_dir / "train_summary.json").read_text())
    assert metrics["train_seconds"] == summary["train_seconds"]

    # The devkit's own loader accepts the submission; it answers for every sample of the split and no other.
    from nuscenes.eval.common.loaders import load_prediction
    from nuscenes.eval.detection.data_classes import DetectionBox

    boxes, meta = load_prediction(str(tmp_path / "results_nusc.json"), 500, DetectionBox)
    assert sorted(boxes.sample_tokens) == sorted(val_tokens(trained))
    assert meta["use_camera"] and not meta["use_lidar"]
    assert not list(tmp_path.glob("*.tmp*")) and (trained.work_dir / "metrics.json").exists() is False


def test_pictures(trained, tmp_path):
    out = tmp_path / "vis"
    checkpoint = trained.work_dir / "epoch_2.pth"
    printed_by("tools/visualize.py", trained.config, checkpoint, "--out", out, "--score-thr", "0.05")
    pngs = sorted(out.glob("*/*.png"))
    assert len(pngs) == VAL_SCENES * FRAMES
    assert sorted(path.stem.split("_", 1)[1] for path in pngs) == sorted(val_tokens(trained))
    for path in pngs:
        picture = np.asarray(Image.open(path).convert("RGB"))
        assert min(picture.shape[:2]) > 200 and picture.std() > 10, f"{path} is empty"
    clips = list(out.glob("*.gif"))
    assert len(clips) == VAL_SCENES
    with Image.open(clips[0]) as clip:
        assert clip.n_frames == FRAMES


def test_two_processes(tiny, tmp_path):
    # torchrun over gloo, one stream a rank: other scenes on each, the same weights on both, half the steps.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["train_dataloader.batch_size=1", "train_dataloader.sampler.batch_size=1", "train_cfg.max_epochs=1"]
    printed = run_command(
        *("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)),
        *("tools/train.py", tiny.config, "--work-dir", tmp_path, "--launcher", "pytorch", "--cfg-options", *options),
    ).stdout
    assert "2 processes" in printed
    summary = json.loads((tmp_path / "train_summary.json").read_text())
    assert summary["processes"] == 2 and summary["steps"] == STEPS_PER_EPOCH
    checkpoint = read_checkpoint(tmp_path / "epoch_1.pth")
    index = NuScenesIndex.open(tiny.root, "v1.0-mini")
    scenes = []
    for state in checkpoint["meta"]["rank_states"]:
        (token,) = state["streams"]["tokens"]
        scenes.append(index.scene(index.row_of[token])["name"])
    assert len(set(scenes)) == 2
    assert all(torch.isfinite(value).all() for value in checkpoint["state_dict"].values() if value.is_floating_point())


@pytest.mark.parametrize("tool", [train_tool, test_tool])
def test_a_missing_checkpoint_leaves_nothing_behind(tiny, tmp_path, tool):
    from bevstack.errors import InputError

    arguments = [str(tiny.config), "--work-dir", str(tmp_path / "run")]
    absent = str(tmp_path / "absent.pth")
    arguments = [*arguments, "--resume", absent] if tool is train_tool else [arguments[0], absent, *arguments[1:]]
    with pytest.raises(InputError, match="absent.pth: checkpoint: no such file"):
        tool.main(arguments)
    assert not list(tmp_path.rglob("*.pth")) and not (tmp_path / "run" / ".train.lock").exists()
