"""A light feature pyramid: deep levels added to shallow ones, and only the levels that are asked for come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.models.layers.conv import ConvNormReLU, ResidualBlock
from bevstack.registry import MODELS


@MODELS.register_module()
class TopDownNeck(BaseModule):
    """Lateral 1 x 1 convolutions, top-down sums, one 3 x 3 block per returned level (FPN, Lin et al. 2017).

    Args:
        in_channels: of the backbone's levels, shallow first.
        out_channels: C of every returned level.
        out_levels: which levels to return.
        blocks: residual blocks on each merged level, on the way down; a frozen backbone wants some.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        out_levels: Sequence[int] = (0,),
        blocks: int = 0,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.out_levels = tuple(out_levels)
        self.lateral = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(out_channels, out_channels) for _ in range(blocks))) for _ in in_channels
        )
        self.output = nn.ModuleList(ConvNormReLU(out_channels, out_channels) for _ in self.out_levels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """L levels (B, C_l, h_l, w_l) to the asked-for levels (B, C, h_l, w_l)."""
        merged = [lateral(level) for lateral, level in zip(self.lateral, features, strict=True)]
        merged[-1] = self.blocks[-1](merged[-1])
        for level in range(len(merged) - 2, -1, -1):
            up = F.interpolate(merged[level + 1], size=merged[level].shape[-2:], mode="bilinear", align_corners=False)
            merged[level] = self.blocks[level](merged[level] + up)
        return [block(merged[level]) for block, level in zip(self.output, self.out_levels, strict=True)]
