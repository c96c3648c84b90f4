"""A small convolutional neck on B_t: neighbouring cells talk to each other before the heads look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.model import BaseModule
from torch import nn
from torch.nn import functional as F

from bevstack.geometry import BEVGrid
from bevstack.models.layers.conv import ConvNormReLU, ConvType, ResidualBlock
from bevstack.registry import MODELS
from bevstack.structures import BEVFeatures


@MODELS.register_module()
class BEVUNet(BaseModule):
    """Residual blocks at falling resolution, added back on the way up.

    Args:
        in_channels: C of B_t.
        widths: channels at stride 1, 2, 4, ...
        blocks: residual blocks per resolution.
        out_channels: C of the result, ``widths[0]`` where not given.
        out_grid: grid of the result (or its arguments) over the same extent, usually finer, so that several heads
            share one resampling; B_t's own where not given.
        conv: kind of the 3 x 3 convolutions (:class:`bevstack.models.layers.conv.ConvType`).
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int] = (128, 192),
        blocks: int = 2,
        out_channels: int | None = None,
        out_grid: BEVGrid | Mapping | None = None,
        conv: ConvType | Mapping | str = "plain",
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.out_grid = None if out_grid is None else BEVGrid.build(out_grid)
        self.out_channels = out_channels or widths[0]
        plain = self.out_channels == widths[0] and out_grid is None
        self.output = nn.Identity() if plain else ConvNormReLU(widths[0], self.out_channels, conv=conv)
        stages, last = [], in_channels
        for level, width in enumerate(widths):
            first = ResidualBlock(last, width, stride=1 if level == 0 else 2, conv=conv)
            rest = (ResidualBlock(width, width, conv=conv) for _ in range(blocks - 1))
            stages.append(nn.Sequential(first, *rest))
            last = width
        self.stages = nn.ModuleList(stages)
        self.lateral = nn.ModuleList(
            ConvNormReLU(deep, shallow, 1) for shallow, deep in zip(widths[:-1], widths[1:], strict=True)
        )

    def forward(self, bev: BEVFeatures) -> BEVFeatures:
        """(B, C, Y, X) on B_t's grid to (B, out_channels, Y', X') on the output grid.

        Raises:
            ValueError: the output grid covers another piece of ground than B_t.
        """
        levels, features = [], bev.features
        for stage in self.stages:
            features = stage(features)
            levels.append(features)
        for shallow, lateral in zip(reversed(levels[:-1]), reversed(self.lateral), strict=True):
            up = F.interpolate(lateral(features), size=shallow.shape[-2:], mode="bilinear", align_corners=False)
            features = shallow + up
        grid = self.out_grid or bev.grid
        if (grid.x_range_m, grid.y_range_m) != (bev.grid.x_range_m, bev.grid.y_range_m):
            raise ValueError(f"out_grid covers {grid.x_range_m} x {grid.y_range_m} m, B_t {bev.grid}")
        if grid.shape != bev.grid.shape:
            features = F.interpolate(features, size=grid.shape, mode="bilinear", align_corners=False)
        return BEVFeatures(self.output(features), grid)
