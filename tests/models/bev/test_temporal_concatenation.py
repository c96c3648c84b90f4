"""BEVFormerV2's temporal way: past BEVs land where they belong, absent ones change nothing, samples stay apart."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from bevstack.geometry import BEVGrid
from bevstack.models.bev import TemporalConcatenation
from bevstack.structures import AlignedHistory, BEVFeatures, EgoMotion
from tests.models.scenes import aligned, pushed

GRID = BEVGrid((40, 30), (-15.0, 15.0), (-20.0, 20.0))


def motion_of(x, y, yaw, has_previous=True):
    """The ego moved by (x, y) metres of the previous frame and turned left by ``yaw`` radians."""
    matrix = torch.eye(4)
    matrix[:2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
    matrix[:2, 3] = torch.tensor([x, y])
    return EgoMotion(matrix[None], torch.tensor([has_previous]), torch.tensor([0.5]))


def blob_at(x, y):
    """(1, 1, Y, X) a smooth bump around (x, y) metres."""
    return (-(GRID.cell_centers() - torch.tensor([x, y])).square().sum(-1) / 8).exp()[None, None]


def centre_of(features):
    weight = features[0, 0].unsqueeze(-1)
    return (weight * GRID.cell_centers()).flatten(0, 1).sum(0) / weight.sum()


@pytest.mark.parametrize("mirror", [False, True])
def test_every_past_frame_is_expressed_in_the_current_one(mirror):
    # A standing thing, seen from three poses; expected: where the current frame sees it. Under a mirrored BEV
    # augmentation A every pose becomes A pose A^-1 and the thing is seen at A p.
    augmentation = torch.diag(torch.tensor([-1.0 if mirror else 1.0, 1.0, 1.0, 1.0]))
    steps = [motion_of(0, 0, 0, False), motion_of(1.0, 3.0, 0.2), motion_of(-0.5, 2.0, -0.1)]
    global_from_frame, memory = torch.eye(4), None
    thing = torch.tensor([2.0, 8.0, 0.0, 1.0])
    for step in steps:
        global_from_frame = global_from_frame @ step.previous_from_current[0]
        seen = augmentation @ torch.linalg.inv(global_from_frame) @ thing
        pose = augmentation @ step.previous_from_current @ torch.linalg.inv(augmentation)
        motion = EgoMotion(pose, step.has_previous, step.seconds)
        history, bev = None if memory is None else aligned(memory, motion), blob_at(*seen[:2].tolist())
        before, memory = memory, pushed(memory, bev, motion, GRID, size=2)
    assert history.valid.tolist() == [[True, True]]
    for index in (0, 1):
        past = TemporalConcatenation._past_frame(BEVFeatures(bev, GRID), history, index)
        torch.testing.assert_close(centre_of(past), seen[:2], atol=0.08, rtol=0)
        unmoved = centre_of(before.features[:, index])
        assert (unmoved - seen[:2]).norm() > 1.5


def history_with(valid, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch, frames = len(valid), len(valid[0])
    features = torch.randn(batch, frames, 4, *GRID.shape, generator=generator)
    return AlignedHistory(features, GRID, torch.tensor(valid), torch.arange(1.0, frames + 1).expand(batch, -1))


def test_an_absent_frame_is_the_current_one():
    fusion = TemporalConcatenation(4, 3).eval()
    current = torch.randn(1, 4, *GRID.shape, generator=torch.Generator().manual_seed(1))
    bev = BEVFeatures(current, GRID)
    still = replace(history_with([[True, True]]), features=current.unsqueeze(1).repeat(1, 2, 1, 1, 1))
    expected = fusion(bev, still).features
    torch.testing.assert_close(fusion(bev, None).features, expected)
    torch.testing.assert_close(fusion(bev, history_with([[False]])).features, expected)
    torch.testing.assert_close(fusion(bev, history_with([[False, False]])).features, expected)
    assert not torch.allclose(fusion(bev, history_with([[True, False]])).features, expected)


def test_a_batch_of_two_is_two_of_one_and_gradients_reach_the_current_frame():
    fusion = TemporalConcatenation(4, 3).eval()
    history = history_with([[True, False], [True, True]])
    current = torch.randn(2, 4, *GRID.shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    both = fusion(BEVFeatures(current, GRID), history).features
    assert both.shape == (2, 4, 40, 30)
    for row in range(2):
        one = history.select(torch.tensor([row]))
        alone = fusion(BEVFeatures(current[row : row + 1], GRID), one).features
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-4, rtol=1e-4)
    both[0, 0, 20, 15].backward()
    assert current.grad[0].abs().sum() > 0 and current.grad[1].abs().sum() == 0


def test_a_narrow_fusion_joins_the_frames_by_one_matrix():
    # Expected: a 1 x 1 convolution of concatenated frames is the sum of one matrix product a frame; all that follows
    # works at C channels, whatever the number of frames.
    fusion = TemporalConcatenation(4, 3, blocks=1, conv="depthwise_separable", narrow=True).eval()
    history = history_with([[True, True]])
    bev = BEVFeatures(torch.randn(1, 4, *GRID.shape, generator=torch.Generator().manual_seed(1)), GRID)
    join, norm = fusion.join[0], fusion.join[1]
    parts = join.weight[:, :, 0, 0].split(4, dim=1)
    frames = [bev.features, history.features[:, 0], history.features[:, 1]]
    product = sum(torch.einsum("oc,bcyx->boyx", part, frame) for part, frame in zip(parts, frames, strict=True))
    joined = (product / (1 + norm.eps) ** 0.5).relu()
    expected = fusion.norm(fusion.blocks(joined).movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(fusion(bev, history).features, expected, atol=1e-4, rtol=1e-4)
    assert {weight.shape[1] for weight in fusion.blocks.parameters() if weight.dim() > 1} <= {1, 4}


def test_one_frame_is_no_fusion():
    with pytest.raises(ValueError, match="nothing to join"):
        TemporalConcatenation(4, 1)
