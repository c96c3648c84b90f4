"""What the mask head is trained by: losses, the true panoptic maps, the cells on which masks are compared with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.models.layers.settings import Settings
from bevstack.structures import BEVDataSample, PanopticMap

CLASSIFICATIONS = ("softmax", "focal")


@dataclass(frozen=True)
class MaskCriterion(Settings):
    """What mask queries are trained by.

    Args:
        classification: ``softmax`` over K classes and "no object", or K sigmoids with the ``focal`` loss.
        no_object_weight: of queries without object in the softmax loss.
        class_weight, focal_weight, dice_weight: of the losses and of the matching costs.
        sampled_cells: on how many cells masks are compared in matching and losses, at most (:func:`sample_cells`); 0
            for all.

    Raises:
        ValueError: another classification.
    """

    classification: str = "softmax"
    no_object_weight: float = 0.1
    class_weight: float = 2.0
    focal_weight: float = 20.0
    dice_weight: float = 5.0
    sampled_cells: int = 4096

    def __post_init__(self) -> None:
        if self.classification not in CLASSIFICATIONS:
            raise ValueError(f"classification: {self.classification!r} is none of {', '.join(CLASSIFICATIONS)}")


def sample_cells(panoptic: PanopticMap, count: int) -> tuple[Tensor, Tensor]:
    """The cells on which masks are compared, the same for the same map (Mask2Former, section 3.3, draws random points).

    All cells where there are no more than ``count``, or ``count`` is 0. Otherwise every n-th cell of things for up to
    half of them, so that small things are seen, and every n-th of the other cells for the rest.

    Returns:
        (P,) int64 indices of flattened cells, and (P,) float32, how many cells each stands for; their sum is Y * X.
    """
    owners = panoptic.segments.flatten()
    if count == 0 or len(owners) <= count:
        return torch.arange(len(owners), device=owners.device), owners.new_ones(len(owners), dtype=torch.float32)
    is_thing = torch.cat([panoptic.is_thing, panoptic.is_thing.new_zeros(1)])[owners]
    things, others = (torch.nonzero(cells).flatten() for cells in (is_thing, ~is_thing))
    few = max(min(len(things), count // 2), count - len(others))
    chosen, weights = [], []
    for cells, number in ((things, few), (others, count - few)):
        chosen.append(cells[torch.arange(number, device=cells.device) * len(cells) // max(1, number)])
        weights.append(torch.full((number,), len(cells) / max(1, number), device=cells.device))
    return torch.cat(chosen), torch.cat(weights)


def target_panoptic(
    samples: Sequence[BEVDataSample], things: Sequence[str], stuff: Sequence[str], grid: BEVGrid
) -> list[PanopticMap]:
    """The true panoptic maps of a batch.

    Raises:
        InputError: a sample has none, or its classes or grid are not the head's; says what to change.
    """
    maps = []
    for sample in samples:
        if "gt_panoptic" not in sample:
            reason = "not there: add MakePanopticMap to the train pipeline"
            raise InputError("train pipeline", "gt_panoptic", reason)
        panoptic: PanopticMap = sample.gt_panoptic
        for name, there, wanted in (
            ("things", panoptic.thing_classes, things),
            ("stuff", panoptic.stuff_classes, stuff),
        ):
            if tuple(there) != tuple(wanted):
                reason = f"has the {name} {list(there)}, the head {list(wanted)}: give both the same in the config"
                raise InputError("train pipeline", "gt_panoptic", reason)
        if not panoptic.grid.same_as(grid):
            reason = f"lies on {panoptic.grid}, the head on {grid}: give both the same grid in the config"
            raise InputError("train pipeline", "gt_panoptic", reason)
        maps.append(panoptic)
    return maps
