"""An exported file beside torch on the same stream: what runs it, and how far its answers are from the model's own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from bevstack.engine.export_description import ImagePlan
from bevstack.runtime.session import open_session
from bevstack.structures import BEVMemory, EgoMotion, Frame

Runner = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
MANY_PIXELS = 1_000_000
"""Images of a moment with more of them make a comparison of twenty frames take minutes."""
FRAMES, FRAMES_OF_MANY_PIXELS, FRAMES_TIMED = 20, 4, 3
"""How many frames are compared, how many of large images, and on how many of these torch is timed."""


class Step(Protocol):
    """What is exported: a function of named tensors, and the model's own answers by the same names.

    Attributes:
        input_names, output_names: in order.
        fed_back: which input takes which output of the step before.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    fed_back: dict[str, str]

    def inputs_of(self, frame: Frame, memory: BEVMemory | None) -> dict[str, Tensor]:
        """A frame of one sample and what is remembered, None for nothing, as inputs (1, ...)."""

    def outputs_of(self, frame: Frame, memory: BEVMemory | None) -> tuple[dict[str, Tensor], BEVMemory | None]:
        """What the model itself makes of it, outputs (1, ...) by name, and its memory after."""


def usual_frames(images: ImagePlan) -> int:
    """How many frames are compared where nobody says: fewer of large images, with a change of scene all the same."""
    height, width = images.padded_size_px
    return FRAMES_OF_MANY_PIXELS if images.rig.num_cameras * height * width > MANY_PIXELS else FRAMES


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
        motion = EgoMotion(matrix[None], torch.tensor([not starts]), torch.tensor([0.0 if starts else 0.5]), can_bus)
        pixels = torch.randn(1, images.rig.num_cameras, 3, *images.padded_size_px, generator=generator)
        clip.append(Frame(pixels, images.rig, motion))
    return clip


def onnx_runner(path: Path) -> Runner:
    """An ONNX file as a function of named arrays, on as many threads as torch has.

    Raises:
        InputError: see :func:`bevstack.runtime.session.open_session`.
    """
    return session_runner(open_session(path, torch.get_num_threads()))


def session_runner(session: Any) -> Runner:
    """An ``onnxruntime.InferenceSession`` as a function of named arrays, of which it takes those that it has."""
    inputs = [entry.name for entry in session.get_inputs()]
    outputs = [entry.name for entry in session.get_outputs()]
    return lambda given: dict(zip(outputs, session.run(None, {name: given[name] for name in inputs}), strict=True))


def pt2_runner(path: Path, names: Sequence[str], compiled: bool = False) -> Runner:
    """A ``.pt2`` as a function of named arrays: torch's archive, or the package of machine code made of it."""
    if compiled:
        from torch._inductor import aoti_load_package  # only here: it takes seconds to import

        module: Callable[..., Sequence[Tensor]] = aoti_load_package(str(path))
    else:
        module = torch.export.load(path).module()

    def run(given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = module(*(torch.from_numpy(np.asarray(value)) for value in given.values()))
        return {name: value.numpy() for name, value in zip(names, values, strict=True)}

    return run


def compared(
    step: Step, clip: Iterable[Frame], run: Runner
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
        fed = {name: found[output] for name, output in step.fed_back.items()}
    differences = {name: furthest[name] / largest[name] if largest[name] else furthest[name] for name in furthest}
    return differences, shapes, times


def torch_ms(step: Step, clip: Sequence[Frame]) -> float:
    """Median milliseconds of a step by torch, of a model in the form that inference takes."""
    times = []
    memory: BEVMemory | None = None
    for frame in clip if len(clip) > FRAMES_OF_MANY_PIXELS else clip[:FRAMES_TIMED]:
        past = memory if bool(frame.motion.has_previous.all()) else None
        began = time.perf_counter()
        _, memory = step.outputs_of(frame, past)
        times.append((time.perf_counter() - began) * 1e3)
    return statistics.median(times)
