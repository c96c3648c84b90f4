"""Exported files against torch on a stream with a scene change; expected values: the model's own step in float32."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bevstack import Predictor
from bevstack.engine.arguments import export_arguments
from bevstack.engine.config import load_config
from bevstack.engine.export import TOLERANCE, ExportReport, ExportSettings, export_model
from bevstack.engine.export_comparison import made_up_clip, onnx_runner
from bevstack.engine.export_description import ImagePlan, usual_rig
from bevstack.engine.export_onnx import MOST_AXES, inverse_of_affine, traced, write_onnx
from bevstack.engine.models import build_model
from bevstack.errors import InputError
from bevstack.experiments.benchmarks.inputs import scattered
from bevstack.ops.modulated_deform_conv import modulated_deform_conv
from bevstack.runtime import load
from bevstack.runtime.visibility import cameras_a_cell
from bevstack.structures.moment import Motion
from tests.integration.conftest import REPOSITORY, shrunken

onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
FRAMES = 20
RESNET = dict(
    type="mmdet.ResNet", depth=18, num_stages=4, norm_cfg=dict(type="BN", requires_grad=False), norm_eval=True
)


def small_bevformer(compat: str | None = None, with_map: bool = False):
    """BEVFormer tiny with fewer layers, queries and cells on small images, its weights drawn at random."""
    options = [] if compat is None else [f"compat={compat}"]
    cfg = load_config(REPOSITORY / "configs" / "bevformer" / "bevformer_tiny.py", options)
    cfg.pop("load_from", None)
    grid = dict(shape=(10, 12))
    cfg.model.encoder.grid.update(grid)
    cfg.model.heads.detection.grid.update(grid)
    cfg.model.backbone = dict(RESNET, out_indices=(3,))
    cfg.model.neck.in_channels = [512]
    cfg.model.encoder.num_layers = 1
    cfg.model.heads.detection.num_queries = 30
    cfg.model.heads.detection.decoder.num_layers = 2
    if with_map:
        head = dict(type="SemanticSegmentationHead", in_channels=256, grid=grid, raster="map", classes=("road",))
        cfg.model.heads.map = head
    return cfg, built(cfg), (60, 100)


def small_multitask(name: str, backbone: bool):
    """The demo's model, or that with every head, on a quarter of the cells; its weights drawn at random."""
    cfg = shrunken(load_config(REPOSITORY / "configs" / f"{name}.py"), Path("nowhere"))
    cfg.model.backbone.pop("pretrained", None)
    if backbone:
        cfg.model.backbone = dict(RESNET, out_indices=(1, 2, 3))
        cfg.model.neck.in_channels = (128, 256, 512)
    return cfg, built(cfg), (72, 128)


def built(cfg):
    torch.manual_seed(0)
    model = build_model(cfg, "cpu").eval()
    scattered(model)
    return model


def checked(report: ExportReport, path: Path) -> None:
    """A file of standard operators and fixed shapes, with no tensor of too many axes, that says what torch says."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True)
    assert {opset.domain: opset.version for opset in model.opset_import}.get("", 0) in (19, 20)
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"} and not model.functions
    assert report.operators["GridSample"] >= 1 and "NonZero" not in report.operators
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    assert len(values) > 100
    for value in values:
        sizes = value.type.tensor_type.shape.dim
        assert len(sizes) <= MOST_AXES and all(size.HasField("dim_value") for size in sizes), value.name
    assert set(report.differences) == set(report.outputs) and report.worst <= TOLERANCE


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The demo's model, small, and its file."""
    cfg, model, size = small_multitask("demo", backbone=True)
    torch.nn.init.normal_(model.heads.detection.heatmap[1].bias, -1.0, 1.0)  # so that something is found
    path = tmp_path_factory.mktemp("export") / "demo.onnx"
    report = export_model(model, cfg, path, ExportSettings(source_size_px=size, frames=FRAMES))
    return cfg, model, path, report


@pytest.fixture(scope="module")
def bevformer(tmp_path_factory):
    """BEVFormer tiny, small, as published, and its file for MLPerf."""
    cfg, model, size = small_bevformer("bevformer_v1")
    path = tmp_path_factory.mktemp("export") / "mlperf.onnx"
    return cfg, model, path, export_model(model, cfg, path, ExportSettings("mlperf", size, frames=FRAMES))


def test_the_demo_and_every_output_of_a_stream(demo):
    *_, path, report = demo
    checked(report, path)
    names = {"detection.heatmap", "detection.box", "map.logits", "vehicle.logits", "new_memory_features"}
    assert set(report.outputs) == names


def test_every_head(tmp_path):
    cfg, model, size = small_multitask("multitask/all_heads", backbone=True)
    path = tmp_path / "all.onnx"
    report = export_model(model, cfg, path, ExportSettings(source_size_px=size, frames=FRAMES))
    checked(report, path)
    heads = {name.split(".")[0] for name in report.outputs if "." in name}
    assert heads == set(cfg.model.heads) and "memory_poses" in report.inputs


