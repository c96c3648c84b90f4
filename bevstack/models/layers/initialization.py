"""Initialisation that several layers share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bevstack.models.layers.settings import Settings


@dataclass(frozen=True)
class SamplingStart(Settings):
    """Where deformable attention looks before it has learned anything; the defaults are the reference's.

    A model with few heads and coarse features that is trained from nothing in few steps wants its samples near their
    reference points, and heads that tell the heights of a pillar apart from the first step.

    Args:
        ring_px: distance between the rings on which a head's points start, in pixels of each level.
        height_focus: logit by which head h prefers the points of height ``h mod Z`` (spatial attention only).
    """

    ring_px: float = 1.0
    height_focus: float = 0.0


def init_bias(layer: nn.Module, value: float) -> None:
    """Fill the bias of a linear layer or a convolution.

    Raises:
        TypeError: the layer has none.
    """
    if not isinstance(layer.bias, Tensor):
        raise TypeError(f"{type(layer).__name__} has no bias")
    nn.init.constant_(layer.bias, value)


def init_sampling_offsets(
    linear: nn.Linear, num_heads: int, num_groups: int, num_points: int, ring_px: float = 1.0
) -> None:
    """Zero weight; bias: a direction per head, k * 360 / heads degrees, scaled to max-norm 1, times point + 1 rings.

    Args:
        linear: its output is (num_heads, num_groups, num_points, 2) flattened; groups are levels (and queue entries).
        ring_px: distance between the rings on which a head's points start.

    Source: Deformable DETR; docs/reference.md 4.5, Init.
    """
    angle = torch.arange(num_heads, dtype=torch.float32) * (2.0 * math.pi / num_heads)
    direction = torch.stack([angle.cos(), angle.sin()], -1)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    length = torch.arange(1, num_points + 1, dtype=torch.float32) * ring_px
    bias = direction[:, None, None] * length[:, None]
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.copy_(bias.expand(num_heads, num_groups, num_points, 2).flatten())
