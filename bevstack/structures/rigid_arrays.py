"""Rigid transforms as numpy arrays: datasets and users keep them in float64."""

from __future__ import annotations

import numpy as np


def rigid_inverse(dst_from_src: np.ndarray) -> np.ndarray:
    """Inverse of (..., 4, 4) rigid transforms, in closed form: (..., 4, 4) of the same dtype."""
    inverse = np.zeros_like(dst_from_src)
    rotation = np.swapaxes(dst_from_src[..., :3, :3], -1, -2)
    inverse[..., :3, :3] = rotation
    inverse[..., :3, 3] = -(rotation @ dst_from_src[..., :3, 3:])[..., 0]
    inverse[..., 3, 3] = 1
    return inverse
