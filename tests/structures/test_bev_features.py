"""B_t and the memory of earlier frames: checks, copies, masks."""

import pytest
import torch

from bevstack.geometry import BEVGrid
from bevstack.structures import BEVFeatures, BEVMemory


def memory(batch=2, frames=3):
    return BEVMemory(
        features=torch.randn(batch, frames, 4, 5, 6, requires_grad=True),
        newest_from_frame=torch.eye(4).expand(batch, frames, 4, 4),
        valid=torch.ones(batch, frames, dtype=torch.bool),
        tokens=("a", "b"),
    )


def test_features_must_fit_their_grid():
    grid = BEVGrid(shape=(5, 6))
    assert BEVFeatures(torch.zeros(1, 2, 5, 6), grid).grid is grid
    with pytest.raises(ValueError, match="cells"):
        BEVFeatures(torch.zeros(1, 2, 6, 5), grid)


def test_newest_is_the_first():
    past = memory()
    assert torch.equal(past.newest, past.features[:, 0])


def test_masking_is_per_sample_and_leaves_the_original():
    past = memory()
    masked = past.masked(torch.tensor([True, False]))
    assert masked.valid.tolist() == [[True] * 3, [False] * 3]
    assert past.valid.all() and masked.tokens == ("a", "b")
    assert not masked.masked(torch.tensor([False, True])).valid.any()  # what is gone stays gone


def test_detached_memory_carries_no_graph():
    past = memory()
    assert past.features.requires_grad and not past.detach().features.requires_grad
    assert torch.equal(past.detach().features, past.features)


def test_moving_keeps_everything_else():
    moved = memory().to("meta")
    assert moved.features.device.type == moved.newest_from_frame.device.type == moved.valid.device.type == "meta"
    assert moved.tokens == ("a", "b")
