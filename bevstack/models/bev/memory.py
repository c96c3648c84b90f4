"""How a new B_t enters the memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bevstack.geometry.transforms import full_precision
from bevstack.structures import BEVMemory, EgoMotion


def push_memory(
    memory: BEVMemory | None, features: Tensor, motion: EgoMotion, size: int = 1, tokens: Sequence[str] = ()
) -> BEVMemory:
    """Put a frame's BEV in front of the memory and drop what is older than ``size`` frames.

    Args:
        memory: of the frames before, or None.
        features: (B, C, Y, X) of the frame just done.
        motion: the motion that led from ``memory``'s newest frame to this one.
        size: frames to keep, M.
        tokens: per sample, this frame's token.

    Returns:
        A memory whose newest frame is this one; older frames are re-expressed relative to it, are as much older as
        ``motion.seconds`` says, and are valid only where ``motion.has_previous`` says that the chain is unbroken.
    """
    batch, device = features.shape[0], features.device
    identity = torch.eye(4, device=device).expand(batch, 1, 4, 4)
    now = torch.zeros(batch, 1, device=device)
    new = features.unsqueeze(1), identity, torch.ones(batch, 1, dtype=torch.bool, device=device), now
    if memory is None or size == 1:
        return BEVMemory(*new[:3], tokens=tuple(tokens), seconds=now)
    # newest_from_frame: frame -> old newest (= previous) -> current, by the inverse of previous_from_current.
    current_from_previous = torch.linalg.inv(motion.previous_from_current.float())
    with full_precision(current_from_previous):
        newest_from_frame = current_from_previous.unsqueeze(1) @ memory.newest_from_frame
    old = (
        memory.features,
        newest_from_frame,
        memory.valid & motion.has_previous.unsqueeze(1),
        memory.seconds + motion.seconds.float().unsqueeze(1),
    )
    joined = (torch.cat([fresh, kept.to(fresh.dtype)], dim=1)[:, :size] for fresh, kept in zip(new, old, strict=True))
    *parts, seconds = joined
    return BEVMemory(*parts, tokens=tuple(tokens), seconds=seconds)
