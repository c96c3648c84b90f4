"""Levels from a backbone that has one resolution (Li et al. 2022, "Exploring Plain Vision Transformer Backbones")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

from bevstack.models.layers.conv import ChannelLayerNorm
from bevstack.registry import MODELS


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Each level is made of the last feature map alone, by 2 x 2 transposed convolutions or pooling (section 3).

    Args:
        in_channels: of the backbone's levels; the last is the one used.
        in_strides: of the backbone's levels, in pixels.
        out_channels: C of every returned level.
        out_strides: of the returned levels, in pixels; each the last map's stride times a power of two from 1/4 to 2.

    Attributes:
        strides: ``out_strides``.

    Raises:
        ValueError: an output stride that cannot be reached.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        in_strides: Sequence[int],
        out_channels: int,
        out_strides: Sequence[int] = (4, 8, 16, 32),
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.out_channels, self.strides = out_channels, tuple(out_strides)
        channels, stride = in_channels[-1], in_strides[-1]
        reachable = {stride // 4: 4, stride // 2: 2, stride: 1, 2 * stride: 0}
        unreachable = [wanted for wanted in out_strides if wanted not in reachable]
        if unreachable:
            raise ValueError(f"out_strides: {unreachable} of {sorted(reachable)} that stride {stride} can give")
        self.levels = nn.ModuleList(_level(channels, out_channels, reachable[wanted]) for wanted in out_strides)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The backbone's levels, the last (B, C', h, w), to levels (B, C, h s / s_l, w s / s_l)."""
        return [level(features[-1]) for level in self.levels]


def _level(channels: int, out_channels: int, enlargement: int) -> nn.Sequential:
    """Resampling of one level (0 stands for a half), then 1 x 1 and 3 x 3 convolutions, each normalised."""
    layers: list[nn.Module] = []
    if enlargement == 0:
        layers.append(nn.MaxPool2d(2))
    while enlargement > 1:
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
        enlargement //= 2
        if enlargement > 1:
            layers += [ChannelLayerNorm(channels), nn.GELU()]
    return nn.Sequential(
        *layers,
        nn.Conv2d(channels, out_channels, 1, bias=False),
        ChannelLayerNorm(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        ChannelLayerNorm(out_channels),
    )
