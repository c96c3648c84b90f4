"""Suite ``model``: a whole step of BEVFormer tiny, images and memory in, boxes and memory out, in inference.

Against the usual formulation, or against the same step exported to ONNX and run by ONNX Runtime or OpenVINO, which then
also run its INT8 form.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bevstack.experiments.benchmarks.inputs import frame_of, memory_of, tiny_model
from bevstack.experiments.benchmarks.measuring import Row, Stopwatch, difference
from bevstack.experiments.benchmarks.peers import export_onnx, int8_step, peer_step
from bevstack.experiments.benchmarks.settings import Settings
from bevstack.experiments.usual_model import UsualPerception
from bevstack.models import BEVPerception
from bevstack.models.inference_form import inference_form
from bevstack.precision import choose_precision
from bevstack.structures import BEVMemory, Frame

IMAGE_PX, PADDED_PX = (450, 800), (480, 800)


def run(watch: Stopwatch, settings: Settings) -> list[Row]:
    """A row in float32 and one in bfloat16, and with a peer one of INT8; what cannot be run says why in the facts."""
    model, _ = tiny_model()
    model.eval()
    frame = frame_of(IMAGE_PX, PADDED_PX)
    memory = memory_of(model.encoder.grid, model.encoder.channels)
    base, facts = settings.against, {}
    others: dict[str, Callable[[str], Tensor]] = {}
    int8: dict[str, Callable[[str], Tensor]] = {}
    if base == "usual":
        others["usual"] = partial(usual_step, UsualPerception(model).eval(), frame, memory)
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "step.onnx"
            try:
                given = export_onnx(model, frame, memory, path)
                others[base] = peer_step(base, path, given)
                int8 = {f"{peer}, INT8": int8_step(peer, path, given) for peer in dict.fromkeys((base, "onnxruntime"))}
            except Exception as error:  # noqa: BLE001 - torch's exporter and peers fail in many ways; the row says how
                facts[f"without {base}"] = f"{type(error).__name__}: {reason_of(error)}"
    ways = others | {"ours": partial(our_step, inference_form(model), frame, memory)}
    rows = []
    for dtype in ("float32", "bfloat16"):
        found, row_facts = {}, dict(facts)
        for key, way in ways.items():
            try:
                found[key] = way(dtype)
            except ValueError as error:
                row_facts[f"without {key}"] = str(error)
        differences = {"ours": difference(found["ours"], found[base])} if base in found else {}
        candidates = {key: partial(ways[key], dtype) for key in found}
        rows.append(watch.row(f"whole tiny: inference, {dtype}", candidates, base, differences, row_facts))
    if int8:
        found = {key: way("float32") for key, way in (others | int8).items()}
        differences = {key: difference(found[key], found[base]) for key in int8}
        candidates = {key: partial(way, "float32") for key, way in (others | int8).items()}
        candidates["ours, bfloat16"] = partial(ways["ours"], "bfloat16")
        rows.append(watch.row("whole tiny: inference, INT8", candidates, base, differences))
    return rows


def reason_of(error: BaseException) -> str:
    """One line of what went wrong first: an exporter's error ends in that of the step that failed."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


@torch.no_grad()
def our_step(model: BEVPerception, frame: Frame, memory: BEVMemory, dtype: str) -> Tensor:
    """Logits (D, B, Q, K) of a step and its detection head in a format."""
    with choose_precision(dtype, "cpu").autocast():
        bev, _ = model.step(frame, memory)
        return model.heads["detection"](bev)["logits"]


@torch.no_grad()
def usual_step(model: UsualPerception, frame: Frame, memory: BEVMemory, dtype: str) -> Tensor:
    """Logits (D, B, Q, K) of a step the usual way in a format."""
    with choose_precision(dtype, "cpu").autocast():
        return model.step(frame, memory)[0]["logits"]
