"""BEVFormerV2's temporal encoder: each frame's BEV is made alone, then brought into the current frame and joined.

Source: Yang et al. 2023 (BEVFormer v2), section 3.3; docs/reference.md 5, V2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn

from bevstack.models.layers.conv import ConvNormReLU, ConvType, ResidualBlock
from bevstack.registry import MODELS
from bevstack.structures import AlignedHistory, BEVFeatures


@MODELS.register_module()
class TemporalConcatenation(BaseModule):
    """The current BEV and those of T - 1 past frames, on its grid and in its frame, concatenated and convolved.

    A frame that a sample lacks is replaced by its current BEV, as if the ego had stood still in an unchanged scene.

    Args:
        channels: C of every frame's BEV and of the result.
        num_frames: T, the current one included.
        blocks: residual blocks after the concatenation.
        conv: kind of their 3 x 3 convolutions (:class:`bevstack.models.layers.conv.ConvType`).
        narrow: a 1 x 1 convolution brings the T frames to C channels before the blocks, so that no 3 x 3 convolution
            works on more; otherwise the first block does, and its shortcut.

    Attributes:
        history_frames: T - 1, the past frames that it reads.
    """

    def __init__(
        self,
        channels: int,
        num_frames: int,
        blocks: int = 2,
        conv: ConvType | Mapping | str = "plain",
        narrow: bool = False,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_frames < 2:
            raise ValueError(f"num_frames: {num_frames}: with one frame there is nothing to join, leave the fusion out")
        self.channels, self.history_frames = channels, num_frames - 1
        self.join = ConvNormReLU(num_frames * channels, channels, 1) if narrow else nn.Identity()
        widths = [channels if narrow else num_frames * channels] + [channels] * blocks
        pairs = zip(widths[:-1], widths[1:], strict=True)
        self.blocks = nn.Sequential(*(ResidualBlock(before, after, conv=conv) for before, after in pairs))
        self.norm = nn.LayerNorm(channels)

    def forward(self, bev: BEVFeatures, history: AlignedHistory | None) -> BEVFeatures:
        """Join the frames.

        Args:
            bev: of the current frame (B, C, Y, X).
            history: the past frames in the current one, (B, M, C, Y, X); None where there is none at all.

        Returns:
            (B, C, Y, X) on the grid of ``bev``.
        """
        frames = [bev.features, *(self._past_frame(bev, history, index) for index in range(self.history_frames))]
        joined = self.blocks(self.join(torch.cat(frames, dim=1)))
        return BEVFeatures(self.norm(joined.movedim(1, -1)).movedim(-1, 1), bev.grid)

    @staticmethod
    def _past_frame(bev: BEVFeatures, history: AlignedHistory | None, index: int) -> Tensor:
        """(B, C, Y, X) of a past frame, the current one where a sample lacks it."""
        if history is None or index >= history.valid.shape[1]:
            return bev.features
        past = history.features[:, index].to(bev.features.dtype)
        return torch.where(history.valid[:, index, None, None, None], past, bev.features)
