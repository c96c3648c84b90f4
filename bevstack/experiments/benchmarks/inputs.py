"""Made-up inputs of the published sizes: rigs as nuScenes mounts them, random images and features, labels for heads.

What is computed depends on values in one way only: which camera sees which cell. So the rig is nuScenes' own, and a
cell is seen by 1.13 cameras on average, as on real data.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn

from bevstack.engine.config import load_config
from bevstack.engine.models import build_model
from bevstack.experiments.benchmarks.machine import REPOSITORY
from bevstack.geometry import BEVGrid
from bevstack.models import BEVPerception
from bevstack.models.bev import BEVFormerEncoder
from bevstack.models.heads import SemanticSegmentationHead
from bevstack.structures import BEVDataSample, BEVMemory, BEVRaster, CameraRig, EgoMotion, Frame
from bevstack.structures.boxes import lidar_boxes
from bevstack.synthetic.cameras import LIDAR_TRANSLATION, LIDAR_YAW, build_rig, yaw_matrix

CHANNELS, HEADS, POINTS, HEIGHTS, TEMPORAL_POINTS = 256, 8, 8, 4, 4
BOXES = 30
"""True boxes of a made-up sample; a nuScenes key frame has about 34."""


CAMERAS_PER_CELL = 1.13
"""How many of nuScenes' cameras see a cell of BEVFormer's grids on average; never three."""


@dataclass(frozen=True)
class Size:
    """What a configuration's name means in numbers.

    Args:
        cells: Y and X.
        layers: of the encoder.
        image_px, padded_px: (height, width) of an image and of the tensor it lies in.
        levels: (h, w) of the image features.
    """

    cells: int
    layers: int
    image_px: tuple[int, int]
    padded_px: tuple[int, int]
    levels: tuple[tuple[int, int], ...]


SIZES = {
    "tiny": Size(50, 3, (450, 800), (480, 800), ((15, 25),)),
    "small": Size(150, 3, (720, 1280), (736, 1280), ((23, 40),)),
    "base": Size(200, 6, (900, 1600), (928, 1600), ((116, 200), (58, 100), (29, 50), (15, 25))),
    "toy": Size(12, 1, (60, 100), (64, 128), ((2, 4),)),
}
"""BEVFormer's three, and one for tests of the suites themselves. Source: docs/reference.md 5, tiny, small, base."""


def grid_of(size: Size) -> BEVGrid:
    """The published grid, 102.4 m by 102.4 m, in the size's cells."""
    return BEVGrid(shape=(size.cells, size.cells))


def rig_of(image_px: tuple[int, int], padded_px: tuple[int, int], batch: int = 1) -> CameraRig:
    """nuScenes' six cameras at an image size, the same for every sample."""
    bev_from_ego = np.eye(4)
    bev_from_ego[:3, :3], bev_from_ego[:3, 3] = yaw_matrix(LIDAR_YAW), LIDAR_TRANSLATION
    cameras = build_rig(np.random.default_rng(0), image_px[1], image_px[0])
    intrinsics, extrinsics = [], []
    for camera in cameras:
        ego_from_camera = np.eye(4)
        ego_from_camera[:3, :3], ego_from_camera[:3, 3] = camera.rotation, camera.translation
        intrinsics.append(camera.intrinsic)
        extrinsics.append(np.linalg.inv(ego_from_camera) @ bev_from_ego)
    number = len(cameras)
    return CameraRig(
        torch.from_numpy(np.stack(intrinsics)).float().expand(batch, number, 3, 3),
        torch.from_numpy(np.stack(extrinsics)).float().expand(batch, number, 4, 4),
        torch.tensor(image_px).expand(batch, number, 2),
        padded_px,
    )


def motion_of(batch: int = 1, metres: float = 2.5) -> EgoMotion:
    """Straight on at 5 m/s (y is ahead), with a little turn, half a second after the previous frame."""
    matrix = torch.eye(4)
    angle = torch.tensor(0.03)
    matrix[:2, :2] = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
    matrix[1, 3] = metres
    can_bus = torch.zeros(batch, 18)
    can_bus[:, 1] = metres
    known = torch.ones(batch, dtype=torch.bool)
    return EgoMotion(matrix.repeat(batch, 1, 1), known, torch.full((batch,), 0.5), can_bus)


