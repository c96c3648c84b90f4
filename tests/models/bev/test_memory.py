"""What enters the memory, in which order, and the clock of its frames."""

from __future__ import annotations

from dataclasses import replace

import torch

from bevstack.engine.streaming import Streams
from bevstack.geometry import BEVGrid
from bevstack.models.bev.memory import push_memory
from bevstack.structures import BEVDataSample, BEVFeatures, BEVMemory
from tests.models.scenes import motion_of, pushed

GRID = BEVGrid((2, 2))


def blank(batch: int) -> torch.Tensor:
    return torch.zeros(batch, 1, 2, 2)


def test_seconds_add_up_and_the_oldest_frame_leaves():
    # Expected: steps of 0.5 s and 0.7 s before the frame just done, written out.
    motion = motion_of([None, (0.0, 1.0, 0.0)])
    memory = pushed(None, blank(2), motion, GRID, 3)
    assert memory.seconds.tolist() == [[0.0], [0.0]]
    for step in (0.5, 0.7):
        memory = pushed(memory, blank(2), replace(motion, seconds=torch.tensor([0.0, step])), GRID, 3)
    torch.testing.assert_close(memory.seconds[1], torch.tensor([0.0, 0.7, 1.2]))
    memory = pushed(memory, blank(2), replace(motion, seconds=torch.tensor([0.0, 1.0])), GRID, 3)
    torch.testing.assert_close(memory.seconds[1], torch.tensor([0.0, 1.0, 1.7]))
    assert memory.valid.tolist() == [[True, False, False], [True, True, True]]


def test_unknown_times_stay_unknown():
    memory = BEVMemory(torch.zeros(1, 1, 1, 2, 2), GRID, torch.eye(4)[None, None], torch.ones(1, 1, dtype=torch.bool))
    assert memory.seconds.isnan().all()
    seconds = pushed(memory, blank(1), motion_of([(0.0, 1.0, 0.0)]), GRID, 2).seconds
    assert seconds[0, 0] == 0 and seconds[0, 1].isnan()


def test_index_0_is_what_the_next_frame_calls_previous():
    # Two steps of (0, 2, 0) and (0, 3, 0): the older frame lies 3 m behind the one just done; a break forgets it.
    first = pushed(None, blank(1), motion_of([None]), GRID, 3)
    second = pushed(first, blank(1) + 1, motion_of([(0, 3, 0)]), GRID, 3)
    assert second.features[:, :, 0, 0, 0].tolist() == [[1.0, 0.0]]
    assert torch.equal(second.now_from_frame[0, 0], torch.eye(4))
    assert second.now_from_frame[0, 1, :2, 3].tolist() == [0.0, -3.0]
    assert second.valid.all()
    assert pushed(first, blank(1), motion_of([None]), GRID, 3).valid.tolist() == [[True, False]]
    assert pushed(second, blank(1), motion_of([(0, 1, 0)]), GRID, 2).features.shape[1] == 2


def test_nothing_is_kept_that_nobody_reads_and_no_graph():
    bev = BEVFeatures(blank(1).requires_grad_() * 2, GRID)
    assert push_memory(None, bev, 0) is None
    assert not push_memory(None, bev, 1).features.requires_grad


def test_a_stream_carries_its_clock():
    memory = replace(pushed(None, blank(2), motion_of([None, None]), GRID), seconds=torch.tensor([[0.25], [0.5]]))
    streams = Streams(memory, ("a", "b"))
    samples = [BEVDataSample(metainfo=dict(token=t, prev_token=p)) for t, p in (("a1", "a"), ("b1", "b"), ("c", ""))]
    assert streams.carried(samples[:1]).seconds.tolist() == [[0.25]]
    assert streams.carried(samples).seconds[:2].tolist() == [[0.25], [0.5]]
