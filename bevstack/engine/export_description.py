"""What an exported file says of itself, so that it can be used without this package: sizes, images, memory, boxes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from bevstack.datasets.ego_state import CorrectedCanBus
from bevstack.engine.image_steps import ImageSteps
from bevstack.engine.inference import can_bus_vector
from bevstack.engine.models import class_names
from bevstack.engine.stored_config import data_settings
from bevstack.geometry import BEVGrid
from bevstack.models import BEVPerception
from bevstack.models.bev import BEVFormerEncoder
from bevstack.models.heads import DenseDetectionHead, QueryDetectionHead, SemanticSegmentationHead
from bevstack.reference.parts import PaddingSeesEncoder
from bevstack.registry import TASK_UTILS
from bevstack.structures import CameraRig
from bevstack.structures.moment import Motion, Rig
from bevstack.synthetic.cameras import LIDAR_TRANSLATION, LIDAR_YAW, build_rig, yaw_matrix

SOURCE_SIZE_PX = (900, 1600)
"""(height, width) of the cameras' images where nothing else is said: nuScenes'."""


def usual_rig(num_cameras: int, source_size_px: tuple[int, int]) -> Rig:
    """Cameras as nuScenes mounts its six, for images of a size (height, width); more than six begin anew."""
    height, width = source_size_px
    bev_from_ego = np.eye(4)
    bev_from_ego[:3, :3], bev_from_ego[:3, 3] = yaw_matrix(LIDAR_YAW), LIDAR_TRANSLATION
    six = build_rig(np.random.default_rng(0), width, height)
    cameras = [six[n % len(six)] for n in range(num_cameras)]
    poses = np.tile(np.eye(4), (num_cameras, 1, 1))
    poses[:, :3, :3] = [camera.rotation for camera in cameras]
    poses[:, :3, 3] = [camera.translation for camera in cameras]
    return Rig(
        np.stack([camera.intrinsic for camera in cameras]),
        np.linalg.inv(poses) @ bev_from_ego,
        tuple(f"{camera.name}{'' if n < len(six) else n}" for n, camera in enumerate(cameras)),
    )


class ImagePlan:
    """What a config's test pipeline makes of images of one size.

    Args:
        config: of the model.
        model: whose preprocessor normalises and pads.
        rig: of the cameras.
        source_size_px: (height, width) of their images.

    Attributes:
        size_px, padded_size_px: (height, width) of an image and of the tensor it lies in.
        pixels_from_source: (3, 3) where a pixel of a camera's image comes to lie.
        rig: (1, N, ...) of the images in the tensor.
    """

    def __init__(self, config: Config, model: BEVPerception, rig: Rig, source_size_px: tuple[int, int]) -> None:
        steps = ImageSteps.of_config(config)
        steps.reduced = False  # of files; here images are pixels already
        frame = steps([np.zeros((*source_size_px, 3), np.uint8)] * len(rig), rig)
        self.source_size_px = source_size_px
        self.size_px = tuple(int(size) for size in frame["image_size_px"][0])
        divisor = int(getattr(model.data_preprocessor, "pad_divisor", 1))
        self.padded_size_px = tuple(-(-size // divisor) * divisor for size in self.size_px)
        intrinsics = frame["pixels_from_camera"]
        self.pixels_from_source = intrinsics[0] @ np.linalg.inv(rig.pixels_from_camera[0])
        self.rig = CameraRig(
            torch.from_numpy(intrinsics).float()[None],
            torch.from_numpy(frame["camera_from_bev"]).float()[None],
            torch.from_numpy(frame["image_size_px"])[None],
            (self.padded_size_px[0], self.padded_size_px[1]),
        )

    def described(self, model: BEVPerception) -> dict[str, Any]:
        """As plain data: sizes, the pixel transform, and what the preprocessor normalises by."""
        preprocessor = model.data_preprocessor
        scale = getattr(preprocessor, "scale", torch.ones(3)).flatten().tolist()
        bias = getattr(preprocessor, "bias", torch.zeros(3)).flatten().tolist()
        return {
            "source_size_px": list(self.source_size_px),
            "size_px": list(self.size_px),
            "padded_size_px": list(self.padded_size_px),
            "pixels_from_source": self.pixels_from_source.tolist(),
            "channel_order": getattr(preprocessor, "channel_order", "rgb"),
            "scale": scale,
            "bias": bias,
        }


def described(model: BEVPerception, config: Config, images: ImagePlan, memory_names: tuple[str, ...]) -> dict[str, Any]:
    """What a file says of a model: classes, grid, images, memory, and how each head's outputs are read."""
    names = getattr(model, "classes", ()) or class_names(config)
    return {
        "format": 1,
        "classes": list(names),
        "grid": _grid(model.encoder.grid),
        "visibility": _visibility(model, images),
        "num_cameras": images.rig.num_cameras,
        "cameras": list(getattr(model, "cameras", ())),
        "images": images.described(model),
        "can_bus_at_start": can_bus_at_start(config),
        "memory": {name: f"new_{name}" for name in memory_names},
        "heads": {name: described_head(head) for name, head in model.heads.items()},
    }


def _visibility(model: BEVPerception, images: ImagePlan) -> dict[str, Any] | None:
    """What decides which camera sees which cell: heights of the pillars' points, and the size that counts."""
    encoder = model.encoder
    if not isinstance(encoder, BEVFormerEncoder):
        return None
    size = images.padded_size_px if isinstance(encoder, PaddingSeesEncoder) else images.size_px
    return {"heights_m": encoder.pillars[0, :, 2].tolist(), "size_px": list(size)}


def can_bus_at_start(config: Config) -> list[float]:
    """The (18,) vector of a stream's first moment, in the form that the config's data has it."""
    form = data_settings(config).get("can_bus_form") or CorrectedCanBus()
    form = TASK_UTILS.build(form) if isinstance(form, Mapping) else form
    return [float(value) for value in can_bus_vector(form, Motion.start(), np.eye(4))]


def described_head(head: Any) -> dict[str, Any]:
    """How a head's outputs become boxes or layers; the name of its class alone where that is the user's business."""
    entry: dict[str, Any] = {"type": type(head).__name__, "grid": _grid(head.grid)}
    classes = getattr(head, "classes", None)
    if classes is not None:
        entry["classes"] = list(classes)
    if isinstance(head, DenseDetectionHead):
        decoding, outputs = head.decoding, head.outputs
        entry |= {
            "boxes": "dense",
            "max_num": decoding.max_num,
            "score_threshold": decoding.score_threshold,
            "nms_radii_m": head.nms_radii.tolist(),
            "regressed": outputs.regressed,
            "heading_bins": outputs.heading_bins,
            "moving": outputs.moving,
            "velocity": decoding.velocity,
            "quality_power": decoding.quality_power if outputs.quality else None,
            "temperature": decoding.temperature,
        }
    elif isinstance(head, QueryDetectionHead):
        limits = head.decoding.post_center_range_m
        entry |= {
            "boxes": "query",
            "max_num": head.decoding.max_num,
            "score_threshold": head.decoding.score_threshold,
            "post_center_range_m": None if limits is None else [float(value) for value in limits],
        }
    elif isinstance(head, SemanticSegmentationHead):
        entry |= {"layers": "sigmoid", "temperature": head.temperature}
    return entry


def _grid(grid: BEVGrid) -> dict[str, Any]:
    ranges = ("x_range_m", "y_range_m", "z_range_m")
    return {"shape": list(grid.shape)} | {name: list(getattr(grid, name)) for name in ranges}
