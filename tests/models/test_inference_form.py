"""The form in which a model is asked: the same answers as the model, which stays what it was."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bevstack.models.backbones.base import fitted_config
from bevstack.models.folding import FusedResidual, adjoining, fold_norms
from bevstack.models.inference_form import inference_form
from bevstack.models.layers.conv import CONV_KINDS, ConvNormReLU, ResidualBlock
from bevstack.ops.packed_layers import PackedConvolution
from bevstack.registry import MODELS
from tests.models.test_backbones import FAMILIES, images_of

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = Config.fromfile(ROOT / "configs" / "_base_" / "backbones.py").BACKBONES.to_dict()
FPN = dict(type="mmdet.FPN", out_channels=16, num_outs=3)
_resnet = FAMILIES["mmdet.ResNet"]
OTHERS = {
    "published_resnet_dcn": dict(
        backbone=dict(type="mmdet.ResNet", **{**_resnet["deformable"], "style": "caffe"}), neck=FPN
    ),
    "resnet_of_basic_blocks": dict(backbone=dict(type="mmdet.ResNet", **_resnet["plain"]), neck=FPN),
    "slowfast": dict(backbone=dict(type="SlowFast", **FAMILIES["SlowFast"]["two-frames-a-second"])),
    "slowfast_swin": dict(backbone=dict(type="SlowFastSwin", **FAMILIES["SlowFastSwin"]["parallel"])),
    "timm_resnet": dict(backbone=dict(type="TimmBackbone", **FAMILIES["TimmBackbone"]["resnet"])),
}
PARTS = {**SHIPPED, **OTHERS}


class ImageParts(nn.Module):
    """Backbone and neck, called as a model calls them."""

    def __init__(self, backbone: nn.Module, neck: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Images to the levels that an encoder gets."""
        levels = self.backbone(images)
        return list(levels if self.neck is None else self.neck(levels))


def with_statistics(model: nn.Module) -> nn.Module:
    """Norms that do something: statistics, scales and shifts unlike those of the start."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            with torch.no_grad():
                for tensor, least, most in (
                    (module.running_mean, -0.3, 0.3),
                    (module.running_var, 0.5, 1.5),
                    (module.weight, 0.5, 1.0),
                    (module.bias, -0.3, 0.3),
                ):
                    tensor.copy_(torch.rand(tensor.shape, generator=generator) * (most - least) + least)
    return model


def parts_of(name: str) -> ImageParts:
    torch.manual_seed(0)
    parts = copy.deepcopy(PARTS[name])
    backbone = MODELS.build(parts["backbone"])
    neck = MODELS.build(fitted_config(parts["neck"], backbone)) if "neck" in parts else None
    return with_statistics(ImageParts(backbone, neck)).eval()


def apart(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest distance between two lists of levels, as a share of a level's length."""
    pairs = zip(found, expected, strict=True)
    return max(((one.to(other.dtype) - other).norm() / other.norm()).item() for one, other in pairs)


def norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


@pytest.mark.parametrize("name", PARTS)
def test_the_same_features(name):
    # Expected: the model's own. Where rounding alone moves these by more (linear attention divides by small numbers)
    # the form may be as far from the model in double precision as the model in single; in bfloat16 likewise.
    model = parts_of(name)
    images = images_of(sweeps=getattr(model.backbone, "num_sweeps", 0))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    form = inference_form(model)
    with torch.no_grad():
        expected, found = model(images), form(images)
        exact = copy.deepcopy(model).double()(images.double())
        assert apart(found, expected) < 1e-5 or apart(found, exact) < 1.5 * apart(expected, exact)
        with torch.autocast("cpu", torch.bfloat16):
            low, of_model = form(images), model(images)
    assert apart(low, expected) < max(2e-2, 1.2 * apart(of_model, expected))
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)
    left = [name for name, module in form.named_modules() if isinstance(module, _BatchNorm)]
    assert left == [], "every norm of these is behind a convolution"


