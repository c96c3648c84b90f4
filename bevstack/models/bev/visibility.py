"""Which cameras see which BEV cell, and where: computed once per frame and shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bevstack.geometry import project_points, visible_points
from bevstack.structures import CameraRig


@dataclass(frozen=True)
class VisibilityPlan:
    """Per BEV query, the cameras that see it.

    Args:
        slots: (B, Q, S) index b * N + n of each camera that sees the query, -1 for an empty slot.
        references: (B, Q, S, Z, 2) where the pillar's points fall, as fractions (x, y) of the padded image.
        weights: (B, Q, S) one over the number of cameras that see the query.
    """

    slots: Tensor
    references: Tensor
    weights: Tensor


def plan_visibility(rig: CameraRig, pillars: Tensor) -> VisibilityPlan:
    """Project the pillars into every camera and list, per query, those in which any of its points is visible.

    A point is visible in front of the camera and strictly inside the unpadded image; its place is divided by the padded
    size, which is what the features cover (docs/reference.md 4.1 N, 4.5, point_sampling). Every sample of a batch has
    its own plan (4.1 E). S is the largest number of cameras that see one cell, at least 1; on the meta device, which
    knows no values, it is 1.

    Args:
        rig: of B samples with N cameras.
        pillars: (Q, Z, 3) metres, BEV frame.
    """
    queries, heights = pillars.shape[:2]
    uv, depth = project_points(rig.pixels_from_bev, pillars.flatten(0, 1))
    seen = visible_points(uv, depth, rig.image_size_px).unflatten(-1, (queries, heights)).any(-1)  # (B, N, Q)
    height, width = rig.padded_size_px
    places = (uv / uv.new_tensor([width, height])).unflatten(2, (queries, heights))
    return plan_from_mask(seen, places)


def plan_from_mask(seen: Tensor, places: Tensor) -> VisibilityPlan:
    """Plan of given visibility: ``seen`` (B, N, Q) bool, ``places`` (B, N, Q, Z, 2) fractions of the padded image."""
    batch, cameras, queries = seen.shape
    count = seen.sum(1)  # (B, Q)
    num_slots = 1 if count.is_meta else max(int(count.max()), 1)
    # Seeing cameras first, in camera order: a stable sort of 0 (sees) before 1 (does not).
    order = (~seen).to(torch.uint8).argsort(dim=1, stable=True)[:, :num_slots].transpose(1, 2)  # (B, Q, S)
    occupied = torch.arange(num_slots, device=seen.device) < count.unsqueeze(-1)
    sample = torch.arange(batch, device=seen.device)[:, None, None]
    query = torch.arange(queries, device=seen.device)[None, :, None]
    return VisibilityPlan(
        slots=torch.where(occupied, sample * cameras + order, -1),
        references=places[sample, order, query],
        weights=(1.0 / count.clamp_min(1)).unsqueeze(-1).expand(-1, -1, num_slots),
    )
