"""Rotate, scale and mirror the BEV frame of a clip, and everything that is expressed in it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from mmcv.transforms.base import BaseTransform

from bevstack.errors import InputError
from bevstack.geometry.boxes3d import transform_boxes
from bevstack.registry import TRANSFORMS


def bev_similarity(rotation: float, scale: float, flip_x: bool, flip_y: bool) -> np.ndarray:
    """``augmented_from_bev`` (4, 4) float64: mirror x and / or y, then turn about z (radians), then scale x, y, z."""
    cos, sin = math.cos(rotation), math.sin(rotation)
    turn = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
    mirror = np.diag([-1.0 if flip_x else 1.0, -1.0 if flip_y else 1.0, 1.0])
    matrix = np.eye(4)
    matrix[:3, :3] = scale * turn @ mirror
    return matrix


@TRANSFORMS.register_module()
class BEVRotateScaleFlip(BaseTransform):
    """BEV augmentation ("BDA"): one similarity A = ``augmented_from_bev`` about the z axis for the whole clip.

    Boxes (centre, size, heading, velocity) and their past centres move by A, ``camera_from_bev`` of every frame becomes
    ``camera_from_bev @ inv(A)``, ``previous_from_current`` becomes ``A @ previous_from_current @ inv(A)`` (still rigid,
    as A scales evenly), and A is multiplied onto ``augmented_from_bev``, from which map rasters and outputs follow.
    Images do not change. ``can_bus`` does not change either: the reference has no BEV augmentation where it uses it.

    Args:
        rotation_range_deg: rotation about z is drawn from this range.
        scale_range: the factor is drawn from this range.
        flip_x_probability: of x -> -x (left becomes right).
        flip_y_probability: of y -> -y (front becomes back).
        constant_along_stream: draw from ``stream_rng``, the same for all samples of a scene in an epoch: streaming
            training needs it, as its memory lives in the augmented frame.

    Raises:
        ValueError: a range is empty, a scale not positive.
        InputError: rasters are made before it; they would stay behind.
    """

    def __init__(
        self,
        rotation_range_deg: Sequence[float] = (-22.5, 22.5),
        scale_range: Sequence[float] = (0.95, 1.05),
        flip_x_probability: float = 0.5,
        flip_y_probability: float = 0.5,
        constant_along_stream: bool = False,
    ) -> None:
        least_deg, most_deg = (float(v) for v in rotation_range_deg)
        smallest, largest = (float(v) for v in scale_range)
        self.rotation_range_deg, self.scale_range = (least_deg, most_deg), (smallest, largest)
        for name, (low, high) in (("rotation", self.rotation_range_deg), ("scale", self.scale_range)):
            if low > high or (name == "scale" and low <= 0):
                raise ValueError(f"BEVRotateScaleFlip: bad {name} range ({low}, {high})")
        self.flip_x_probability, self.flip_y_probability = flip_x_probability, flip_y_probability
        self.constant_along_stream = constant_along_stream

    def check_place(self, before: Sequence[object]) -> None:
        """Refuse a transform before it whose rasters would stay behind."""
        for step in before:
            if getattr(step, "makes_rasters", False):
                raise _too_late(type(step).__name__)

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """One A, (4, 4) float64: :func:`bev_similarity` of a rotation, a scale and two flips."""
        rotation, scale = rng.uniform(*self.rotation_range_deg), rng.uniform(*self.scale_range)
        flip_x, flip_y = rng.random() < self.flip_x_probability, rng.random() < self.flip_y_probability
        return bev_similarity(math.radians(rotation), scale, bool(flip_x), bool(flip_y))

    def transform(self, results: dict) -> dict:
        """Draw A and move ``boxes``, ``past_centers``, ``frames`` and ``augmented_from_bev`` by it."""
        if results.get("rasters"):
            raise _too_late("a transform that makes rasters")
        matrix = self.draw(results["stream_rng" if self.constant_along_stream else "rng"])
        inverse = np.linalg.inv(matrix)
        for frame in results["frames"]:
            frame["camera_from_bev"] = frame["camera_from_bev"] @ inverse
            frame["previous_from_current"] = matrix @ frame["previous_from_current"] @ inverse
        if "boxes" in results:
            boxes = torch.from_numpy(np.asarray(results["boxes"], dtype=np.float64))
            results["boxes"] = transform_boxes(torch.from_numpy(matrix), boxes).numpy()
        if "past_centers" in results:
            results["past_centers"] = results["past_centers"] @ matrix[:2, :2].T + matrix[:2, 3]
        results["augmented_from_bev"] = matrix @ results.get("augmented_from_bev", np.eye(4))
        return results


def _too_late(what: str) -> InputError:
    return InputError("pipeline", "BEVRotateScaleFlip", f"must come before {what}: rasters would not turn with it")
