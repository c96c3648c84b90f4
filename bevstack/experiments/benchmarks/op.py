"""Suite ``op``: deformable attention alone, forward, and forward with backward, for every backend that is here.

All candidates start from the same projected values, raw offsets and raw logits and end at the queries' (B, Q, C).
``usual`` is what published code does in between: softmax, sampling locations, mmcv's own function for CPUs on lists
padded to the longest, results added back and averaged. ``mmcv alone`` is that function and nothing around it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bevstack.experiments.benchmarks.inputs import (
    CHANNELS,
    HEADS,
    HEIGHTS,
    POINTS,
    SIZES,
    TEMPORAL_POINTS,
    Size,
    grid_of,
    rig_of,
)
from bevstack.experiments.benchmarks.measuring import Row, Stopwatch, difference
from bevstack.experiments.benchmarks.settings import Settings
from bevstack.experiments.usual_formulation import usual_sampling
from bevstack.models.bev import VisibilityPlan, plan_visibility
from bevstack.ops import deformable_attention

BACKENDS = ("auto", "reference", "torch", "native", "triton")
"""What is tried; a backend that is not there, or cannot run here, says so in the row's facts."""
MOST_QUERIES_OF_REFERENCE = 5000
"""The definition in plain operations takes ten seconds and more where there are more queries."""


def run(watch: Stopwatch, settings: Settings) -> list[Row]:
    """Rows of both attentions at every size, forward and forward with backward."""
    rows = []
    for name in settings.sizes or ("tiny", "small"):
        for kind, make in (("spatial", spatial_case), ("temporal", temporal_case)):
            rows += case_rows(watch, f"{kind}, {name}", make(SIZES[name]))
    return rows


@dataclass(frozen=True)
class Case:
    """One attention's inputs, as both ways read them.

    Args:
        value: (M, tokens, h, c) projected maps.
        shapes: (H_l, W_l) of the levels.
        plan: slots (B, Q, S), references (B, Q, S, Z, 2) and weights (B, Q, S).
        offsets: (B, Q, G, h, L, P, 2) pixels.
        logits: (B, Q, G, h, L * P).
    """

    value: Tensor
    shapes: list[tuple[int, int]]
    plan: VisibilityPlan
    offsets: Tensor
    logits: Tensor

    def leaves(self) -> list[Tensor]:
        """Value (M, tokens, h, c), offsets and logits (B, Q, G, h, ...) anew, ready for gradients."""
        return [tensor.detach().requires_grad_() for tensor in (self.value, self.offsets, self.logits)]


