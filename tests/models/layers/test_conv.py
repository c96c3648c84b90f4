"""Convolution kinds: their cost by formula, what mixes with what, and that blocks and heads take them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bevstack.geometry import BEVGrid
from bevstack.models.heads import DenseDetectionHead, SemanticSegmentationHead
from bevstack.models.layers.conv import ConvNormReLU, ConvType, ResidualBlock, SubcellConvolution, convolution
from bevstack.structures import BEVFeatures
from tests.models.layers.cost_tables import cost_in_the_docs

C_IN, C_OUT, K, G, H, W = 24, 40, 3, 4, 9, 14
EXPANSION = 3
INVERTED = dict(kind="inverted_bottleneck", expansion=EXPANSION)
KINDS = ["plain", "depthwise_separable", dict(kind="grouped", groups=G), INVERTED]
IDS = ["plain", "depthwise_separable", "grouped", "inverted_bottleneck"]
MULTIPLY_ADDS = [  # the formulas of docs/attention_and_convolution.md
    C_IN * C_OUT * K * K * H * W,
    C_IN * K * K * H * W + C_IN * C_OUT * H * W,
    (C_IN // G) * (C_OUT // G) * K * K * H * W * G,
    C_IN * K * K * H * W + EXPANSION * C_IN * (C_IN + C_OUT) * H * W,
]
GRID = BEVGrid(shape=(8, 12), x_range_m=(-24, 24), y_range_m=(-16, 16))


def weights_of(module: nn.Module) -> int:
    """Number of weights, those of normalisation left out."""
    return sum(weight.numel() for weight in module.parameters() if weight.dim() > 1)


def multiply_adds(module: nn.Module, *inputs) -> int:
    """Of a forward pass, as torch counts them (it counts a multiply-add as two operations)."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("conv", "formula"), zip(KINDS, MULTIPLY_ADDS, strict=True), ids=IDS)
def test_multiply_adds_follow_the_formula(conv, formula):
    # Expected: closed forms; the weights are the formula over H W, there being no bias.
    layer = convolution(C_IN, C_OUT, K, conv=conv)
    assert multiply_adds(layer, torch.randn(1, C_IN, H, W)) == formula
    assert weights_of(layer) == formula // (H * W)
    strided = convolution(C_IN, C_OUT, K, 2, conv)(torch.randn(1, C_IN, H, W))
    assert strided.shape == (1, C_OUT, 5, 7)


def test_the_table_of_the_docs_is_what_is_counted():
    # Expected: the page's numbers, of the convolution that stands above its table.
    for name, conv in zip(IDS, [*KINDS[:3], "inverted_bottleneck"], strict=True):
        layer = convolution(64, 48, 3, conv=conv).to("meta")
        weights, counted = cost_in_the_docs(name)
        assert weights == weights_of(layer)
        assert counted == round(multiply_adds(layer, torch.empty(1, 64, 128, 128, device="meta")) / 1e6, 1)


def test_depthwise_separable_is_a_plain_convolution_of_low_rank():
    # Closed form: its plain kernel is the outer product pointwise[o, i] * depthwise[i, y, x].
    layer = convolution(C_IN, C_OUT, K, conv="depthwise_separable")
    depthwise, pointwise = layer[0].weight, layer[1].weight
    images = torch.randn(2, C_IN, H, W)
    kernel = torch.einsum("oi,iyx->oiyx", pointwise[:, :, 0, 0], depthwise[:, 0])
    torch.testing.assert_close(layer(images), F.conv2d(images, kernel, padding=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False], ids=["training", "testing"])
def test_inverted_bottleneck_is_depthwise_norm_and_perceptron(training):
    # Expected: the same composed of torch's own operations on the layer's weights, by the definition (Liu et al. 2022,
    # section 2.4): k x k in each channel, BatchNorm, wider, ReLU, narrower; a block of it adds BatchNorm and the input.
    block = ResidualBlock(C_IN, C_IN, conv=INVERTED).train(training)
    (depthwise, norm, wider, _, narrower), last = block.body
    with torch.no_grad():
        for module in (norm, last):
            module.running_mean.uniform_(-1, 1), module.running_var.uniform_(0.5, 2), module.weight.uniform_(0.5, 2)

    def normalised(features, module):
        mean, variance = (None, None) if training else (module.running_mean, module.running_var)
        return F.batch_norm(features, mean, variance, module.weight, module.bias, training, eps=module.eps)

    images = torch.randn(2, C_IN, H, W)
    assert wider.weight.shape == (EXPANSION * C_IN, C_IN, 1, 1) and narrower.weight.shape[0] == C_IN
    inner = normalised(F.conv2d(images, depthwise.weight, padding=1, groups=C_IN), norm)
    inner = F.conv2d(F.conv2d(inner, wider.weight).relu(), narrower.weight)
    torch.testing.assert_close(block(images), (normalised(inner, last) + images).relu(), rtol=1e-4, atol=1e-5)


