"""Pure functions on tensors: rigid transforms, cameras, the BEV grid, boxes. Imports torch only."""

from bevstack.geometry.bev_grid import BEVGrid
from bevstack.geometry.cameras import crop_pixels, flip_pixels, project_points, resize_pixels, visible_points
from bevstack.geometry.sampling import sample_bev
from bevstack.geometry.transforms import (
    apply_transform,
    invert_rigid,
    invert_se2,
    matrix_to_quaternion,
    quaternion_to_matrix,
    rigid_transform,
    se2_from_rigid,
    yaw_of,
)

__all__ = [
    "BEVGrid",
    "apply_transform",
    "crop_pixels",
    "flip_pixels",
    "invert_rigid",
    "invert_se2",
    "matrix_to_quaternion",
    "project_points",
    "quaternion_to_matrix",
    "resize_pixels",
    "rigid_transform",
    "sample_bev",
    "se2_from_rigid",
    "visible_points",
    "yaw_of",
]
