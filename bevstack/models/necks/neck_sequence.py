"""Necks one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseModule, ModuleList
from torch import Tensor

from bevstack.models.backbones.base import PROBE_SIZE, FeatureLevels, fitted_config, measured_levels
from bevstack.models.layers.evaluation_mode import evaluating
from bevstack.registry import MODELS


@MODELS.register_module()
class NeckSequence(BaseModule):
    """Each neck reads the levels of the one before, as PAFPN's merged into one by :class:`TopDownNeck`.

    Args:
        in_channels, in_strides: of the backbone's levels.
        necks: their configs; what they leave out of ``in_channels`` and ``in_strides`` is filled in, for the second and
            later ones by measuring what comes out of the necks before.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        necks: Sequence[Mapping],
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg)
        levels = FeatureLevels(tuple(in_channels), tuple(in_strides))
        height, width = PROBE_SIZE
        maps: Sequence[Tensor] = [
            torch.zeros(1, channels, -(-height // stride), -(-width // stride))
            for channels, stride in zip(in_channels, in_strides, strict=True)
        ]
        self.necks = ModuleList()
        for config in necks:
            neck = MODELS.build(fitted_config(config, levels))
            with torch.no_grad(), evaluating(neck):
                maps = neck(maps)
            levels = measured_levels(maps, type(neck).__name__)
            self.necks.append(neck)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """L levels (B, C_l, h_l, w_l) to the last neck's levels."""
        for neck in self.necks:
            features = neck(features)
        return list(features)
