"""The packed convolution and linear layer against the modules that they stand for."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bevstack.ops.packed_layers import PackedConvolution, PackedLinear, can_be_packed

ACTIVATIONS = [None, nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Hardswish(), nn.Sigmoid()]
CONVOLUTIONS = {
    "3x3": dict(kernel_size=3, padding=1),
    "strided": dict(kernel_size=3, stride=2, padding=(1, 0), bias=False),
    "1x1": dict(kernel_size=1),
    "depthwise": dict(kernel_size=5, padding=4, dilation=2, groups=8),
    "grouped": dict(kernel_size=(1, 3), groups=4),
}


def convolution_of(name: str, **changes) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 8, **{**CONVOLUTIONS[name], **changes})


def images(seed=1):
    return 3 * torch.randn(2, 8, 12, 10, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_it_is_the_modules_one_after_the_other(name, activation):
    # Expected: the plain modules, with and without a sum before the activation; bfloat16 has 8 bits.
    convolution = convolution_of(name)
    packed = PackedConvolution(convolution, activation)
    activate = activation or nn.Identity()
    with torch.no_grad():
        plain = convolution(images())
        added = 3 * torch.randn(plain.shape, generator=torch.Generator().manual_seed(2))
        for arguments, expected in (((), plain), ((added,), plain + added)):
            found = packed(images(), *arguments)
            torch.testing.assert_close(found, activate(expected), rtol=1e-5, atol=1e-5)
            assert found.is_contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                low = packed(images(), *arguments)
            assert low.dtype == torch.bfloat16
            torch.testing.assert_close(low.float(), activate(expected), rtol=2e-2, atol=0.1)
        torch.testing.assert_close(packed(images()[:1, :, :9]), activate(convolution(images()[:1, :, :9])))


def test_what_is_given_is_not_written_to():
    packed, features = PackedConvolution(convolution_of("3x3"), nn.ReLU()), images()
    features, added = (t.contiguous(memory_format=torch.channels_last) for t in (features, images(2)))
    before = features.clone(), added.clone()
    with torch.no_grad():
        packed(features, added)
    assert torch.equal(features, before[0]) and torch.equal(added, before[1])


def test_padding_as_tensorflow_does():
    from timm.layers import Conv2dSame

    torch.manual_seed(0)
    convolution = Conv2dSame(8, 8, 3, stride=2)
    with torch.no_grad():
        torch.testing.assert_close(
            PackedConvolution(convolution)(images()), convolution(images()), rtol=1e-5, atol=1e-5
        )


def test_gradients_and_double_precision_go_through_the_modules():
    # Expected: the modules' gradient and values, bit for bit.
    convolution = convolution_of("3x3")
    packed, features = PackedConvolution(convolution, nn.ReLU()), images().requires_grad_()
    packed(features).square().sum().backward()
    expected = images().requires_grad_()
    convolution(expected).relu().square().sum().backward()
    assert torch.equal(features.grad, expected.grad)
    twice = copy.deepcopy(packed).double()
    assert torch.equal(twice(images().double()), twice.convolution(images().double()).relu())


def test_packed_weights_are_kept_and_copies_make_their_own():
    packed = PackedConvolution(convolution_of("1x1"))
    with torch.no_grad():
        before = packed(images())
        packed.convolution.weight.mul_(2)
        assert torch.equal(packed(images()), before)
        other = copy.deepcopy(packed)
        packed.unpack()
        assert torch.equal(packed(images()), other(images())) and not torch.equal(other(images()), before)


def test_only_known_modules_are_taken():
    assert not can_be_packed(convolution_of("3x3", padding_mode="reflect"))
    assert not can_be_packed(convolution_of("3x3", padding="same")) and not can_be_packed(nn.Conv1d(1, 1, 1))
    with pytest.raises(ValueError, match="no packed form of Conv2d with Tanh"):
        PackedConvolution(convolution_of("3x3"), nn.Tanh())


@pytest.mark.parametrize("shape", [(7, 6), (2, 3, 5, 6), (6,), (0, 6)])
@pytest.mark.parametrize("bias", [True, False])
def test_the_linear_layer_is_the_same(shape, bias):
    # Expected: nn.Linear, its parameters under the same names; its gradient where one is asked for.
    torch.manual_seed(0)
    linear = nn.Linear(6, 4, bias=bias)
    packed, features = PackedLinear(linear), torch.randn(shape)
    assert list(packed.state_dict()) == list(linear.state_dict()) and packed.weight is linear.weight
    with torch.no_grad():
        torch.testing.assert_close(packed(features), linear(features), rtol=1e-5, atol=1e-6)
        strided = features.expand(3, *shape).movedim(0, -2)
        torch.testing.assert_close(packed(strided), linear(strided), rtol=1e-5, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            low = packed(features)
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), linear(features), rtol=2e-2, atol=2e-2)
    assert torch.equal(packed(features.requires_grad_()), linear(features)) and packed(features).requires_grad


def test_the_linear_layer_learns_where_it_must():
    # Expected: its weights' gradient, though its input needs none.
    packed = PackedLinear(nn.Linear(3, 2))
    packed(torch.ones(1, 3)).sum().backward()
    assert torch.equal(packed.weight.grad, torch.ones(2, 3))
