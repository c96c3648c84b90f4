"""Suite ``gpu``: ten minutes on one CUDA device, correctness first, then times against mmcv's operator where it is.

Nothing is timed where the triton backend's answers are not those of the definition in double precision. Then: what the
device can (copies, products), the operator alone, the encoder, the whole model in inference, its training step; in
float32 with TF32 off and on and in bfloat16; ours eager, as one CUDA graph and, in bfloat16, compiled. *usual* is the
restated usual formulation with torch's ``grid_sample`` inside, *mmcv* the same with mmcv's compiled operator, as
published code runs; ``docs/gpu.md`` says how that is built. A candidate that fails is left out, and the row says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from bevstack.engine.models import build_model
from bevstack.errors import InputError
from bevstack.experiments.benchmarks.encoder import frame_with_history
from bevstack.experiments.benchmarks.gpu_cases import KINDS, errors_of, moved, sampled_elsewhere
from bevstack.experiments.benchmarks.gpu_measuring import Deadline, DeviceStopwatch, Run, captured, reason_of
from bevstack.experiments.benchmarks.gpu_ways import (
    FORMATS,
    Answer,
    Prepared,
    Sampling,
    baselines,
    in_format,
    sampled_by,
    tf32,
)
from bevstack.experiments.benchmarks.inputs import (
    SIZES,
    config_of,
    encoder_of,
    features_of,
    frame_of,
    memory_of,
    samples_for,
    scattered,
)
from bevstack.experiments.benchmarks.measuring import Row, Stopwatch, difference
from bevstack.experiments.benchmarks.op import ours
from bevstack.experiments.benchmarks.settings import Settings
from bevstack.experiments.benchmarks.train import TrainingStep, without_dropout
from bevstack.experiments.usual_formulation import UsualEncoder
from bevstack.experiments.usual_model import UsualPerception
from bevstack.models import BEVPerception
from bevstack.models.inference_form import inference_form
from bevstack.ops.backends import unavailable
from bevstack.structures import BEVMemory, Clip, Frame

SECONDS = 570.0
BOUNDS = {torch.float32: 1e-4, torch.bfloat16: 1e-2}
"""Largest differences from the definition that count as right, as shares of the largest value: float32's rounding of
places a few hundred pixels from the corner, bfloat16's 8 bits of an answer."""
COMPILED_IN = "bfloat16"
"""The format that is compiled, too: each takes torch.compile a minute of the ten."""


def run(watch: Stopwatch, settings: Settings) -> list[Row]:
    """All rows, or those of correctness alone where it is not given.

    Raises:
        InputError: there is no CUDA device, or no triton.
    """
    reason = "no CUDA device" if not torch.cuda.is_available() else unavailable("triton")
    if reason is not None:
        raise InputError("benchmark", "--suite gpu", f"cannot run here: {reason}")
    device, timer = torch.device("cuda"), DeviceStopwatch(watch.rounds, Deadline(SECONDS))
    rows = correctness_rows(device, "triton", settings.sizes or ("tiny",))
    if any(row.facts["right"] != "yes" for row in rows):
        return rows
    parts: dict[str, Callable[[], list[Row]]] = {
        "the device": lambda: [device_row(timer, device)],
        "op": lambda: op_rows(timer, device, settings.sizes or ("tiny", "small", "base")),
        "encoder": lambda: encoder_rows(timer, device, settings.sizes or ("tiny", "base")),
        "training": lambda: training_rows(timer, device, settings.sizes or ("tiny",)),
        "model": lambda: model_rows(timer, device, settings.sizes or ("tiny", "base")),
    }
    for name, part in parts.items():
        try:
            rows += part()
        except Exception as error:  # noqa: BLE001 - a device is lent for minutes: what fails must not take the rest along
            rows.append(Row(name, facts={"left out": reason_of(error)}))
    return rows


def correctness_rows(device: torch.device, backend: str, sizes: tuple[str, ...]) -> list[Row]:
    """How far a backend's results and gradients are from the definition, in both formats, also deterministic."""
    rows = []
    for name in sizes:
        for kind, make in KINDS.items():
            case = moved(make(SIZES[name]), device)
            for dtype, bound in BOUNDS.items():
                for exact in (False, True):
                    poison(device)
                    with deterministic(exact):
                        errors = errors_of(case, backend, dtype)
                    right = "yes" if max(errors.values()) <= bound else "no"
                    facts = {key: f"{value:.1e}" for key, value in errors.items()} | {"bound": bound, "right": right}
                    how = ", deterministic" if exact else ""
                    rows.append(Row(f"{kind}, {name}, {str(dtype).removeprefix('torch.')}{how}", facts=facts))
    return rows


