"""Multi-scale deformable attention against the recorded reference, with gradients (case a_ms_deform_attn)."""

import pytest
import torch

from bevstack.ops import deformable_attention
from tests.parity.golden import assert_matches, load_case, recordings


@pytest.mark.parametrize("path", recordings("a_ms_deform_attn"))
@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_output_and_gradients(backend, path):
    case = load_case(path)
    shapes = [tuple(shape) for shape in case.config["spatial_shapes"]]
    value = case["in.value"].clone().requires_grad_()
    locations = case["in.sampling_locations"].clone().requires_grad_()
    weights = case["in.attention_weights"].clone().requires_grad_()
    batch, queries, heads = locations.shape[:3]

    # The operator takes offsets in pixels around references and logits: no reference, and the weights' logarithm.
    size = torch.tensor([[w, h] for h, w in shapes], dtype=torch.float32)
    offsets = (locations * size[:, None]).unsqueeze(2)
    total = weights.flatten(3).sum(-1)  # a softmax sums to one: the recorded weights need not
    output = deformable_attention(
        value,
        shapes,
        torch.arange(batch).view(batch, 1, 1).expand(-1, queries, -1),
        torch.zeros(batch, queries, 1, 1, 2),
        offsets,
        weights.flatten(3).log().unsqueeze(2),
        torch.ones(batch, queries, 1),
        backend,
    )
    output = (output.unflatten(-1, (heads, -1)) * total.unsqueeze(-1)).flatten(2)
    assert_matches(output, case["out.output"])
    output.backward(case["in.grad_output"])
    assert_matches(value.grad, case["out.grad_value"], "value")
    assert_matches(locations.grad, case["out.grad_sampling_locations"], "locations")
    assert_matches(weights.grad, case["out.grad_attention_weights"], "weights")
