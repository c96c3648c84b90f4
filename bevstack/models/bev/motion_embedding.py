"""What the ego did since the previous frame, as a vector added to every BEV query."""

from __future__ import annotations

from torch import Tensor, nn

from bevstack.registry import MODELS
from bevstack.structures import EgoMotion


@MODELS.register_module()
class MotionEmbedding(nn.Module):
    """MLP of the 18 CAN-bus values: 18 -> C/2 -> C with ReLU after each, then LayerNorm.

    Source: docs/reference.md 4.5, can_bus.

    Args:
        channels: C.
        norm: whether the LayerNorm stands at the end.
    """

    def __init__(self, channels: int, norm: bool = True) -> None:
        super().__init__()
        first, second = nn.Linear(18, channels // 2), nn.Linear(channels // 2, channels)
        self.mlp = nn.Sequential(first, nn.ReLU(), second, nn.ReLU())
        self.norm = nn.LayerNorm(channels) if norm else nn.Identity()
        for linear in (first, second):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, motion: EgoMotion) -> Tensor:
        """(B, C) from ``motion.can_bus`` (B, 18).

        Raises:
            ValueError: the dataset delivers no CAN-bus vector.
        """
        if motion.can_bus is None:
            raise ValueError("motion_embedding needs can_bus vectors: the data pipeline delivers none")
        return self.norm(self.mlp(motion.can_bus.to(next(self.mlp.parameters()).dtype)))
