"""The six keypoints of an object, and the oriented rectangle that fits them: the one place that states their order.

An object's keypoints are its centre, the four corners of its footprint and the middle of its front edge, in the order
of :data:`KEYPOINT_NAMES`. In metres of the BEV frame; a pose is (x, y, length, width, yaw), yaw as in a box.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from bevstack.geometry.boxes3d import gravity_centers, turned
from bevstack.geometry.cameras import project_points, visible_points

KEYPOINT_NAMES = ("centre", "front_left", "front_right", "rear_right", "rear_left", "front")
NUM_KEYPOINTS = len(KEYPOINT_NAMES)

# Where each lies in its rectangle: in half lengths to the front, in half widths to the left.
_ALONG = (0.0, 1.0, 1.0, -1.0, -1.0, 1.0)
_ACROSS = (0.0, 1.0, -1.0, -1.0, 1.0, 0.0)

MIRRORED = (0, 2, 1, 4, 3, 5)
"""Index of each keypoint's counterpart in a mirror, where left and right change places."""


def pose_keypoints(poses: Tensor) -> Tensor:
    """(..., 5) poses (x, y, length, width, yaw) -> (..., 6, 2) metres (x, y)."""
    offsets = poses.new_tensor(list(zip(_ALONG, _ACROSS, strict=True))) * poses[..., None, 2:4] / 2
    return turned(offsets, poses[..., 4]) + poses[..., None, :2]


def box_poses(boxes: Tensor) -> Tensor:
    """(..., 9) boxes (x, y, z_bottom, l, w, h, yaw, ...) -> (..., 5) poses."""
    return torch.cat([boxes[..., :2], boxes[..., 3:5], boxes[..., 6:7]], dim=-1)


def box_keypoints(boxes: Tensor) -> Tensor:
    """(..., 9) boxes -> (..., 6, 3) metres: the box's middle, and the five others on its lower face."""
    ground = pose_keypoints(box_poses(boxes))
    height = boxes[..., 2:3].expand(ground.shape[:-1]).clone()
    height[..., 0] = gravity_centers(boxes)[..., 2]
    return torch.cat([ground, height.unsqueeze(-1)], dim=-1)


class ImageKeypoints(NamedTuple):
    """The V keypoints of G objects that lie in the images of N cameras.

    Args:
        cameras: (V,) index; objects: (V,) index; kinds: (V,) index into :data:`KEYPOINT_NAMES`.
        points_px: (V, 2) pixels (u, v); depths_m: (V,) along the camera's axis.
    """

    cameras: Tensor
    objects: Tensor
    kinds: Tensor
    points_px: Tensor
    depths_m: Tensor


def image_keypoints(boxes: Tensor, pixels_from_bev: Tensor, image_size_px: Tensor) -> ImageKeypoints:
    """Where the keypoints of boxes stand in images; whether something stands in front of them is not looked at.

    Where the image is mirrored and the BEV frame is not, or the other way round, left and right change places, so that
    a keypoint's name fits the picture.

    Args:
        boxes: (G, 9); pixels_from_bev: (N, 4, 4); image_size_px: (N, 2) height and width.
    """
    points = box_keypoints(boxes)  # (G, 6, 3)
    uv, depth = project_points(pixels_from_bev, points.flatten(0, 1))
    seen = visible_points(uv, depth, image_size_px)  # (N, G * 6)
    camera, point = seen.nonzero(as_tuple=True)
    kind = point % NUM_KEYPOINTS
    mirrored = torch.linalg.det(pixels_from_bev[:, :3, :3]) < 0
    kind = torch.where(mirrored[camera], torch.tensor(MIRRORED, device=kind.device)[kind], kind)
    return ImageKeypoints(camera, point // NUM_KEYPOINTS, kind, uv[seen], depth[seen])


def fit_poses(keypoints: Tensor) -> Tensor:
    """The oriented rectangles nearest to keypoints, in the least-squares sense.

    With half axes p (to the front) and q (to the left), keypoint i of a rectangle is c + a_i p + b_i q. Because the
    b_i have mean zero and do not correlate with the a_i, free p and q are two independent regressions p^ and q^, and
    the cost of a rectangle that is turned by u = (cos yaw, sin yaw) is A |p - p^|^2 + B |q - q^|^2 up to a constant
    (A, B: the sums of squares of the centred a_i and b_i). Its minimum is the principal axis of
    A p^ p^T + B r r^T with r = q^ turned by -90 degrees: a closed form.

    Args:
        keypoints: (..., 6, 2) metres.

    Returns:
        (..., 5) poses (x, y, length, width, yaw in [-pi, pi]); sizes are at least 0.
    """
    a, b = keypoints.new_tensor(_ALONG), keypoints.new_tensor(_ACROSS)
    centred = a - a.mean()
    weight_along, weight_across = centred.square().sum(), b.square().sum()
    front = (centred.unsqueeze(-1) * keypoints).sum(-2) / weight_along
    left = (b.unsqueeze(-1) * keypoints).sum(-2) / weight_across
    right_turned = torch.stack([left[..., 1], -left[..., 0]], dim=-1)
    xx = weight_along * front[..., 0].square() + weight_across * right_turned[..., 0].square()
    yy = weight_along * front[..., 1].square() + weight_across * right_turned[..., 1].square()
    xy = weight_along * front[..., 0] * front[..., 1] + weight_across * right_turned[..., 0] * right_turned[..., 1]
    yaw = torch.atan2(2 * xy, xx - yy) / 2
    # A principal axis has two directions: the front is where the keypoints' own front is.
    forward = weight_along * front + weight_across * right_turned
    backwards = forward[..., 0] * yaw.cos() + forward[..., 1] * yaw.sin() < 0
    yaw = torch.where(backwards, yaw - torch.pi * torch.where(yaw > 0, 1.0, -1.0), yaw)
    axis = torch.stack([yaw.cos(), yaw.sin()], dim=-1)
    length = 2 * (axis * front).sum(-1).clamp_min(0)
    width = 2 * (axis * right_turned).sum(-1).clamp_min(0)
    center = keypoints.mean(-2) - a.mean() * length.unsqueeze(-1) / 2 * axis
    return torch.cat([center, torch.stack([length, width, yaw], dim=-1)], dim=-1)
