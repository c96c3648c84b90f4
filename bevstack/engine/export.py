"""A trained model as a file that runs without this package: written, run beside torch on a stream, and told about."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config

from bevstack.engine.arguments import export_arguments
from bevstack.engine.export_description import SOURCE_SIZE_PX, ImagePlan, described, usual_rig
from bevstack.engine.export_mlperf import MLPerfStep
from bevstack.engine.export_onnx import traced, write_onnx, write_pt2
from bevstack.engine.export_step import StepOfTensors, exportable
from bevstack.engine.models import load_model
from bevstack.errors import InputError
from bevstack.models import BEVPerception
from bevstack.models.inference_form import inference_form
from bevstack.structures import BEVMemory, EgoMotion, Frame

KINDS = (".onnx", ".pt2")
INTERFACES = ("native", "mlperf")
TOLERANCE = 1e-4
"""Of an output's largest value: how far a file may be from torch in float32."""


@dataclass(frozen=True)
class ExportSettings:
    """How a model is exported.

    Args:
        interface: ``native`` (:class:`bevstack.engine.export_step.StepOfTensors`) or ``mlperf``.
        source_size_px: (height, width) of the cameras' images.
        num_slots: cameras that may see one cell; None: as many as the usual rig needs, at least two.
        frames: of the stream on which the file is run beside torch; half-way another scene begins.
    """

    interface: str = "native"
    source_size_px: tuple[int, int] = SOURCE_SIZE_PX
    num_slots: int | None = None
    frames: int = 20


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what it does.

    Args:
        file: that was written; bytes: its size.
        inputs, outputs: shapes by name.
        operators: how often each stands in an ONNX file; empty for a ``.pt2``.
        num_slots: cameras that may see one cell.
        differences: by output: largest difference from torch over the stream, as a part of the largest value.
        file_ms, torch_ms: median time of a step here, by the file and by torch in float32.
    """

    file: str
    bytes: int
    inputs: dict[str, tuple[int, ...]]
    outputs: dict[str, tuple[int, ...]]
    operators: dict[str, int]
    num_slots: int
    differences: dict[str, float]
    file_ms: float
    torch_ms: float

    @property
    def worst(self) -> float:
        """The largest difference of any output."""
        return max(self.differences.values(), default=0.0)

    def lines(self) -> list[str]:
        """For a person."""
        worst = max(self.differences, key=self.differences.__getitem__, default="")
        operators = ", ".join(f"{number} {name}" for name, number in self.operators.items())
        return [
            f"wrote     {self.file} ({self.bytes / 2**20:.1f} MiB, {self.num_slots} cameras a cell)",
            *(f"input     {name} {_shape(shape)}" for name, shape in self.inputs.items()),
            *(f"output    {name} {_shape(shape)}" for name, shape in self.outputs.items()),
            *([f"operators {operators}"] if operators else []),
            f"differs   {self.worst:.1e} of the largest value at most ({worst}), limit {TOLERANCE:.0e}",
            f"takes     {self.file_ms:.1f} ms a step; torch {self.torch_ms:.1f} ms (float32, median, this machine)",
        ]


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "()"


@torch.no_grad()
def export_model(
    model: BEVPerception, config: Config, path: str | Path, settings: ExportSettings | None = None
) -> ExportReport:
    """Write a model's step as a file, and run it beside torch.

    Args:
        model: on the CPU; with trained weights or any others.
        config: of the model; its test pipeline says what is done to images.
        path: ``.onnx`` or ``.pt2``.
        settings: see there.

    Raises:
        InputError: another ending, a model that cannot be exported, a missing package, or a file that differs from
            torch by more than :data:`TOLERANCE`.
    """
    path, settings = Path(path), settings or ExportSettings()
    if path.suffix not in KINDS:
        raise InputError(path, "--out", f"ends in {path.suffix or 'nothing'}; there are {', '.join(KINDS)}")
    model = model.eval()
    rig = usual_rig(getattr(model.encoder, "num_cameras", 6), settings.source_size_px)
    images = ImagePlan(config, model, rig, settings.source_size_px)
    clip = made_up_clip(images, settings.frames)
    step: StepOfTensors | MLPerfStep
    if settings.interface == "mlperf":
        step, description = MLPerfStep(model, clip[0]), {"format": 1, "interface": "mlperf"}
    else:
        step = StepOfTensors(model, clip[0])
        description = described(model, config, images, step.memory_names)
    inputs = step.inputs_of(clip[0], None)
    with exportable(model, clip[0], settings.num_slots) as slots:
        program = traced(step, list(inputs.values()))
    description["num_slots"] = slots
    operators: dict[str, int] = {}
    if path.suffix == ".onnx":
        operators = write_onnx(program, path, (step.input_names, step.output_names), description)
        run = onnx_runner(path)
    else:
        write_pt2(program, path, description)
        run = pt2_runner(path, step.output_names)
    differences, outputs, times = compared(step, clip, run)
    torch_ms = _torch_ms(model, clip)
    shapes = {name: tuple(value.shape) for name, value in inputs.items()}
    size = path.stat().st_size
    report = ExportReport(
        str(path), size, shapes, outputs, operators, slots, differences, statistics.median(times), torch_ms
    )
    if not report.worst <= TOLERANCE:
        worst = max(differences, key=differences.__getitem__)
        raise InputError(path, worst, f"differs from torch by {report.worst:.1e} of its largest value")
    return report


def made_up_clip(images: ImagePlan, frames: int) -> list[Frame]:
    """A stream of one sample: random images, a car that drives and turns; half-way a new scene begins."""
    generator = torch.Generator().manual_seed(0)
    clip = []
    for number in range(frames):
        starts = number in (0, frames // 2)
        angle = torch.tensor(0.0 if starts else 0.02 * (number % 5 - 1))
        matrix = torch.eye(4)
        matrix[:2, :2] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
        matrix[:2, 3] = torch.tensor([0.0, 0.0] if starts else [0.1, 1.5])
        can_bus = torch.zeros(1, 18)
        can_bus[0, [0, 1, 3, 16]] = torch.tensor([*matrix[:2, 3].tolist(), 1.0, 1.2])
        can_bus[0, 17] = angle.rad2deg()
        motion = EgoMotion(
            matrix[None], torch.tensor([not starts]), torch.tensor([0.0 if starts else 0.5]), can_bus
        )
        pixels = torch.randn(1, images.rig.num_cameras, 3, *images.padded_size_px, generator=generator)
        clip.append(Frame(pixels, images.rig, motion))
    return clip


Runner = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def onnx_runner(path: Path) -> Runner:
    """An ONNX file as a function of named arrays, on as many threads as torch has.

    Raises:
        InputError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(path, "onnxruntime", "is not installed: pip install 'bevstack[export]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = [entry.name for entry in session.get_inputs()]
    outputs = [entry.name for entry in session.get_outputs()]
    return lambda given: dict(
        zip(outputs, session.run(None, {name: given[name] for name in inputs}), strict=True)
    )


def pt2_runner(path: Path, names: Sequence[str]) -> Runner:
    """A ``.pt2`` as a function of named arrays."""
    module = torch.export.load(path).module()

    def run(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = module(*(torch.from_numpy(np.asarray(value)) for value in given.values()))
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}

    return run


def compared(
    step: StepOfTensors | MLPerfStep, clip: Sequence[Frame], run: Runner
) -> tuple[dict[str, float], dict[str, tuple[int, ...]], list[float]]:
    """A file and torch on the same stream, each with its own memory.

    Args:
        step: of the model.
        clip: frames of one sample; one without a previous frame starts anew.
        run: the file.

    Returns:
        By output: the largest difference over the stream, as a part of the largest value of torch's; shapes; and the
        file's milliseconds a frame.
    """
    memory: BEVMemory | None = None
    fed: dict[str, np.ndarray] = {}
    furthest: dict[str, float] = {}
    largest: dict[str, float] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    times = []
    for frame in clip:
        past = memory if bool(frame.motion.has_previous.all()) else None
        given = {name: value.numpy() for name, value in step.inputs_of(frame, past).items()}
        if past is not None:
            given |= fed
        began = time.perf_counter()
        found = run(given)
        times.append((time.perf_counter() - began) * 1e3)
        expected, memory = step.outputs_of(frame, past)
        for name, value in expected.items():
            difference = float((torch.from_numpy(found[name]).double() - value.double()).abs().max())
            furthest[name] = max(furthest.get(name, 0.0), difference if difference == difference else np.inf)
            largest[name] = max(largest.get(name, 0.0), float(value.double().abs().max()))
            shapes[name] = tuple(value.shape)
        fed = {name: found[output] for name, output in _fed_back(step).items()}
    differences = {name: furthest[name] / largest[name] if largest[name] else furthest[name] for name in furthest}
    return differences, shapes, times


def _fed_back(step: StepOfTensors | MLPerfStep) -> dict[str, str]:
    """Which input takes which output of the step before."""
    return {"prev_bev": "bev"} if isinstance(step, MLPerfStep) else {name: f"new_{name}" for name in step.memory_names}


def _torch_ms(model: BEVPerception, clip: Sequence[Frame]) -> float:
    """Median milliseconds of a step and its heads by torch, in the form that inference takes."""
    form, times = inference_form(model), []
    memory: BEVMemory | None = None
    step = StepOfTensors(form, clip[0])
    for frame in clip:
        past = memory if bool(frame.motion.has_previous.all()) else None
        began = time.perf_counter()
        _, memory = step.outputs_of(frame, past)
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``tools/export.py``."""
    args = export_arguments(arguments)
    model = load_model(args.model, args.config, device="cpu")
    settings = ExportSettings(args.interface, args.image_size, args.num_slots, args.frames)
    report = export_model(model, model.config, args.out, settings)
    print("\n".join(report.lines()))
    if args.json:
        args.json.write_text(json.dumps(vars(report), indent=2) + "\n")
    return 0
