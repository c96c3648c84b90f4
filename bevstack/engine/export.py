"""A trained model as a file that runs without this package: written, run beside torch on a stream, and told about."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from bevstack.engine.arguments import export_arguments
from bevstack.engine.config import check_components, load_config
from bevstack.engine.export_comparison import (
    Step,
    compared,
    made_up_clip,
    onnx_runner,
    pt2_runner,
    torch_ms,
    usual_frames,
)
from bevstack.engine.export_description import SOURCE_SIZE_PX, ImagePlan, described, usual_rig
from bevstack.engine.export_int8 import Feed, apart, calibration_feeds, made_up_feeds, quantise
from bevstack.engine.export_mlperf import MLPerfStep
from bevstack.engine.export_onnx import traced, write_onnx, write_pt2
from bevstack.engine.export_parts import BackboneStep, EncoderStep
from bevstack.engine.export_step import StepOfTensors, exportable
from bevstack.engine.models import build_model, class_names, load_model
from bevstack.errors import InputError
from bevstack.models import BEVPerception
from bevstack.models.inference_form import inference_form
from bevstack.structures import Frame

KINDS = (".onnx", ".pt2")
STEPS: dict[str, Any] = {
    "model": StepOfTensors,
    "backbone": BackboneStep,
    "encoder": EncoderStep,
    "mlperf": MLPerfStep,
}
"""What can be exported: a whole model, a part of it, or a whole one by the names of MLPerf."""
TOLERANCE = 1e-4
"""Of an output's largest value: how far a file may be from torch in float32."""


@dataclass(frozen=True)
class Quantisation:
    """How a file is made INT8 (:mod:`bevstack.engine.export_int8`).

    Args:
        samples: of the training set, on which it is calibrated; 0: made-up images, for timing alone.
        reduce_range: weights of seven bits, for x86 CPUs without VNNI.
    """

    samples: int = 32
    reduce_range: bool = False


@dataclass(frozen=True)
class ExportSettings:
    """How a model is exported.

    Args:
        interface: ``native`` (:class:`bevstack.engine.export_step.StepOfTensors`) or ``mlperf``.
        source_size_px: (height, width) of the cameras' images.
        num_slots: cameras that may see one cell; None: as many as the usual rig needs, at least two.
        frames: of the stream on which the file is run beside torch; half-way another scene begins. None: twenty, four
            of large images.
        part: ``model``, ``backbone`` (with the neck) or ``encoder``.
        int8: how an ONNX file is quantised; None: not at all.
        machine_code: whether a ``.pt2`` is a package of machine code, by torch's AOTInductor and a C++ compiler.
    """

    interface: str = "native"
    source_size_px: tuple[int, int] = SOURCE_SIZE_PX
    num_slots: int | None = None
    frames: int | None = None
    part: str = "model"
    int8: Quantisation | None = None
    machine_code: bool = False


