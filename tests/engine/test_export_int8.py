"""Files in eight bits, and parts of models as files; expected values: the float32 file's, which torch's own check."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from bevstack.engine.arguments import export_arguments
from bevstack.engine.config import load_config
from bevstack.engine.export import TOLERANCE, ExportSettings, Quantisation, export_model, model_of
from bevstack.engine.export_comparison import FRAMES, FRAMES_OF_MANY_PIXELS, onnx_runner, pt2_runner, usual_frames
from bevstack.engine.export_description import ImagePlan, usual_rig
from bevstack.engine.export_int8 import apart, image_nodes, training_samples
from bevstack.engine.export_onnx import traced, write_pt2
from bevstack.errors import InputError
from bevstack.runtime import load
from tests.engine.test_export import small_bevformer, small_multitask
from tests.integration.conftest import REPOSITORY

onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
MADE_UP = Quantisation(samples=0)


def kernels(path: Path, folder: Path) -> dict[str, int]:
    """How often each operator stands in what ONNX Runtime makes of a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3  # it says that the file is of this machine alone
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]
    return {name: names.count(name) for name in names}


def test_the_image_network_runs_in_eight_bits_from_end_to_end(tmp_path):
    """A ResNet-18 has 20 convolutions and 8 sums; the neck of BEVFormer tiny has 2 more. All are whole-number kernels,
    no rectifier is left beside them, and values leave eight bits only once, behind the neck."""
    cfg, model, size = small_bevformer()
    path = tmp_path / "int8.onnx"
    report = export_model(model, cfg, path, ExportSettings(source_size_px=size, frames=4, int8=MADE_UP))
    assert report.worst <= TOLERANCE  # of the float32 file in between
    assert set(report.int8_differences) == set(report.outputs)
    assert 0 < max(report.int8_differences.values()) < 0.05
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    weights = {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    convolutions = [node for node in graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 22
    for node in convolutions:
        weight = made[node.input[1]]
        assert weight.op_type == "DequantizeLinear" and weights[weight.input[0]].dtype == np.int8
        assert weights[weight.input[1]].shape == weights[weight.input[0]].shape[:1]  # a scale for each channel
        values = made[node.input[0]]
        assert values.op_type == "DequantizeLinear" and weights[values.input[2]].dtype == np.uint8
    found = kernels(path, tmp_path)
    assert found["QLinearConv"] == 22 and found["QLinearAdd"] == 8 and "Conv" not in found
    assert found["QuantizeLinear"] == 1 and found["DequantizeLinear"] == 1
    described = load(path).described
    assert described["int8"]["nodes"] >= 30 and described["num_slots"] == report.num_slots


def test_nodes_behind_the_cameras_stay_as_they_are(tmp_path):
    """The demo's BEV network and heads convolve, too, but what they read depends on more than the images."""
    cfg, model, size = small_multitask("demo", backbone=True)
    path = tmp_path / "demo.onnx"
    export_model(model, cfg, path, ExportSettings(source_size_px=size, frames=2))
    graph = onnx.load(path).graph
    chosen = set(image_nodes(graph))
    weights = [node.input[1] for node in graph.node if node.op_type == "Conv" and node.name in chosen]
    others = [node.input[1] for node in graph.node if node.op_type == "Conv" and node.name not in chosen]
    parts = ("model.backbone.", "model.neck.")
    named = [name for name in weights if name.startswith("model.")]
    assert len(named) > 20 and all(name.startswith(parts) for name in named)
    assert others and not any(name.startswith(parts) for name in others)


def test_apart_is_the_root_mean_square_of_what_differs():
    """Expected by hand: values 0 and 2 deviate by 1 from their mean; both are off by 0.5."""
    feeds = [{"x": np.array([0.0])}, {"x": np.array([2.0])}]
    found, times = apart(lambda feed: {"y": feed["x"] + 0.5}, lambda feed: {"y": feed["x"]}, feeds)
    assert found == {"y": pytest.approx(0.5)} and len(times) == 2


@pytest.mark.parametrize("memory", [True, False])
def test_backbone_and_encoder_alone_make_the_whole(tmp_path, memory):
    """Each differs from torch by no more than a whole model may; one after the other they give the model's B_t."""
    cfg, model, size = small_bevformer() if memory else small_multitask("demo", backbone=True)
    reports = {}
    for part in ("backbone", "encoder"):
        settings = ExportSettings(source_size_px=size, frames=6, part=part)
        reports[part] = export_model(model, cfg, tmp_path / f"{part}.onnx", settings)
        assert reports[part].worst <= TOLERANCE
        with pytest.raises(InputError, match=f"part: '{part}': a part alone has no boxes"):
            load(tmp_path / f"{part}.onnx")
    assert list(reports["backbone"].inputs) == ["images"]
    features = reports["backbone"].outputs
    assert list(features) == ["features_0"]
    assert reports["encoder"].inputs["features_0"] == features["features_0"]
    assert ("memory_features" in reports["encoder"].inputs) == memory
    grid = model.encoder.grid.shape
    assert reports["encoder"].outputs["bev"] == (1, model.encoder.channels, *grid)


def test_a_config_is_a_model_with_weights_drawn_at_random():
    place = str(REPOSITORY / "configs" / "bevformer" / "bevformer_tiny.py")
    options = ["model.encoder.num_layers=1", "model.backbone.depth=18", "model.neck.in_channels=[512]"]
    first, second = (model_of(place, None, options) for _ in range(2))
    assert len(first.encoder.layers) == 1 and not first.training
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(InputError, match="--cfg-options: change a config file"):
        model_of("work_dirs/demo", None, options)


def test_large_images_are_compared_on_fewer_frames():
    """Six cameras of 480 x 800 are more than a million pixels, six of 160 x 448 are not."""
    cfg, model, size = small_multitask("demo", backbone=True)
    images = ImagePlan(cfg, model, usual_rig(6, size), size)
    images.padded_size_px = (160, 448)
    assert usual_frames(images) == FRAMES == 20
    images.padded_size_px = (480, 800)
    assert usual_frames(images) == FRAMES_OF_MANY_PIXELS and FRAMES_OF_MANY_PIXELS // 2 > 1  # a scene has memory


def test_calibration_reads_the_training_split_as_in_a_test():
    cfg = load_config(REPOSITORY / "configs" / "demo.py")
    cfg.train_dataloader.dataset.data_root = cfg.test_dataloader.dataset.data_root = "nowhere"
    with pytest.raises(InputError, match="nowhere"):
        training_samples(cfg)
    cfg.pop("train_dataloader")
    with pytest.raises(InputError, match="train_dataloader: no dataset with a split"):
        training_samples(cfg)


def test_flags_that_do_not_fit_are_one_line(tmp_path):
    onnx_file, pt2_file = (["m", "--out", str(tmp_path / name)] for name in ("x.onnx", "x.pt2"))
    for given, line in (
        ([*pt2_file, "--int8"], "--int8: is of files that end in .onnx"),
        ([*onnx_file, "--machine-code"], "--machine-code: is of files that end in .pt2"),
        ([*onnx_file, "--calibration-samples", "-1"], "--calibration-samples: must not be negative"),
        ([*onnx_file, "--interface", "mlperf", "--part", "encoder"], "--part: encoder: MLPerf's interface"),
    ):
        with pytest.raises(InputError, match=line):
            export_arguments(given)


class Small(torch.nn.Module):
    """A convolution and a rectifier."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.convolution(x).relu(),)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_machine_code_is_the_module(tmp_path):
    torch.manual_seed(0)
    module, x = Small(), torch.randn(1, 3, 8, 9)
    write_pt2(traced(module, (x,)), tmp_path / "code.pt2", {"format": 1}, machine_code=True)
    found = pt2_runner(tmp_path / "code.pt2", ("y",), compiled=True)({"x": x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(found["y"], module(x)[0].numpy(), atol=1e-5)


def test_machine_code_needs_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match=r"--machine-code: no C\+\+ compiler"):
        write_pt2(traced(Small(), (torch.randn(1, 3, 8, 9),)), tmp_path / "x.pt2", {}, machine_code=True)


def test_the_runner_of_a_file_reads_what_the_file_reads(tmp_path):
    """An input that nothing reads is no input of an ONNX file; the one who runs it need not know."""
    cfg, model, size = small_multitask("demo", backbone=True)
    path = tmp_path / "backbone.onnx"
    report = export_model(model, cfg, path, ExportSettings(source_size_px=size, frames=2, part="backbone"))
    images = np.zeros(report.inputs["images"], np.float32)
    found = onnx_runner(path)({"images": images, "other": images})
    assert {name: value.shape for name, value in found.items()} == report.outputs
