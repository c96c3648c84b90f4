"""bfloat16 proves itself before it is taken: a layer that is wrong is named, whatever else is right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bevstack import bfloat16_check
from bevstack.bfloat16_check import LARGEST_ERROR, TIME_KINDS, USUAL_KINDS, LayerKind, fault_of, kinds_of
from bevstack.doctor import check_torch
from bevstack.models.layers.time_convolution import TimeConvolution
from bevstack.precision import choose_precision, cpu_bfloat16_support

needs_bfloat16 = pytest.mark.skipif(not cpu_bfloat16_support(), reason="this CPU multiplies no matrices in bfloat16")


@pytest.fixture(autouse=True)
def forgotten():
    """Each test checks anew."""
    bfloat16_check._fault.cache_clear()
    yield
    bfloat16_check._fault.cache_clear()


class WrongLinear(nn.Linear):
    """Stands for a library that is wrong in bfloat16 alone: its output, or the gradient of its weights."""

    wrong = "output"

    class _Backward(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            return weight.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("nan")

    def forward(self, inputs):
        if not torch.is_autocast_enabled("cpu"):
            return super().forward(inputs)
        if self.wrong == "output":
            return super().forward(inputs) * 1.2
        return nn.functional.linear(inputs, self._Backward.apply(self.weight), self.bias)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("output", "WrongLinear of 8 to 8 channels: its output is off by 20 %"),
        ("gradient", "WrongLinear of 8 to 8 channels: its weights' gradient is not finite"),
    ],
)
def test_what_is_wrong_is_named(monkeypatch, wrong, said) -> None:
    """Expected: 1.2 times is 20 % off; a gradient that is NaN is not finite."""
    monkeypatch.setattr(WrongLinear, "wrong", wrong)
    fault = fault_of(LayerKind(WrongLinear, (("in_features", 8), ("out_features", 8))))
    assert str(fault) == said


@needs_bfloat16
def test_a_wrong_layer_means_float32(monkeypatch) -> None:
    """Expected: the format falls back, and one line says which layer it was."""
    monkeypatch.setattr(bfloat16_check, "_kind_of", lambda module: WRONG if isinstance(module, nn.Linear) else None)
    chosen = choose_precision("auto", "cpu", nn.Sequential(nn.Linear(3, 3)))
    assert chosen.name == "float32" and chosen.reason.startswith("bfloat16 is wrong on this CPU in WrongLinear of 8")
    assert "\n" not in chosen.reason
    assert choose_precision("bfloat16", "cpu").name == "bfloat16", "asked for by name, it is taken"


WRONG = LayerKind(WrongLinear, (("in_features", 8), ("out_features", 8)))


@needs_bfloat16
def test_usual_layers_are_right(threads) -> None:
    """With one thread and with two; expected: rounding alone, a tenth of the limit."""
    assert [fault_of(kind) for kind in USUAL_KINDS] == [None] * len(USUAL_KINDS)
    assert LARGEST_ERROR == 0.05
    assert choose_precision("auto", "cpu").name == "bfloat16"


@pytest.mark.skipif(cpu_bfloat16_support() != "AVX512-BF16", reason="the fault is of CPUs with AVX512-BF16 and no AMX")
def test_the_known_fault_is_found() -> None:
    """torch's own convolution over time, one thread: measured wrong where 2 frames meet a kernel of 3 or 5."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = [fault_of(kind) for kind in TIME_KINDS]
        assert found[0] is not None or found[1] is not None
        assert all(fault is None or "weights' gradient" in str(fault) for fault in found)
        model = nn.Sequential(nn.Conv3d(16, 16, (5, 1, 1), padding=(2, 0, 0)))
        assert choose_precision("auto", "cpu", model).name == "float32"
    finally:
        torch.set_num_threads(before)
    finding = [entry for entry in check_torch() if entry.subject == "precision"]
    assert finding[0].found.startswith("bfloat16") and all(entry.state != "missing" for entry in finding)


def test_kinds_are_those_that_torch_computes() -> None:
    """Each once, channels up to 64; a convolution over time that is computed otherwise is none."""
    model = nn.Sequential(
        nn.Conv2d(3, 128, 3, stride=2), nn.Conv2d(3, 96, 3, stride=2), nn.Conv2d(128, 128, 5, groups=128),
        TimeConvolution(8, 8, (5, 1, 1)), nn.Linear(256, 10), nn.Linear(512, 10), nn.BatchNorm2d(4),
    )  # fmt: skip
    assert [str(kind) for kind in kinds_of(model)] == [
        "attention",
        "Conv2d of 3 to 64 channels, kernel 3 x 3",
        "Conv2d of 64 to 64 channels, kernel 5 x 5, 64 groups",
        "Linear of 64 to 10 channels",
    ]


@pytest.mark.parametrize("layer", [
    nn.Conv1d(4, 6, 3), nn.Conv2d(6, 8, (1, 7), groups=2, dilation=2), nn.ConvTranspose2d(4, 2, 2, stride=2),
    nn.ConvTranspose1d(4, 4, 3), nn.Linear(5, 1), nn.Conv2d(100, 300, 3, groups=100), nn.Conv2d(256, 256, 1, groups=4),
])  # fmt: skip
@needs_bfloat16
def test_every_kind_can_be_computed(layer) -> None:
    """Whatever its sizes, the check runs (expected: no layer of these is wrong)."""
    assert [fault_of(kind) for kind in kinds_of(layer)] == [None, None]


def test_random_numbers_go_on_as_before() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    fault_of(USUAL_KINDS[1])
    assert torch.equal(torch.rand(2), expected)


def test_answers_are_kept_by_threads(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(bfloat16_check, "_cases", lambda kind: calls.append(kind) or iter(()))
    for _ in range(2):
        fault_of(USUAL_KINDS[0])
    assert len(calls) == 1
