"""Suite ``encoder``: image features and memory to B_t, in evaluation mode, against the usual formulation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bevstack.experiments.benchmarks.inputs import (
    CHANNELS,
    SIZES,
    Size,
    encoder_of,
    features_of,
    grid_of,
    memory_of,
    motion_of,
    rig_of,
)
from bevstack.experiments.benchmarks.measuring import Row, Stopwatch, difference
from bevstack.experiments.benchmarks.settings import Settings
from bevstack.experiments.usual_formulation import UsualEncoder
from bevstack.models.bev import WarpAlignment
from bevstack.precision import choose_precision
from bevstack.structures import AlignedHistory, Frame

DTYPES = ("float32", "bfloat16")


def run(watch: Stopwatch, settings: Settings) -> list[Row]:
    """Rows of every size, in float32 and under bfloat16 autocast.

    ``error of ours`` and ``error of usual`` are the largest differences from the same way's own float32 answer, as
    shares of its largest value.
    """
    rows = []
    for name in settings.sizes or ("tiny", "small"):
        ways = encoders(SIZES[name])
        exact = {key: way("float32") for key, way in ways.items()}
        for dtype in DTYPES:
            found = exact if dtype == "float32" else {key: way(dtype) for key, way in ways.items()}
            facts = {f"error of {key}": float(f"{difference(found[key], exact[key]):.2g}") for key in ways}
            differences = {"ours": difference(found["ours"], found["usual"])}
            candidates = {key: partial(way, dtype) for key, way in ways.items()}
            facts = {} if dtype == "float32" else facts
            rows.append(watch.row(f"{name}: forward, {dtype}", candidates, "usual", differences, facts))
    return rows


def encoders(size: Size) -> dict[str, Callable[[str], Tensor]]:
    """``usual`` and ``ours`` with the same weights: functions of a format to B_t (1, C, Y, X) of one frame."""
    ours = encoder_of(size).eval()
    inputs = features_of(size), *frame_with_history(size)
    ways: dict[str, nn.Module] = {"usual": UsualEncoder(ours).eval(), "ours": ours}
    return {key: partial(_encoded, encoder, inputs) for key, encoder in ways.items()}


def frame_with_history(size: Size) -> tuple[Frame, AlignedHistory]:
    """A frame whose images nobody looks at, and the previous BEV in it."""
    motion = motion_of()
    frame = Frame(torch.empty(1, 6, 3, 1, 1), rig_of(size.image_px, size.padded_px), motion)
    return frame, WarpAlignment()(memory_of(grid_of(size), CHANNELS).moved(motion), motion)


def _encoded(encoder: nn.Module, inputs: tuple, dtype: str) -> Tensor:
    with torch.no_grad(), choose_precision(dtype, "cpu").autocast():
        return encoder(*inputs).features
