"""Suite ``scaling``: what nine times the cells cost, and twice the cameras where no more of them see a cell."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from bevstack.experiments.benchmarks.encoder import encoders
from bevstack.experiments.benchmarks.inputs import SIZES
from bevstack.experiments.benchmarks.measuring import Row, Spread, Stopwatch
from bevstack.experiments.benchmarks.op import Case, ours, spatial_case
from bevstack.experiments.benchmarks.settings import Settings
from bevstack.models.bev import VisibilityPlan


def run(watch: Stopwatch, settings: Settings) -> list[Row]:
    """Rows of both; each fact is how many times longer the larger one took."""
    tiny = SIZES[settings.sizes[0] if settings.sizes else "tiny"]
    large = replace(tiny, cells=3 * tiny.cells)
    ways = {f"{size.cells} x {size.cells} cells": encoders(size) for size in (tiny, large)}
    rows = []
    for key in ("ours", "usual"):
        candidates = {name: partial(found[key], "float32") for name, found in ways.items()}
        rows.append(grown(watch.row(f"encoder, {key}: nine times the cells", candidates, "")))
    case = spatial_case(tiny)
    queries = torch.arange(tiny.cells**2)
    for name, second in (("one half of the cells", 2 * queries // tiny.cells**2), ("every second cell", queries % 2)):
        with torch.no_grad():
            candidates = {
                f"{len(each.value)} cameras": partial(ours, each, "auto", each.value, each.offsets, each.logits)
                for each in (case, more_cameras(case, second))
            }
            title = f"spatial attention: 12 cameras, the same pairs, {name} in the other six"
            rows.append(grown(watch.row(title, candidates, "")))
    return rows


def more_cameras(case: Case, second: Tensor) -> Case:
    """The same pairs of queries and cameras, spread over twice the cameras.

    Args:
        case: of N cameras.
        second: (Q,) 1 where a query looks into cameras N to 2 N - 1, else 0. Neighbours on the ground that look into
            the same cameras share the cache, as on a vehicle; where it alternates from one to the next they do not.
    """
    number, plan = len(case.value), case.plan
    slots = torch.where(plan.slots >= 0, plan.slots + number * second[None, :, None], plan.slots)
    return replace(case, value=case.value.repeat(2, 1, 1, 1), plan=VisibilityPlan(slots, plan.references, plan.weights))


def grown(row: Row) -> Row:
    """The row of a smaller and a larger candidate, with their ratio."""
    small, large = (Spread.of(values).median for values in row.seconds.values())
    row.facts["times longer"] = round(large / small, 2)
    return row
