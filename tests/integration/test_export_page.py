"""docs/export.md as it stands: its commands write the tiny demo, its program runs the file where there is no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bevstack import load_model
from bevstack.engine.checkpoint import checkpoint_of
from bevstack.engine.export_description import usual_rig
from tests.integration.conftest import IMAGE_SIZE, REPOSITORY, printed_by, run
from tests.integration.pages import Page
from tests.processes import run_captured

pytest.importorskip("onnx", reason="the extra 'export' is not installed")
BLOCKED = "import sys\nsys.modules.update(dict.fromkeys(('torch', 'mmengine', 'mmcv', 'mmdet3d', 'cv2', 'scipy')))\n"


SMALL = ["model.backbone.depth=18", "model.neck.in_channels=[512]", "model.encoder.num_layers=1"]
"""Of BEVFormer tiny, whose 375 GFLOP a frame are for no test."""
FOLDERS = ("score", "work_dirs/score_float32", "work_dirs/score_int8")


def export(tool: str, given: list, report: Path) -> None:
    """One command of the page, and what it says about every export."""
    small = [*SMALL] if str(given[0]).endswith("bevformer_tiny.py") else []
    if small:
        given = [*given, "--image-size", "60x100", "--cfg-options", *small]
    out, _ = printed_by(tool, *given, "--frames", "4", "--json", report)
    written = json.loads(report.read_text())
    assert max(written["differences"].values()) < 1e-4  # the page's limit, of torch's largest value
    for said in ("wrote ", "input     ", "output    ", "differs ", "takes "):
        assert said in out
    assert ("operators" in out) == (written["file"].endswith(".onnx"))
    assert ("INT8" in out) == ("--int8" in given) and ("drawn at random" in out) == bool(small)


@pytest.mark.slow
def test_the_commands_and_the_program(trained, tmp_path):
    page, height, width = Page("export.md"), *IMAGE_SIZE
    places = {"work_dirs/demo": trained.work_dir, "configs/demo.py": trained.config, "450x800": f"{height}x{width}"}
    names = {part for command in page.commands for part in command if part.endswith((".onnx", ".pt2"))}
    places |= {name: tmp_path / name for name in names}
    places |= {name: tmp_path / name for name in ("work_dirs/score_float32", "work_dirs/score_int8")}
    exports = 0
    for tool, *arguments in page.commands:
        given = [places.get(part, part) for part in arguments]
        if tool == "tools/export.py":
            exports += 1
            export(tool, given, tmp_path / "report.json")
        elif tool == "tools/test.py":
            printed_by(tool, *given)
        else:
            printed_by(tool, *given, "--quick", "--frames", "2")
    assert exports == len(names) == 8
    # The same metrics of a file as of the checkpoint that it was made of, and of INT8 nearly the same.
    assert run("tools/test.py", [trained.config, checkpoint_of(trained.work_dir), "--out", tmp_path / "score"]) == 0
    scores = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in FOLDERS]
    for key, expected in scores[0].items():
        if key.startswith(("mAP", "mIoU", "NDS")) and expected is not None:
            assert scores[1][key] == pytest.approx(expected, abs=1e-3), key
            assert scores[2][key] == pytest.approx(expected, abs=0.05), key
    rig = usual_rig(6, (height, width))
    images = np.random.default_rng(0).integers(0, 256, (3, 6, height, width, 3), dtype=np.uint8)
    moved = np.tile(np.eye(4), (3, 1, 1))
    matrices = dict(pixels_from_camera=rig.pixels_from_camera, camera_from_bev=rig.camera_from_bev)
    np.savez(tmp_path / "clip.npz", images=images, previous_from_current=moved, **matrices)
    program = BLOCKED + page.files["examples/run_exported.py"]
    environment = {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = run_captured([sys.executable, "-c", program], 120, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    classes = load_model(trained.work_dir, device=torch.device("cpu")).classes
    assert done.stdout.splitlines()[-1].endswith(str(list(classes)))
