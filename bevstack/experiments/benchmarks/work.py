"""Suite ``work``: counted work of steps that must not grow unnoticed; nothing is timed.

``--bounds FILE`` writes the numbers as the bounds that ``tests/experiments/test_work_bounds.py`` compares with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path

from bevstack.engine.models import build_model
from bevstack.experiments.benchmarks.encoder import encoders
from bevstack.experiments.benchmarks.inputs import CAMERAS_PER_CELL, DEMO_IMAGE_PX, SIZES, config_of, demo_model
from bevstack.experiments.benchmarks.measuring import Row, Stopwatch
from bevstack.experiments.benchmarks.model import PADDED_PX
from bevstack.experiments.benchmarks.settings import Settings
from bevstack.experiments.benchmarks.train import demo_step, encoder_and_decoder_steps
from bevstack.experiments.counted_work import counted
from bevstack.experiments.multiply_adds import count_multiply_adds
from bevstack.files import atomic_write

Counts = Mapping[str, int]


def run(watch: Stopwatch, settings: Settings) -> list[Row]:
    """A row of counts for every case."""
    return [Row(name, facts=dict(counts)) for name, counts in cases()]


def cases() -> Iterator[tuple[str, Counts]]:
    """Name and counts of what is watched: whole steps on the meta device, then small steps as a CPU runs them."""
    for name, config, size_px in (
        ("BEVFormer tiny: one frame", "bevformer/bevformer_tiny", PADDED_PX),
        ("demo: one frame", "demo", DEMO_IMAGE_PX),
    ):
        model = build_model(config_of(config), "cpu").to("meta").eval()
        yield name, {"multiply_adds": round(sum(count_multiply_adds(model, size_px, CAMERAS_PER_CELL).values()))}
    encoder = encoders(SIZES["tiny"])["ours"]
    yield "encoder, tiny: forward", _second(partial(encoder, "float32"))
    yield "encoder + decoder, tiny: training step", _second(encoder_and_decoder_steps("float32")["ours"])
    model, cfg = demo_model()
    yield "demo: training step, batch 1", _second(demo_step(model, cfg, 1, "float32"))


def _second(run: Callable[[], object]) -> Counts:
    """Counts of a call after the first, which makes what is kept."""
    run()
    return asdict(counted(run))


def write_bounds(rows: list[Row], path: Path, command: str) -> None:
    """Write rows of :func:`run` as a file of bounds."""
    content = {"renewed by": command, "bounds": {row.name: row.facts for row in rows}}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")
