"""From points of the BEV frame to pixels, and image changes as changes of the intrinsics.

Pixel coordinates (u right, v down) are continuous: pixel i covers [i, i + 1), its centre is i + 0.5.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bevstack.geometry.transforms import full_precision

NEAREST_DEPTH_M = 1e-5


def project_points(pixels_from_bev: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Project points of the BEV frame into every camera.

    Args:
        pixels_from_bev: (..., N, 4, 4), intrinsics (padded to 4x4) times ``camera_from_bev``.
        points: (..., P, 3) metres, BEV frame; leading dimensions broadcast against those before N.

    Returns:
        uv (..., N, P, 2) pixels and depth (..., N, P) metres along the optical axis. Depth is clamped to 1e-5 m before
        the division, so points behind a camera land far outside the image (docs/reference.md 4.5, point_sampling).
        Computed in float32 at least, whatever autocast says.
    """
    with full_precision(points):
        dtype = torch.promote_types(points.dtype, torch.float32)
        matrix, points = pixels_from_bev.to(dtype), points.to(dtype)
        projected = points.unsqueeze(-3) @ matrix[..., :3, :3].transpose(-1, -2) + matrix[..., None, :3, 3]
        depth = projected[..., 2]
        return projected[..., :2] / depth.clamp_min(NEAREST_DEPTH_M).unsqueeze(-1), depth


def visible_points(uv: Tensor, depth: Tensor, image_size_px: Tensor) -> Tensor:
    """Which projected points lie in front of their camera and strictly inside its image.

    Args:
        uv: (..., N, P, 2) pixels; depth: (..., N, P) metres; image_size_px: (..., N, 2) as (height, width), unpadded.

    Returns:
        (..., N, P) bool.
    """
    limit = image_size_px.flip(-1).unsqueeze(-2).to(uv.dtype)
    return (depth > NEAREST_DEPTH_M) & (uv > 0).all(-1) & (uv < limit).all(-1)


def _pixel_affine(scale_u: float, scale_v: float, shift_u: float, shift_v: float) -> Tensor:
    return torch.tensor([[scale_u, 0.0, shift_u], [0.0, scale_v, shift_v], [0.0, 0.0, 1.0]], dtype=torch.float64)


def resize_pixels(scale_u: float, scale_v: float) -> Tensor:
    """``new_from_old`` pixel transform (3, 3) of resizing an image by (scale_u, scale_v)."""
    return _pixel_affine(scale_u, scale_v, 0.0, 0.0)


def crop_pixels(left_px: float, top_px: float) -> Tensor:
    """``new_from_old`` pixel transform (3, 3) of cropping away ``left_px`` columns and ``top_px`` rows."""
    return _pixel_affine(1.0, 1.0, -left_px, -top_px)


def flip_pixels(width_px: float) -> Tensor:
    """``new_from_old`` pixel transform (3, 3) of mirroring an image of ``width_px`` columns left to right."""
    return _pixel_affine(-1.0, 1.0, width_px, 0.0)
