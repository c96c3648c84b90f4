"""Exported files against torch on a stream with a scene change; expected values: the model's own step in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bevstack.engine.config import load_config
from bevstack.engine.export import TOLERANCE, ExportReport, ExportSettings, export_model
from bevstack.engine.export_onnx import MOST_AXES
from bevstack.engine.models import build_model
from bevstack.experiments.benchmarks.inputs import scattered
from tests.integration.conftest import REPOSITORY, shrunken

onnx = pytest.importorskip("onnx", reason="the extra 'export' is not installed")
FRAMES = 20
RESNET = dict(
    type="mmdet.ResNet", depth=18, num_stages=4, norm_cfg=dict(type="BN", requires_grad=False), norm_eval=True
)


def small_bevformer(compat: str | None = None):
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


def test_the_demo_and_every_output_of_a_stream(tmp_path):
    cfg, model, size = small_multitask("demo", backbone=False)
    path = tmp_path / "demo.onnx"
    report = export_model(model, cfg, path, ExportSettings(source_size_px=size, frames=FRAMES))
    checked(report, path)
    assert set(report.outputs) == {
        "detection.heatmap", "detection.box", "map.logits", "vehicle.logits", "new_memory_features"
    }  # fmt: skip


def test_every_head(tmp_path):
    cfg, model, size = small_multitask("multitask/all_heads", backbone=True)
    path = tmp_path / "all.onnx"
    report = export_model(model, cfg, path, ExportSettings(source_size_px=size, frames=FRAMES))
    checked(report, path)
    heads = {name.split(".")[0] for name in report.outputs if "." in name}
    assert heads == set(cfg.model.heads) and "memory_poses" in report.inputs


def test_bevformer_and_torchs_own_archive(tmp_path):
    cfg, model, size = small_bevformer()
    path = tmp_path / "tiny.onnx"
    report = export_model(model, cfg, path, ExportSettings(source_size_px=size, frames=FRAMES))
    checked(report, path)
    assert report.inputs["memory_features"] == (1, 1, 256, 10, 12) and report.inputs["can_bus"] == (1, 18)