def test_bevformer_by_the_names_of_mlperf(bevformer):
    """Names, order and shapes: mlperf_automotive's backend_deploy.py and preprocess.py, on 120 cells."""
    _, model, path, report = bevformer
    checked(report, path)
    cells = (120, 1, 256)
    shapes = {"img": (1, 6, 3, 32, 64), "prev_bev": cells, "use_prev_bev": (), "can_bus": (18,)}
    assert list(report.inputs.items()) == [*shapes.items(), ("lidar2img", (1, 6, 4, 4))]
    assert report.outputs == {"bev": cells, "cls": (2, 1, 30, 10), "coords": (2, 1, 30, 10)}
    graph = onnx.load(path).graph
    assert [entry.name for entry in graph.input] == list(report.inputs)  # the harness takes them by position
    with pytest.raises(InputError, match="another interface|run by its own harness"):
        load(path)
    model.alignment.motion = "bev"
    with pytest.raises(InputError, match="compat"):
        export_model(model, bevformer[0], path, ExportSettings("mlperf"))
    model.alignment.motion = "can_bus"


def test_bevformer_with_a_map(tmp_path):
    cfg, model, size = small_bevformer(with_map=True)
    path = tmp_path / "tiny.onnx"
    report = export_model(model, cfg, path, ExportSettings(source_size_px=size, frames=FRAMES))
    checked(report, path)
    assert report.inputs["memory_features"] == (1, 1, 256, 10, 12) and report.inputs["can_bus"] == (1, 18)
    assert set(report.outputs) == {"detection.logits", "detection.boxes", "map.logits", "new_memory_features"}


def test_torchs_own_archive(demo, tmp_path):
    """Run anew from the file alone; BEVFormer's parts are in the other tests."""
    cfg, model, *_ = demo
    path = tmp_path / "demo.pt2"
    report = export_model(model, cfg, path, ExportSettings(source_size_px=(72, 128), frames=4))
    assert report.worst <= TOLERANCE and report.bytes == path.stat().st_size
    extra = {"bevstack.json": ""}
    torch.export.load(path, extra_files=extra)
    assert json.loads(extra["bevstack.json"])["classes"] == list(cfg.classes)


def test_a_rig_that_needs_more_slots_is_refused(demo, tmp_path):
    """Neighbouring cameras overlap, so that one slot a cell is too few."""
    cfg, model, *_ = demo
    with pytest.raises(InputError, match="seen by 2 cameras; 1 slots"):
        export_model(model, cfg, tmp_path / "x.onnx", ExportSettings(source_size_px=(72, 128), num_slots=1))
    with pytest.raises(InputError, match="--out: ends in .engine"):
        export_model(model, cfg, tmp_path / "x.engine")


def test_bad_arguments_are_one_line(tmp_path):
    for given, line in (
        (["m", "--out", "x.trt"], "x.trt: --out: ends in '.trt'; there are .onnx and .pt2"),
        (["m", "--out", str(tmp_path / "x.onnx"), "--image-size", "900"], "m: --image-size: '900' is no HEIGHTxWIDTH"),
        (["m", "--out", str(tmp_path / "x.onnx"), "--frames", "0"], "m: --frames: must be positive, not 0"),
    ):
        with pytest.raises(InputError) as caught:
            export_arguments(given)
        assert str(caught.value).startswith(line)


class Deformable(torch.nn.Module):
    """A deformable convolution of two groups with a stride, without or with a bias."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(6, 4, 3, 3))
        self.bias = torch.nn.Parameter(torch.randn(6)) if bias else None

    def forward(self, x: torch.Tensor, offset: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return modulated_deform_conv(x, offset, mask, self.weight, self.bias, 2, 1, 1, groups=2, deform_groups=2)


@pytest.mark.parametrize("bias", [False, True])
def test_deformable_convolution_is_onnxs_own(tmp_path, bias):
    """Expected: the convolution itself, whose conventions are mmcv's (tests/ops)."""
    torch.manual_seed(0)
    module = Deformable(bias)
    inputs = (torch.randn(2, 8, 9, 10), torch.randn(2, 36, 5, 5) * 2, torch.rand(2, 18, 5, 5))
    names = ("x", "offset", "mask")
    operators = write_onnx(traced(module, inputs), tmp_path / "d.onnx", (names, ("y",)), {})
    assert operators == {"DeformConv": 1}
    found = onnx_runner(tmp_path / "d.onnx")({n: value.numpy() for n, value in zip(names, inputs, strict=True)})
    with torch.no_grad():
        np.testing.assert_allclose(found["y"], module(*inputs).numpy(), atol=1e-4)


def test_inverse_of_affine_is_numpys():
    matrices = np.tile(np.eye(4), (5, 1, 1))
    matrices[:, :3] = np.random.default_rng(0).normal(size=(5, 3, 4))
    found = inverse_of_affine(torch.from_numpy(matrices)).numpy()
    np.testing.assert_allclose(found, np.linalg.inv(matrices), atol=1e-10)


