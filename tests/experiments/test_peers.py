"""A step that another runtime runs from an exported file answers as the model does."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from bevstack.experiments.benchmarks.peers import export_onnx, peer_step
from tests.experiments.test_usual_formulation import clip_of_three, close, whole_model


@pytest.mark.parametrize("peer", ["onnxruntime", "openvino"])
def test_a_peer_answers_as_the_model(tmp_path, peer):
    # expected: the model's own second step, with its memory
    if importlib.util.find_spec(peer) is None or importlib.util.find_spec("onnxscript") is None:
        pytest.skip(f"{peer} or onnxscript is not installed (extra peers)")
    model, frames = whole_model(), clip_of_three().frames
    with torch.no_grad():
        _, memory = model.step(frames[0])
        bev, _ = model.step(frames[1], memory)
        expected = model.heads["detection"](bev)["logits"][-1]
    export_onnx(model, frames[1], memory, tmp_path / "step.onnx")
    found = peer_step(peer, tmp_path / "step.onnx", model, frames[1], memory)("float32")
    assert close(found[-1], expected, 1e-4)
