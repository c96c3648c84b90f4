"""A light feature pyramid: deep levels added to shallow ones, and only the levels that are asked for come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.models.layers.conv import ConvNormReLU, ConvType, ResidualBlock
from bevstack.registry import MODELS


@MODELS.register_module()
class TopDownNeck(BaseModule):
    """Lateral 1 x 1 convolutions, top-down sums, one 3 x 3 block per returned level (FPN, Lin et al. 2017).

    Args:
        in_channels: of the backbone's levels, shallow first; what the backbone declares where the config leaves it out.
        out_channels: C of every returned level.
        out_levels: which levels to return.
        blocks: residual blocks on each merged level, on the way down; a frozen backbone wants some.
        upscale: the returned levels are made so many times larger (bilinear) before their block, for a backbone whose
            finest level is coarser than the encoder's.
        conv: kind of the 3 x 3 convolutions (:class:`bevstack.models.layers.conv.ConvType`).
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        out_levels: Sequence[int] = (0,),
        blocks: int = 0,
        upscale: int = 1,
        conv: ConvType | Mapping | str = "plain",
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.out_levels, self.out_channels, self.upscale = tuple(out_levels), out_channels, upscale
        self.lateral = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(out_channels, out_channels, conv=conv) for _ in range(blocks)))
            for _ in in_channels
        )
        self.output = nn.ModuleList(ConvNormReLU(out_channels, out_channels, conv=conv) for _ in self.out_levels)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """L levels (B, C_l, h_l, w_l) to the asked-for levels (B, C, upscale * h_l, upscale * w_l)."""
        merged = [lateral(level) for lateral, level in zip(self.lateral, features, strict=True)]
        merged[-1] = self.blocks[-1](merged[-1])
        for level in range(len(merged) - 2, -1, -1):
            up = F.interpolate(merged[level + 1], size=merged[level].shape[-2:], mode="bilinear", align_corners=False)
            merged[level] = self.blocks[level](merged[level] + up)
        asked = [merged[level] for level in self.out_levels]
        if self.upscale > 1:
            asked = [F.interpolate(m, scale_factor=self.upscale, mode="bilinear", align_corners=False) for m in asked]
        return [block(level) for block, level in zip(self.output, asked, strict=True)]
