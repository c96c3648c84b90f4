"""What the cameras saw at one moment: images, the rig that took them, the ego's motion since the moment before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bevstack.geometry.transforms import full_precision
from bevstack.structures.batched import Batched


@dataclass(frozen=True)
class CameraRig(Batched):
    """Calibration of N cameras, after every image and BEV augmentation.

    Args:
        pixels_from_camera: (B, N, 3, 3) intrinsics; pixel coordinates of the image tensor (u right, v down).
        camera_from_bev: (B, N, 4, 4) metres; camera frames are x right, y down, z forward.
        image_size_px: (B, N, 2) (height, width) of the content, without padding.
        padded_size_px: (H, W) of the image tensor; features cover this size.
    """

    pixels_from_camera: Tensor
    camera_from_bev: Tensor
    image_size_px: Tensor
    padded_size_px: tuple[int, int]

    @property
    def pixels_from_bev(self) -> Tensor:
        """(B, N, 4, 4): intrinsics padded to 4x4 times ``camera_from_bev``; computed without autocast."""
        with full_precision(self.camera_from_bev):
            top = self.pixels_from_camera @ self.camera_from_bev[..., :3, :]
        return torch.cat([top, self.camera_from_bev[..., 3:, :]], dim=-2)

    @property
    def num_cameras(self) -> int:
        """How many cameras the rig has, N."""
        return self.pixels_from_camera.shape[1]


@dataclass(frozen=True)
class EgoMotion(Batched):
    """How the BEV frame moved since the previous frame of the same scene.

    Args:
        previous_from_current: (B, 4, 4) metres, identity where there is no previous frame.
        has_previous: (B,) bool, whether the sample has a previous frame at all.
        seconds: (B,) time since the previous frame, 0 where there is none.
        can_bus: (B, 18) ego state and motion (:mod:`bevstack.datasets.ego_state`), or None.
    """

    previous_from_current: Tensor
    has_previous: Tensor
    seconds: Tensor
    can_bus: Tensor | None = None


@dataclass(frozen=True)
class Frame(Batched):
    """One moment of a batch.

    Args:
        images: (B, N, 3, H, W), normalised float.
        rig: of the cameras.
        motion: the motion that led to this moment.
        sweeps: (B, S, N, 3, H, W) the images the same cameras took just before, oldest first, for video backbones.
        features: L levels (B, N, C_l, h, w) that the backbone made of the images before, so that it need not do it
            again (:class:`bevstack.engine.kept_features.KeptFeatures`); the images are then not looked at.
    """

    images: Tensor
    rig: CameraRig
    motion: EgoMotion
    sweeps: Tensor | None = None
    features: tuple[Tensor, ...] | None = None
