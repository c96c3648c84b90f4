"""The published configurations run: a training step and an inference on the synthetic set, and their multiply-adds.

Images and grids are made small where only the way through matters; the sizes as published run in ``docs/parity.md``.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

from bevstack.engine.config import load_config
from bevstack.engine.models import build_model
from bevstack.experiments.multiply_adds import DEFORMABLE_CONVOLUTION, count_multiply_adds, published_count
from bevstack.registry import DATASETS, MODELS

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
SIZE_PX = (160, 96)
SMALL = {
    "bevformer/bevformer_tiny": {},
    "bevformer/bevformer_base_static": {"num_layers": 1},
    "bevformer/bevformer_base_det_seg": {"num_layers": 1},
    "bevformerv2/bevformerv2_r50_t1": {"num_layers": 1},
    "bevformerv2/bevformerv2_r50_t2": {"num_layers": 1},
    "bevformerv2/bevformerv2_r50_t8": {"num_layers": 1},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two synthetic scenes of three frames with their index."""
    from bevstack.datasets.nuscenes.create_data import create_nuscenes
    from bevstack.synthetic.generate import generate

    folder = tmp_path_factory.mktemp("data") / "synthetic"
    generate(folder, 1, 1, 0, SIZE_PX, False, 1, 3, "v1.0-mini")
    create_nuscenes(folder, "v1.0-mini")
    return folder


def small_config(name, root, num_layers=None, compat=None, depth=50):
    cfg = load_config(CONFIGS / f"{name}.py", [f"compat={compat}"] if compat else [])
    for part in ("train_dataloader", "test_dataloader"):
        dataset = cfg[part].dataset
        dataset.update(data_root=str(root), version="v1.0-mini")
        resize = dataset.pipeline[1]
        if resize.type == "ResizeImages":
            resize.scale = 1.0
        else:
            resize.update(source_crop_px=(0, 26, *SIZE_PX), heights_px=(64,))
    if num_layers:
        cfg.model.encoder.num_layers = cfg.model.heads.detection.decoder.num_layers = num_layers
        cfg.model.encoder.grid.shape = cfg.model.heads.detection.grid.shape = (30, 30)
        loaded = [*cfg.train_dataloader.dataset.pipeline, *cfg.test_dataloader.dataset.pipeline]
        for part in (*cfg.model.heads.values(), *loaded):
            if "raster" in part or part.type in ("LoadBEVMap", "RasteriseBoxes"):
                part.grid.shape = (50, 50)
        cfg.model.backbone.depth = depth
        if "dcn" in cfg.model.backbone and depth == 50:
            cfg.model.backbone.stage_with_dcn = (False, False, False, True)
    return cfg


def batch_of(cfg, part, index):
    return pseudo_collate([DATASETS.build(copy.deepcopy(cfg[part].dataset))[index]])


