"""Linear layers by oneDNN against torch's own."""

import pytest
import torch
from torch.nn import functional as F

from bevstack.ops.linear import Linear, full_precision_linear, linear


def tensors(shape=(2, 5, 8), width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(*shape, generator=generator).requires_grad_()
    weight = torch.randn(width, shape[-1], generator=generator).requires_grad_()
    bias = torch.randn(width, generator=generator).requires_grad_()
    return tokens, weight, bias


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 8), (2, 5, 8), (1, 1, 3, 8), (0, 8)])
def test_equals_torch_with_gradients(shape, with_bias, activation):
    # expected value: torch.nn.functional.linear in double precision
    tokens, weight, bias = tensors(shape)
    learned = [tokens, weight, *([bias] if with_bias else [])]
    exact = [tensor.detach().double().requires_grad_() for tensor in learned]
    wanted = F.linear(exact[0], exact[1], exact[2] if with_bias else None)
    wanted = F.relu(wanted) if activation == "relu" else wanted
    found = linear(*learned, activation=activation)
    torch.testing.assert_close(found.double(), wanted, atol=1e-5, rtol=1e-5)
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad(found, learned, upstream)
    for one, other in zip(gradients, torch.autograd.grad(wanted, exact, upstream.double()), strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-5)


def test_tokens_in_any_memory_order():
    _, weight, bias = tensors()
    turned = torch.randn(4, 8, 5, generator=torch.Generator().manual_seed(2)).transpose(1, 2).requires_grad_()
    found, wanted = linear(turned, weight, bias), F.linear(turned, weight, bias)
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(3)).transpose(1, 2)
    gradients = [torch.autograd.grad(result, (turned, weight), upstream) for result in (found, wanted)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape", [(20, 8), (1, 8), (20, 1)])
def test_a_gradient_that_is_one_number_for_all(shape):
    # the gradient of a sum is expanded, without memory of its own; expected value: torch's own
    tokens, weight, bias = tensors(shape)
    found = torch.autograd.grad(linear(tokens, weight, bias).sum(), (tokens, weight, bias))
    wanted = torch.autograd.grad(F.linear(tokens, weight, bias).sum(), (tokens, weight, bias))
    torch.testing.assert_close(found, wanted)


def test_second_derivatives():
    # expected value: those of torch.nn.functional.linear
    found = []
    for function in (linear, F.linear):
        tokens, weight, bias = tensors()
        first = torch.autograd.grad(function(tokens, weight, bias).square().sum(), weight, create_graph=True)[0]
        found.append(torch.autograd.grad(first.square().sum(), tokens)[0])
    torch.testing.assert_close(*found, atol=1e-3, rtol=1e-4)


def test_autocast_double_and_graphs_take_torchs_own():
    tokens, weight, bias = tensors()
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(tokens, weight, bias).dtype == torch.bfloat16
    assert linear(tokens.double(), weight.double(), bias.double()).dtype == torch.float64
    module = Linear(8, 6)
    exported = torch.export.export(module, (tokens.detach(),))
    assert "aten.linear.default" in {str(node.target) for node in exported.graph.nodes}


def test_places_are_computed_in_float32_under_autocast():
    # expected value: two layers apart, without autocast, on float32
    tokens, *_ = tensors()
    layers = [torch.nn.Linear(8, 6), torch.nn.Linear(8, 3)]
    wanted = [layer(tokens) for layer in layers]
    with torch.autocast("cpu", torch.bfloat16):
        found = full_precision_linear(tokens, *layers)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other)


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="unknown activation 'gelu'"):
        linear(*tensors(), activation="gelu")
