"""Rotation, B_t with CAN bus and camera embeddings, and the whole transformer with box refinement (cases e_*).

Runs without history are recorded for a batch only; its first sample is right (tests/golden/README.md).
"""

import math

import pytest
import torch

from bevstack.reference.parts import planar_motion_of_can_bus, rotate_bev
from bevstack.structures import BEVFeatures
from tests.parity.golden import assert_matches, load_case, recordings
from tests.parity.reference import (
    HEAD,
    context_with_position,
    encoder_of,
    head_of,
    history_of,
    motion_of,
    recorded_outputs,
    rig_of,
    weights_of,
)


@pytest.mark.parametrize("path", recordings("e_rotate"))
def test_rotation_of_the_previous_bev(path):
    case = load_case(path)
    angles = case.config["angles_centers"]
    assert len(angles) == len(case.group("out"))
    for number, (degrees, center) in enumerate(angles):
        rotated = rotate_bev(case["in.x"][None], torch.tensor([math.radians(degrees)]), tuple(center), "nearest")[0]
        torch.testing.assert_close(rotated, case[f"out.rot{number}"], rtol=0, atol=0, msg=f"{degrees} {center}")


@pytest.fixture(scope="module", params=recordings("e_perception_transformer"))
def case(request):
    return load_case(request.param)


@pytest.fixture(scope="module")
def encoder(case):
    metas = case.info["img_metas"]
    module = encoder_of(
        case.config,
        num_cameras=len(metas[0]["lidar2img"]),
        motion_embedding={"type": "bevstack.MotionEmbedding", "channels": case.config["dim"]},
    )
    result = module.load_state_dict(weights_of(case, HEAD, "encoder."), strict=False)
    assert not result.unexpected_keys
    assert {key.split(".")[0] for key in result.missing_keys} == {"queries", "position"}  # these come as inputs
    module.queries.weight.data.copy_(case["in.bev_queries"])
    return module


def _encode(case, encoder, previous):
    metas = case.info["img_metas"]
    levels = [case[f"in.feat{level}"] for level in range(len(case.config["feat_hw"]))]
    tokens, shapes = encoder.image_tokens(levels)
    motion = motion_of(metas)
    query = encoder.initial_queries(motion)
    history = history_of(previous, motion, encoder.grid, case.config)
    context = context_with_position(encoder.temporal_context(query, history), case["in.bev_pos"])
    return tokens, query, context, encoder.run_layers(query, tokens, shapes, encoder.visibility(rig_of(metas)), context)


def test_what_enters_the_encoder(case, encoder):
    tokens, query, context, _ = _encode(case, encoder, case["in.prev_bev"])
    recorded = case["out.enc_in_bs2.feat_flatten_sample0"]  # of all cameras, or of the first alone
    assert_matches(tokens[: len(recorded)].unsqueeze(2), recorded, "tokens")
    assert_matches(query.transpose(0, 1), case["out.enc_in_bs2.bev_query"], "queries with CAN bus")
    rotated = case["out.enc_in_bs2.prev_bev_rotated"].transpose(0, 1)
    torch.testing.assert_close(context.previous, rotated, rtol=0, atol=0, msg="rotation")
    shift = context.references[:, 0, 0] - context.references[:, 0, 1]
    assert_matches(shift, case["out.enc_in_bs2.shift"], "shift")


def test_bev_with_history_of_every_sample(case, encoder):
    bev = _encode(case, encoder, case["in.prev_bev"])[-1]
    for sample in range(len(bev)):
        assert_matches(bev[sample : sample + 1], case[f"out.bev_bs1_prev_{sample}"], f"sample {sample}")


def test_bev_without_history(case, encoder):
    bev = _encode(case, encoder, None)[-1]
    assert_matches(bev[0], case["out.bev_bs2_noprev"][0])


def test_the_whole_transformer_with_box_refinement(case, encoder):
    bev = _encode(case, encoder, case["in.prev_bev"])[-1]
    head = head_of(case.config)
    result = head.load_state_dict(weights_of(case, HEAD, "heads.detection."), strict=False)
    assert not result.unexpected_keys
    assert {key.split(".")[0] for key in result.missing_keys} <= {
        "query_positions",
        "query_contents",
        "cls_branches",
    }
    positions, contents = case["in.object_query_embed"].chunk(2, dim=1)
    head.query_positions.weight.data.copy_(positions)
    head.query_contents.weight.data.copy_(contents)
    features = BEVFeatures(bev.transpose(1, 2).unflatten(2, encoder.grid.shape), encoder.grid)
    with recorded_outputs(head.layers) as states:
        boxes = head(features)["boxes"]

    low = torch.tensor(case.config["pc_range"][:3])
    size = torch.tensor(case.config["pc_range"][3:]) - low
    for sample in range(len(bev)):
        recorded, one = f"out.fwd_bs1_{sample}", slice(sample, sample + 1)
        assert_matches(bev[one].transpose(0, 1), case[f"{recorded}.bev_embed"], "B_t")
        first = head.reference_points(positions).sigmoid()[None]
        assert_matches(first, case[f"{recorded}.init_reference"], "first references")
        inter_states = torch.stack(states)[:, one].transpose(1, 2)
        assert_matches(inter_states, case[f"{recorded}.inter_states"], "decoder states")
        centers = (boxes[:, one][..., [0, 1, 4]] - low) / size
        assert_matches(centers, case[f"{recorded}.inter_references"], "refined references")


def test_planar_motion_of_can_bus_has_the_published_formulas_values(case):
    # expected: the published code's length and angle (docs/reference.md 4.5, shift)
    can_bus = torch.tensor([meta["can_bus"] for meta in case.info["img_metas"]], dtype=torch.float64)
    moved, turned = planar_motion_of_can_bus(can_bus)
    for row, (right, forward), angle in zip(can_bus.tolist(), moved.tolist(), turned.tolist(), strict=True):
        length, direction = math.hypot(row[0], row[1]), math.atan2(row[1], row[0])
        assert forward == pytest.approx(length * math.cos(row[16] - direction), abs=1e-9)
        assert right == pytest.approx(length * math.sin(row[16] - direction), abs=1e-9)
        assert angle == pytest.approx(math.radians(row[17]))
