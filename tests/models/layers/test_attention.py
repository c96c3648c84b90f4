"""Split and replicated attention against the plain formulas, and their cost."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bevstack.models.layers.attention import MultiHeadSelfAttention
from tests.models.layers.cost_tables import cost_in_the_docs

B, Q, C, HEADS = 2, 7, 12, 3


def attention_by_formula(layer, queries, positions, width):
    """Vaswani et al. 2017, eq. 1, head by head with einsum on slices of the layer's weights.

    Head i: softmax(q k^T / sqrt(d)) v with its own d x C projections, d channels a head; the heads' results are then
    joined by the output projection's slice of each head.
    """
    seen = queries + positions
    query_weight, key_weight = layer.query_key_proj.weight.chunk(2)
    query_bias, key_bias = layer.query_key_proj.bias.chunk(2)
    result = layer.output_proj.bias.expand(queries.shape).clone()
    for head in range(layer.num_heads):
        part = slice(head * width, (head + 1) * width)
        query = torch.einsum("bqc,dc->bqd", seen, query_weight[part]) + query_bias[part]
        key = torch.einsum("bqc,dc->bqd", seen, key_weight[part]) + key_bias[part]
        value = torch.einsum("bqc,dc->bqd", queries, layer.value_proj.weight[part]) + layer.value_proj.bias[part]
        logits = torch.einsum("bqd,bkd->bqk", query, key) / math.sqrt(width)
        weights = logits.exp() / logits.exp().sum(-1, keepdim=True)
        result += torch.einsum("bqk,bkd,cd->bqc", weights, value, layer.output_proj.weight[:, part])
    return result


@pytest.mark.parametrize(("head_width", "width"), [("split", C // HEADS), ("replicated", C)])
def test_attention_is_the_formula(head_width, width):
    # Expected: the formula in float64; split heads are C / h wide, replicated ones C.
    torch.manual_seed(0)
    layer = MultiHeadSelfAttention(C, HEADS, head_width=head_width).double()
    for bias in (layer.query_key_proj.bias, layer.value_proj.bias, layer.output_proj.bias):
        torch.nn.init.normal_(bias)
    queries, positions = torch.randn(B, Q, C).double(), torch.randn(1, Q, C).double()
    with torch.no_grad():
        torch.testing.assert_close(
            layer(queries, positions), attention_by_formula(layer, queries, positions, width), rtol=1e-9, atol=1e-9
        )


def test_replicated_with_one_head_is_split_with_one_head():
    # Closed form: with h = 1 both widths are C.
    split = MultiHeadSelfAttention(C, 1, head_width="split")
    replicated = MultiHeadSelfAttention(C, 1, head_width="replicated")
    replicated.load_state_dict(split.state_dict())
    queries, positions = torch.randn(B, Q, C), torch.randn(B, Q, C)
    assert torch.equal(split(queries, positions), replicated(queries, positions))


@pytest.mark.parametrize(("head_width", "times"), [("split", 1), ("replicated", HEADS)])
def test_cost_follows_the_formula(head_width, times):
    # Expected: 4 C^2 weights (without biases), 4 Q C^2 + 2 Q^2 C multiply-adds for split heads; h times both when
    # replicated.
    layer = MultiHeadSelfAttention(C, HEADS, head_width=head_width)
    assert sum(p.numel() for p in layer.parameters() if p.dim() == 2) == times * 4 * C * C
    assert multiply_adds(layer, Q, C) == times * (4 * Q * C * C + 2 * Q * Q * C)


def test_the_table_of_the_docs_is_what_is_counted():
    # Expected: the page's numbers, of the layer that stands above its table.
    for head_width in ("split", "replicated"):
        layer = MultiHeadSelfAttention(256, 8, head_width=head_width).to("meta")
        weights, counted = cost_in_the_docs(head_width)
        assert weights == sum(p.numel() for p in layer.parameters() if p.dim() == 2)
        assert counted == round(multiply_adds(layer, 900, 256, "meta") / 1e6, 1)


def multiply_adds(layer, queries, channels, device="cpu") -> int:
    """Of one sample; torch counts a multiply-add as two operations, and of fused attention nothing: hence MATH."""
    tokens = torch.zeros(1, queries, channels, device=device)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        layer(tokens, tokens)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("head_width", ["split", "replicated"])
def test_order_and_batch(head_width):
    # Closed form: attention does not know the order of its queries, nor the other samples.
    layer = MultiHeadSelfAttention(C, HEADS, head_width=head_width)
    queries, positions = torch.randn(B, Q, C), torch.randn(B, Q, C)
    order = torch.randperm(Q)
    out = layer(queries, positions)
    torch.testing.assert_close(layer(queries[:, order], positions[:, order]), out[:, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer(queries[1:], positions[1:]), out[1:], rtol=1e-4, atol=1e-5)
    (out * torch.randn_like(out)).sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters() if name != "query_key_proj.bias"}
    assert all(gradient.isfinite().all() and gradient.any() for gradient in gradients.values())


def test_dropout_is_for_training_only():
    layer = MultiHeadSelfAttention(C, HEADS, dropout=0.5)
    queries, positions = torch.randn(B, Q, C), torch.zeros(1, Q, C)
    assert not torch.equal(layer(queries, positions), layer(queries, positions))
    layer.eval()
    assert torch.equal(layer(queries, positions), layer(queries, positions))


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="head_width: 'half' is none of split, replicated"):
        MultiHeadSelfAttention(C, HEADS, head_width="half")
    with pytest.raises(ValueError, match="num_heads: 12 channels do not split over 5 heads"):
        MultiHeadSelfAttention(C, 5)
    assert MultiHeadSelfAttention(C, 5, head_width="replicated")(torch.zeros(1, 2, C), torch.zeros(1, 2, C)).shape == (
        1, 2, C,
    )  # fmt: skip
