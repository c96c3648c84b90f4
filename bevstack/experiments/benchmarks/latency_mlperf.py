"""Suite ``latency`` of a file for MLPerf (``tools/export.py --interface mlperf``): its step beside torch's.

The step alone, from the harness's five tensors to ``bev``, ``cls`` and ``coords``: what comes before and after is the
harness's own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bevstack.engine.export import model_of
from bevstack.engine.export_comparison import made_up_clip, session_runner
from bevstack.engine.export_description import SOURCE_SIZE_PX, ImagePlan, usual_rig
from bevstack.engine.export_mlperf import MLPerfStep
from bevstack.errors import InputError
from bevstack.experiments.benchmarks.machine import REPOSITORY
from bevstack.experiments.benchmarks.measuring import Row, percentiles
from bevstack.models.inference_form import inference_form
from bevstack.precision import choose_precision
from bevstack.structures import BEVMemory, Frame

QUICK_STEPS, WARM_UP_STEPS, MOMENTS = 2, 3, 8
"""Steps of a quick look, steps that do not count, and frames of the scene, which come again and again."""
CONFIG = REPOSITORY / "configs" / "bevformer" / "bevformer_tiny.py"
"""Of MLPerf's reference."""


def mlperf_rows(session: Any, file: Path, frames: int) -> list[Row]:
    """A row of the file and one of torch's own BEVFormer tiny in each format, with weights drawn at random.

    Args:
        session: an ``onnxruntime.InferenceSession`` of the file.
        file: for the message.
        frames: how many steps of each count.

    Raises:
        InputError: the file is of another size than BEVFormer tiny.
    """
    model = model_of(str(CONFIG), None, ["compat=bevformer_v1"])
    images = ImagePlan(model.config, model, usual_rig(6, SOURCE_SIZE_PX), SOURCE_SIZE_PX)
    clip = made_up_clip(images, 2 * MOMENTS)[1:MOMENTS]  # of its first scene those that have a past
    step = MLPerfStep(inference_form(model), clip[0])
    reference = step.inputs_of(clip[0], None)
    for entry in session.get_inputs():
        wanted = list(reference[entry.name].shape)
        if list(entry.shape) != wanted:
            raise InputError(file, entry.name, f"has shape {entry.shape}; it is timed beside BEVFormer tiny's {wanted}")
    found = step_seconds(step, session_runner(session), clip, frames)
    return [Row(f"step, {name}", {name: seconds}, facts=percentiles(seconds)) for name, seconds in found.items()]


@torch.no_grad()
def step_seconds(
    step: MLPerfStep, run: Callable[[Mapping[str, Any]], Mapping[str, Any]], clip: Sequence[Frame], frames: int
) -> dict[str, list[float]]:
    """Seconds of each step by candidate; they take turns, each with a memory of its own.

    Args:
        step: torch's.
        run: the file's.
        clip: frames of one sample, again and again, without a change of scene.
        frames: how many steps of each count, after :data:`WARM_UP_STEPS`.
    """
    precisions = {f"torch, {dtype}": choose_precision(dtype, "cpu") for dtype in ("float32", "bfloat16")}
    memories: dict[str, BEVMemory | None] = dict.fromkeys(precisions)
    seconds: dict[str, list[float]] = {name: [] for name in ("ONNX Runtime, float32", *precisions)}
    fed: dict[str, Any] = {}
    for number in tqdm(range(WARM_UP_STEPS + frames), desc="steps"):
        frame = clip[number % len(clip)]
        given = {name: value.numpy() for name, value in step.inputs_of(frame, memories["torch, float32"]).items()} | fed
        started = time.perf_counter()
        outputs = run(given)
        taken = [time.perf_counter() - started]
        fed = {name: outputs[output] for name, output in step.fed_back.items()}
        for name, precision in precisions.items():
            started = time.perf_counter()
            with precision.autocast():
                _, memories[name] = step.outputs_of(frame, memories[name])
            taken.append(time.perf_counter() - started)
        if number >= WARM_UP_STEPS:
            for times, one in zip(seconds.values(), taken, strict=True):
                times.append(one)
    return seconds
