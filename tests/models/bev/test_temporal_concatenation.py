"""BEVFormerV2's temporal way: past BEVs land where they belong, absent ones change nothing, samples stay apart."""

from __future__ import annotations

import math

import pytest
import torch

from bevstack.geometry import BEVGrid
from bevstack.models.bev import TemporalConcatenation, push_memory
from bevstack.structures import BEVFeatures, BEVMemory, EgoMotion

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
        memory = push_memory(memory, blob_at(*seen[:2].tolist()), motion, size=3)
    assert memory.valid.tolist() == [[True, True, True]]
    bev = BEVFeatures(memory.features[:, 0], GRID)
    for age in (1, 2):
        past = TemporalConcatenation._past_frame(bev, memory, age)
        torch.testing.assert_close(centre_of(past), seen[:2], atol=0.08, rtol=0)
        unmoved = centre_of(memory.features[:, age])
        assert (unmoved - seen[:2]).norm() > 1.5


def memory_with(valid, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch, frames = len(valid), len(valid[0])
    features = torch.randn(batch, frames, 4, *GRID.shape, generator=generator)
    poses = torch.eye(4).repeat(batch, frames, 1, 1)
    poses[:, :, 1, 3] = torch.arange(frames) * -2.0
    return BEVMemory(features, poses, torch.tensor(valid))


def test_an_absent_frame_is_the_current_one():
    fusion = TemporalConcatenation(4, 3).eval()
    short = memory_with([[True]])
    bev = BEVFeatures(short.newest, GRID)
    masked = memory_with([[True, False, False]])
    still = BEVMemory(short.features.repeat(1, 3, 1, 1, 1), torch.eye(4).expand(1, 3, 4, 4), torch.ones(1, 3).bool())
    expected = fusion(bev, still).features
    torch.testing.assert_close(fusion(bev, short).features, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(fusion(bev, masked).features, expected, atol=1e-4, rtol=0)


def test_a_batch_of_two_is_two_of_one_and_gradients_reach_the_current_frame():
    fusion = TemporalConcatenation(4, 3).eval()
    memory = memory_with([[True, True, False], [True, True, True]])
    current = memory.newest.clone().requires_grad_()
    both = fusion(BEVFeatures(current, GRID), memory).features
    assert both.shape == (2, 4, 40, 30)
    for row in range(2):
        parts = (memory.features, memory.newest_from_frame, memory.valid)
        one = BEVMemory(*(tensor[row : row + 1] for tensor in parts))
        alone = fusion(BEVFeatures(memory.newest[row : row + 1], GRID), one).features
        torch.testing.assert_close(both[row : row + 1], alone, atol=1e-4, rtol=1e-4)
    both[0, 0, 20, 15].backward()
    assert current.grad[0].abs().sum() > 0 and current.grad[1].abs().sum() == 0


def test_one_frame_is_no_fusion():
    with pytest.raises(ValueError, match="nothing to join"):
        TemporalConcatenation(4, 1)
