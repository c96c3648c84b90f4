"""Rigid transforms as 4x4 matrices, named ``dst_from_src``: ``dst_from_src @ point_in_src = point_in_dst``."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def full_precision(tensor: Tensor) -> AbstractContextManager:
    """A context without autocast on the device of a tensor of any shape.

    A place 50 m away would be good to a quarter of a metre only in bfloat16. The meta device knows no autocast.
    """
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def rigid_transform(rotation: Tensor, translation: Tensor) -> Tensor:
    """Compose (..., 3, 3) rotation and (..., 3) translation in metres into (..., 4, 4)."""
    top = torch.cat([rotation, translation.unsqueeze(-1)], dim=-1)
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], dim=-2)


def invert_rigid(dst_from_src: Tensor) -> Tensor:
    """Inverse of (..., 4, 4) transforms whose linear part is orthogonal (rotations and reflections), in closed form."""
    linear = dst_from_src[..., :3, :3].transpose(-1, -2)
    with full_precision(linear):
        return rigid_transform(linear, -(linear @ dst_from_src[..., :3, 3:]).squeeze(-1))


def apply_transform(dst_from_src: Tensor, points: Tensor) -> Tensor:
    """Move points.

    Args:
        dst_from_src: (..., D+1, D+1) homogeneous affine transform, D = 2 or 3.
        points: (..., P, D) in the source frame; leading dimensions broadcast.

    Returns:
        (..., P, D) in the destination frame.
    """
    dim = points.shape[-1]
    linear, offset = dst_from_src[..., :dim, :dim], dst_from_src[..., :dim, dim]
    with full_precision(points):
        return points @ linear.transpose(-1, -2) + offset.unsqueeze(-2)


def quaternion_to_matrix(quaternion: Tensor) -> Tensor:
    """Unit quaternions (..., 4) as (w, x, y, z) to rotation matrices (..., 3, 3)."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def matrix_to_quaternion(rotation: Tensor) -> Tensor:
    """Rotation matrices (..., 3, 3) to unit quaternions (..., 4) as (w, x, y, z), w not negative.

    The products q_i q_j are linear in the matrix (Shepperd 1978); the row of the largest q_i^2 is q_i q, without loss.
    """
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (row.unbind(-1) for row in rotation.unbind(-2))
    products = [
        1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01,
        m21 - m12, 1 + m00 - m11 - m22, m01 + m10, m02 + m20,
        m02 - m20, m01 + m10, 1 - m00 + m11 - m22, m12 + m21,
        m10 - m01, m02 + m20, m12 + m21, 1 - m00 - m11 + m22,
    ]  # fmt: skip
    products = torch.stack(products, dim=-1).unflatten(-1, (4, 4))
    largest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)
    row = products.take_along_dim(largest[..., None, None], dim=-2).squeeze(-2)
    row = torch.where(row[..., :1] < 0, -row, row)
    return row / row.norm(dim=-1, keepdim=True)


def yaw_of(dst_from_src: Tensor) -> Tensor:
    """Heading in radians of the source's x axis seen in the destination's xy plane: (..., 4, 4) -> (...)."""
    return torch.atan2(dst_from_src[..., 1, 0], dst_from_src[..., 0, 0])


def se2_from_rigid(dst_from_src: Tensor) -> Tensor:
    """Planar part of rigid transforms: (..., 4, 4) -> (..., 3, 3) acting on (x, y, 1) in metres.

    Pitch, roll and height are dropped. The linear part is the nearest orthogonal 2x2 matrix to the upper-left block,
    so it stays exactly rigid; a reflection (BEV flip) stays a reflection.
    """
    block = dst_from_src[..., :2, :2]
    mirrored = block[..., 0, 0] * block[..., 1, 1] < block[..., 0, 1] * block[..., 1, 0]
    sign = torch.where(mirrored, -1.0, 1.0).to(block)
    # A planar reflection is a rotation followed by y -> -y of the source axis; undo it, take the angle, put it back.
    cos = block[..., 0, 0] + sign * block[..., 1, 1]
    sin = block[..., 1, 0] - sign * block[..., 0, 1]
    norm = torch.hypot(cos, sin).clamp_min(1e-12)
    cos, sin = cos / norm, sin / norm
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    x, y = dst_from_src[..., 0, 3], dst_from_src[..., 1, 3]
    return torch.stack([cos, -sign * sin, x, sin, sign * cos, y, zero, zero, one], dim=-1).unflatten(-1, (3, 3))


def invert_se2(dst_from_src: Tensor) -> Tensor:
    """Inverse of (..., 3, 3) planar rigid transforms (rotations and reflections) in closed form."""
    linear = dst_from_src[..., :2, :2].transpose(-1, -2)
    with full_precision(linear):
        offset = -(linear @ dst_from_src[..., :2, 2:])
    bottom = dst_from_src.new_tensor([0.0, 0.0, 1.0]).expand(*dst_from_src.shape[:-2], 1, 3)
    return torch.cat([torch.cat([linear, offset], dim=-1), bottom], dim=-2)
