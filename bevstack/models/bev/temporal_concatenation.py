"""BEVFormerV2's temporal encoder: each frame's BEV is made alone, then brought into the current frame and joined.

Source: Yang et al. 2023 (BEVFormer v2), section 3.3; docs/reference.md 5, V2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from bevstack.geometry import invert_rigid
from bevstack.models.bev.alignment import warp_bev
from bevstack.models.layers.conv import ResidualBlock
from bevstack.registry import MODELS
from bevstack.structures import BEVFeatures, BEVMemory


@MODELS.register_module()
class TemporalConcatenation(BaseModule):
    """The current BEV and those of T - 1 past frames, warped onto its grid, concatenated and convolved.

    A frame that a sample lacks is replaced by its current BEV, as if the ego had stood still in an unchanged scene.

    Args:
        channels: C of every frame's BEV and of the result.
        num_frames: T, the current one included; the model's ``memory_frames`` must be as many.
        blocks: residual blocks after the concatenation.
    """

    def __init__(self, channels: int, num_frames: int, blocks: int = 2, init_cfg: Mapping | None = None) -> None:
        super().__init__(init_cfg)
        if num_frames < 2:
            raise ValueError(f"num_frames: {num_frames}: with one frame there is nothing to join, leave the fusion out")
        self.channels, self.num_frames = channels, num_frames
        widths = [num_frames * channels] + [channels] * blocks
        self.blocks = nn.Sequential(*(ResidualBlock(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)))
        self.norm = nn.LayerNorm(channels)

    def forward(self, bev: BEVFeatures, memory: BEVMemory) -> BEVFeatures:
        """Join the frames.

        Args:
            bev: of the current frame (B, C, Y, X).
            memory: after the current frame was put into it; its frames 1 ... T - 1 are the past ones.

        Returns:
            (B, C, Y, X) on the grid of ``bev``.
        """
        frames = [bev.features]
        for age in range(1, self.num_frames):
            frames.append(self._past_frame(bev, memory, age))
        joined = self.blocks(torch.cat(frames, dim=1))
        return BEVFeatures(self.norm(joined.movedim(1, -1)).movedim(-1, 1), bev.grid)

    @staticmethod
    def _past_frame(bev: BEVFeatures, memory: BEVMemory, age: int) -> Tensor:
        """(B, C, Y, X) of the frame ``age`` steps back in the current frame's coordinates."""
        if age >= memory.features.shape[1]:
            return bev.features
        current_from_frame = memory.newest_from_frame[:, age].float()
        warped = warp_bev(memory.features[:, age], bev.grid, invert_rigid(current_from_frame))
        return torch.where(memory.valid[:, age, None, None, None], warped.to(bev.features.dtype), bev.features)