@pytest.mark.parametrize("name", SMALL)
def test_a_training_step_and_an_inference(name, root):
    init_default_scope("bevstack")
    torch.manual_seed(0)
    cfg = small_config(name, root, **SMALL[name])
    model = MODELS.build(cfg.model)
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    model.train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    log = model.train_step(batch_of(cfg, "train_dataloader", 2), wrapper)
    assert torch.isfinite(log["loss"])
    frozen = {key for key, value in model.named_parameters() if not value.requires_grad}
    unchanged = {key for key, value in model.named_parameters() if torch.equal(value, before[key])} - frozen
    # What may stand still at the first step: what only history reaches, here none or a repeated frame.
    assert len(unchanged) < 0.02 * len(before), sorted(unchanged)[:5]
    if "v2" in name:
        assert any(key.startswith("perspective.loss") for key in log)

    model.eval()
    with torch.no_grad():
        sample = model.test_step(batch_of(cfg, "test_dataloader", 1))[0]
    assert len(sample.pred_instances_3d.scores_3d) <= 300
    assert torch.isfinite(sample.pred_instances_3d.bboxes_3d.tensor).all()
    if "seg" in name:
        assert {key: raster.classes for key, raster in sample.pred_rasters.items()} == {
            "map": ("drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "divider"),
            "vehicle": ("vehicle", "car"),
        }


def test_published_behaviour_runs_along_a_stream(root):
    """compat="bevformer_v1" from the data to the boxes: can_bus, alignment, encoder and head fit each other."""
    init_default_scope("bevstack")
    torch.manual_seed(0)
    outcomes = {}
    for compat in (None, "bevformer_v1"):
        cfg = small_config("bevformer/bevformer_tiny", root, compat=compat)
        torch.manual_seed(0)
        model = MODELS.build(cfg.model).eval()
        memory = None
        for index in range(2):
            data = model.data_preprocessor(batch_of(cfg, "test_dataloader", index))
            clip = data["inputs"]
            clip = type(clip)(clip.frames, memory)
            with torch.no_grad():
                samples, memory = model(clip, data["data_samples"], mode="stream_predict")
        outcomes[compat] = memory.features
        assert torch.isfinite(memory.features).all()
    assert not torch.allclose(outcomes[None], outcomes["bevformer_v1"], atol=1e-3)


def test_multiply_adds_of_the_static_base():
    # BEVFormer-S, paper: 1303.5 G, which fits multiply-adds without the kernels of the deformable convolutions
    model = build_model(load_config(CONFIGS / "bevformer" / "bevformer_base_static.py"), "meta").eval()
    counts = count_multiply_adds(model, (928, 1600))
    assert published_count(counts) == pytest.approx(1303.5e9, rel=0.03)
    # 23 and 3 blocks' 3 x 3 kernels on 6 x 58 x 100 and 6 x 29 x 50 pixels, 5 more for each sample of each channel
    kernels = 6 * (23 * 5800 * 256 * 256 * 9 + 3 * 1450 * 512 * 512 * 9)
    samples = 6 * 5 * 9 * (23 * 5800 * 256 + 3 * 1450 * 512)
    assert counts[DEFORMABLE_CONVOLUTION] == kernels + samples
    assert sum(counts.values()) > published_count(counts) + kernels
    # the neck in closed form: a lateral and a 3 x 3 convolution on each of three levels, a stride-2 one on the last
    pixels = (116 * 200, 58 * 100, 29 * 50)
    neck = sum(p * 256 * (c + 256 * 9) for p, c in zip(pixels, (512, 1024, 2048), strict=True))
    assert counts["neck"] == 6 * (neck + 15 * 25 * 256 * 256 * 9)


def as_published_in_size(root):
    """The published images, grid and queries; of layers that repeat at one size fewer, of blocks ResNet-50's."""
    cfg = load_config(CONFIGS / "bevformer" / "bevformer_base.py")
    cfg.test_dataloader.dataset.update(data_root=str(root), version="v1.0-mini")
    cfg.test_dataloader.dataset.pipeline[1] = dict(type="ResizeImages", size=(900, 1600))
    cfg.model.encoder.num_layers = cfg.model.heads.detection.decoder.num_layers = 1
    cfg.model.backbone.depth = 50
    return cfg


def as_published_in_depth(root):
    """Every layer that was published, on small images and a coarse grid."""
    return small_config("bevformer/bevformer_base", root, num_layers=6, depth=101)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "grid", "layers", "blocks"),
    # Published: 200 x 200 cells, six layers, ResNet-101; its third stage has 23 blocks, ResNet-50's has 6.
    [(as_published_in_size, (200, 200), 1, 6), (as_published_in_depth, (30, 30), 6, 23)],
)
def test_base_infers_on_a_cpu(root, config, grid, layers, blocks):
    init_default_scope("bevstack")
    cfg = config(root)
    model = MODELS.build(cfg.model).eval()
    assert (model.encoder.grid.shape, len(model.encoder.layers), len(model.backbone.layer3)) == (grid, layers, blocks)
    with torch.no_grad():
        sample = model.test_step(batch_of(cfg, "test_dataloader", 1))[0]
    assert len(sample.pred_instances_3d.scores_3d) <= 300
    assert torch.isfinite(sample.pred_instances_3d.bboxes_3d.tensor).all()
