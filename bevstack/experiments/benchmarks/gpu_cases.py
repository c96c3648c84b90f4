"""Inputs of suite ``gpu``: the three places of a model that sample, on any device, and how far answers are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bevstack.experiments.benchmarks.inputs import CHANNELS, HEADS, TEMPORAL_POINTS, Size, grid_of
from bevstack.experiments.benchmarks.measuring import difference
from bevstack.experiments.benchmarks.op import Case, PaddedLists, located, ours, spatial_case, temporal_case
from bevstack.models.bev import VisibilityPlan

DECODER_QUERIES = 900
"""Objects that BEVFormer's decoder asks for."""
SAFE_PX = 1e-3
"""Samples nearer than this to a whole pixel are left out where gradients of offsets are compared: the derivative jumps
there, and float32 and double may stand on different sides."""


def decoder_case(size: Size) -> Case:
    """Object queries, drawn anywhere, look into the one BEV."""
    grid, generator = grid_of(size), torch.Generator().manual_seed(0)
    queries = DECODER_QUERIES
    plan = VisibilityPlan(
        torch.zeros(1, queries, 1, dtype=torch.int64),
        torch.rand(1, queries, 1, 1, 2, generator=generator),
        torch.ones(1, queries, 1),
    )
    return Case(
        torch.randn(1, grid.num_cells, HEADS, CHANNELS // HEADS, generator=generator),
        [grid.shape],
        plan,
        torch.randn(1, queries, 1, HEADS, 1, TEMPORAL_POINTS, 2, generator=generator) * 2,
        torch.randn(1, queries, 1, HEADS, TEMPORAL_POINTS, generator=generator),
    )


KINDS: dict[str, Callable[[Size], Case]] = {
    "spatial": spatial_case,
    "temporal": temporal_case,
    "decoder": decoder_case,
}
"""Where a model samples: BEV cells in cameras, BEV cells in two BEVs, object queries in one BEV."""


def moved(case: Case, device: torch.device | str, dtype: torch.dtype | None = None) -> Case:
    """A case on a device, everything but the slots in double where that is asked for, else the values alone in a dtype.

    Args:
        case: on any device.
        device: where to.
        dtype: of the values; None leaves them.
    """
    double = dtype == torch.float64

    def place(tensor: Tensor) -> Tensor:
        return tensor.to(device, torch.float64 if double else None)

    plan = VisibilityPlan(case.plan.slots.to(device), place(case.plan.references), place(case.plan.weights))
    return replace(
        case,
        value=case.value.to(device, dtype),
        plan=plan,
        offsets=place(case.offsets),
        logits=place(case.logits),
    )


def near_pixel_borders(case: Case, margin_px: float = SAFE_PX) -> Tensor:
    """Which coordinates of samples lie near a whole pixel in any of their slots: (B, Q, G, h, L, P, 2) bool."""
    offsets, references = case.offsets.double(), case.plan.references.double()
    sizes = torch.tensor([(w, h) for h, w in case.shapes], dtype=torch.float64, device=offsets.device)
    points, anchors, groups = offsets.shape[5], references.shape[3], offsets.shape[2]
    anchor = references.repeat(1, 1, 1, points // anchors, 1)[:, :, :, None, None]  # (B, Q, S, 1, 1, P, 2)
    near = torch.zeros(offsets.shape, dtype=torch.bool, device=offsets.device)
    for slot in range(references.shape[2]):
        group = slot if groups > 1 else 0
        place = anchor[:, :, slot] * sizes[:, None] + offsets[:, :, group] - 0.5
        near[:, :, group] |= (place - place.round()).abs() < margin_px
    return near


def answers(case: Case, backend: str) -> dict[str, Tensor]:
    """Result (B, Q, C) and gradients of values, offsets and logits of a case by one backend."""
    leaves = case.leaves()
    result = ours(case, backend, *leaves)
    upstream = torch.randn(result.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    gradients = torch.autograd.grad(result, leaves, upstream.to(result))
    return {"result": result.detach(), **dict(zip(("value", "offsets", "logits"), gradients, strict=True))}


def errors_of(case: Case, backend: str, dtype: torch.dtype) -> dict[str, float]:
    """By what a backend's answers differ from the definition in double precision, as shares of the largest value.

    Args:
        case: on the device that computes.
        backend: whose answers.
        dtype: of its values; the definition gets the same, rounded values.
    """
    given = moved(case, case.value.device, dtype)
    exact = answers(moved(given, given.value.device, torch.float64), "reference")
    found = answers(given, backend)
    near = near_pixel_borders(case)
    for answer in (exact, found):
        answer["offsets"] = answer["offsets"].masked_fill(near, 0.0)
    return {name: difference(found[name], exact[name]) for name in exact}


def sampled_elsewhere(case: Case) -> tuple[Tensor, Tensor, Sequence[tuple[int, int]]]:
    """Locations (M, R, h, L, P, 2) and weights (M, R, h, L, P) of a CPU case as mmcv's operator reads them, and sizes.

    R is the longest of the maps' lists of queries, as published code pads them.
    """
    locations, weights = located(case, PaddedLists.of(case), case.offsets, case.logits)
    return locations, weights, case.shapes