def poison(device: torch.device) -> None:
    """Leave no numbers in the memory that the allocator gives out next, so that what nobody writes is seen."""
    blocks = [torch.full((2**size,), float("nan"), device=device) for size in range(8, 25)]
    del blocks


@contextmanager
def deterministic(exact: bool) -> Iterator[None]:
    """torch's deterministic algorithms where ``exact``; what they do not know warns."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(exact, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def device_row(timer: DeviceStopwatch, device: torch.device, size: int = 8192) -> Row:
    """Copies of 4 * size ** 2 bytes, and products of (size, size) matrices by format; facts say TB/s and TFLOP/s."""
    left, right = torch.randn(2, size, size, device=device)
    target, half = torch.empty_like(left), (left.bfloat16(), right.bfloat16())
    ways: dict[str, Run] = {
        "copy": lambda: target.copy_(left),
        "product, bfloat16": lambda: half[0] @ half[1],
        "product, float32": partial(in_format, "float32", device, lambda: left @ right),
        "product, float32, TF32": partial(in_format, "float32, TF32", device, lambda: left @ right),
    }
    row = timer.row("the device", ways)
    for key, seconds in row.seconds.items():
        moved_or_done = 8 * size**2 if key == "copy" else 2 * size**3
        row.facts[f"{key}, {'TB/s' if key == 'copy' else 'TFLOP/s'}"] = round(moved_or_done / min(seconds) / 1e12, 2)
    return row


def op_rows(timer: DeviceStopwatch, device: torch.device, sizes: tuple[str, ...]) -> list[Row]:
    """Forward, and forward with backward, of each kind and size.

    Baselines start from sampling locations and softmaxed weights on padded lists, and are timed alone, without what
    published code does to get there; ours start from raw offsets and logits.
    """
    rows = []
    for name in sizes:
        for kind, make in KINDS.items():
            case = make(SIZES[name])
            locations, weights, shapes = sampled_elsewhere(case)
            others = [locations.to(device), weights.to(device)]
            there = moved(case, device)
            ours_by = {"ours, float32": there, "ours, bfloat16": moved(case, device, torch.bfloat16)}
            forward: dict[str, Run] = {
                key: partial(sampling, there.value, shapes, *others) for key, sampling in baselines().items()
            }
            both: dict[str, Run] = {
                key: partial(_through, partial(_sampled, sampling, shapes), [there.value, *others])
                for key, sampling in baselines().items()
            }
            for key, one in ours_by.items():
                forward[key] = partial(ours, one, "auto", one.value, one.offsets, one.logits)
                both[key] = partial(_through, partial(ours, one, "auto"), [one.value, one.offsets, one.logits])
            base = "mmcv" if "mmcv" in forward else "usual"
            with torch.no_grad():
                rows.append(timer.row(f"op: {kind}, {name}: forward", forward, base))
            rows.append(timer.row(f"op: {kind}, {name}: forward + backward", both, base))
    return rows


def _sampled(sampling: Sampling, shapes: Sequence[tuple[int, int]], value: Tensor, *others: Tensor) -> Tensor:
    return sampling(value, shapes, *others)


def _through(way: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    result = way(*leaves)
    torch.autograd.grad(result, leaves, torch.ones_like(result))


def compared(timer: DeviceStopwatch, name: str, ways: Mapping[str, Answer], device: torch.device) -> list[Row]:
    """A row of each format, of ways that give a tensor; the usual one's in float32 is what all are compared with."""
    base = "mmcv" if "mmcv" in ways else "usual"
    exact = in_format("float32", device, ways[base])
    rows = []
    for key in FORMATS:
        asked = {way: run for way, run in ways.items() if key == COMPILED_IN or way != "ours, compiled"}
        answers: dict[str, Answer] = {way: partial(in_format, key, device, run) for way, run in asked.items()}
        candidates: dict[str, Run] = {**answers, "ours, graph": Prepared(partial(captured, answers["ours"]))}
        apart: dict[str, float] = {}
        facts: dict[str, str] = {}
        for way, answer in answers.items():
            try:
                apart[way] = difference(answer(), exact)
            except Exception as error:  # noqa: BLE001 - compilers fail in many ways; the row says how
                facts[f"without {way}"] = reason_of(error)
        rows.append(timer.row(f"{name}, {key}", candidates, base, apart, facts))
    return rows


