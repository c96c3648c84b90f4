"""How a new B_t enters the memory."""

from __future__ import annotations

import torch
from torch import Tensor

from bevstack.structures import BEVFeatures, BEVMemory


def push_memory(memory: BEVMemory | None, bev: BEVFeatures, size: int = 1) -> BEVMemory | None:
    """Put a frame's BEV in front of the memory and drop what is older than ``size`` frames: the end of every step.

    Args:
        memory: as this frame sees it (:meth:`bevstack.structures.BEVMemory.moved`), or None.
        bev: what the encoder made of the frame just done; its gradient is cut.
        size: frames to keep, M; 0 where nothing reads them.

    Returns:
        A memory whose index 0 is this frame, for the next one to call previous; None for a size of 0.
    """
    if size == 0:
        return None
    features, device = bev.features.detach().unsqueeze(1), bev.features.device
    batch = features.shape[0]
    new: tuple[Tensor, ...] = (
        features,
        torch.eye(4, device=device).expand(batch, 1, 4, 4),
        torch.ones(batch, 1, dtype=torch.bool, device=device),
        torch.zeros(batch, 1, device=device),
    )
    if memory is not None and size > 1:
        old = (memory.features, memory.now_from_frame, memory.valid, memory.seconds)
        pairs = zip(new, old, strict=True)
        new = tuple(torch.cat([fresh, kept.to(fresh.dtype)], dim=1)[:, :size] for fresh, kept in pairs)
    features, now_from_frame, valid, seconds = new
    return BEVMemory(features, bev.grid, now_from_frame, valid, seconds)
