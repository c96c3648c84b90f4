"""Suite ``demo``: one training step of the demo, part by part: multiply-adds, seconds, share of the machine's peak."""

from __future__ import annotations

import time
from collections import defaultdict

import torch
from tqdm import tqdm

from bevstack.engine.benchmark import timed
from bevstack.experiments.benchmarks.inputs import CAMERAS_PER_CELL, DEMO_IMAGE_PX, demo_model
from bevstack.experiments.benchmarks.measuring import Row, Spread, Stopwatch
from bevstack.experiments.benchmarks.settings import Settings
from bevstack.experiments.benchmarks.train import TrainingStep, demo_step
from bevstack.experiments.counted_work import counting
from bevstack.experiments.multiply_adds import count_multiply_adds
from bevstack.experiments.part_trace import PartTrace
from bevstack.models import BEVPerception

BATCH = 4


def run(watch: Stopwatch, settings: Settings) -> list[Row]:
    """A row a part, forward and backward, and one of the whole step; the machine's peak is that of a square product."""
    model, cfg = demo_model()
    batch = 2 if settings.quick else BATCH
    step = demo_step(model, cfg, batch, settings.dtype)
    peak = peak_per_second(step.precision.dtype)
    step()  # what is made once is made now
    work = products_of(model, step)
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in tqdm(range(watch.rounds), desc="demo: training step by part"):
        for key, spent in seconds_of(model, step).items():
            seconds[key].append(spent)
    rows = []
    for (part, direction), taken in sorted(seconds.items(), key=lambda entry: -Spread.of(entry[1]).median):
        number = work.get((part, direction), 0.0)
        facts = {"multiply-adds (G)": round(number / 1e9, 2)}
        facts["share of peak (%)"] = round(100 * number / Spread.of(taken).median / peak, 1)
        rows.append(Row(f"{part}, {direction}", {"ours": taken}, facts=facts))
    whole = [sum(taken[turn] for taken in seconds.values()) for turn in range(watch.rounds)]
    facts = {"multiply-adds (G)": round(sum(work.values()) / 1e9, 2)}
    facts["share of peak (%)"] = round(100 * sum(work.values()) / Spread.of(whole).median / peak, 1)
    name = f"whole step, batch {batch}, {step.precision.name}"
    counts = count_multiply_adds(demo_model()[0].to("meta"), DEMO_IMAGE_PX, CAMERAS_PER_CELL)
    counted = {part: round(number / 1e9, 2) for part, number in counts.items()}
    return [
        Row(name, {"ours": whole}, facts=facts),
        *rows,
        Row("peak, a square product", facts={"G multiply-adds a second": round(peak / 1e9, 1)}),
        Row("forward, one sample, G multiply-adds", facts=counted),
    ]


def seconds_of(model: BEVPerception, step: TrainingStep) -> dict[tuple[str, str], float]:
    """Seconds of one step by part and direction."""
    return _traced(model, step, PartTrace(model, time.perf_counter))


def products_of(model: BEVPerception, step: TrainingStep) -> dict[tuple[str, str], float]:
    """Multiply-adds of convolutions and matrix products of one step by part and direction."""
    with counting() as work:
        return _traced(model, step, PartTrace(model, lambda: work.multiply_adds))


def _traced(model: BEVPerception, step: TrainingStep, trace: PartTrace) -> dict[tuple[str, str], float]:
    with trace.recording():
        loss = step.forward()
        trace.begin_backward()
        step.wrapper.backward(loss)
        trace.begin_update()
        step.wrapper.step()
        step.wrapper.zero_grad()
    forward = {(part, "forward"): value for part, value in trace.forward.items()}
    return forward | {(part, "backward"): value for part, value in trace.backward.items()}


def peak_per_second(dtype: torch.dtype, size: int = 2048) -> float:
    """Multiply-adds a second of a square matrix product in a format, the best of several."""
    left, right = torch.randn(2, size, size).to(dtype)
    return size**3 / min(timed(lambda: left @ right) for _ in range(8))
