"""How many cameras see a cell: a file has room for so many, and would answer wrongly where a rig needs more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from bevstack.errors import InputError

_NEAREST_DEPTH_M = 1e-5


def cameras_a_cell(
    pixels_from_camera: np.ndarray, camera_from_bev: np.ndarray, grid: Mapping[str, Any], seen: Mapping[str, Any]
) -> int:
    """The largest number of cameras that see one cell: any of its pillar's points in front and inside the image.

    Args:
        pixels_from_camera: (N, 3, 3) intrinsics of the model's input.
        camera_from_bev: (N, 4, 4) metres.
        grid: the file's.
        seen: the file's ``visibility``: ``heights_m`` of the pillars' points, and ``size_px`` (height, width).
    """
    axes = []
    for (low, high), number in zip((grid["x_range_m"], grid["y_range_m"]), grid["shape"][::-1], strict=True):
        axes.append(low + (np.arange(number) + 0.5) * (high - low) / number)
    y, x, z = np.meshgrid(axes[1], axes[0], seen["heights_m"], indexing="ij")
    points = np.stack([x, y, z, np.ones_like(x)], axis=-1).reshape(-1, 4).T
    height, width = seen["size_px"]
    count = 0
    for intrinsics, pose in zip(pixels_from_camera, camera_from_bev, strict=True):
        u, v, depth = intrinsics @ (pose[:3] @ points)
        place = np.stack([u, v]) / np.maximum(depth, _NEAREST_DEPTH_M)
        inside = (depth > _NEAREST_DEPTH_M) & (place > 0).all(0) & (place[0] < width) & (place[1] < height)
        count = count + inside.reshape(-1, len(seen["heights_m"])).any(1).astype(np.int64)
    return int(np.max(count))


def require_room(pixels_from_camera: np.ndarray, camera_from_bev: np.ndarray, described: Mapping[str, Any]) -> None:
    """Refuse a rig of which more cameras see a cell than a file has room for.

    Args:
        pixels_from_camera, camera_from_bev: see :func:`cameras_a_cell`.
        described: what the file says of itself.

    Raises:
        InputError: says how many are needed.
    """
    if described.get("visibility") is None or described["num_slots"] >= described["num_cameras"]:
        return
    needed = cameras_a_cell(pixels_from_camera, camera_from_bev, described["grid"], described["visibility"])
    if needed > described["num_slots"]:
        reason = f"{needed} cameras of this rig see one cell, the file has room for {described['num_slots']}"
        raise InputError("step", "camera_from_bev", f"{reason}: export again with --num-slots {needed}")
