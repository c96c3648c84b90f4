"""Classes and ranges that stand in two places of a config: compared when both are built, before anything is computed.

A head counts its outputs by its own list of classes, a dataset its labels by another; a head keeps boxes in one range,
training shows it those of another. Where the two differ, training and scores go on and mean something else.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmengine.config import Config
from torch import nn

from bevstack.engine.config import components
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid

_ROUNDING_M = 1e-6


def check_labels(cfg: Config, model: nn.Module, dataset: Any, part: str) -> None:
    """Compare the classes of a part's dataset with those of the heads that know its labels, and the heads' ranges.

    Args:
        cfg: as read; named in messages.
        model: as built.
        dataset: of the part, as built; with ``metainfo["classes"]``.
        part: ``train``, ``val`` or ``test``.

    Raises:
        InputError: names the field and both values.
    """
    file = cfg.filename or "config"
    labelled = tuple((getattr(dataset, "metainfo", None) or {}).get("classes", ()))
    for name, head in object_heads(model):
        field = f"{part}_dataloader.dataset.classes"
        require_same_classes(head_classes(head), f"model.{name}.classes", labelled, file, field)
        _check_ranges(cfg, head, name, file)


def check_trained_labels(
    model: nn.Module,
    meta: Mapping[str, Any],
    checkpoint: str | os.PathLike,
    heads: Sequence[str] | None = None,
    advice: str = "",
) -> None:
    """Compare the classes of the heads with those of the data that a checkpoint was trained on, where it says them.

    Args:
        model: as built.
        meta: of the checkpoint.
        checkpoint: its file, for the message.
        heads: places of those whose weights are all taken, as ``heads.detection``; None for every head.
        advice: what else there is to do, with ``{}`` for the head's place.

    Raises:
        InputError: names the head and both lists.
    """
    labels = (meta.get("dataset_meta") or {}).get("classes", ())
    for name, head in object_heads(model):
        if heads is None or name in heads:
            own, told = f"model.{name}.classes", advice.format(name)
            require_same_classes(head_classes(head), own, labels, checkpoint, "dataset_meta.classes", told)


def check_trained_cameras(model: nn.Module, meta: Mapping[str, Any], cameras: Sequence[str], file: Any) -> None:
    """Refuse cameras in another order than a model was trained with: what it learned of each belongs to its place.

    Args:
        model: as built; one whose encoder has no ``num_cameras`` takes them in any order.
        meta: of the checkpoint, which may say the cameras of its data.
        cameras: names of those whose images it is to see, in their order; a name that it never met stands anywhere.
        file: named in the message.

    Raises:
        InputError: names the camera and both orders.
    """
    trained = list((meta.get("dataset_meta") or {}).get("cameras") or ())
    if not hasattr(getattr(model, "encoder", None), "num_cameras"):
        return
    for place, name in enumerate(cameras):
        if name in trained and trained.index(name) != place:
            reason = f"{trained} in training, but {list(cameras)} now: {name} is number {place} instead of"
            reason += f" {trained.index(name)}, and the model knows cameras by their numbers; give both the same order"
            raise InputError(file, "cameras", reason)


def require_same_classes(
    head: Sequence[str], place: str, others: Sequence[str], file: Any, field: str, advice: str = ""
) -> None:
    """Refuse two lists that share names without being the same; a head of names all its own is not about these labels.

    Raises:
        InputError: says whether the order or the names differ, with both lists.
    """
    head, others = tuple(head), tuple(others)
    if head == others or not set(head) & set(others):
        return
    kind = "the same classes in another order" if set(head) == set(others) else "other classes"
    reason = f"{list(others)}, but {place} is {list(head)}: {kind}; give both the same list in the same order"
    raise InputError(file, field, f"{reason}{advice}")


def object_heads(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Heads that give each object one of ``classes``, with their places; those of rasters name layers instead."""
    for group in ("heads", "image_heads"):
        for name, head in (getattr(model, group, None) or {}).items():
            if head_classes(head) and not hasattr(head, "raster"):
                yield f"{group}.{name}", head


def head_classes(head: nn.Module) -> tuple[str, ...]:
    """Names of the labels that a head gives; () of one that gives none."""
    return tuple(getattr(head, "classes", None) or ())


def _check_ranges(cfg: Config, head: nn.Module, name: str, file: str) -> None:
    grid = getattr(head, "grid", None)
    if grid is None:
        return
    for place, step in components((cfg.get("train_dataloader") or {}).get("dataset"), "train_dataloader.dataset"):
        shown = step.get("grid")
        if str(step["type"]).rpartition(".")[2] == "ObjectRangeFilter" and isinstance(shown, Mapping | BEVGrid):
            if beyond := _beyond(BEVGrid.build(shown), (grid.x_range_m, grid.y_range_m)):
                mine = f"x {grid.x_range_m}, y {grid.y_range_m}"
                reason = f"{beyond} lies beyond model.{name}.grid ({mine}): such objects are not learned"
                raise InputError(file, f"{place}.grid", f"{reason}; give both the same range")


def _beyond(grid: BEVGrid, limits: Sequence[tuple[float, float]]) -> str:
    """The first range of a grid that reaches further than its limits (x, y), in words; "" where none does."""
    for axis, (low, high), (lowest, highest) in zip("xy", (grid.x_range_m, grid.y_range_m), limits, strict=True):
        if low < lowest - _ROUNDING_M or high > highest + _ROUNDING_M:
            return f"{axis} range ({low:g}, {high:g}) m"
    return ""
