"""Ways to run a step in suite ``gpu``: number formats, and what the usual formulation samples by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from bevstack.experiments import usual_formulation, usual_model
from bevstack.experiments.benchmarks.gpu_measuring import Run
from bevstack.experiments.usual_formulation import usual_sampling
from bevstack.geometry.transforms import full_precision
from bevstack.interop.standins import compiled_mmcv_present
from bevstack.precision import choose_precision

FORMATS = {"float32": ("float32", False), "float32, TF32": ("float32", True), "bfloat16": ("bfloat16", True)}
"""Formats of products by name: of autocast, and whether float32 may be computed in TF32."""
Sampling = Callable[..., Tensor]
Answer = Callable[[], Tensor]
T = TypeVar("T")


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Whether products and convolutions of float32 may be computed in TF32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = allowed
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def in_format(name: str, device: torch.device, run: Callable[[], T]) -> T:
    """What a function gives in a format of :data:`FORMATS`."""
    dtype, allowed = FORMATS[name]
    with tf32(allowed), choose_precision(dtype, device).autocast():
        return run()


def mmcv_sampling(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """:func:`usual_sampling` by mmcv's compiled operator, in float32 as published code calls it: (M, Q, h * c)."""
    # only here: its package takes four seconds to import
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    sizes = torch.tensor(shapes, device=value.device)
    starts = torch.cat([sizes.new_zeros(1), sizes.prod(1).cumsum(0)[:-1]])
    with full_precision(value):
        tensors = value.float().contiguous(), sizes, starts, locations.float().contiguous(), weights.float()
        return MultiScaleDeformableAttnFunction.apply(*tensors[:4], tensors[4].contiguous(), 64)


def baselines() -> dict[str, Sampling]:
    """Samplings of the usual formulation by candidate's name: torch's, and mmcv's where it is compiled."""
    found: dict[str, Sampling] = {"usual": usual_sampling}
    if compiled_mmcv_present():
        found["mmcv"] = mmcv_sampling
    return found


@contextmanager
def sampling_by(sampling: Sampling) -> Iterator[None]:
    """The usual formulation samples by a function of its own choice no more, but by this one."""
    before = usual_formulation.usual_sampling, usual_model.usual_sampling
    usual_formulation.usual_sampling = usual_model.usual_sampling = sampling
    try:
        yield
    finally:
        usual_formulation.usual_sampling, usual_model.usual_sampling = before


def sampled_by(sampling: Sampling, run: Callable[[], T]) -> T:
    """What a function gives while the usual formulation samples by another."""
    with sampling_by(sampling):
        return run()


class Prepared:
    """A function that is made at its first call, so that one which cannot be made fails as one that cannot be run.

    Args:
        make: gives the function.
    """

    def __init__(self, make: Callable[[], Run]) -> None:
        self.make = make
        self.made: Run | None = None

    def __call__(self) -> object:
        """Call it; what it gives."""
        if self.made is None:
            self.made = self.make()
        return self.made()
