"""docs/export.md as it stands: its commands write the tiny demo, its program runs the file where there is no torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bevstack import load_model
from bevstack.engine.checkpoint import checkpoint_of
from bevstack.engine.export_description import usual_rig
from tests.bare_environment import bare_environment, wanted_by
from tests.integration.conftest import IMAGE_SIZE, Tiny, printed_by, run
from tests.integration.pages import Page
from tests.processes import run_captured

pytest.importorskip("onnx", reason="the extra 'export' is not installed")
SMALL = ["model.backbone.depth=18", "model.neck.in_channels=[512]", "model.encoder.num_layers=1"]
"""Of BEVFormer tiny, whose 375 GFLOP a frame are for no test."""
SCORES = ("score", "work_dirs/score_float32", "work_dirs/score_int8")
PAGE = Page("export.md")
FIRST, *OTHERS = PAGE.commands
MACHINE_CODE = [command for command in OTHERS if "--machine-code" in command]
INT8 = [command for command in OTHERS if any("int8" in part or "score" in part for part in command)]
REST = [command for command in OTHERS if command not in MACHINE_CODE + INT8]


def follow(command: list[str], trained: Tiny, folder: Path) -> None:
    """Run a command of the page with the tiny demo in place of the demo; what it writes lies in the folder."""
    tool, *given = command
    height, width = IMAGE_SIZE
    places = {"work_dirs/demo": trained.work_dir, "configs/demo.py": trained.config, "450x800": f"{height}x{width}"}
    written = {part: folder / part for part in given if part.endswith((".onnx", ".pt2")) or part in SCORES}
    arguments = [(places | written).get(part, part) for part in given]
    if tool == "tools/benchmark.py":
        arguments += ["--quick"]
    if tool != "tools/export.py":
        printed_by(tool, *arguments)
        return
    small = given[0].endswith("bevformer_tiny.py")
    arguments += ["--image-size", "60x100", "--cfg-options", *SMALL] if small else []
    out, _ = printed_by(tool, *arguments, "--frames", "4", "--json", folder / "report.json")
    report = json.loads((folder / "report.json").read_text())
    assert max(report["differences"].values()) < 1e-4  # the page's limit, of torch's largest value
    for said in ("wrote ", "input     ", "output    ", "differs ", "takes "):
        assert said in out
    assert ("operators" in out) == report["file"].endswith(".onnx")
    assert ("INT8" in out) == ("--int8" in given) and ("drawn at random" in out) == small


def test_the_first_command_and_the_program(trained, tmp_path):
    follow(FIRST, trained, tmp_path)
    height, width = IMAGE_SIZE
    rig = usual_rig(6, (height, width))
    images = np.random.default_rng(0).integers(0, 256, (3, 6, height, width, 3), dtype=np.uint8)
    moved = np.tile(np.eye(4), (3, 1, 1))
    matrices = dict(pixels_from_camera=rig.pixels_from_camera, camera_from_bev=rig.camera_from_bev)
    np.savez(tmp_path / "clip.npz", images=images, previous_from_current=moved, **matrices)
    python = bare_environment(tmp_path / "bare", wanted_by("numpy", "onnxruntime"))
    program = PAGE.files["examples/run_exported.py"]
    done = run_captured([str(python), "-c", program], 120, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    classes = load_model(trained.work_dir, device=torch.device("cpu")).classes
    assert done.stdout.splitlines()[-1].endswith(str(list(classes)))


@pytest.mark.slow
@pytest.mark.parametrize("command", REST, ids=lambda command: command[command.index("--out") + 1])
def test_the_other_files(trained, tmp_path, command):
    follow(command, trained, tmp_path)


@pytest.mark.slow
def test_int8_and_what_files_score(trained, tmp_path):
    """Expected: of the float32 file what its checkpoint scores, of INT8 nearly the same."""
    assert [command[0] for command in INT8] == ["tools/export.py", *["tools/test.py"] * 2, "tools/benchmark.py"]
    for command in (FIRST, *INT8):
        follow(command, trained, tmp_path)
    assert run("tools/test.py", [trained.config, checkpoint_of(trained.work_dir), "--out", tmp_path / "score"]) == 0
    scores = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in SCORES]
    compared = [key for key, value in scores[0].items() if key.startswith(("mAP", "mIoU", "NDS")) and value is not None]
    assert {"mAP", "mIoU/map", "mIoU/vehicle"} <= set(compared)
    for key in compared:
        assert scores[1][key] == pytest.approx(scores[0][key], abs=1e-3), key
        assert scores[2][key] == pytest.approx(scores[0][key], abs=0.05), key


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_machine_code(trained, tmp_path):
    (command,) = MACHINE_CODE
    follow(command, trained, tmp_path)
