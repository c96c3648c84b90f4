"""Which cameras see which BEV cell, and where: computed once per frame and shared by all layers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bevstack.errors import InputError
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


def plan_visibility(rig: CameraRig, pillars: Tensor, num_slots: int | None = None) -> VisibilityPlan:
    """Project the pillars into every camera and list, per query, those in which any of its points is visible.

    A point is visible in front of the camera and strictly inside the unpadded image; its place is divided by the padded
    size, which is what the features cover (docs/reference.md 4.1 N, 4.5, point_sampling). Every sample of a batch has
    its own plan (4.1 E).

    Args:
        rig: of B samples with N cameras.
        pillars: (Q, Z, 3) metres, BEV frame.
        num_slots: S, as many cameras as may see one cell; None: :func:`slots_needed`.

    Raises:
        InputError: more cameras see a cell than there are slots.
    """
    queries, heights = pillars.shape[:2]
    uv, depth = project_points(rig.pixels_from_bev, pillars.flatten(0, 1))
    seen = visible_points(uv, depth, rig.image_size_px).unflatten(-1, (queries, heights)).any(-1)  # (B, N, Q)
    height, width = rig.padded_size_px
    places = (uv / uv.new_tensor([width, height])).unflatten(2, (queries, heights))
    return plan_from_mask(seen, places, num_slots)


def slots_needed(seen: Tensor) -> int:
    """The largest number of cameras that see one cell, at least 1.

    Args:
        seen: (B, N, Q) bool. On the meta device, which knows no values, the answer is 1; for a graph that is being
            traced, which must not depend on them, it is N.
    """
    if seen.is_meta:
        return 1
    return seen.shape[1] if torch.compiler.is_compiling() else max(int(seen.sum(1).max()), 1)


def plan_from_mask(seen: Tensor, places: Tensor, num_slots: int | None = None) -> VisibilityPlan:
    """Plan of given visibility.

    Args:
        seen: (B, N, Q) bool.
        places: (B, N, Q, Z, 2) fractions of the padded image.
        num_slots: S; None: as many as are needed.

    Raises:
        InputError: more cameras see a cell than there are slots.
    """
    batch, cameras, queries = seen.shape
    count = seen.sum(1)  # (B, Q)
    if num_slots is None:
        num_slots = slots_needed(seen)
    else:
        _require_room(count, num_slots)
    rank = seen.cumsum(1) - 1  # (B, N, Q): the how-manieth of those that see it, in camera order
    camera = torch.arange(cameras, device=seen.device)[:, None]
    slots = [torch.where(seen & (rank == slot), camera, 0).sum(1) for slot in range(num_slots)]
    order = torch.stack(slots, dim=-1)  # (B, Q, S)
    occupied = torch.arange(num_slots, device=seen.device) < count.unsqueeze(-1)
    sample = torch.arange(batch, device=seen.device)[:, None, None]
    query = torch.arange(queries, device=seen.device)[None, :, None]
    return VisibilityPlan(
        slots=torch.where(occupied, sample * cameras + order, -1),
        references=places[sample, order, query],
        weights=(1.0 / count.clamp_min(1)).unsqueeze(-1).expand(-1, -1, num_slots),
    )


def _require_room(count: Tensor, num_slots: int) -> None:
    """Every cell's (B, Q) cameras fit the slots; on a GPU, the next synchronisation says so."""
    if count.is_meta:
        return
    reason = f"a cell of this rig is seen by more cameras than the plan has slots ({num_slots}); set num_slots higher"
    if count.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async((count <= num_slots).all(), f"encoder.num_slots: {reason}")
    elif int(count.max()) > num_slots:
        raise InputError("model", "encoder.num_slots", reason)


class PlanCache:
    """The last plan, for as long as the rig stays what it was: a car's cameras do not move."""

    def __init__(self) -> None:
        self._rig: tuple[Tensor, Tensor, tuple[int, int]] | None = None
        self._plan: VisibilityPlan | None = None

    def plan(self, rig: CameraRig, pillars: Tensor, num_slots: int | None) -> VisibilityPlan:
        """:func:`plan_visibility` of (Q, Z, 3) pillars in metres, computed anew where the rig is another one.

        Only on the CPU, where comparing is free of waiting, and not in a graph that is being traced.
        """
        if rig.camera_from_bev.device.type != "cpu" or torch.compiler.is_compiling():
            return plan_visibility(rig, pillars, num_slots)
        given = (rig.pixels_from_bev.detach(), rig.image_size_px, (rig.padded_size_px[0], rig.padded_size_px[1]))
        if self._plan is None or self._rig is None or not _equal(self._rig, given):
            self._plan = plan_visibility(rig, pillars, num_slots)
            self._rig = (given[0].clone(), given[1].clone(), given[2])
        return self._plan


def _equal(one: tuple, other: tuple) -> bool:
    return one[2] == other[2] and all(
        first.dtype == second.dtype and torch.equal(first, second)
        for first, second in zip(one[:2], other[:2], strict=True)
    )