def frame_of(image_px: tuple[int, int], padded_px: tuple[int, int], batch: int = 1, seed: int = 0) -> Frame:
    """A frame of random normalised images (B, 6, 3, H, W) that has a previous one."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 6, 3, *padded_px, generator=generator)
    return Frame(images, rig_of(image_px, padded_px, batch), motion_of(batch))


def features_of(size: Size, channels: int = CHANNELS) -> list[Tensor]:
    """Random image features, L tensors (1, 6, C, h, w)."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(1, 6, channels, *level, generator=generator) for level in size.levels]


def memory_of(grid: BEVGrid, channels: int, batch: int = 1, frames: int = 1) -> BEVMemory:
    """The memory of M past frames that an encoder may have left, (B, M, C, Y, X)."""
    features = torch.randn(batch, frames, channels, *grid.shape, generator=torch.Generator().manual_seed(2))
    poses = torch.eye(4).repeat(batch, frames, 1, 1)
    poses[:, :, 1, 3] = -2.5 * torch.arange(frames)
    return BEVMemory(features, grid, poses, torch.ones(batch, frames, dtype=torch.bool), torch.zeros(batch, frames))


def encoder_of(size: Size, **changes: object) -> BEVFormerEncoder:
    """BEVFormer's encoder of a size, in training mode, with offsets and weights that depend on the queries."""
    torch.manual_seed(0)
    encoder = BEVFormerEncoder(
        grid_of(size),
        channels=CHANNELS,
        num_levels=len(size.levels),
        num_layers=size.layers,
        num_heads=HEADS,
        num_points=POINTS,
        num_heights=HEIGHTS,
        temporal_points=TEMPORAL_POINTS,
        **changes,  # type: ignore[arg-type]  # whatever a caller wants otherwise
    )
    scattered(encoder)
    return encoder


def scattered(module: nn.Module) -> None:
    """Move sampling offsets and attention weights off their start, at which they ignore the query."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "sampling_offsets.weight" in name or "attention_weights.weight" in name:
                parameter.normal_(std=0.05)


def config_of(name: str) -> Config:
    """The config ``configs/<name>.py`` without files of weights."""
    cfg = load_config(REPOSITORY / "configs" / f"{name}.py")
    cfg.pop("load_from", None)
    return cfg


def tiny_model() -> tuple[BEVPerception, Config]:
    """The whole BEVFormer tiny with weights drawn at random, and its config."""
    cfg = config_of("bevformer/bevformer_tiny")
    torch.manual_seed(0)
    model = build_model(cfg, "cpu")
    scattered(model)
    return model, cfg


def demo_model() -> tuple[BEVPerception, Config]:
    """The demo's model with weights drawn at random but for its backbone's, and its config."""
    cfg = config_of("demo")
    torch.manual_seed(0)
    return build_model(cfg, "cpu"), cfg


DEMO_IMAGE_PX = (160, 448)
"""(height, width) of the demo's images."""


def samples_for(model: BEVPerception, batch: int = 1) -> list[BEVDataSample]:
    """Labels of every kind that a model's heads for boxes and rasters read, drawn at random."""
    generator = torch.Generator().manual_seed(3)
    classes = max(len(getattr(head, "classes", ())) for head in model.heads.values())
    grid, samples = model.encoder.grid, []
    for index in range(batch):
        boxes = torch.rand(BOXES, 9, generator=generator)
        low = torch.tensor([grid.x_range_m[0], grid.y_range_m[0]])
        boxes[:, :2] = low + boxes[:, :2] * torch.tensor(grid.size_m)
        boxes[:, 2] -= 2.0
        boxes[:, 3:6] = boxes[:, 3:6] * 3 + 0.5
        sample = BEVDataSample(metainfo={"token": str(index), "prev_token": ""})
        labels = torch.randint(classes, (BOXES,), generator=generator)
        sample.gt_instances_3d = InstanceData(bboxes_3d=lidar_boxes(boxes), labels_3d=labels)
        rasters = {}
        for head in model.heads.values():
            if isinstance(head, SemanticSegmentationHead):
                layers = torch.rand(len(head.classes), *head.grid.shape, generator=generator) > 0.7
                rasters[head.raster] = BEVRaster(layers.to(torch.uint8), head.classes, head.grid)
        sample.gt_rasters = rasters
        samples.append(sample)
    return samples
