"""Spatial cross-attention against the recorded reference, every sample of a batch (case c_spatial_cross_attention)."""

import pytest
import torch

from bevstack.models.bev import SpatialCrossAttention
from bevstack.models.bev.visibility import plan_from_mask
from bevstack.ops import deformable_attention
from tests.parity.golden import assert_matches, load_case, recordings
from tests.parity.reference import ENCODER, weights_of


@pytest.fixture(scope="module", params=recordings("c_spatial_cross_attention"))
def case(request):
    return load_case(request.param)


@pytest.fixture(scope="module")
def attention(case):
    config = case.config
    module = SpatialCrossAttention(
        config["dim"], config["heads"], len(config["feat_hw"]), config["sca_points"], config["pillar"]
    )
    module.load_state_dict(weights_of(case, ENCODER + "layers.0.attentions.1.", "encoder.layers.0.spatial."))
    return module.eval()


def _shapes(case):
    return [tuple(shape) for shape in case.config["feat_hw"]]


def _run(case, attention, mask):
    seen = mask.any(-1).transpose(0, 1)  # (camera, batch, query, height) to (B, N, Q)
    plan = plan_from_mask(seen, case["in.reference_points_cam"].transpose(0, 1))
    tokens = case["in.key"].permute(2, 0, 1, 3).flatten(0, 1)  # (camera, token, batch, channel) to (B * N, tokens, C)
    return case["in.query"] + attention(case["in.query"], tokens, _shapes(case), plan)


def test_every_sample_of_a_batch_with_its_own_cameras(case, attention):
    output = _run(case, attention, case["in.bev_mask"])
    for sample in range(len(output)):
        assert_matches(output[sample : sample + 1], case[f"out.bs1_{sample}"], f"sample {sample}")


@pytest.mark.parametrize("case", recordings("c_spatial_cross_attention", "out.bs2_mask_same"), indirect=True)
def test_a_batch_that_shares_the_first_samples_mask(case, attention):
    mask = case["in.bev_mask"][:, :1].expand_as(case["in.bev_mask"])
    assert_matches(_run(case, attention, mask), case["out.bs2_mask_same"])


def test_a_query_that_no_camera_sees_keeps_itself_and_the_bias(case, attention):
    mask = torch.zeros_like(case["in.bev_mask"])
    expected = case["in.query"] + attention.output_proj.bias  # tests/golden/README.md
    assert_matches(_run(case, attention, mask), expected)


def test_the_inner_attention_of_one_camera(case, attention):
    query, tokens, references = case["in.dq"], case["in.dv"], case["in.dref"]
    maps, queries, _ = query.shape
    heads, levels, points = attention.num_heads, attention.num_levels, attention.num_points
    output = deformable_attention(
        attention.value_proj(tokens).unflatten(-1, (heads, -1)),
        _shapes(case),
        torch.arange(maps).view(maps, 1, 1).expand(-1, queries, -1),
        references.unsqueeze(2),
        attention.sampling_offsets(query).unflatten(-1, (1, heads, levels, points, 2)),
        attention.attention_weights(query).unflatten(-1, (1, heads, levels * points)),
        torch.ones(maps, queries, 1),
    )
    assert_matches(output, case["out.deform3d"])
