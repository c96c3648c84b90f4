"""B_t and the memory of earlier frames: checks, copies, masks."""

from dataclasses import replace

import pytest
import torch

from bevstack.geometry import BEVGrid
from bevstack.structures import BEVFeatures, BEVMemory, EgoMotion

GRID = BEVGrid(shape=(5, 6))


def memory(batch=2, frames=3):
    return BEVMemory(
        features=torch.randn(batch, frames, 4, 5, 6),
        grid=GRID,
        now_from_frame=torch.eye(4).repeat(batch, frames, 1, 1),
        valid=torch.ones(batch, frames, dtype=torch.bool),
        seconds=torch.arange(frames).expand(batch, -1) * 0.5,
    )


def test_features_must_fit_their_grid():
    assert BEVFeatures(torch.zeros(1, 2, 5, 6), GRID).grid is GRID
    with pytest.raises(ValueError, match="cells"):
        BEVFeatures(torch.zeros(1, 2, 6, 5), GRID)


def test_the_memory_must_fit_its_grid():
    with pytest.raises(ValueError, match="cells"):
        replace(memory(), grid=BEVGrid(shape=(6, 5)))


def test_masking_is_per_sample_and_leaves_the_original():
    past = memory()
    masked = past.masked(torch.tensor([True, False]))
    assert masked.valid.tolist() == [[True] * 3, [False] * 3]
    assert past.valid.all() and torch.equal(masked.features, past.features)
    assert not masked.masked(torch.tensor([False, True])).valid.any()  # what is gone stays gone


def test_moving_to_a_device_keeps_everything_else():
    moved = memory().to("meta")
    assert {moved.features.device.type, moved.now_from_frame.device.type, moved.valid.device.type} == {"meta"}
    assert moved.seconds.device.type == "meta" and moved.grid is GRID


def test_samples_are_selected_in_every_field():
    # Expected: what indexing each field by hand gives; a row may come twice.
    past, rows = memory(batch=3), torch.tensor([2, 0, 2])
    chosen = past.select(rows)
    for name in ("features", "now_from_frame", "valid", "seconds"):
        assert torch.equal(getattr(chosen, name), getattr(past, name)[rows]), name
    assert chosen.grid is GRID
    bev = BEVFeatures(past.features[:, 0], GRID, BEVFeatures(past.features[:, 1], GRID), None, (past.features[:, 2],))
    part = bev.select(rows)
    assert torch.equal(part.encoded.features, past.features[rows, 1])
    assert torch.equal(part.image_features[0], past.features[rows, 2]) and part.history is None


def test_a_new_frame_takes_the_memory_over():
    # Closed form: 2 m forward and 0.5 s later everything lies 2 m farther behind and is 0.5 s older; without a
    # predecessor nothing is valid.
    past = memory()
    past.now_from_frame[:, 1, 1, 3] = -1.0  # the second frame lies a metre behind
    step = torch.eye(4).repeat(2, 1, 1)
    step[:, 1, 3] = 2.0
    seen = past.moved(EgoMotion(step, torch.tensor([True, False]), torch.tensor([0.5, 0.0])))
    assert seen.now_from_frame[0, :, 1, 3].tolist() == [-2.0, -3.0, -2.0]
    assert seen.valid.tolist() == [[True] * 3, [False] * 3]
    assert seen.seconds[0].tolist() == [0.5, 1.0, 1.5]
    assert torch.equal(past.now_from_frame[0, 0], torch.eye(4)), "a value: the old one is as it was"
