"""The contract of every backbone, and necks that build themselves from it.

An image backbone maps (B * N, 3, H, W) images to a list of L feature maps (B * N, C_l, H / s_l, W / s_l), rounded up or
down, each of which covers the whole image. It declares them in two attributes, in the order in which it returns them:

* ``channels``: C_l of each level;
* ``strides``: s_l of each level, in pixels.

A video backbone has an attribute ``num_sweeps`` S > 0 beside these, gets (B * N, S + 1, 3, H, W), oldest frame first,
and returns such levels at the last frame. Parts of other packages that declare nothing (mmdet's) are measured instead.
A neck whose config does not give ``in_channels``, or ``in_strides`` where it takes them, gets the declaration.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bevstack.errors import InputError
from bevstack.models.layers.evaluation_mode import evaluating
from bevstack.registry import MODELS

PROBE_SIZE = (128, 320)
"""H x W of the image that a measurement uses: whole at strides up to 64, wider than most tables are made for."""


@dataclass(frozen=True)
class FeatureLevels:
    """What a backbone gives: channels and stride (pixels) of each level, in its order."""

    channels: tuple[int, ...]
    strides: tuple[int, ...]


def declared_levels(backbone: nn.Module) -> FeatureLevels:
    """The levels that a backbone declares; measured where it declares none."""
    channels, strides = getattr(backbone, "channels", None), getattr(backbone, "strides", None)
    if isinstance(channels, Sequence) and isinstance(strides, Sequence) and len(channels) == len(strides):
        # mmdet's ResNet has ``strides``, but these are of its stages' first convolutions, and no ``channels``
        return FeatureLevels(tuple(channels), tuple(strides))
    with torch.no_grad(), evaluating(backbone):
        levels = backbone(probe_images(backbone))
    return measured_levels(levels, type(backbone).__name__)


def require_declared(levels: Sequence[Tensor], backbone: nn.Module) -> None:
    """Refuse feature maps (B, C_l, h, w) whose channels are not those that their backbone declares.

    Raises:
        InputError: says both.
    """
    declared, found = getattr(backbone, "channels", None), [level.shape[1] for level in levels]
    if isinstance(declared, Sequence) and list(declared) != found:
        reason = f"{type(backbone).__name__} declares channels {list(declared)}, but its forward() returns {found}"
        raise InputError("model", "backbone", f"{reason}; mend the attribute, or the order of its levels")


def probe_images(backbone: nn.Module, size: tuple[int, int] = PROBE_SIZE) -> Tensor:
    """One image (1, 3, H, W), or one clip for a video backbone, on the device of the weights; the same at each call."""
    place = next(backbone.parameters())
    sweeps = getattr(backbone, "num_sweeps", 0)
    shape = (1, sweeps + 1, 3, *size) if sweeps else (1, 3, *size)
    values = torch.arange(torch.Size(shape).numel(), device=place.device, dtype=torch.float32)
    return (values * 0.7).sin().view(shape)  # takes nothing from the random numbers of a seeded run


def measured_levels(
    levels: Sequence[Tensor], name: str, size: tuple[int, int] = PROBE_SIZE, strides: Sequence[int] | None = None
) -> FeatureLevels:
    """Channels and strides of feature maps (1, C_l, h_l, w_l) that were made of one image.

    Args:
        levels: the maps.
        name: of what made them, for the error.
        size: H x W of the image.
        strides: what they are said to be, believed where the maps do not speak against it; else the strides nearest to
            W / w_l are tried.

    Raises:
        ValueError: a map does not cover the image at one whole stride, so that a pixel cannot be found on it.
    """
    found = []
    for index, level in enumerate(levels):
        near = max(1, round(size[1] / level.shape[-1]))
        candidates = [*(strides[index : index + 1] if strides else ()), near]
        fits = [stride for stride in candidates if level.dim() == 4 and _covers(level, size, stride)]
        if not fits:
            reason = f"makes {tuple(level.shape)} of an image of {size[0]} x {size[1]}"
            raise ValueError(f"{name}: {reason}: no feature map (1, C, H / s, W / s) at a whole stride s")
        found.append(fits[0])
    return FeatureLevels(tuple(level.shape[1] for level in levels), tuple(found))


def _covers(level: Tensor, size: tuple[int, int], stride: int) -> bool:
    pairs = zip(level.shape[-2:], size, strict=True)
    return all(cells in (pixels // stride, -(-pixels // stride)) for cells, pixels in pairs)


def fitted_config(config: Mapping, levels: FeatureLevels | nn.Module) -> dict:
    """A neck's config with ``in_channels`` and ``in_strides`` filled in, where its constructor takes them.

    Args:
        config: with ``type``; what it gives itself stays.
        levels: the neck's input, or the backbone that makes it, which is only asked where something is to be filled in.

    Raises:
        ValueError: the config gives other channels than the backbone declares.
    """
    given, declared = config.get("in_channels"), getattr(levels, "channels", None)
    if isinstance(given, Sequence) and isinstance(declared, Sequence) and list(given) != list(declared):
        reason = f"in_channels is {list(given)}, but {type(levels).__name__} gives {list(declared)}"
        raise ValueError(f"{config['type']}: {reason}; leave in_channels out, or give these")
    component = MODELS.get(config["type"]) if isinstance(config["type"], str) else config["type"]
    taken = {} if component is None else inspect.signature(component).parameters  # the builder tells unknown names
    missing = [key for key in ("in_channels", "in_strides") if key in taken and key not in config]
    if missing and isinstance(levels, nn.Module):
        levels = declared_levels(levels)
    return {**config, **{key: list(getattr(levels, key.removeprefix("in_"))) for key in missing}}
