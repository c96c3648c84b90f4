"""Past frames of a clip: in which format, and how many of them together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bevstack.models.history import HistoryFrames
from bevstack.structures import Clip
from tests.models.test_perception import GRID, build, frames_of, labels_of


def test_frames_together_are_frames_one_by_one():
    # Samples do not see each other, in evaluation mode, so that a larger batch changes rounding alone.
    model, frames = build(temporal_fusion=dict(type="TemporalConcatenation", channels=16, num_frames=4)), frames_of(5)
    expected = HistoryFrames()(model, frames, None)
    for together in (2, 3, 8):
        found = HistoryFrames(frames_at_once=together)(model, frames, None)
        assert found.features.shape[1] == 3
        assert torch.allclose(found.features, expected.features, rtol=1e-4, atol=1e-5)
    assert not found.features.requires_grad and model.training


def test_features_that_are_given_are_joined_too():
    model, frames = build().eval(), frames_of(2)
    expected = HistoryFrames()(model, frames, None)
    given = []
    for frame in frames:
        with torch.no_grad():
            levels = model.backbone_features(frame.images.flatten(0, 1))
        features = tuple(level.unflatten(0, frame.images.shape[:2]) for level in levels)
        given.append(replace(frame, images=torch.zeros_like(frame.images), features=features))
    found = HistoryFrames(frames_at_once=2)(model, given, None)
    assert torch.allclose(found.features, expected.features, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="frames_at_once=1"):
        HistoryFrames(frames_at_once=2)(model, [given[0], frames[1]], None)


def test_history_in_bfloat16_leaves_the_step_in_float32():
    clip, samples = Clip(tuple(frames_of(3))), labels_of(GRID, [1, 2])
    losses = {}
    for dtype in (None, "bfloat16"):
        model = build(history=dict(dtype=dtype))
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        losses[dtype] = model(clip, samples, mode="loss")
        assert all(value.dtype == torch.float32 for value in losses[dtype].values())
        sum(losses[dtype].values()).backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)
    for name, value in losses[None].items():
        # 2^-8 of the memory, which the current frame's features outweigh
        assert value.item() == pytest.approx(losses["bfloat16"][name].item(), rel=2e-2)
    assert any(value.item() != losses["bfloat16"][name].item() for name, value in losses[None].items())


@pytest.mark.parametrize(("settings", "word"), [(dict(dtype="half"), "dtype"), (dict(frames_at_once=0), "at least 1")])
def test_settings_that_cannot_be(settings, word):
    with pytest.raises(ValueError, match=word):
        build(history=settings)