def test_only_the_folded_weights_are_new():
    model = parts_of("published_resnet_dcn").train()
    form = inference_form(model)
    assert model.training and not any(module.training for module in form.modules())
    places = {parameter.data_ptr() for parameter in model.parameters()}
    new = sum(parameter.numel() for parameter in form.parameters() if parameter.data_ptr() not in places)
    folded = [name for name, _ in model.named_parameters() if "conv_offset" not in name and "neck" not in name]
    assert 0 < new <= sum(model.get_parameter(name).numel() for name in folded)
    assert not any(p.requires_grad for p in form.parameters() if p.data_ptr() not in places)
    assert sum(isinstance(module, FusedResidual) for module in form.modules()) == 16  # blocks of a ResNet-50


def test_a_form_of_a_form_is_the_same():
    model = parts_of("cspdarknet_pafpn")
    form = inference_form(model)
    with torch.no_grad():
        again = inference_form(form)(images_of())
        assert all(torch.equal(one, other) for one, other in zip(again, form(images_of()), strict=True))


def test_later_weights_are_seen_by_a_new_form():
    model = parts_of("resnet_of_basic_blocks")
    form = inference_form(model)
    with torch.no_grad():
        model.backbone.conv1.weight.mul_(-1)
        expected = model(images_of())
        assert apart(form(images_of()), expected) > 0.1 and apart(inference_form(model)(images_of()), expected) < 1e-5


@pytest.mark.parametrize("kind", CONV_KINDS)
@pytest.mark.parametrize(("channels", "stride"), [(8, 1), (16, 2)])
def test_blocks_of_bev_necks_and_heads(kind, channels, stride):
    # Expected: the plain blocks.
    torch.manual_seed(0)
    blocks = nn.Sequential(ConvNormReLU(8, 8, conv=kind), ResidualBlock(8, channels, stride, kind))
    model = with_statistics(nn.Sequential(blocks)).eval()
    form = inference_form(model)
    features = torch.randn(2, 8, 9, 7)
    with torch.no_grad():
        torch.testing.assert_close(form(features), model(features), rtol=1e-4, atol=1e-5)
    assert norms(form) == 0 and any(isinstance(module, FusedResidual) for module in form.modules())


class Twice(nn.Module):
    """Its norm follows its convolution, whose result is read once more."""

    channels, strides = (4,), (1,)

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The sum of both."""
        found = self.convolution(images)
        return [found + self.norm(found)]


def test_a_backbone_that_cannot_be_folded_is_left_alone():
    # Expected: the model's own features, bit for bit, and a line that says so.
    model = with_statistics(ImageParts(Twice())).eval()
    with pytest.warns(UserWarning, match="Twice: gives other features when its norms are folded"):
        form = inference_form(model)
    with torch.no_grad():
        assert torch.equal(form(images_of())[0], model(images_of())[0]) and norms(form) == 1


class Tangled(nn.Module):
    """Follows that are none: a norm behind a sum in place, one that is called twice, one behind a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.fourth = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.plain, self.summed, self.shared, self.behind = (nn.BatchNorm2d(3) for _ in range(4))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images to something of their shape."""
        found = self.plain(self.first(images))
        summed = self.second(found)
        summed += found
        found = self.shared(self.shared(self.third(self.summed(summed))))
        return self.behind(self.fourth(found).relu())


def test_only_what_is_seen_to_follow_is_folded():
    # Expected: read off forward() above.
    model, images = with_statistics(Tangled()).eval(), images_of()
    with torch.no_grad():
        expected = model(images)
        found = adjoining(
            model, lambda: model(images), lambda m: isinstance(m, nn.Conv2d), lambda m: isinstance(m, _BatchNorm)
        )
        assert found == [("first", "plain")]
        assert fold_norms(model, lambda: model(images)) == 1
        torch.testing.assert_close(model(images), expected)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_activations_are_taken_in():
    # Expected: as many activations as EfficientNet-Lite has convolutions but for those at the end of its blocks.
    form = inference_form(parts_of("efficientnet_lite0"))
    inside = [m.activation for m in form.backbone.modules() if isinstance(m, PackedConvolution)]
    assert not any(isinstance(m, nn.ReLU6) for m in form.backbone.modules() if m not in inside)
    assert sum(isinstance(activation, nn.ReLU6) for activation in inside) > 20
