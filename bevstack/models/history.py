"""How a clip's past frames become a memory: evaluation mode, no gradient (docs/reference.md 4.5, Training queue)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from bevstack.models.bev.memory import push_memory
from bevstack.models.layers.evaluation_mode import evaluating
from bevstack.precision import DTYPES, Precision, choose_precision
from bevstack.structures import BEVMemory, Frame


class Trunk(Protocol):
    """What :class:`bevstack.models.BEVPerception` has that makes a memory.

    ``image_features`` makes levels (B, N, C, h, w) of a frame's images; ``encoded`` makes B_t of them, the frame and
    the memory as the frame sees it.
    """

    memory_frames: int
    image_features: Any
    encoded: Any


class HistoryFrames:
    """Takes a model through frames of which nothing but the memory is wanted.

    Args:
        dtype: in which number format; None for that of the rest of the step. No gradient comes from these frames, so
            that "auto" (:func:`bevstack.precision.choose_precision`) saves time where the step itself is to stay in
            float32; B_t then differs by bfloat16's rounding.
        frames_at_once: how many frames go through backbone and neck together: more fill a GPU better and need more
            memory. The encoder takes them one after the other in any case.

    Raises:
        ValueError: another format, or no frame at once.
    """

    def __init__(self, dtype: str | None = None, frames_at_once: int = 1) -> None:
        if dtype is not None and dtype not in DTYPES:
            raise ValueError(f"history.dtype must be None or one of {', '.join(DTYPES)}, not {dtype!r}")
        if frames_at_once < 1:
            raise ValueError(f"history.frames_at_once must be at least 1, not {frames_at_once}")
        self.dtype, self.frames_at_once = dtype, frames_at_once
        self._precisions: dict[str, Precision] = {}

    def __call__(self, model: Trunk, frames: Sequence[Frame], memory: BEVMemory | None) -> BEVMemory | None:
        """The memory after the frames: what their steps leave, without fusion, neck and heads.

        Args:
            model: a module that has a trunk; afterwards in the mode in which it was.
            frames: of B samples, (B, N, 3, H, W) images each, the oldest first.
            memory: what was remembered before them, or None.
        """
        module: Any = model
        with torch.no_grad(), evaluating(module):
            for start in range(0, len(frames), self.frames_at_once):
                together = frames[start : start + self.frames_at_once]
                with self._format(together[0].images.device):
                    for frame, features in zip(together, _features(model, together), strict=True):
                        past = None if memory is None else memory.moved(frame.motion)
                        memory = push_memory(past, model.encoded(features, frame, past)[0], model.memory_frames)
        return memory

    @contextmanager
    def _format(self, device: torch.device) -> Iterator[None]:
        if self.dtype is None:
            yield
            return
        if device.type not in self._precisions:
            self._precisions[device.type] = choose_precision(self.dtype, device)
        with self._precisions[device.type].autocast():
            yield


def _features(model: Trunk, frames: Sequence[Frame]) -> list[list[Tensor]]:
    """The levels (B, N, C, h, w) of every frame, made in one pass."""
    if len(frames) == 1:
        return [model.image_features(frames[0])]
    first = frames[0]
    joined = replace(
        first,
        images=torch.cat([frame.images for frame in frames]),
        sweeps=None if first.sweeps is None else torch.cat([_given(frame.sweeps) for frame in frames]),
        features=None
        if first.features is None
        else tuple(torch.cat(levels) for levels in zip(*(_given(frame.features) for frame in frames), strict=True)),
    )
    levels = [level.chunk(len(frames)) for level in model.image_features(joined)]
    return [list(of_frame) for of_frame in zip(*levels, strict=True)]


def _given(value: Any) -> Any:
    """What a frame has, where the first frame has it."""
    if value is None:
        raise ValueError("the frames of a clip differ in what they hold; set history.frames_at_once=1")
    return value
