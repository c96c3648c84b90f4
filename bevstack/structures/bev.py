"""The BEV feature B_t and the memory of earlier ones."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from bevstack.geometry import BEVGrid


@dataclass(frozen=True)
class BEVFeatures:
    """B_t, and what else of the moment a head may read.

    Args:
        features: (B, C, Y, X) on ``grid``; rows grow with +y, columns with +x of the BEV frame.
        grid: extent and cells.
        history: what the encoder made of this frame and of the M - 1 before it, newest (this one) first, without
            gradient and on the encoder's grid; set for heads alone.
        image_features: levels (B, N, C, h, w) of the keyframe's cameras; set for heads alone.
    """

    features: Tensor
    grid: BEVGrid
    history: BEVMemory | None = None
    image_features: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if tuple(self.features.shape[-2:]) != self.grid.shape:
            raise ValueError(f"features have {tuple(self.features.shape[-2:])} cells, the grid says {self.grid.shape}")


@dataclass(frozen=True)
class BEVMemory:
    """BEV features of M past frames, newest first: a value that goes in and comes out, never hidden in a module.

    Args:
        features: (B, M, C, Y, X).
        newest_from_frame: (B, M, 4, 4) each frame's BEV frame to that of the newest; identity for m = 0.
        valid: (B, M) bool; False where a sample has no such frame.
        tokens: per sample, the token of the newest frame ("" where there is none); streaming matches it with the
            next sample's ``prev_token``.
        seconds: (B, M) how long before the newest frame each was taken; NaN, its default, where unknown.
    """

    features: Tensor
    newest_from_frame: Tensor
    valid: Tensor
    tokens: tuple[str, ...] = ()
    seconds: Tensor | None = None

    def __post_init__(self) -> None:
        if self.seconds is None:
            unknown = torch.full(self.valid.shape, torch.nan, device=self.valid.device)
            object.__setattr__(self, "seconds", unknown)

    @property
    def newest(self) -> Tensor:
        """(B, C, Y, X) features of the frame just before the coming one."""
        return self.features[:, 0]

    def to(self, device: torch.device | str) -> BEVMemory:
        """A copy on ``device``."""
        return replace(
            self,
            features=self.features.to(device),
            newest_from_frame=self.newest_from_frame.to(device),
            valid=self.valid.to(device),
            seconds=self.seconds.to(device),
        )

    def detach(self) -> BEVMemory:
        """A copy cut from the graph."""
        return replace(self, features=self.features.detach())

    def masked(self, keep: Tensor) -> BEVMemory:
        """A copy in which the samples with ``keep`` (B,) False have no memory."""
        return replace(self, valid=self.valid & keep.to(self.valid.device).unsqueeze(1))
