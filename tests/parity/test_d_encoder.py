"""Reference points, point sampling and whole encoder layers against the recorded reference (cases d_*)."""

import copy

import pytest
import torch

from bevstack.geometry import project_points, visible_points
from bevstack.models.bev import TemporalContext, plan_visibility
from tests.parity.golden import assert_matches, load_case, recordings
from tests.parity.reference import (
    ENCODER,
    encoder_in_float64,
    encoder_of,
    grid_of,
    in_float64,
    rig_of,
    weights_of,
)


@pytest.fixture(scope="module", params=recordings("d_encoder"))
def case(request):
    return load_case(request.param)


@pytest.fixture(params=[*recordings("d_encoder"), *recordings("d_point_sampling_real")])
def sampling(request):
    return load_case(request.param)


def test_reference_points(sampling):
    case = sampling
    grid = grid_of(case.config)
    heights = case.config["pillar"]
    points = grid.pillar_points(heights).flatten(0, 1).transpose(0, 1)  # (Z, Q, 3) metres
    low = torch.tensor(case.config["pc_range"][:3])
    size = torch.tensor(case.config["pc_range"][3:]) - low
    for sample in case["out.ref_3d"]:
        assert_matches((points - low) / size, sample)
    if "out.ref_2d" in case:
        for sample in case["out.ref_2d"]:
            assert_matches(grid.reference_points().unsqueeze(1), sample)


def test_point_sampling(sampling):
    case = sampling
    grid, heights, rig = grid_of(case.config), case.config["pillar"], rig_of(case.info["img_metas"])
    pillars = grid.pillar_points(heights).flatten(0, 1)
    uv, depth = project_points(rig.pixels_from_bev, pillars.flatten(0, 1))
    mask = visible_points(uv, depth, rig.image_size_px).unflatten(-1, (-1, heights)).transpose(0, 1)
    recorded = case["out.bev_mask"]
    assert_matches(mask, recorded, "mask")
    height, width = rig.padded_size_px
    places = (uv / uv.new_tensor([width, height])).unflatten(2, (-1, heights)).transpose(0, 1)
    assert recorded.any()
    assert_matches(places[recorded], case["out.reference_points_cam"][recorded], "places")


def test_the_visibility_plan_holds_what_was_sampled(sampling):
    # expected: the recorded places of exactly the cameras in which a pillar has a visible point
    case = sampling
    grid, heights, rig = grid_of(case.config), case.config["pillar"], rig_of(case.info["img_metas"])
    plan = plan_visibility(rig, grid.pillar_points(heights).flatten(0, 1))
    seen = case["out.bev_mask"].any(-1)  # (N, B, Q)
    cameras, batch, _ = seen.shape
    places = case["out.reference_points_cam"]
    for sample in range(batch):
        for query in range(grid.num_cells):
            slots = plan.slots[sample, query]
            used = slots[slots >= 0] - sample * cameras
            assert used.tolist() == seen[:, sample, query].nonzero().flatten().tolist()
            visible = case["out.bev_mask"][used, sample, query]
            ours = plan.references[sample, query, : len(used)]
            assert_matches(ours[visible], places[used, sample, query][visible])
            if len(used):
                assert plan.weights[sample, query, 0] == 1 / len(used)


@pytest.fixture(scope="module")
def encoder(case):
    module = encoder_of(case.config, num_cameras=len(case.info["img_metas"][0]["lidar2img"]))
    missing = module.load_state_dict(weights_of(case, ENCODER, "encoder."), strict=False)
    assert not missing.unexpected_keys
    assert not [key for key in missing.missing_keys if key.startswith("layers.")]
    return module


@pytest.mark.parametrize("history", ["prev", "noprev"])
def test_every_layer_of_every_sample(case, encoder, history):
    # in float64: rounding of the recording alone takes a third of the tolerance in layer 3 (tests/golden/README.md)
    case, encoder = in_float64(case), encoder_in_float64(copy.deepcopy(encoder))
    query, position = (case[f"in.{name}"].transpose(0, 1) for name in ("bev_query", "bev_pos"))
    tokens = case["in.feat"].permute(2, 0, 1, 3).flatten(0, 1)
    shapes = [tuple(shape) for shape in case.config["feat_hw"]]
    batch = len(query)
    here = encoder.references[None, :, None].expand(batch, -1, 2, -1).clone()
    if history == "prev":
        here[:, :, 0] += case["in.shift"].unsqueeze(1)
    valid = torch.full((batch,), history == "prev")
    context = TemporalContext(case["in.prev_bev"].transpose(0, 1), query, valid, here, position)
    plan = plan_visibility(rig_of(case.info["img_metas"], torch.float64), encoder.pillars)
    for number, layer in enumerate(encoder.layers):
        query = layer(query, tokens, shapes, plan, context, encoder.grid.shape)
        for sample in range(batch):
            recorded = case[f"out.bs1_{history}_layers_{sample}"][number]
            assert_matches(query[sample : sample + 1], recorded, f"{history}, layer {number}, sample {sample}")