@dataclass(frozen=True)
class ExportReport:
    """What was written, and what it does.

    Args:
        file: that was written; bytes: its size.
        inputs, outputs: shapes by name.
        operators: how often each stands in an ONNX file; empty for a ``.pt2``.
        num_slots: cameras that may see one cell.
        differences: by output: largest difference from torch over the stream, as a part of the largest value; of a
            quantised file, that of the float32 file which it was made of.
        file_ms, torch_ms: median time of a step here, by the file and by torch in float32.
        int8_differences: by output: of a quantised file from the float32 one over calibration samples, root mean square
            as a part of the float32 output's deviation from its mean; empty where nothing is quantised.
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
    int8_differences: dict[str, float]

    @property
    def worst(self) -> float:
        """The largest difference of any output."""
        return max(self.differences.values(), default=0.0)

    def lines(self) -> list[str]:
        """For a person."""
        worst = max(self.differences, key=self.differences.__getitem__, default="")
        operators = ", ".join(f"{number} {name}" for name, number in self.operators.items())
        quantised = ", ".join(f"{name} {value:.1%}" for name, value in self.int8_differences.items())
        of = "float32 " if quantised else ""
        return [
            f"wrote     {self.file} ({self.bytes / 2**20:.1f} MiB, {self.num_slots} cameras a cell)",
            *(f"input     {name} {_shape(shape)}" for name, shape in self.inputs.items()),
            *(f"output    {name} {_shape(shape)}" for name, shape in self.outputs.items()),
            *([f"operators {operators}"] if operators else []),
            f"differs   {of}{self.worst:.1e} of the largest value at most ({worst}), limit {TOLERANCE:.0e}",
            *([f"INT8      differs from float32 by (root mean square) {quantised}"] if quantised else []),
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
    clip = made_up_clip(images, settings.frames or usual_frames(images))
    kind = STEPS["mlperf" if settings.interface == "mlperf" else settings.part]
    step: Any = kind(model, clip[0])
    description: dict[str, Any] = {"format": 1, "interface": settings.interface, "part": settings.part}
    if isinstance(step, StepOfTensors) and settings.part == "model":
        description = described(model, config, images, step.memory_names)
    inputs = step.inputs_of(clip[0], None)
    with exportable(model, clip[0], settings.num_slots) as slots:
        program = traced(step, list(inputs.values()))
    description["num_slots"] = slots
    operators: dict[str, int] = {}
    quantised: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        float_file = path if settings.int8 is None else Path(folder) / "float32.onnx"
        if path.suffix == ".onnx":
            operators = write_onnx(program, float_file, (step.input_names, step.output_names), description)
            run = onnx_runner(float_file)
        else:
            write_pt2(program, path, description, settings.machine_code)
            run = pt2_runner(path, step.output_names, settings.machine_code)
        differences, outputs, times = compared(step, clip, run)
        worst = max(differences, key=differences.__getitem__)
        if not differences[worst] <= TOLERANCE:
            raise InputError(path, worst, f"differs from torch by {differences[worst]:.1e} of its largest value")
        if settings.int8 is not None:
            feeds = _feeds(model, config, step, clip, settings.int8.samples)
            operators = quantise(float_file, path, feeds, settings.int8.reduce_range)
            feeds = _feeds(model, config, step, clip, min(settings.int8.samples, len(clip)))
            quantised, times = apart(onnx_runner(path), run, feeds)
    form_ms = torch_ms(kind(inference_form(model), clip[0]), clip)
    shapes = {name: tuple(value.shape) for name, value in inputs.items()}
    median, size = statistics.median(times), path.stat().st_size
    return ExportReport(str(path), size, shapes, outputs, operators, slots, differences, median, form_ms, quantised)


def _feeds(model: BEVPerception, config: Config, step: Step, clip: Sequence[Frame], samples: int) -> Iterable[Feed]:
    """Inputs to calibrate or to compare on."""
    return calibration_feeds(model, config, step, samples) if samples else made_up_feeds(step, clip)


def model_of(place: str, config: str | None, options: Sequence[str] = ()) -> BEVPerception:
    """The model to export.

    Args:
        place: a checkpoint, a work directory, or a config (``.py``), whose model then has weights drawn at random, the
            same each time.
        config: of weights that carry none.
        options: overrides of the config, ``key=value``.

    Raises:
        InputError: see :func:`bevstack.engine.models.load_model`; overrides of a config that a checkpoint carries.
    """
    if not place.endswith(".py"):
        if options and config is None:
            raise InputError(place, "--cfg-options", "change a config file: name it by --config")
        return load_model(place, None if config is None else load_config(config, options), device="cpu")
    cfg = load_config(place, options)
    check_components(cfg)
    torch.manual_seed(0)
    model = build_model(cfg, "cpu").eval()
    model.config, model.classes = cfg, class_names(cfg)
    return model


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of ``tools/export.py``."""
    args = export_arguments(arguments)
    model = model_of(args.model, args.config, args.cfg_options)
    int8 = Quantisation(args.calibration_samples, args.reduce_range) if args.int8 else None
    settings = ExportSettings(
        args.interface, args.image_size, args.num_slots, args.frames, args.part, int8, args.machine_code
    )
    report = export_model(model, model.config, args.out, settings)
    if args.model.endswith(".py"):
        print("weights   drawn at random: MODEL is a config")
    print("\n".join(report.lines()))
    if args.json:
        args.json.write_text(json.dumps(vars(report), indent=2) + "\n")
    return 0
