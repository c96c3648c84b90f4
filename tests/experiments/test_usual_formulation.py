"""The usual formulation computes what ours does: then what it is timed against is the same work."""

from __future__ import annotations

import pytest
import torch
from mmengine.registry import init_default_scope

from bevstack.experiments.usual_formulation import UsualEncoder, UsualSpatialCrossAttention, UsualTemporalSelfAttention
from bevstack.experiments.usual_model import UsualDetectionHead, UsualPerception
from bevstack.geometry import BEVGrid
from bevstack.models import BEVPerception
from bevstack.models.bev import BEVFormerEncoder, plan_visibility
from bevstack.models.bev.temporal_self_attention import TemporalContext
from bevstack.models.heads import QueryDetectionHead
from bevstack.registry import MODELS
from bevstack.structures import BEVFeatures, Clip, Frame
from tests.models.scenes import CLASSES, aligned, labels_of, motion_of, pushed, rig_of, two_samples

GRID = BEVGrid(shape=(10, 12), x_range_m=(-15, 15), y_range_m=(-18, 18), z_range_m=(-3, 2))
SIZE_PX = (32, 64)
SHAPES = [(4, 8), (2, 4)]


def scattered(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module with every parameter drawn at random: offsets and weights that start at zero would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module.eval()


def encoder_of(**changes) -> BEVFormerEncoder:
    sizes = dict(channels=16, num_cameras=3, num_levels=2, num_layers=2, num_heads=2, feed_forward_channels=32)
    return scattered(BEVFormerEncoder(GRID, **{**sizes, "motion_embedding": None, **changes}))


def features_of(batch: int = 2) -> list[torch.Tensor]:
    torch.manual_seed(3)
    return [torch.randn(batch, 3, 16, *shape) for shape in SHAPES]


def close(found: torch.Tensor, expected: torch.Tensor, relative: float) -> bool:
    return (found - expected).abs().max() <= relative * expected.abs().max()


def test_spatial_cross_attention_to_two_millionths():
    # expected: ours, on two samples whose cameras see other cells
    encoder, frame = encoder_of(), two_samples(3, SIZE_PX)
    ours, usual = encoder.layers[0].spatial, UsualEncoder(encoder)
    tokens, shapes = encoder.image_tokens(features_of())
    query = torch.randn(2, GRID.num_cells, 16)
    places, mask = usual.sampled_points(frame.rig, torch.float32)
    assert 0.1 < mask.any(-1).float().mean() < 0.9, "some are seen, some not"
    found = UsualSpatialCrossAttention(ours).eval()(query, tokens, shapes, places, mask)
    expected = ours(query, tokens, shapes, plan_visibility(frame.rig, encoder.pillars)) + query
    assert close(found, expected, 2e-6)


def test_temporal_self_attention_to_two_millionths():
    # expected: ours, with history in both samples
    ours = encoder_of().layers[0].temporal
    query, previous, initial = torch.randn(3, 2, GRID.num_cells, 16)
    position = torch.randn(1, GRID.num_cells, 16)
    references = GRID.reference_points()[None, :, None].expand(2, -1, 2, -1) + torch.rand(2, 1, 2, 2) * 0.1
    context = TemporalContext(previous, initial, torch.ones(2, dtype=torch.bool), references, position)
    pair = torch.stack([previous, initial], 1).flatten(0, 1)
    stacked = references.transpose(1, 2).flatten(0, 1).unsqueeze(2)
    found = UsualTemporalSelfAttention(ours).eval()(query, pair, position, stacked, GRID.shape)
    assert close(found, ours(query, context, GRID.shape) + query, 2e-6)


@pytest.mark.parametrize("history", ["none", "all", "one sample"])
@pytest.mark.parametrize("temporal_points", [0, 4])
def test_encoder(history, temporal_points):
    # expected: ours, the same weights; with gradients of the image features
    motion = dict(type="bevstack.MotionEmbedding", channels=16)
    encoder, frame = encoder_of(temporal_points=temporal_points, motion_embedding=motion), two_samples(3, SIZE_PX)
    past = None
    if history != "none":
        steps = [(0.0, 3.0, 5.0), (1.0, -2.0, -20.0) if history == "all" else None]
        frame = Frame(frame.images, frame.rig, motion_of(steps))
        past = aligned(pushed(None, torch.randn(2, 16, *GRID.shape), motion_of([None, None]), GRID), frame.motion)
    usual, results = UsualEncoder(encoder).eval(), []
    for each in (encoder, usual):
        features = [level.requires_grad_() for level in features_of()]
        bev = each(features, frame, past).features
        bev.square().sum().backward()
        results.append((bev.detach(), features[0].grad))
    assert close(results[1][0], results[0][0], 1e-5) and close(results[1][1], results[0][1], 1e-4)


def head_of() -> QueryDetectionHead:
    return scattered(
        QueryDetectionHead(
            16, GRID, CLASSES, num_queries=9, decoder=dict(num_layers=3, num_heads=2, feed_forward_channels=32)
        )
    )


def test_detection_head():
    # expected: ours, the same weights
    ours, bev = head_of(), BEVFeatures(torch.randn(2, 16, *GRID.shape), GRID)
    found, expected = UsualDetectionHead(ours).eval()(bev), ours(bev)
    assert set(found) == set(expected) == {"logits", "boxes"}
    assert all(close(found[name], expected[name], 1e-5) for name in found)


def whole_model() -> BEVPerception:
    init_default_scope("bevstack")
    torch.manual_seed(0)
    model = MODELS.build(
        dict(
            type="BEVPerception",
            backbone=dict(type="mmdet.ResNet", depth=18, base_channels=4, out_indices=(1, 2), norm_eval=True),
            neck=dict(type="mmdet.FPN", in_channels=[8, 16], out_channels=16, num_outs=2),
            encoder=dict(
                type="BEVFormerEncoder", grid=GRID, channels=16, num_cameras=3, num_levels=2, num_layers=1, num_heads=2
            ),
            heads=dict(detection=dict(type="QueryDetectionHead", in_channels=16, grid=GRID, classes=CLASSES,
                                      num_queries=9, decoder=dict(num_layers=2, num_heads=2, dropout=0.0))),
        )
    )  # fmt: skip
    scattered(model.encoder)
    return model.eval()


def clip_of_three() -> Clip:
    rig = rig_of([[90.0, -30.0, 210.0]], SIZE_PX)
    steps = [None, (0.0, 2.0, 3.0), (0.5, 2.0, -5.0)]
    return Clip(tuple(Frame(torch.randn(1, 3, 3, *SIZE_PX), rig, motion_of([step])) for step in steps))


def test_whole_model():
    # expected: ours, the same weights: outputs of a second step, and the losses of a clip of three frames
    model, clip = whole_model(), clip_of_three()
    usual, frames = UsualPerception(model).eval(), clip.frames
    with torch.no_grad():
        bev, memory = model.step(frames[0])
        bev, _ = model.step(frames[1], memory)
        expected = model.heads["detection"](bev)
        _, memory = usual.step(frames[0], None)
        found, _ = usual.step(frames[1], memory)
    assert all(close(found[name], expected[name], 1e-5) for name in expected)
    samples = labels_of(GRID, [4])
    losses = model(clip, samples, "loss")
    for name, value in usual.losses(clip, samples).items():
        assert losses[f"detection.{name}"].item() == pytest.approx(value.item(), rel=1e-4), name