def spatial_case(size: Size) -> Case:
    """Queries of a whole grid look into six cameras mounted as nuScenes mounts them."""
    grid, generator = grid_of(size), torch.Generator().manual_seed(0)
    plan = plan_visibility(rig_of(size.image_px, size.padded_px), grid.pillar_points(HEIGHTS).flatten(0, 1))
    queries, levels = grid.num_cells, len(size.levels)
    return Case(
        torch.randn(6, sum(h * w for h, w in size.levels), HEADS, CHANNELS // HEADS, generator=generator),
        list(size.levels),
        plan,
        torch.randn(1, queries, 1, HEADS, levels, POINTS, 2, generator=generator) * 2,
        torch.randn(1, queries, 1, HEADS, levels * POINTS, generator=generator),
    )


def temporal_case(size: Size) -> Case:
    """Queries of a whole grid look into the previous and the current BEV."""
    grid, generator = grid_of(size), torch.Generator().manual_seed(0)
    queries = grid.num_cells
    references = grid.reference_points()[None, :, None, None].expand(1, -1, 2, 1, -1).contiguous()
    slots = torch.arange(2).expand(1, queries, 2).contiguous()
    return Case(
        torch.randn(2, queries, HEADS, CHANNELS // HEADS, generator=generator),
        [grid.shape],
        VisibilityPlan(slots, references, torch.full((1, queries, 2), 0.5)),
        torch.randn(1, queries, 2, HEADS, 1, TEMPORAL_POINTS, 2, generator=generator) * 2,
        torch.randn(1, queries, 2, HEADS, TEMPORAL_POINTS, generator=generator),
    )


def ours(case: Case, backend: str, value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    """(B, Q, C) of a case by one backend."""
    plan = case.plan
    return deformable_attention(
        value, case.shapes, plan.slots, plan.references, offsets, logits, plan.weights, backend=backend
    )


@dataclass(frozen=True)
class PaddedLists:
    """Which queries look into which map, padded to the longest list: what published code finds in every layer.

    Args:
        lists: by map, the query (R,) and the slot (R,) of each pair.
        longest: of them.
    """

    lists: list[tuple[Tensor, Tensor]]
    longest: int

    @classmethod
    def of(cls, case: Case) -> PaddedLists:
        """The lists of a case of one sample."""
        pairs = [(case.plan.slots[0] == index).nonzero().unbind(1) for index in range(len(case.value))]
        return cls([(query, slot) for query, slot in pairs], max(len(query) for query, _ in pairs))

    def padded(self, values: Tensor) -> Tensor:
        """(Q, S or 1, ...) values of one sample as (M, longest, ...), zeros at the end."""
        out = values.new_zeros(len(self.lists), self.longest, *values.shape[2:])
        for index, (query, slot) in enumerate(self.lists):
            out[index, : len(query)] = values[query, slot if values.shape[1] > 1 else 0]
        return out


def located(case: Case, lists: PaddedLists, offsets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Sampling locations (M, R, h, L, P, 2) as fractions and weights (M, R, h, L, P) of the padded lists' pairs."""
    offsets, logits = lists.padded(offsets[0]), lists.padded(logits[0])
    references = lists.padded(case.plan.references[0])
    heights = references.shape[2]
    sizes = torch.tensor([[w, h] for h, w in case.shapes])
    offsets = (offsets / sizes[:, None]).unflatten(4, (-1, heights))
    locations = references[:, :, None, None, None] + offsets
    return locations.flatten(4, 5), logits.softmax(-1).unflatten(-1, offsets.shape[3:4] + (-1,))


def usual(case: Case, lists: PaddedLists, value: Tensor, offsets: Tensor, logits: Tensor) -> Tensor:
    """(B, Q, C) of a case the usual way."""
    answers = usual_sampling(value, case.shapes, *located(case, lists, offsets, logits))
    out = torch.zeros(offsets.shape[1], answers.shape[-1])
    for index, (query, _) in enumerate(lists.lists):
        out[query] += answers[index, : len(query)]
    return (out * case.plan.weights[0, :, :1]).unsqueeze(0)


def case_rows(watch: Stopwatch, name: str, case: Case) -> list[Row]:
    """Two rows of one case: forward, and forward with backward."""
    lists = PaddedLists.of(case)
    ways: dict[str, Callable[..., Tensor]] = {"usual": partial(usual, case, lists)}
    ready = [tensor.detach() for tensor in located(case, lists, case.offsets, case.logits)]
    ways["mmcv alone"] = lambda value, *_: usual_sampling(value, case.shapes, *ready)
    unusable = {}
    for backend in BACKENDS:
        if backend == "reference" and case.offsets.shape[1] > MOST_QUERIES_OF_REFERENCE:
            continue
        way = partial(ours, case, backend)
        try:
            way(*case.leaves()).sum().backward()
        except (ValueError, ImportError, RuntimeError) as error:
            unusable[backend] = str(error).splitlines()[0]
        else:
            ways[f"ours: {backend}"] = way
    expected = ways["usual"](*case.leaves())
    differences = {key: difference(way(*case.leaves()), expected) for key, way in ways.items() if key[:4] == "ours"}
    slots = case.plan.slots
    facts: dict[str, Any] = {"pairs a query": round(((slots >= 0).sum() / slots[..., 0].numel()).item(), 3)}
    facts |= {f"without {backend}": reason for backend, reason in unusable.items()}
    with torch.no_grad():
        forward = {key: partial(way, case.value, case.offsets, case.logits) for key, way in ways.items()}
        first = watch.row(f"{name}: forward", forward, "usual", differences, facts)
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(4))
    both = {key: partial(_with_backward, case, way, gradient) for key, way in ways.items() if key != "mmcv alone"}
    return [first, watch.row(f"{name}: forward + backward", both, "usual")]


def _with_backward(case: Case, way: Callable[..., Tensor], gradient: Tensor) -> None:
    way(*case.leaves()).backward(gradient)
