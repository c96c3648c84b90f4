"""What a part spends is told of that part, forward and backward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bevstack.experiments.counted_work import counting
from bevstack.experiments.part_trace import LOSSES, OTHER, PartTrace, tensors_in
from bevstack.geometry import BEVGrid
from bevstack.structures import BEVFeatures

ROWS = 32


class Chain(nn.Module):
    """A model's parts as single linear layers, the first of them frozen, and two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(4, 8).requires_grad_(False)
        self.neck, self.encoder = nn.Linear(8, 12), nn.Linear(12, 16)
        self.temporal_fusion = self.bev_neck = None
        self.heads = nn.ModuleDict({"first": nn.Linear(16, 2), "second": nn.Linear(16, 3)})
        self.image_heads = nn.ModuleDict()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        bev = self.encoder(self.neck(self.backbone(rows)))
        return sum(head(bev).square().sum() for head in self.heads.values())


@pytest.fixture(scope="module")
def trace():
    model = Chain()
    with counting() as work:
        trace = PartTrace(model, lambda: work.multiply_adds)
        with trace.recording():
            loss = model(torch.randn(ROWS, 4))
            trace.begin_backward()
            loss.backward()
            trace.begin_update()
    return trace


def test_forward(trace):
    # expected: rows times inputs times outputs of each layer, and nothing elsewhere
    sizes = {"backbone": 4 * 8, "neck": 8 * 12, "encoder": 12 * 16, "heads.first": 16 * 2, "heads.second": 16 * 3}
    assert {part: number for part, number in trace.forward.items() if number} == {
        part: ROWS * size for part, size in sizes.items()
    }


def test_backward(trace):
    # expected: weights' and inputs' gradients, each as much as forward; of the neck, before which all is frozen, the
    # weights' alone; of the frozen backbone nothing
    sizes = {"neck": 8 * 12, "encoder": 2 * 12 * 16, "heads.first": 2 * 16 * 2, "heads.second": 2 * 16 * 3}
    assert {part: number for part, number in trace.backward.items() if number} == {
        part: ROWS * size for part, size in sizes.items()
    }


def test_nothing_is_lost():
    # expected: a clock that ticks once a reading is told of whole, part by part
    readings = iter(range(1000))
    model = Chain()
    trace = PartTrace(model, lambda: next(readings))
    with trace.recording():
        loss = model(torch.randn(ROWS, 4))
        trace.begin_backward()
        loss.backward()
        trace.begin_update()
    last = next(readings) - 1
    assert sum(trace.forward.values()) + sum(trace.backward.values()) == last
    assert {OTHER, LOSSES} <= set(trace.forward) | set(trace.backward)


def test_tensors_in_records():
    # expected: those that were put in
    first, second = torch.zeros(1, 2, 3, 4), torch.ones(2)
    bev = BEVFeatures(first, BEVGrid((3, 4)))
    assert [id(tensor) for tensor in tensors_in(({"a": [second]}, bev, "word"))] == [id(second), id(first)]
