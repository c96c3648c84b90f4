"""The panoptic BEV map: every cell of the ground has one owner, an instance of a thing or a piece of stuff."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bevstack.geometry import BEVGrid


@dataclass(frozen=True)
class PanopticMap:
    """S segments that share the cells of a BEV grid without overlap (panoptic format, Kirillov et al. 2019, section 3).

    Args:
        segments: (Y, X) int64, the number in [0, S) of the segment that owns a cell, -1 where nothing is. Such cells
            are known to be empty ground; they are not "void".
        labels: (S,) int64, class of each segment, an index into ``classes``; several segments may be of one thing
            class, a stuff class has at most one.
        instance_ids: (S,) int64, which object a thing is; -1 for stuff.
        thing_classes, stuff_classes: their names.
        grid: the cells.

    Raises:
        ValueError: shapes that contradict each other.
    """

    segments: Tensor
    labels: Tensor
    instance_ids: Tensor
    thing_classes: tuple[str, ...]
    stuff_classes: tuple[str, ...]
    grid: BEVGrid

    def __post_init__(self) -> None:
        if tuple(self.segments.shape) != self.grid.shape:
            raise ValueError(f"segments have {tuple(self.segments.shape)} cells, the grid says {self.grid.shape}")
        if len(self.labels) != len(self.instance_ids):
            raise ValueError(f"{len(self.labels)} labels for {len(self.instance_ids)} instance ids")

    def __len__(self) -> int:
        """How many segments there are, S."""
        return len(self.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the thing classes, then of the stuff classes."""
        return (*self.thing_classes, *self.stuff_classes)

    @property
    def is_thing(self) -> Tensor:
        """(S,) bool."""
        return self.labels < len(self.thing_classes)

    def masks(self) -> Tensor:
        """(S, Y, X) bool, the cells of each segment."""
        return self.segments == torch.arange(len(self), device=self.segments.device)[:, None, None]

    def cell_labels(self) -> Tensor:
        """(Y, X) int64, the class of each cell's owner, -1 where nothing is."""
        return torch.cat([self.labels, self.labels.new_full((1,), -1)])[self.segments]  # -1 reads the last

    def to(self, *args, **kwargs) -> PanopticMap:
        """A copy on another device (arguments of :meth:`torch.Tensor.to`)."""
        names = ("segments", "labels", "instance_ids")
        return replace(self, **{name: getattr(self, name).to(*args, **kwargs) for name in names})


def panoptic_map(
    things: Tensor,
    labels: Tensor,
    instance_ids: Tensor,
    stuff: Tensor,
    classes: tuple[Sequence[str], Sequence[str]],
    grid: BEVGrid,
) -> PanopticMap:
    """Give every cell one owner among masks that overlap.

    Things go before stuff. Of two things the one with fewer cells owns the cells that both claim (who stands in a
    bus's shadow is not swallowed by it), of equally large ones the first. Of the stuff the layer named first owns the
    cell: a crossing lies on the drivable area and is named before it. A mask that is left without a cell is no segment.

    Args:
        things: (G, Y, X) bool, the masks of the objects.
        labels: (G,) int64, indices into the thing classes.
        instance_ids: (G,) int64.
        stuff: (K, Y, X), non-zero where a layer is, in the order of the stuff classes.
        classes: names of the thing classes, and of the K stuff classes in order of priority.
        grid: of the masks.

    Returns:
        Things in the order given, then stuff by priority.
    """
    (thing_classes, stuff_classes), count = classes, len(things)
    segments = torch.full(grid.shape, -1, dtype=torch.int64, device=things.device)
    for layer in reversed(range(len(stuff_classes))):
        segments[stuff[layer] != 0] = count + layer
    for thing in things.flatten(1).sum(1).argsort(stable=True).flip(0).tolist():  # the last to be painted owns
        segments[things[thing]] = thing
    all_labels = torch.cat([labels.long(), len(thing_classes) + torch.arange(len(stuff_classes), device=labels.device)])
    all_ids = torch.cat([instance_ids.long(), instance_ids.new_full((len(stuff_classes),), -1, dtype=torch.int64)])
    there = torch.bincount(segments[segments >= 0], minlength=len(all_labels)) > 0
    renumbered = torch.cat([there.cumsum(0) - 1, there.new_full((1,), -1, dtype=torch.int64)])
    return PanopticMap(
        renumbered[segments],
        all_labels[there],
        all_ids[there],
        tuple(thing_classes),
        tuple(stuff_classes),
        grid,
    )