def moments():
    """Two smooth random moments of six cameras of 72 x 128 pixels, their rig, and the motion between them."""
    generator = np.random.default_rng(1)
    coarse = generator.integers(0, 256, (2, 6, 9, 16, 3), dtype=np.uint8)
    return coarse.repeat(8, axis=2).repeat(8, axis=3), usual_rig(6, (72, 128))


WITHOUT_TORCH = """
import sys
for name in ("torch", "mmengine", "mmcv", "mmdet", "mmdet3d", "cv2", "scipy", "PIL", "numba"):
    sys.modules[name] = None  # importing it fails
import numpy as np
from bevstack.runtime import Motion, load
given = np.load(sys.argv[2])
model = load(sys.argv[1], threads=1)
moved = np.eye(4)
moved[1, 3] = 1.5
found, memory = {}, None
for step, motion in enumerate((None, Motion(moved))):
    arguments = list(given["images"][step]), given["intrinsics"], given["poses"]
    prediction, memory = model.step(*arguments, motion, memory)
    found |= {f"{step}.{name}": value for name, value in prediction.raw.items()}
    boxes = prediction.boxes["detection"]
    found |= {f"{step}.boxes": boxes.boxes, f"{step}.scores": boxes.scores, f"{step}.labels": boxes.labels}
    assert boxes.names == tuple(model.described["classes"][label] for label in boxes.labels)
    assert prediction.layers["map"].shape[0] == len(model.described["heads"]["map"]["classes"])
ours = sorted(name for name in sys.modules if name.startswith("bevstack.") and sys.modules[name])
assert all(name.split(".")[1] in ("runtime", "errors", "interop") for name in ours), ours
np.savez(sys.argv[3], **found)
"""


def test_the_runtime_says_what_the_predictor_says_where_there_is_no_torch(demo, tmp_path):
    """Expected: :class:`bevstack.Predictor`, whose resizing rounds otherwise by at most one of 255 grey levels."""
    cfg, model, path, _ = demo
    images, rig = moments()
    np.savez(tmp_path / "in.npz", images=images, intrinsics=rig.pixels_from_camera, poses=rig.camera_from_bev)
    command = [sys.executable, "-c", WITHOUT_TORCH, path, tmp_path / "in.npz", tmp_path / "out.npz"]
    done = subprocess.run(list(map(str, command)), cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    found = np.load(tmp_path / "out.npz")
    predictor, memory = Predictor(model, cfg), None
    for step, motion in enumerate((None, Motion(_moved(), 0.5))):
        prediction, memory = predictor.step(list(images[step]), rig, motion, memory)
        boxes = prediction.sample.pred_instances_3d
        assert len(boxes.scores_3d) > 20 and len(found[f"{step}.scores"]) > 20
        best = found[f"{step}.scores"][:10]
        np.testing.assert_allclose(best, boxes.scores_3d[:10].numpy(), atol=0.02)
        layers = prediction.sample.pred_rasters["map"].layers.numpy()
        ours = 1 / (1 + np.exp(-found[f"{step}.map.logits"][0]))
        np.testing.assert_allclose(ours, layers, atol=0.02)


def test_the_runtime_refuses_what_it_cannot_answer(demo):
    """Its count of cameras is that of the encoder's plan; three cameras that look the same way see one cell."""
    _, model, path, _ = demo
    images, rig = moments()
    runtime = load(path)
    frame = made_up_clip(ImagePlan(demo[0], model, rig, (72, 128)), 1)[0]
    matrices = frame.rig.pixels_from_camera[0].double().numpy(), frame.rig.camera_from_bev[0].double().numpy()
    needed = model.encoder.visibility(frame.rig).slots.shape[-1]
    assert cameras_a_cell(*matrices, runtime.described["grid"], runtime.described["visibility"]) == needed == 2
    poses = rig.camera_from_bev.copy()
    poses[1:3] = poses[0]
    with pytest.raises(InputError, match=r"camera_from_bev: \d cameras of this rig see one cell, .* --num-slots"):
        runtime.step(list(images[0]), rig.pixels_from_camera[[0, 0, 0, 3, 4, 5]], poses)
    with pytest.raises(InputError, match="images: 5 images; the model has 6 cameras"):
        runtime.step(list(images[0][:5]), rig.pixels_from_camera, rig.camera_from_bev)
    with pytest.raises(InputError, match=r"pixels_from_camera: has shape \(5, 3, 3\)"):
        runtime.step(list(images[0]), rig.pixels_from_camera[:5], rig.camera_from_bev)
    prediction, _ = runtime.step([None, *images[0][1:]], rig.pixels_from_camera, rig.camera_from_bev)
    assert np.isfinite(prediction.raw["detection.heatmap"]).all()
    with pytest.raises(InputError, match="file: not there"):
        load(path.with_name("none.onnx"))


def _moved() -> np.ndarray:
    matrix = np.eye(4)
    matrix[1, 3] = 1.5
    return matrix
