"""Other runtimes for the same step: exported to ONNX as ``tools/export.py`` does, run by a peer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevstack.engine.export_comparison import onnx_runner
from bevstack.engine.export_int8 import quantise
from bevstack.engine.export_onnx import traced, write_onnx
from bevstack.engine.export_step import StepOfTensors, exportable
from bevstack.models import BEVPerception
from bevstack.structures import BEVMemory, Frame

LOGITS = "detection.logits"


def export_onnx(model: BEVPerception, frame: Frame, memory: BEVMemory, path: Path) -> dict[str, np.ndarray]:
    """Write a model's step for inputs of these sizes as an ONNX file.

    Returns:
        The frame and the memory as the file's inputs, by name.

    Raises:
        InputError: see :func:`bevstack.engine.export_onnx.write_onnx`; what torch's exporter raises is raised, too.
    """
    step = StepOfTensors(model.eval(), frame)
    inputs = step.inputs_of(frame, memory)
    with exportable(model, frame):
        program = traced(step, list(inputs.values()))
    write_onnx(program, path, (step.input_names, step.output_names), {"format": 1})
    return {name: value.numpy() for name, value in inputs.items()}


def int8_step(name: str, path: Path, given: dict[str, np.ndarray]) -> Callable[[str], Tensor]:
    """A step's logits (D, B, Q, K) by a peer of the INT8 form of a file (:mod:`bevstack.engine.export_int8`).

    It is calibrated on the inputs that are timed: weights drawn at random have no accuracy to lose.

    Args:
        name, path, given: see :func:`peer_step`. The format that the function is asked for changes nothing.
    """
    quantised = path.with_name("int8.onnx")
    if not quantised.exists():
        quantise(path, quantised, [given])
    run = _openvino(quantised, "float32") if name == "openvino" else _onnxruntime(quantised)
    return lambda dtype: torch.from_numpy(run(given))


def peer_step(name: str, path: Path, given: dict[str, np.ndarray]) -> Callable[[str], Tensor]:
    """A function of a format to a step's logits (D, B, Q, K), run by a peer on as many threads as torch has.

    Args:
        name: ``onnxruntime`` or ``openvino``.
        path: of :func:`export_onnx`'s file; read before this returns.
        given: the inputs.
    """
    sessions: dict[str, Callable[[dict[str, Any]], Any]] = {}
    for dtype in ("float32", "bfloat16") if name == "openvino" else ("float32",):
        sessions[dtype] = _openvino(path, dtype) if name == "openvino" else _onnxruntime(path)

    def step(dtype: str) -> Tensor:
        if dtype not in sessions:
            raise ValueError(f"{name} does not compute in {dtype} on a CPU")
        return torch.from_numpy(sessions[dtype](given))

    return step


def _onnxruntime(path: Path) -> Callable[[dict[str, Any]], Any]:
    run = onnx_runner(path)
    return lambda given: run(given)[LOGITS]


def _openvino(path: Path, dtype: str) -> Callable[[dict[str, Any]], Any]:
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    names = {name for entry in compiled.inputs for name in entry.get_names()}
    return lambda given: compiled({key: given[key] for key in names & set(given)})[LOGITS]
