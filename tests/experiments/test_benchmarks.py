"""``tools/benchmark.py --suite``: what is timed is equal, what is written can be read, the page is what files give."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from bevstack.engine.export import ExportSettings, export_model
from bevstack.engine.export_comparison import made_up_clip, onnx_runner
from bevstack.engine.export_description import ImagePlan, usual_rig
from bevstack.engine.export_mlperf import MLPerfStep
from bevstack.errors import InputError
from bevstack.experiments.benchmarks import machine
from bevstack.experiments.benchmarks.inputs import SIZES, grid_of, memory_of, rig_of
from bevstack.experiments.benchmarks.latency_mlperf import step_seconds
from bevstack.experiments.benchmarks.measuring import Row, Spread, Stopwatch, difference, percentiles
from bevstack.experiments.benchmarks.model import our_step
from bevstack.experiments.benchmarks.op import PaddedLists, ours, spatial_case, temporal_case, usual
from bevstack.experiments.benchmarks.peers import export_onnx, int8_step, peer_step
from bevstack.experiments.benchmarks.report import page_of
from bevstack.experiments.benchmarks.scaling import more_cameras
from bevstack.experiments.benchmarks.suites import main, read_record
from bevstack.models.bev import plan_visibility
from tests.integration.conftest import REPOSITORY, printed_by


@pytest.mark.parametrize("make", [spatial_case, temporal_case])
def test_the_operator_is_timed_against_its_equal(make):
    # expected: the usual formulation, to 2e-6 of the largest value, and gradients of the values to 1e-5
    case = make(SIZES["toy"])
    answers, gradients = [], []
    for way in (lambda *given: usual(case, PaddedLists.of(case), *given), lambda *given: ours(case, "auto", *given)):
        leaves = case.leaves()
        out = way(*leaves)
        out.square().sum().backward()
        answers.append(out.detach())
        gradients.append(leaves[0].grad)
    assert (answers[1] - answers[0]).abs().max() <= 2e-6 * answers[0].abs().max()
    assert (gradients[1] - gradients[0]).abs().max() <= 1e-5 * gradients[0].abs().max()


def test_the_rig_sees_as_nuscenes_does():
    # expected: 1.128 cameras a cell on a real nuScenes frame, never three (measured on BEVFormer's grids)
    size = SIZES["tiny"]
    plan = plan_visibility(rig_of(size.image_px, size.padded_px), grid_of(size).pillar_points(4).flatten(0, 1))
    count = (plan.slots >= 0).sum(-1).float()
    assert count.mean().item() == pytest.approx(1.128, abs=0.03)
    assert count.max() <= 2


def test_twice_the_cameras_see_the_same():
    # expected: the same pairs, so the same answers from maps that are there twice
    case = spatial_case(SIZES["toy"])
    twice = more_cameras(case, torch.arange(case.plan.slots.shape[1]) % 2)
    assert len(twice.value) == 12 and (twice.plan.slots >= 6).any()
    found = ours(twice, "auto", twice.value, twice.offsets, twice.logits)
    assert torch.equal(found, ours(case, "auto", case.value, case.offsets, case.logits))


def test_candidates_take_turns():
    # expected: one turn that does not count, then A B A B
    calls = []
    row = Stopwatch(2).row("row", {"usual": lambda: calls.append("a"), "ours": lambda: calls.append("b")})
    assert calls == ["a", "b"] * 3
    assert [len(row.seconds[name]) for name in ("usual", "ours")] == [2, 2]


def test_ratios_and_quartiles():
    # expected by hand: medians 4 and 2, so twice as fast; quartiles of 1..5 are 2, 3, 4
    row = Row("row", {"usual": [4.0, 3.0, 9.0], "ours": [2.0, 1.0, 7.0]}, "usual", {"ours": 0.25})
    assert row.ratio("ours") == 2.0 and row.ratio("usual") is None
    assert row.plain()["candidates"]["ours"] == {
        "median": 2.0, "low": 1.5, "high": 4.5, "count": 3, "ratio": 2.0, "difference": 0.25
    }  # fmt: skip
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0, 5)
    assert Spread.of([5.0]) == Spread(5.0, 5.0, 5.0, 1)


def test_percentiles():
    # expected by hand, nearest rank: of 1 to 1000 ms the 500th, 900th, 990th, 999th and last
    facts = percentiles([number / 1000 for number in range(1000, 0, -1)])
    assert [facts[f"{name} (ms)"] for name in ("p50", "p90", "p99", "p99.9", "worst")] == [500, 900, 990, 999, 1000]
    assert facts["jitter (ms)"] == pytest.approx(288.675, abs=0.001) and facts["p99.9 / p50"] == 1.998


def test_a_process_starts_anew_for_another_allocator(monkeypatch):
    # expected: an environment that has the thresholds; none where it has them already
    started = []
    monkeypatch.setattr(machine.os, "execve", lambda file, arguments, environment: started.append(environment))
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    machine.restart_for(None, None)
    assert started == [] and machine.allocator_of_environment() == "default"
    machine.restart_for("raised", 2)
    assert int(started[0]["MALLOC_MMAP_THRESHOLD_"]) > 2**31 and started[0]["OMP_NUM_THREADS"] == "2"
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1")
    assert machine.allocator_of_environment() == "raised"
    machine.restart_for("default", None)
    assert "MALLOC_MMAP_THRESHOLD_" not in started[1]


def test_a_suite_from_the_command_line_to_the_page(tmp_path):
    # expected: a record that says what was run, on what; a table that holds each row; the page with the command
    file, page = tmp_path / "encoder.json", tmp_path / "page.md"
    arguments = ("--suite", "encoder", "--quick", "--rounds", "1", "--sizes", "toy", "--json", file)
    printed, _ = printed_by("tools/benchmark.py", *arguments)
    record = read_record(file)
    rows = {row["name"]: row for row in record["rows"]}
    assert list(rows) == ["toy: forward, float32", "toy: forward, bfloat16"]
    assert rows["toy: forward, float32"]["candidates"]["ours"]["difference"] < 1e-5
    assert record["machine"]["torch"] == torch.__version__ and record["machine"]["allocator"] == "default"
    assert all(f"| {name} |" in printed for name in rows)
    printed, _ = printed_by("tools/benchmark.py", "--report", file, "--page", page)
    assert record["command"] in page.read_text() and "A quick look" in page.read_text()
    assert page.read_text() == page_of([record])


def test_what_is_no_record_is_refused(tmp_path):
    file = tmp_path / "other.json"
    file.write_text("{}")
    with pytest.raises(ValueError, match=r"other.json: --report: not written by --json"):
        main(["--report", str(file)])
    with pytest.raises(ValueError, match=r"benchmark: --against: "):
        main(["--suite", "op", "--against", "openvino"])
    with pytest.raises(ValueError, match=r"benchmark: --rounds: 0 must"):
        main(["--suite", "op", "--rounds", "0"])
    with pytest.raises(ValueError, match=r"benchmark: --file: only suite latency"):
        main(["--suite", "op", "--file", "x.onnx"])


def test_int8_answers_nearly_what_float32_answers(tmp_path):
    """Expected: the float32 file's logits, which are torch's; eight bits of a ResNet-18's features are near them."""
    pytest.importorskip("onnxruntime", reason="the extra 'peers' is not installed")
    from tests.engine.test_export import small_bevformer  # which needs the extra, too

    cfg, model, size = small_bevformer()
    frame = made_up_clip(ImagePlan(cfg, model, usual_rig(6, size), size), 2)[1]
    memory = memory_of(model.encoder.grid, model.encoder.channels)
    given = export_onnx(model, frame, memory, tmp_path / "step.onnx")
    exact = peer_step("onnxruntime", tmp_path / "step.onnx", given)("float32")
    rough = int8_step("onnxruntime", tmp_path / "step.onnx", given)("float32")
    assert 0 < difference(rough, exact) < 0.05
    assert difference(exact, our_step(model, frame, memory, "float32")) < 1e-4


