"""The form in which a backbone is trained: its answers and gradients, by joined blocks around its own layers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bevstack.models.training_form import TrainingForm
from bevstack.ops.normed_convolution import NormedConvolution
from bevstack.registry import MODELS
from tests.models.test_backbones import FAMILIES, images_of
from tests.models.test_inference_form import with_statistics

_SMALL = dict(type="mmdet.ResNet", base_channels=8, out_indices=(1, 2, 3), norm_eval=True)
RESNETS = {
    "basic": dict(_SMALL, depth=18),
    "bottleneck_frozen_begin": dict(_SMALL, depth=50, frozen_stages=1, norm_cfg=dict(type="BN", requires_grad=False)),
    "caffe": dict(_SMALL, depth=50, style="caffe"),
    "pooled_shortcut": dict(_SMALL, depth=50, avg_down=True),
    "deep_stem": dict(_SMALL, depth=18, deep_stem=True, stem_channels=8),
    "dilated": dict(_SMALL, depth=18, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)),
    "checkpointed": dict(_SMALL, depth=18, with_cp=True),
    "moving_norms": dict(_SMALL, depth=18, norm_eval=False),
    "deformable": {"type": "mmdet.ResNet", **FAMILIES["mmdet.ResNet"]["deformable"], "norm_eval": True},
}


def built(name: str) -> nn.Module:
    """A ResNet in training mode with weights and statistics that do something."""
    torch.manual_seed(0)
    backbone = MODELS.build(RESNETS[name])
    backbone.init_weights()
    with_statistics(backbone)
    backbone.train()
    return backbone


def learned(backbone: nn.Module, call, images: torch.Tensor) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Features of images, and the gradients of their squares' means by parameter and for the images."""
    backbone.zero_grad()
    images = images.clone().requires_grad_()
    features = call(images)
    sum(level.float().square().mean() for level in features).backward()
    gradients = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
    return [level.detach() for level in features], {**gradients, "images": images.grad}


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference as a share of the largest value."""
    found, expected = found.detach(), expected.detach()
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max().clamp(min=1e-12))


@pytest.mark.parametrize("name", RESNETS)
def test_features_and_gradients_are_the_backbones(name):
    # The backbone's own modules, one after another, are the expectation; rounding in float32 is all that may differ.
    backbone = built(name)
    copied, form = copy.deepcopy(backbone), TrainingForm()
    expected, wanted = learned(copied, copied, images_of(64, 96))
    found, gradients = learned(backbone, lambda images: form(backbone, images), images_of(64, 96))
    assert all(apart(one, other) < 1e-5 for one, other in zip(found, expected, strict=True))
    assert gradients.keys() == wanted.keys()
    # a value within rounding of 0 may stand on either side of a ReLU, which moves one gradient among thousands
    assert all(apart(gradients[name], value) < 2e-4 for name, value in wanted.items())
    for (_, buffer), (_, other) in zip(backbone.named_buffers(), copied.named_buffers(), strict=True):
        assert torch.allclose(buffer, other, rtol=1e-5, atol=1e-6)  # statistics moved alike, where they move


def test_something_is_joined():
    # A ResNet-50's 53 convolutions, each with its norm; only the published deformable ones stay apart.
    form = TrainingForm()
    form(built("bottleneck_frozen_begin"), images_of(32, 32))
    joined = [module for module in form._form.modules() if isinstance(module, NormedConvolution)]
    assert len(joined) == 53


@pytest.mark.parametrize("name", ["basic", "bottleneck_frozen_begin"])
def test_bfloat16_is_no_further_from_float32_than_the_backbone(name):
    backbone, form = built(name), TrainingForm()
    exact, exact_gradients = learned(backbone, backbone, images_of(64, 96))

    def errors(call):
        with torch.autocast("cpu", torch.bfloat16):
            features, gradients = learned(backbone, call, images_of(64, 96))
        worst = max(apart(one, other) for one, other in zip(features, exact, strict=True))
        total = sum(float((gradients[n] - g).square().sum() / g.square().sum()) for n, g in exact_gradients.items())
        return worst, (total / len(exact_gradients)) ** 0.5

    usual, ours = errors(backbone), errors(lambda images: form(backbone, images))
    # fewer roundings in between; a quarter is left to the chance of one draw
    assert ours[0] < 1.25 * usual[0] and ours[1] < 1.25 * usual[1]
    assert ours[0] < 0.05  # 2^-8 a rounding, over a dozen of them


def test_what_is_trained_loaded_and_moved_is_seen():
    backbone, form, images = built("basic"), TrainingForm(), images_of(32, 32)
    before = form(backbone, images)[-1]
    state = {name: value * 0.5 for name, value in backbone.state_dict().items() if value.is_floating_point()}
    backbone.load_state_dict({**backbone.state_dict(), **state})
    after = form(backbone, images)[-1]
    assert apart(after, before) > 0.1 and apart(after, backbone(images)[-1]) < 1e-5
    backbone.double()  # puts other buffers in the place of those it had
    moved = form(backbone, images.double())[-1]
    assert moved.dtype == torch.float64 and apart(moved, after) < 1e-5
    backbone.train()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()  # a norm that begins to move again
    assert torch.equal(form(backbone, images.double())[-1], backbone(images.double())[-1])


def test_it_has_no_place_in_a_model():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.form = built("basic"), TrainingForm()

    model = Holder()
    names = list(model.state_dict())
    model.form(model.backbone, images_of(32, 32))
    assert list(model.state_dict()) == names
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.backbone.parameters():
            parameter.zero_()
    assert float(copied.form(copied.backbone, images_of(32, 32))[-1].abs().max()) == 0.0  # of its own weights
    assert float(model.form(model.backbone, images_of(32, 32))[-1].abs().max()) > 0.0


def test_who_watches_a_layer_is_called():
    backbone, form, seen = built("basic"), TrainingForm(), []
    form(backbone, images_of(32, 32))
    backbone.layer2[0].conv1.register_forward_hook(lambda *_: seen.append(1))
    form(backbone, images_of(32, 32))
    assert seen == [1]


def test_other_backbones_are_called_themselves():
    torch.manual_seed(0)
    backbone = MODELS.build(dict(type="TimmBackbone", **FAMILIES["TimmBackbone"]["resnet"])).eval()
    images = images_of(64, 64)
    for found, expected in zip(TrainingForm()(backbone, images), backbone(images), strict=True):
        assert torch.equal(found, expected)


def test_gradients_can_be_differentiated_again():
    # d/dw of |d loss / d w|^2 against the plain modules', in float64 where no rounding hides a missing term.
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)).eval()
    plain[1].running_mean.normal_()
    joined = NormedConvolution(plain[0], plain[1], relu=True)
    images, results = torch.randn(1, 3, 5, 6), []
    for call in (joined, lambda images: torch.relu(plain(images))):
        loss = call(images).pow(3).sum()
        (gradient,) = torch.autograd.grad(loss, plain[0].weight, create_graph=True)
        results.append(torch.autograd.grad(gradient.square().sum(), plain[0].weight)[0])
    assert apart(*results) < 1e-4


@pytest.mark.parametrize(
    "pair",
    [
        (nn.Conv2d(3, 4, 3, padding="same"), nn.BatchNorm2d(4)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4)),
        (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        (nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)),
        (nn.ConvTranspose2d(3, 4, 3), nn.BatchNorm2d(4)),
    ],
    ids=["padded_by_name", "circular", "no_statistics", "group_norm", "transposed"],
)
def test_what_cannot_be_joined_is_refused(pair):
    assert not NormedConvolution.takes(*pair)
    with pytest.raises(ValueError, match="no joined form"):
        NormedConvolution(*pair, relu=True)
