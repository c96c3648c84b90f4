"""What class probabilities and masks of queries say of the ground (MaskFormer, Cheng et al. 2021, section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bevstack.models.layers.settings import Settings


@dataclass(frozen=True)
class MaskDecoding(Settings):
    """How segments and instances are read from the queries' answers.

    Args:
        object_threshold: least class probability of a segment of the panoptic map.
        overlap_threshold: a segment that owns less than this share of its own mask is left out of it.
        max_num: most instances in ``pred_masks``.
    """

    object_threshold: float = 0.5
    overlap_threshold: float = 0.5
    max_num: int = 100


def instances_of(scores: Tensor, masks: Tensor, max_num: int) -> tuple[Tensor, Tensor, Tensor]:
    """Instances of things of one sample: every query with its best thing class; they may overlap.

    Args:
        scores: (Q, K) probabilities of the thing classes; K may be 0.
        masks: (Q, Y, X) probabilities.
        max_num: most instances.

    Returns:
        masks (n, Y, X) bool, where the probability is above one half; scores (n,), class probability times the mean
        probability inside the mask; labels (n,). Best first; empty masks are left out.
    """
    if not scores.shape[1]:
        return masks[:0] > 0, scores.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=scores.device)
    best, labels = scores.max(1)
    inside = masks > 0.5
    cells = inside.flatten(1).sum(1)
    best = best * (masks * inside).flatten(1).sum(1) / cells.clamp_min(1)
    order = best.argsort(descending=True, stable=True)
    order = order[cells[order] > 0][:max_num]
    return inside[order], best[order], labels[order]


def segments_of(
    scores: Tensor, masks: Tensor, num_things: int, object_threshold: float, overlap_threshold: float
) -> tuple[Tensor, Tensor]:
    """One owner a cell: the query whose class probability times mask probability is highest there.

    A cell belongs to its winner only where the winner's own mask is above one half. A query that keeps too little of
    its mask is left out (its cells then belong to nobody), and what the queries of one stuff class own is one segment.

    Args:
        scores: (Q, K) class probabilities, things first.
        masks: (Q, Y, X) probabilities.
        num_things: how many of the K classes are things.
        object_threshold: least class probability of a query that takes part.
        overlap_threshold: least share of a query's mask that it must own.

    Returns:
        (Y, X) int64 numbers of the segments, -1 for none, and (S, 2) int64: class and instance of each segment, the
        instance being the number of the query, -1 for stuff.
    """
    best, labels = scores.max(1)
    kept = torch.nonzero(best >= object_threshold).flatten()
    segments = torch.full(masks.shape[1:], -1, dtype=torch.int64, device=scores.device)
    found: list[tuple[int, int]] = []
    if len(kept):
        masks, best, labels = masks[kept], best[kept], labels[kept]
        winner, inside = (best[:, None, None] * masks).argmax(0), masks > 0.5
        own = (winner == torch.arange(len(kept), device=kept.device)[:, None, None]) & inside
        areas = torch.stack([own.flatten(1).sum(1), inside.flatten(1).sum(1)], dim=1).tolist()
        for query, label, mask, (owned, whole) in zip(kept.tolist(), labels.tolist(), own, areas, strict=True):
            if owned == 0 or owned < overlap_threshold * whole:
                continue
            segment = (label, query if label < num_things else -1)
            if segment not in found:
                found.append(segment)
            segments[mask] = found.index(segment)
    return segments, torch.tensor(found, dtype=torch.int64, device=segments.device).reshape(-1, 2)
