"""docs/export.md as it stands: its commands write the tiny demo, its program runs the file where there is no torch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bevstack import load_model
from bevstack.engine.export_description import usual_rig
from tests.bare_environment import bare_environment, wanted_by
from tests.integration.conftest import IMAGE_SIZE, printed_by
from tests.integration.pages import Page
from tests.processes import run_captured

pytest.importorskip("onnx", reason="the extra 'export' is not installed")


def test_the_commands_and_the_program(trained, tmp_path):
    page, height, width = Page("export.md"), *IMAGE_SIZE
    assert len(page.commands) == 2
    for tool, *arguments in page.commands:
        places = {"work_dirs/demo": trained.work_dir, "450x800": f"{height}x{width}"}
        places |= {name: tmp_path / name for name in ("demo.onnx", "demo.pt2")}
        report = tmp_path / "report.json"
        given = [places.get(part, part) for part in arguments] + ["--frames", "4", "--json", report]
        out, _ = printed_by(tool, *given)
        written = json.loads(report.read_text())
        assert max(written["differences"].values()) < 1e-4  # the page's limit, of torch's largest value
        for said in ("wrote ", "input     images 1x6x3x64x128", "differs ", "takes "):
            assert said in out
        assert ("operators" in out) == (written["file"].endswith(".onnx"))
    rig = usual_rig(6, (height, width))
    images = np.random.default_rng(0).integers(0, 256, (3, 6, height, width, 3), dtype=np.uint8)
    moved = np.tile(np.eye(4), (3, 1, 1))
    matrices = dict(pixels_from_camera=rig.pixels_from_camera, camera_from_bev=rig.camera_from_bev)
    np.savez(tmp_path / "clip.npz", images=images, previous_from_current=moved, **matrices)
    python = bare_environment(tmp_path / "bare", wanted_by("numpy", "onnxruntime"))
    program = page.files["examples/run_exported.py"]
    done = run_captured([str(python), "-c", program], 120, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    classes = load_model(trained.work_dir, device=torch.device("cpu")).classes
    assert done.stdout.splitlines()[-1].endswith(str(list(classes)))
