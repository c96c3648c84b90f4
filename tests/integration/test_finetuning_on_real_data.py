"""docs/weights.md's commands on real frames: a step from weights of the demo's shape, on two makes of rig."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from bevstack.engine.checkpoint import read_checkpoint
from bevstack.engine.config import load_config
from bevstack.engine.models import build_model
from bevstack.engine.pack_weights import pack
from bevstack.engine.stored_config import config_text
from bevstack.weights.header import WeightsHeader
from tests.integration.conftest import REPOSITORY, printed_by, run

REALDATA = Path(os.environ.get("BEVSTACK_REALDATA", REPOSITORY.parent / "shared" / "realdata"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """The demo's model as it starts, packed as its trained weights are."""
    cfg = load_config(REPOSITORY / "configs" / "demo.py")
    torch.manual_seed(3)
    state = build_model(cfg, "cpu").state_dict()
    file = tmp_path_factory.mktemp("weights") / "demo.safetensors"
    header = WeightsHeader(cfg=config_text(cfg), classes=tuple(cfg.model.heads.detection.classes))
    assert pack(state, {}, cfg, header, file, half=True) < 6_000_000
    return file


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "folder"), [("real_keyframe.py", "nuscenes-keyframe-a"), ("real_temporal.py", "dgp-scene02")]
)
def test_a_step_on_real_frames(weights, tmp_path, capsys, monkeypatch, config, folder):
    # Expected: everything but the map's head, which these configs leave out, starts as the file's; one step is made.
    root = REALDATA / folder
    if not root.is_dir():
        pytest.skip(f"no real frames at {root}: set BEVSTACK_REALDATA")
    monkeypatch.setenv("BEVSTACK_REALDATA", str(REALDATA))
    printed_by(
        "tools/create_data.py", "nuscenes", "--root", root, "--version", "v1.0-mini", "--out", tmp_path / "index"
    )
    options = [f"{part}_dataloader.dataset.index_root={tmp_path / 'index'}" for part in ("train", "test")]
    options += ["train_cfg.max_epochs=1", "optim_wrapper.optimizer.lr=1e-12", "optim_wrapper.dtype=float32"]
    options += ["default_hooks.checkpoint.interval=1", "custom_hooks=[]"]
    arguments = [f"configs/{config}", "--finetune", weights, "--work-dir", tmp_path / "run", "--cfg-options", *options]
    assert run("tools/train.py", arguments) == 0
    printed = capsys.readouterr()
    line = next(line for line in (printed.out + printed.err).splitlines() if "weights taken" in line)
    assert "left out: heads.map." in line and "new: " not in line
    started, source = (read_checkpoint(file)["state_dict"] for file in (tmp_path / "run" / "epoch_1.pth", weights))
    for name in ("encoder.queries.weight", "heads.detection.box.1.weight"):
        torch.testing.assert_close(started[name], source[name].float(), rtol=1e-3, atol=1e-5)
