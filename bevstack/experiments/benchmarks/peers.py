"""Other runtimes for the same step: one temporal step as a function of tensors, exported to ONNX, run by a peer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bevstack.models import BEVPerception
from bevstack.structures import BEVMemory, CameraRig, EgoMotion, Frame

INPUTS = ("images", "pixels_from_camera", "camera_from_bev", "previous_from_current", "can_bus", "remembered")
OUTPUTS = ("logits", "boxes", "bev")


class StepOfTensors(nn.Module):
    """One step of a model with history, as a function of tensors alone.

    Args:
        model: a temporal model with a detection head; its step is what runs.
        frame: says the sizes that are not tensors.
        memory: says the grid.
    """

    def __init__(self, model: BEVPerception, frame: Frame, memory: BEVMemory) -> None:
        super().__init__()
        self.model, self.padded_size_px, self.grid = model, frame.rig.padded_size_px, memory.grid
        self.image_size_px: Tensor
        self.register_buffer("image_size_px", frame.rig.image_size_px.contiguous(), persistent=False)

    def forward(
        self,
        images: Tensor,
        pixels_from_camera: Tensor,
        camera_from_bev: Tensor,
        previous_from_current: Tensor,
        can_bus: Tensor,
        remembered: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits and boxes of the last decoder layer, (B, Q, K) and (B, Q, 10), and the new memory (B, M, C, Y, X)."""
        batch, frames = remembered.shape[:2]
        rig = CameraRig(pixels_from_camera, camera_from_bev, self.image_size_px, self.padded_size_px)
        here = torch.ones(batch, dtype=torch.bool, device=images.device)
        motion = EgoMotion(previous_from_current, here, torch.full((batch,), 0.5, device=images.device), can_bus)
        poses = torch.eye(4, device=images.device).expand(batch, frames, 4, 4)
        memory = BEVMemory(remembered, self.grid, poses, here[:, None].expand(-1, frames), poses[..., 0, 1])
        bev, after = self.model.step(Frame(images, rig, motion), memory)
        raw = self.model.heads["detection"](bev)
        return raw["logits"][-1], raw["boxes"][-1], bev.features if after is None else after.features


def tensors_of(frame: Frame, memory: BEVMemory) -> tuple[Tensor, ...]:
    """The inputs of :class:`StepOfTensors` in their order, images (B, N, 3, H, W) first, each contiguous."""
    rig, motion = frame.rig, frame.motion
    can_bus = torch.zeros(len(frame.images), 18) if motion.can_bus is None else motion.can_bus
    given = (
        frame.images,
        rig.pixels_from_camera,
        rig.camera_from_bev,
        motion.previous_from_current,
        can_bus,
        memory.features,
    )
    return tuple(tensor.contiguous() for tensor in given)


def export_onnx(model: BEVPerception, frame: Frame, memory: BEVMemory, path: Path) -> None:
    """Write a model's step for inputs of these sizes as an ONNX file, by ``torch.onnx.export``.

    Deformable attention goes by its definition in plain operations, the only ones that a peer knows. What torch's
    exporter raises is raised: the package onnxscript is not there, or an operation has no counterpart.
    """
    step = StepOfTensors(model, frame, memory).eval()
    with torch.no_grad(), backend_of_environment("reference"):
        torch.onnx.export(
            step,
            tensors_of(frame, memory),
            path,
            input_names=INPUTS,
            output_names=OUTPUTS,
            opset_version=18,
            dynamo=True,
            verbose=False,
        )


@contextmanager
def backend_of_environment(name: str) -> Iterator[None]:
    """Choose a backend of the operators by the environment, for as long as the context lasts."""
    before = os.environ.get("BEVSTACK_OPS")
    os.environ["BEVSTACK_OPS"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["BEVSTACK_OPS"]
        else:
            os.environ["BEVSTACK_OPS"] = before


def peer_step(
    name: str, path: Path, model: BEVPerception, frame: Frame, memory: BEVMemory
) -> Callable[[str], Tensor]:
    """A function of a format to a step's logits (1, B, Q, K), run by a peer on as many threads as torch has.

    Args:
        name: ``onnxruntime`` or ``openvino``.
        path: of :func:`export_onnx`'s file; read before this returns.
        model: counts the decoder's layers, so that shapes are ours; only the last one is known.
        frame, memory: the inputs.
    """
    given = dict(zip(INPUTS, (tensor.numpy() for tensor in tensors_of(frame, memory)), strict=True))
    sessions: dict[str, Callable[[dict[str, Any]], Any]] = {}
    load = {"onnxruntime": _onnxruntime, "openvino": _openvino}[name]
    for dtype in ("float32", "bfloat16") if name == "openvino" else ("float32",):
        sessions[dtype] = load(path, dtype)

    def step(dtype: str) -> Tensor:
        if dtype not in sessions:
            raise ValueError(f"{name} does not compute in {dtype} on a CPU")
        logits = torch.from_numpy(sessions[dtype](given))
        return logits.unsqueeze(0).expand(len(model.heads["detection"].layers), -1, -1, -1)

    return step


def _onnxruntime(path: Path, dtype: str) -> Callable[[dict[str, Any]], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {entry.name for entry in session.get_inputs()}
    return lambda given: session.run([OUTPUTS[0]], {key: given[key] for key in names})[0]


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
    return lambda given: compiled({key: given[key] for key in names & set(given)})[OUTPUTS[0]]