def test_groups_do_not_see_each_other():
    # Closed form: a change in group 1's input channels changes group 1's output channels and no others.
    layer = convolution(C_IN, C_OUT, K, conv=KINDS[2])
    images = torch.randn(1, C_IN, H, W)
    other = images.clone()
    other[:, C_IN // G : 2 * C_IN // G] += 1.0
    changed = (layer(images) != layer(other)).flatten(2).any(2)[0].view(G, -1)
    assert changed.all(1).tolist() == [False, True, False, False] == changed.any(1).tolist()


def test_one_by_one_stays_plain():
    for conv in KINDS:
        assert type(convolution(C_IN, C_OUT, 1, conv=conv)) is nn.Conv2d
        assert convolution(C_IN, C_OUT, 1, conv=conv).groups == 1


def test_plain_blocks_keep_their_weights_names():
    # Expected: the names in checkpoints written before there were kinds.
    assert list(ConvNormReLU(4, 8).state_dict())[0] == "0.weight"
    assert {"body.0.0.weight", "body.1.weight", "shortcut.0.weight"} <= set(ResidualBlock(4, 8).state_dict())


@pytest.mark.parametrize("conv", KINDS, ids=IDS)
def test_blocks_train(conv):
    for block in (ConvNormReLU(C_IN, C_OUT, conv=conv), ResidualBlock(C_IN, C_OUT, 2, conv=conv)):
        out = block(torch.randn(2, C_IN, H, W))
        (out * torch.randn_like(out)).sum().backward()
        assert out.shape[:2] == (2, C_OUT)
        assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in block.parameters())


def test_mistakes_are_told():
    known = "plain, depthwise_separable, inverted_bottleneck, grouped"
    with pytest.raises(ValueError, match=f"conv: 'depthwise' is none of {known}"):
        ConvType.build("depthwise")
    with pytest.raises(ValueError, match="conv: groups is 0, must be 1 or more"):
        ConvType.build(dict(kind="grouped", groups=0))
    with pytest.raises(ValueError, match="conv: expansion is 0, must be 1 or more"):
        ConvType.build(dict(kind="inverted_bottleneck", expansion=0))
    with pytest.raises(ValueError, match="conv: 24 to 40 channels do not split into 5 groups"):
        convolution(C_IN, C_OUT, conv=dict(kind="grouped", groups=5))


@pytest.mark.parametrize("head", ["segmentation", "detection"])
def test_heads_cost_less(head):
    # Expected: what the formulas save on each 3 x 3 convolution; the rest of a head is the same in every kind.
    build = {
        "segmentation": lambda conv: SemanticSegmentationHead(
            16, GRID, "map", ("road", "walkway"), channels=8, num_convs=2, conv=conv
        ),
        "detection": lambda conv: DenseDetectionHead(16, GRID, ("car", "bus"), channels=8, conv=conv),
    }[head]
    widths = {"segmentation": [(16, 8), (8, 8)], "detection": [(16, 8), (8, 8), (8, 8)]}[head]
    cells = GRID.shape[0] * GRID.shape[1]
    bev = BEVFeatures(torch.randn(1, 16, *GRID.shape), GRID)
    plain, separable, grouped = (multiply_adds(build(conv).eval(), bev) for conv in KINDS[:3])
    assert plain - separable == sum(9 * a * b - 9 * a - a * b for a, b in widths) * cells
    assert plain - grouped == sum(9 * a * b - 9 * a * b // G for a, b in widths) * cells


def test_finer_cells_share_what_is_common_and_add_their_own():
    # Expected by hand: one channel, two cells; common weight 2; biases 0, 10, 20, 30 of the four finer cells.
    layer = SubcellConvolution(1, 1, 2)
    with torch.no_grad():
        layer.common.weight.fill_(2.0)
        layer.common.bias.zero_()
        layer.bias.copy_(torch.tensor([0.0, 10.0, 20.0, 30.0]))
        found = layer(torch.tensor([[[[1.0, 3.0]]]]))
    common = torch.tensor([2.0, 3.0, 5.0, 6.0])  # of 2 and 6, bilinear between the cells' middles
    own = torch.tensor([[0.0, 10.0, 0.0, 10.0], [20.0, 30.0, 20.0, 30.0]])
    torch.testing.assert_close(found[0, 0], common + own)
