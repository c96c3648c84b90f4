"""Temporal self-attention against the recorded reference, every sample of a batch (case b_temporal_self_attention)."""

import pytest
import torch

from bevstack.models.bev import TemporalContext, TemporalSelfAttention
from tests.parity.golden import assert_matches, load_case, recordings
from tests.parity.reference import ENCODER, weights_of


@pytest.fixture(scope="module", params=recordings("b_temporal_self_attention"))
def case(request):
    return load_case(request.param)


@pytest.fixture(scope="module")
def attention(case):
    config = case.config
    module = TemporalSelfAttention(config["dim"], config["heads"], config["tsa_points"])
    module.load_state_dict(weights_of(case, ENCODER + "layers.0.attentions.0.", "encoder.layers.0.temporal."))
    return module.eval()


def _run(case, attention, valid):
    query, current = case["in.query"], case["in.ref_cur"]
    valid = torch.tensor(valid)
    # without history both references are the current one, as tests/golden/README.md says
    previous = torch.where(valid[:, None, None, None], case["in.ref_prev"], current)
    context = TemporalContext(
        case["in.prev_bev"], query, valid, torch.cat([previous, current], dim=2), case["in.query_pos"]
    )
    return query + attention(query, context, tuple(case.config["bev_hw"]))


@pytest.mark.parametrize("history", ["prev", "noprev"])
def test_every_sample_of_a_batch(case, attention, history):
    batch = len(case["in.query"])
    output = _run(case, attention, [history == "prev"] * batch)
    for sample in range(batch):
        assert_matches(output[sample : sample + 1], case[f"out.bs1_{history}_{sample}"], f"{history} {sample}")


def test_samples_with_and_without_history_in_one_batch(case, attention):
    batch = len(case["in.query"])
    valid = [sample % 2 == 0 for sample in range(batch)]
    output = _run(case, attention, valid)
    for sample, has_history in enumerate(valid):
        name = f"bs1_{'prev' if has_history else 'noprev'}_{sample}"
        assert_matches(output[sample : sample + 1], case[f"out.{name}"], name)
