"""The encoder: a batch of two different samples equals two batches of one; any grid, any number of cameras."""

from dataclasses import replace

import pytest
import torch

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.models.bev import BEVFormerEncoder, plan_visibility
from bevstack.models.bev.visibility import PlanCache, plan_from_mask
from bevstack.structures import AlignedHistory, EgoMotion
from tests.models.scenes import aligned, motion_of, only, pushed, rig_of, two_samples

GRID = BEVGrid(shape=(8, 12), x_range_m=(-12, 12), y_range_m=(-8, 16))


def encoder_of(cameras=3, levels=2, **changes) -> BEVFormerEncoder:
    torch.manual_seed(0)
    sizes = dict(channels=16, num_layers=2, num_heads=2, num_points=4, num_heights=2, feed_forward_channels=32)
    encoder = BEVFormerEncoder(grid=GRID, num_cameras=cameras, num_levels=levels, dropout=0.0, **sizes, **changes)
    for parameter in encoder.parameters():  # every path counts: nothing stays at its zero initialisation
        torch.nn.init.normal_(parameter, std=0.3)
    return encoder


def features_of(batch=2, cameras=3, levels=2):
    return [torch.randn(batch, cameras, 16, 8 // 2**i, 16 // 2**i) for i in range(levels)]


def random_history(motion: EgoMotion, valid: tuple[bool, bool] = (True, True)) -> AlignedHistory:
    """Of both samples, where ``valid``."""
    memory = pushed(None, torch.randn(2, 16, *GRID.shape), motion, GRID)
    return aligned(memory.masked(torch.tensor(valid)), motion)


@pytest.mark.parametrize("history", ["none", "both", "one"])
def test_a_batch_of_two_equals_two_batches_of_one(history):
    encoder, frame, features = encoder_of(), two_samples(), features_of()
    past = None if history == "none" else random_history(frame.motion, (True, history == "both"))
    together = encoder(features, frame, past).features
    upstream = torch.randn_like(together)
    together_gradients = torch.autograd.grad(together, list(encoder.parameters()), upstream, allow_unused=True)
    parts = []
    for b in range(2):
        alone = encoder([f[b : b + 1] for f in features], only(frame, b), only(past, b)).features
        torch.testing.assert_close(together[b : b + 1], alone, atol=1e-4, rtol=1e-4)
        part = torch.autograd.grad(alone, list(encoder.parameters()), upstream[b : b + 1], allow_unused=True)
        parts.append(part)
    gradients = [None if a is None else a + b for a, b in zip(*parts, strict=True)]
    for summed, whole in zip(gradients, together_gradients, strict=True):
        assert (summed is None) == (whole is None)
        if whole is not None:
            torch.testing.assert_close(summed, whole, atol=2e-3, rtol=1e-3)


def test_checkpointing_changes_nothing():
    frame, features = two_samples(), features_of()
    plain, saving = encoder_of(), encoder_of(with_checkpoint=True)
    results = [e(features, frame, None).features for e in (plain, saving)]
    torch.testing.assert_close(results[0], results[1])
    gradients = [
        torch.autograd.grad(r.square().sum(), e.queries.weight) for r, e in zip(results, (plain, saving), strict=True)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(("cameras", "levels"), [(1, 1), (5, 3)])
def test_any_number_of_cameras_and_levels(cameras, levels):
    frame = two_samples(cameras)
    bev = encoder_of(cameras, levels)(features_of(2, cameras, levels), frame, None)
    assert bev.features.shape == (2, 16, *GRID.shape)
    with pytest.raises(ValueError, match="built for"):
        encoder_of(cameras + 1, levels)(features_of(2, cameras, levels), frame, None)


def test_history_matters_only_where_it_is_valid():
    encoder, frame, features = encoder_of(), two_samples(), features_of()
    half = random_history(frame.motion, (True, False))
    none, some = encoder(features, frame, None).features, encoder(features, frame, half).features
    assert not torch.allclose(none[0], some[0])
    torch.testing.assert_close(none[1], some[1], atol=1e-5, rtol=1e-5)
    garbage = half.select(torch.tensor([0, 1]))
    garbage.features[1] = float("nan")
    assert encoder(features, frame, garbage).features.isfinite().all()


def test_without_temporal_attention_the_memory_is_not_looked_at():
    encoder, frame, features = encoder_of(temporal_points=0), two_samples(), features_of()
    history = random_history(frame.motion)
    torch.testing.assert_close(encoder(features, frame, history).features, encoder(features, frame, None).features)


def test_visibility_plan_of_one_camera_looking_forward():
    # closed form: a camera at the origin that looks along +y sees what lies within half its opening angle, ahead
    rig = rig_of([[90.0]], (40, 80), focal_px=37.0)  # half width 40 px: |x| < 40 / 37 y
    grid = BEVGrid(shape=(20, 20), x_range_m=(-10, 10), y_range_m=(-10, 10), z_range_m=(1.0, 2.0))
    plan = plan_visibility(rig, grid.pillar_points(1).flatten(0, 1))  # one height: 1.5 m, the camera's own
    x, y = grid.cell_centers().flatten(0, 1).unbind(-1)
    expected = (y > 0) & (x.abs() < 40 / 37 * y)
    assert ((plan.slots[0, :, 0] >= 0) == expected).all()
    seen = plan.references[0, expected, 0, 0]
    torch.testing.assert_close(seen[:, 0], 0.5 + 37 / 80 * (x / y)[expected])
    torch.testing.assert_close(seen[:, 1], torch.full_like(seen[:, 1], 0.5))


def test_weights_count_the_cameras_that_see_a_cell():
    rig = rig_of([[90.0, 90.0, -90.0]], (40, 80))
    grid = BEVGrid(shape=(6, 6), x_range_m=(-3, 3), y_range_m=(-3, 3), z_range_m=(1.0, 2.0))
    plan = plan_visibility(rig, grid.pillar_points(1).flatten(0, 1))
    ahead, behind = 5 * 6 + 3, 0 * 6 + 3
    assert plan.slots[0, ahead].tolist() == [0, 1] and plan.weights[0, ahead, 0] == 0.5
    assert plan.slots[0, behind].tolist() == [2, -1] and plan.weights[0, behind, 0] == 1.0


def test_padding_moves_the_references_but_not_the_visibility():
    # features cover the padded image; visibility is tested on the unpadded one (docs/reference.md 4.1 N)
    rig = rig_of([[90.0]], (40, 80))
    padded = type(rig)(rig.pixels_from_camera, rig.camera_from_bev, rig.image_size_px, (80, 160))
    pillars = BEVGrid(shape=(6, 6), x_range_m=(-3, 3), y_range_m=(-3, 3)).pillar_points(2).flatten(0, 1)
    plan, plan_padded = plan_visibility(rig, pillars), plan_visibility(padded, pillars)
    assert (plan.slots == plan_padded.slots).all()
    torch.testing.assert_close(plan.references, plan_padded.references * 2)


def test_motion_embedding_enters_the_queries():
    encoder = encoder_of(motion_embedding=dict(type="bevstack.MotionEmbedding", channels=16))
    frame, features = two_samples(), features_of()
    other = type(frame)(frame.images, frame.rig, motion_of([(0.0, 3.0, 5.0), (1.0, -2.0, -20.0)]))
    assert not torch.allclose(encoder(features, frame, None).features, encoder(features, other, None).features)


SQUARE = BEVGrid(shape=(6, 6), x_range_m=(-3, 3), y_range_m=(-3, 3), z_range_m=(1.0, 2.0))


@pytest.fixture
def rig():
    return rig_of([[90.0, 90.0, -90.0]], (40, 80))


@pytest.fixture
def grid():
    return SQUARE


def test_a_plan_of_fixed_slots_is_the_same_plan_with_empty_slots(rig, grid):
    # expected value: the plan that has as many slots as this rig needs
    pillars = grid.pillar_points(2).flatten(0, 1)
    needed, fixed = plan_visibility(rig, pillars), plan_visibility(rig, pillars, num_slots=rig.num_cameras)
    used = needed.slots.shape[2]
    assert torch.equal(fixed.slots[..., :used], needed.slots) and (fixed.slots[..., used:] == -1).all()
    assert torch.equal(fixed.weights[..., :used], needed.weights)
    occupied = needed.slots >= 0
    assert torch.equal(fixed.references[..., :used, :, :][occupied], needed.references[occupied])


def test_more_cameras_than_slots_are_an_error():
    seen = torch.ones(1, 3, 4, dtype=torch.bool)
    places = torch.rand(1, 3, 4, 2, 2)
    with pytest.raises(InputError, match="model: encoder.num_slots: a cell of this rig is seen by more cameras"):
        plan_from_mask(seen, places, num_slots=2)
    assert plan_from_mask(seen, places).slots.shape == (1, 4, 3)


def test_the_plan_is_kept_while_the_rig_is_the_same(rig, grid):
    pillars, cache = grid.pillar_points(2).flatten(0, 1), PlanCache()
    first = cache.plan(rig, pillars, None)
    again = replace(rig, camera_from_bev=rig.camera_from_bev.clone())
    assert cache.plan(again, pillars, None) is first
    moved = rig.camera_from_bev.clone()
    moved[..., 2, 3] += 0.5
    other = cache.plan(replace(rig, camera_from_bev=moved), pillars, None)
    wanted = plan_visibility(replace(rig, camera_from_bev=moved), pillars)
    assert other is not first and torch.equal(other.references, wanted.references)
    # a rig that is changed in place is another rig
    rig.camera_from_bev[..., 2, 3] += 0.5
    assert torch.equal(cache.plan(rig, pillars, None).references, wanted.references)


@pytest.mark.parametrize("history", ["none", "both"])
def test_bfloat16_stays_within_two_hundredths_of_float32(history):
    # places, offsets and logits are never in bfloat16; bound: of the largest value, as the products' 8 bits allow
    encoder, frame, features = encoder_of().eval(), two_samples(), features_of()
    for layer in encoder.layers:  # offsets of many pixels, where rounding them would show
        for attention in (layer.temporal, layer.spatial):
            torch.nn.init.normal_(attention.sampling_offsets.bias, std=4.0)
    past = None if history == "none" else random_history(frame.motion)
    with torch.no_grad():
        exact = encoder(features, frame, past).features
        with torch.autocast("cpu", torch.bfloat16):
            rough = encoder(features, frame, past).features
    assert float((rough - exact).abs().max()) < 2e-2 * float(exact.abs().max())
