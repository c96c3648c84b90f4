"""Suite ``gpu`` of ``tools/benchmark.py`` where there is no GPU: its cases, its check of correctness, its rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bevstack.errors import InputError
from bevstack.experiments import usual_formulation
from bevstack.experiments.benchmarks import gpu, gpu_cases, gpu_ways
from bevstack.experiments.benchmarks.gpu_cases import (
    DECODER_QUERIES,
    KINDS,
    errors_of,
    moved,
    near_pixel_borders,
    sampled_elsewhere,
)
from bevstack.experiments.benchmarks.gpu_measuring import Deadline, DeviceStopwatch, launches_of
from bevstack.experiments.benchmarks.inputs import SIZES
from bevstack.experiments.benchmarks.measuring import Stopwatch
from bevstack.experiments.benchmarks.op import PaddedLists
from bevstack.experiments.benchmarks.report import table_of
from bevstack.experiments.benchmarks.settings import Settings

CPU = torch.device("cpu")


def no_clock(run, calls):
    return 1e-3


@pytest.fixture
def timer(monkeypatch):
    """Every candidate runs once, by no clock; nothing is compiled, which takes a minute and is torch's affair."""
    monkeypatch.setattr(torch, "compile", lambda module: module)
    return DeviceStopwatch(1, Deadline(1000), no_clock)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    # expected: one line that names the flag
    with pytest.raises(InputError, match=r"^benchmark: --suite gpu: cannot run here: no CUDA device$"):
        gpu.run(Stopwatch(1), Settings())