def test_the_page_is_what_its_files_give():
    # expected: the one command of its head changes nothing
    files = sorted((REPOSITORY / "docs" / "benchmarks").glob("*.json"))
    records = [json.loads(file.read_text()) for file in files]
    assert (REPOSITORY / "docs" / "performance.md").read_text() == page_of(records)


def test_a_file_for_mlperf_takes_turns_with_torch(tmp_path):
    """Expected: as many times of each as asked for; a file of another size than its reference's is refused."""
    pytest.importorskip("onnx", reason="the extra 'export' is not installed")
    from tests.engine.test_export import small_bevformer  # which needs the extra, too

    cfg, model, size = small_bevformer("bevformer_v1")
    path = tmp_path / "mlperf.onnx"
    export_model(model, cfg, path, ExportSettings("mlperf", size, frames=2))
    clip = made_up_clip(ImagePlan(cfg, model, usual_rig(6, size), size), 4)[1:2]
    given = []

    def run(inputs):
        given.append(inputs)
        return runner(inputs)

    runner = onnx_runner(path)
    seconds = step_seconds(MLPerfStep(model, clip[0]), run, clip, 2)
    assert [len(times) for times in seconds.values()] == [2, 2, 2] and len(seconds) == 3
    assert [float(inputs["use_prev_bev"]) for inputs in given] == [0.0, 1.0, 1.0, 1.0, 1.0]  # three do not count
    assert not given[0]["prev_bev"].any() and np.array_equal(given[2]["prev_bev"], runner(given[1])["bev"])
    with pytest.raises(InputError, match=r"mlperf.onnx: img: has shape \[1, 6, 3, 32, 64\]; .* \[1, 6, 3, 480, 800\]"):
        main(["--latency", "--file", str(path), "--quick"])
