"""The memory's clock: how long ago each of its frames was."""

from __future__ import annotations

from dataclasses import replace

import torch

from bevstack.engine.streaming import carried_memory
from bevstack.models.bev.memory import push_memory
from bevstack.structures import BEVDataSample, BEVMemory
from tests.models.scenes import motion_of


def test_seconds_add_up_and_the_oldest_frame_leaves():
    # Expected: steps of 0.5 s and 0.7 s before the newest frame, written out.
    motion = motion_of([None, (0.0, 1.0, 0.0)])
    memory = push_memory(None, torch.zeros(2, 1, 2, 2), motion, 3)
    assert memory.seconds.tolist() == [[0.0], [0.0]]
    for step in (0.5, 0.7):
        memory = push_memory(memory, torch.zeros(2, 1, 2, 2), replace(motion, seconds=torch.tensor([0.0, step])), 3)
    torch.testing.assert_close(memory.seconds[1], torch.tensor([0.0, 0.7, 1.2]))
    memory = push_memory(memory, torch.zeros(2, 1, 2, 2), replace(motion, seconds=torch.tensor([0.0, 1.0])), 3)
    torch.testing.assert_close(memory.seconds[1], torch.tensor([0.0, 1.0, 1.7]))
    assert memory.valid.tolist() == [[True, False, False], [True, True, True]]


def test_unknown_times_stay_unknown():
    memory = BEVMemory(torch.zeros(1, 1, 1, 2, 2), torch.eye(4)[None, None], torch.ones(1, 1, dtype=torch.bool))
    assert memory.seconds.isnan().all()
    seconds = push_memory(memory, torch.zeros(1, 1, 2, 2), motion_of([(0.0, 1.0, 0.0)]), 2).seconds
    assert seconds[0, 0] == 0 and seconds[0, 1].isnan()


def test_a_stream_carries_its_clock():
    memory = replace(push_memory(None, torch.zeros(2, 1, 2, 2), motion_of([None, None])), tokens=("a", "b"))
    memory = replace(memory, seconds=torch.tensor([[0.25], [0.5]]))
    samples = [BEVDataSample(metainfo=dict(token=t, prev_token=p)) for t, p in (("a1", "a"), ("b1", "b"), ("c", ""))]
    assert carried_memory(memory, samples[:1]).seconds.tolist() == [[0.25]]
    assert carried_memory(memory, samples).seconds[:2].tolist() == [[0.25], [0.5]]
    assert memory.to("meta").seconds.device.type == "meta"
