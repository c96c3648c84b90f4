"""Counted work stays within its bounds: what grows here would be slower on every machine, whatever a clock says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from bevstack.experiments.benchmarks.work import cases
from bevstack.experiments.counted_work import LARGE_BYTES, counted

BOUNDS = json.loads((Path(__file__).parent / "work_bounds.json").read_text())
SLACK = 1.02
"""Versions of torch take a few operators more or less."""


def test_what_is_counted():
    # Expected by hand: 64 x 512 rows times 512 x 1024 weights, twice that backward (weights and inputs); outputs of
    # 64 x 1024 float32 are 256 KiB, a weight's gradient of 512 x 1024 is 2 MiB.
    linear, rows = nn.Linear(512, 1024, bias=False), torch.randn(64, 512, requires_grad=True)
    forward = counted(lambda: linear(rows))
    assert forward.multiply_adds == 64 * 512 * 1024
    assert forward.allocated_bytes == 64 * 1024 * 4 and forward.large_temporaries == 0
    both = counted(lambda: linear(rows).sum().backward())
    assert both.multiply_adds == 3 * 64 * 512 * 1024
    assert both.large_temporaries >= 1 and both.allocated_bytes > 512 * 1024 * 4 > LARGE_BYTES
    assert both.operators > forward.operators >= 1


def test_a_view_is_no_new_memory():
    # Expected: a transposed view shares its storage; a copy of 4 MiB does not.
    table = torch.zeros(1024, 1024)
    assert counted(lambda: table.t()).allocated_bytes == 0
    assert counted(lambda: table.t().contiguous()).allocated_bytes == 4 * 2**20


def test_fused_convolutions_are_counted():
    # Expected by hand: 1 x 6 x 10 x 10 outputs of 4 x 3 x 3 inputs each, with an activation in the same operator.
    convolution = nn.Conv2d(4, 6, 3, padding=1).requires_grad_(False)
    images = torch.randn(1, 4, 10, 10)

    def fused():
        place = ([1, 1], [1, 1], [1, 1], 1, "relu", [], "")
        return torch.ops.mkldnn._convolution_pointwise(images, convolution.weight, convolution.bias, *place)

    assert counted(fused).multiply_adds == counted(lambda: convolution(images)).multiply_adds == 600 * 36


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_gradients_of_grouped_convolutions_are_counted(groups):
    # Expected by hand: 2 x 6 x 9 x 10 outputs of 6 / groups x 3 x 3 inputs each; as many again for each gradient.
    convolution = nn.Conv2d(6, 6, 3, padding=(0, 1), groups=groups)
    features = torch.randn(2, 6, 11, 10, requires_grad=True)
    once = 2 * 6 * 90 * (6 // groups) * 9
    assert counted(lambda: convolution(features)).multiply_adds == once
    assert counted(lambda: convolution(features).sum().backward()).multiply_adds == 3 * once
    assert counted(lambda: convolution(features.detach()).sum().backward()).multiply_adds == 2 * once


@pytest.mark.parametrize("groups", [1, 2])
def test_gradients_of_transposed_convolutions_are_counted(groups):
    # Expected by hand: each of 1 x 4 x 5 x 5 inputs goes into 6 / groups x 2 x 2 outputs; as often for each gradient.
    convolution = nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups)
    features = torch.randn(1, 4, 5, 5, requires_grad=True)
    assert counted(lambda: convolution(features).sum().backward()).multiply_adds == 3 * 100 * (6 // groups) * 4


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BEVSTACK_OPS", "torch")  # the backend that every machine has
        return dict(cases())


def test_every_case_has_bounds(found):
    assert set(found) == set(BOUNDS["bounds"])
    assert {name: set(counts) for name, counts in found.items()} == {
        name: set(counts) for name, counts in BOUNDS["bounds"].items()
    }


@pytest.mark.parametrize("name", BOUNDS["bounds"])
def test_work_stays_within_its_bounds(found, name):
    # Expected: what was counted when the bounds were written; less by a fifth asks for new bounds, so that they bind.
    advice = f"renew the bounds where this is meant: {BOUNDS['renewed by']}"
    for kind, bound in BOUNDS["bounds"][name].items():
        assert found[name][kind] <= SLACK * bound, f"{name}: more {kind}; {advice}"
        assert found[name][kind] >= 0.8 * bound, f"{name}: fewer {kind} than its bound says; {advice}"
