"""mmengine's ``init_weights``, and any ``init_cfg``, reach every part; classifiers start where rare things are rare."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope
from torch import nn

from bevstack.engine.config import load_config
from bevstack.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(path for path in (ROOT / "configs").rglob("*.py") if "_base_" not in path.parts)
RARE = -math.log(99)  # sigmoid 0.01: the prior of focal losses (RetinaNet, section 4.1)
HEADS_WITH_PRIOR = ("DenseDetectionHead", "QueryDetectionHead", "KeypointHead", "ImageKeypointHead", "PerspectiveHead")


def built(path: Path, *options: str) -> nn.Module:
    init_default_scope("bevstack")
    return MODELS.build(load_config(path, options).model)


def has_prior(part: nn.Module) -> bool:
    """Whether some layer's bias is the prior in every entry."""
    biases = [value for name, value in part.named_parameters() if name.endswith("bias")]
    return any(torch.allclose(bias, torch.full_like(bias, RARE), atol=0.01) for bias in biases)


def ours(name: str, module: nn.Module, model: nn.Module) -> bool:
    """Whether every container around a part is this package's (or the model itself): it must then be reached."""
    above = [".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)]
    around = [type(model.get_submodule(place)).__module__ for place in above]
    return not any(place.startswith(("mmdet", "mmcv", "timm", "torchvision")) for place in around)


@pytest.fixture(params=CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def model(request, monkeypatch, tmp_path) -> nn.Module:
    monkeypatch.setenv("BEVSTACK_REALDATA", str(tmp_path))
    monkeypatch.chdir(ROOT)
    return built(request.param)


def test_every_part_is_reached_and_has_its_prior(model, monkeypatch) -> None:
    """Walks every part that has an ``init_weights``; heads with a focal loss then hold its prior."""
    parts = {name: part for name, part in model.named_modules() if hasattr(part, "init_weights") and name}
    reached = []
    for name, part in parts.items():
        original = part.init_weights

        def told(name: str = name, original=original) -> None:
            reached.append(name)
            original()

        monkeypatch.setattr(part, "init_weights", told, raising=False)
    model.init_weights()
    left_out = [name for name, part in parts.items() if ours(name, part, model) and name not in reached]
    assert left_out == [] and "heads" in reached
    heads = [*model.heads.items(), *model.image_heads.items()]
    with_prior = [(name, has_prior(head)) for name, head in heads if type(head).__name__ in HEADS_WITH_PRIOR]
    assert all(found for _, found in with_prior), with_prior


@pytest.mark.parametrize(
    "part", ["backbone", "neck", "bev_neck", "temporal_fusion", "heads.detection", "heads.map", "heads.vehicle"]
)
def test_init_cfg_of_a_part_is_applied(part) -> None:
    """Every convolution of the part holds the constant that its ``init_cfg`` names."""
    constant = "{'type':'Constant','layer':'Conv2d','val':0.125}"
    model = built(ROOT / "configs" / "demo.py", f"model.{part}.init_cfg={constant}")
    model.init_weights()
    convolutions = [layer for layer in model.get_submodule(part).modules() if type(layer) is nn.Conv2d]
    assert convolutions and all(bool((layer.weight == 0.125).all()) for layer in convolutions)


def test_init_cfg_inside_a_sequence_of_necks_is_applied() -> None:
    init_default_scope("bevstack")
    constant = {"type": "Constant", "layer": "Conv2d", "val": 0.125}
    neck = {"type": "TopDownNeck", "out_channels": 8, "out_levels": (0,), "init_cfg": constant}
    sequence = MODELS.build({"type": "NeckSequence", "in_channels": (4, 6), "in_strides": (8, 16), "necks": [neck]})
    sequence.init_weights()
    assert all(bool((layer.weight == 0.125).all()) for layer in sequence.modules() if type(layer) is nn.Conv2d)


def test_weights_of_the_demo_stay_as_built() -> None:
    """Without an ``init_cfg`` ``init_weights`` changes nothing: parts draw their weights when they are built."""
    model = built(ROOT / "configs" / "demo.py")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.init_weights()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_nothing_of_a_frozen_stage_moves() -> None:
    """Statistics of BatchNorm stay in frozen stages and move in the others (timm's stages of a ResNet)."""
    init_default_scope("bevstack")
    config = {"type": "TimmBackbone", "name": "resnet18", "frozen_stages": 2, "out_indices": (1, 2, 3, 4)}
    backbone = MODELS.build(config).train()
    before = {name: value.clone() for name, value in backbone.named_buffers() if name.endswith("running_mean")}
    backbone(torch.randn(2, 3, 64, 64))
    after = {name: value for name, value in backbone.named_buffers() if name in before}
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    learning = {name.rpartition(".")[0] for name, value in backbone.named_parameters() if value.requires_grad}
    expected = {name for name in before if name.rpartition(".")[0] in learning}
    assert moved == expected and 0 < len(expected) < len(before)