def test_the_decoder_asks_for_its_objects():
    # expected: 900 queries, one BEV, every sample's reference within the map
    case = KINDS["decoder"](SIZES["toy"])
    assert case.offsets.shape[:4] == (1, DECODER_QUERIES, 1, 8) and (case.plan.slots == 0).all()
    assert case.value.shape[1] == 12 * 12 and case.shapes == [(12, 12)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", gpu.BOUNDS, ids=str)
def test_a_right_backend_is_right(kind, dtype):
    # expected: within the bounds, for a backend that tests/ops compares with the definition
    errors = errors_of(KINDS[kind](SIZES["toy"]), "torch", dtype)
    assert list(errors) == ["result", "value", "offsets", "logits"]
    assert max(errors.values()) <= gpu.BOUNDS[dtype]


def test_a_wrong_backend_is_wrong(monkeypatch):
    # expected: a result one percent too large is told as that, and its row says no
    right = gpu_cases.ours

    def wrong(case, backend, *tensors):
        return right(case, backend, *tensors) * (1.01 if backend == "torch" else 1.0)

    monkeypatch.setattr(gpu_cases, "ours", wrong)
    errors = errors_of(KINDS["decoder"](SIZES["toy"]), "torch", torch.float32)
    assert errors["result"] == pytest.approx(0.01, rel=1e-3)
    rows = gpu.correctness_rows(CPU, "torch", ("toy",))
    assert len(rows) == 12 and all(row.facts["right"] == "no" for row in rows if "float32" in row.name)


def test_samples_near_a_pixel_are_found():
    # expected by hand: x = 0.5 * 12 + offset - 0.5 is 5.5 + offset, so 0.4999 is a tenth of the margin from pixel 6
    case = KINDS["decoder"](SIZES["toy"])
    case = replace(case, plan=replace(case.plan, references=torch.full_like(case.plan.references, 0.5)))
    offsets = torch.zeros_like(case.offsets)
    offsets[0, 7, 0, 2, 0, 1, 0] = 0.4999
    near = near_pixel_borders(replace(case, offsets=offsets))
    assert near.nonzero().tolist() == [[0, 7, 0, 2, 0, 1, 0]]


def test_what_is_moved_keeps_its_slots():
    # expected: double for the definition but for the slots; for a format the values alone
    case = KINDS["temporal"](SIZES["toy"])
    double, half = moved(case, CPU, torch.float64), moved(case, CPU, torch.bfloat16)
    assert double.offsets.dtype == double.plan.references.dtype == double.value.dtype == torch.float64
    assert half.value.dtype == torch.bfloat16 and half.offsets.dtype == half.plan.weights.dtype == torch.float32
    assert double.plan.slots.dtype == half.plan.slots.dtype == torch.int64


def test_other_operators_get_the_same_samples():
    # expected: our result, from mmcv's function for CPUs on the padded lists, each query's rows added and averaged
    case = KINDS["spatial"](SIZES["toy"])
    locations, weights, shapes = sampled_elsewhere(case)
    answers = usual_formulation.usual_sampling(case.value, shapes, locations, weights)
    total = torch.zeros(1, case.offsets.shape[1], answers.shape[-1])
    for index, (query, _) in enumerate(PaddedLists.of(case).lists):
        total[0, query] += answers[index, : len(query)]
    expected = gpu.ours(case, "reference", case.value, case.offsets, case.logits)
    torch.testing.assert_close(total * case.plan.weights[:, :, :1], expected, atol=1e-5, rtol=1e-5)


def test_launches_are_counted_by_name():
    # expected by hand: kernels and graphs, no copies
    counts = {"cudaLaunchKernel": 3, "cuLaunchKernelEx": 2, "cudaGraphLaunch": 1, "cudaMemcpyAsync": 9, "aten::add": 7}
    assert launches_of(counts) == 6


def test_a_candidate_that_fails_is_left_out():
    # expected: its reason, the others' times; short calls are repeated up to the least time, 2 ms / 0.1 ms = 20
    asked = []

    def seconds_of(run, calls):
        asked.append(calls)
        return 1e-4

    def fails():
        raise RuntimeError("no such kernel\nand more")

    row = DeviceStopwatch(2, Deadline(10), seconds_of).row("row", {"usual": fails, "ours": lambda: None}, "usual")
    assert row.facts == {"without usual": "RuntimeError: no such kernel"}
    assert row.base == "" and row.seconds == {"ours": [1e-4, 1e-4]} and asked == [1, 20, 20]


def test_no_row_is_begun_when_time_is_up():
    # expected: a clock that has run from 0 to 5 has passed a deadline of 5, and nothing is called
    now = iter([0.0, 4.9, 5.0])
    deadline = Deadline(5.0, lambda: next(now))
    assert not deadline.passed
    row = DeviceStopwatch(1, deadline, no_clock).row("row", {"ours": lambda: pytest.fail("called")})
    assert row.facts == {"left out": "no time was left"} and row.seconds == {}


def test_the_usual_formulation_samples_by_what_it_is_given():
    # expected: the other function's result inside, its own again outside, also after an error
    own = usual_formulation.usual_sampling
    assert gpu_ways.sampled_by(lambda *_: 7, lambda: usual_formulation.usual_sampling()) == 7
    with pytest.raises(ZeroDivisionError):
        gpu_ways.sampled_by(lambda *_: 7, lambda: 1 / 0)
    assert usual_formulation.usual_sampling is own


def test_tf32_is_put_back():
    # expected: as asked inside, as before outside
    before = torch.backends.cuda.matmul.allow_tf32
    with gpu_ways.tf32(not before):
        assert torch.backends.cuda.matmul.allow_tf32 is not before
    assert torch.backends.cuda.matmul.allow_tf32 is before


def test_operator_rows(timer):
    # expected: two rows a kind with the usual way as base; the table holds each
    rows = gpu.op_rows(timer, CPU, ("toy",))
    assert [row.name for row in rows] == [
        f"op: {kind}, toy: {what}" for kind in KINDS for what in ("forward", "forward + backward")
    ]
    assert all(set(row.seconds) == {"usual", "ours, float32", "ours, bfloat16"} for row in rows)
    table = table_of({"rows": [row.plain() for row in rows]})
    assert all(row.name in table for row in rows)


def test_encoder_rows(timer):
    # expected: a row a format; the same answers to float32's rounding, and a graph that a CPU cannot hold
    rows = gpu.encoder_rows(timer, CPU, ("toy",))
    assert [row.name for row in rows] == [f"encoder, toy, {name}" for name in gpu.FORMATS]
    assert rows[0].differences["ours"] < 1e-5 and "without ours, graph" in rows[0].facts
    assert [("ours, compiled" in row.seconds) for row in rows] == [False, False, True]


@pytest.mark.slow
def test_model_and_training_rows(timer, monkeypatch):
    # expected: rows of a whole tiny on small images in the first format, answers as the usual formulation gives them
    monkeypatch.setitem(gpu.SIZES, "tiny", replace(SIZES["tiny"], image_px=(90, 160), padded_px=(96, 160)))
    monkeypatch.setattr(gpu, "FORMATS", {"float32": ("float32", False)})
    rows = gpu.model_rows(timer, CPU, ("tiny",)) + gpu.training_rows(timer, CPU, ("tiny",))
    assert [set(row.seconds) for row in rows] == [{"usual", "ours"}] * 2
    assert rows[0].differences["ours"] < 1e-3