def encoder_rows(timer: DeviceStopwatch, device: torch.device, sizes: tuple[str, ...]) -> list[Row]:
    """The encoder of each size in evaluation mode, image features and memory to B_t."""
    rows = []
    for name in sizes:
        size = SIZES[name]
        ours_here = encoder_of(size).eval()
        frame, history = frame_with_history(size)
        inputs = [level.to(device) for level in features_of(size)], frame.to(device), history.to(device)
        usual = UsualEncoder(ours_here).eval().to(device)
        ours_here = ours_here.to(device)
        ways: dict[str, Answer] = {
            key: partial(sampled_by, sampling, partial(_encoded, usual, inputs))
            for key, sampling in baselines().items()
        }
        ways["ours"] = partial(_encoded, ours_here, inputs)
        ways["ours, compiled"] = partial(_encoded, torch.compile(ours_here), inputs)
        rows += compared(timer, f"encoder, {name}", ways, device)
    return rows


@torch.no_grad()
def _encoded(encoder: Callable, inputs: tuple) -> Tensor:
    return encoder(*inputs).features.float()


def model_rows(timer: DeviceStopwatch, device: torch.device, sizes: tuple[str, ...]) -> list[Row]:
    """The whole model of each size in inference: images and memory to the decoder's logits."""
    rows = []
    for name in sizes:
        model, size = model_of(name).eval(), SIZES[name]
        frame = frame_of(size.image_px, size.padded_px).to(device)
        memory = memory_of(model.encoder.grid, model.encoder.channels).to(device)
        usual = UsualPerception(model).eval().to(device)
        folded = inference_form(model).to(device)
        ways: dict[str, Answer] = {
            key: partial(sampled_by, sampling, partial(_usual_step, usual, frame, memory))
            for key, sampling in baselines().items()
        }
        ways["ours"] = partial(_our_step, folded.step, folded, frame, memory)
        ways["ours, compiled"] = partial(_our_step, torch.compile(folded.step), folded, frame, memory)
        rows += compared(timer, f"model, {name}: inference", ways, device)
    return rows


def model_of(name: str) -> BEVPerception:
    """A published configuration, weights drawn at random, on the CPU."""
    torch.manual_seed(0)
    model = build_model(config_of(f"bevformer/bevformer_{name}"), "cpu")
    scattered(model)
    return model


@torch.no_grad()
def _usual_step(model: UsualPerception, frame: Frame, memory: BEVMemory) -> Tensor:
    return model.step(frame, memory)[0]["logits"].float()


@torch.no_grad()
def _our_step(step: Callable, model: BEVPerception, frame: Frame, memory: BEVMemory) -> Tensor:
    bev, _ = step(frame, memory)
    return model.heads["detection"](bev)["logits"].float()


def training_rows(timer: DeviceStopwatch, device: torch.device, sizes: tuple[str, ...]) -> list[Row]:
    """One training step of the whole model on three frames: losses, backward, clipping, AdamW."""
    rows = []
    for name in sizes:
        cfg, size = config_of(f"bevformer/bevformer_{name}"), SIZES[name]
        model = model_of(name)
        without_dropout(model)
        frames = (frame_of(size.image_px, size.padded_px, seed=seed).to(device) for seed in range(3))
        clip, samples = Clip(tuple(frames)), [sample.to(device) for sample in samples_for(model)]
        usual, model = UsualPerception(model).to(device), model.to(device)
        for key, (dtype, allowed) in FORMATS.items():
            step = TrainingStep(usual, partial(usual.losses, clip, samples), cfg, dtype)
            ways: dict[str, Run] = {
                way: partial(_trained, allowed, partial(sampled_by, sampling, step))
                for way, sampling in baselines().items()
            }
            ours_here = TrainingStep(model, partial(model, clip, samples, "loss"), cfg, dtype)
            ways["ours"] = partial(_trained, allowed, ours_here)
            base = "mmcv" if "mmcv" in ways else "usual"
            rows.append(timer.row(f"model, {name}: training step of 3 frames, {key}", ways, base))
    return rows


def _trained(allowed: bool, step: Run) -> object:
    with tf32(allowed):
        return step()
