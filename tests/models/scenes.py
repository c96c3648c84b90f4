"""Small random clips for tests of models: a rig of cameras around the car, two samples that differ in everything."""

from __future__ import annotations

import math

import torch
from mmengine.structures import InstanceData

from bevstack.datasets.transforms.panoptic_targets import thing_masks
from bevstack.geometry import BEVGrid
from bevstack.models.bev import WarpAlignment, push_memory
from bevstack.structures import (
    AlignedHistory,
    BEVDataSample,
    BEVFeatures,
    BEVMemory,
    BEVRaster,
    CameraRig,
    EgoMotion,
    Frame,
)
from bevstack.structures.panoptic import panoptic_map

CLASSES = ("car", "pedestrian", "barrier")
LAYERS = ("drivable_area", "divider")


def rig_of(yaws_deg: list[list[float]], size_px: tuple[int, int], focal_px: float = 40.0) -> CameraRig:
    """Cameras 1.5 m above the ground at the BEV origin, one per yaw (0 looks along +x), for each sample."""
    height, width = size_px
    batch, cameras = len(yaws_deg), len(yaws_deg[0])
    extrinsics = torch.eye(4).repeat(batch, cameras, 1, 1)
    for b, row in enumerate(yaws_deg):
        for n, yaw in enumerate(row):
            angle = math.radians(yaw)
            forward = [math.cos(angle), math.sin(angle), 0.0]
            right = [math.sin(angle), -math.cos(angle), 0.0]
            extrinsics[b, n, :3, :3] = torch.tensor([right, [0.0, 0.0, -1.0], forward])
            extrinsics[b, n, :3, 3] = -extrinsics[b, n, :3, :3] @ torch.tensor([0.0, 0.0, 1.5])
    intrinsics = torch.tensor([[focal_px, 0.0, width / 2], [0.0, focal_px, height / 2], [0.0, 0.0, 1.0]])
    size = torch.tensor([height, width]).expand(batch, cameras, 2)
    return CameraRig(intrinsics.expand(batch, cameras, 3, 3), extrinsics, size, size_px)


def motion_of(steps: list[tuple[float, float, float] | None]) -> EgoMotion:
    """Motion (x m, y m, yaw deg) of the car since the previous frame, in that frame's axes; None: no previous frame."""
    matrices = torch.eye(4).repeat(len(steps), 1, 1)
    for matrix, step in zip(matrices, steps, strict=True):
        if step is not None:
            x, y, yaw = step[0], step[1], math.radians(step[2])
            matrix[:2, :2] = torch.tensor([[math.cos(yaw), -math.sin(yaw)], [math.sin(yaw), math.cos(yaw)]])
            matrix[:2, 3] = torch.tensor([x, y])
    has = torch.tensor([step is not None for step in steps])
    return EgoMotion(matrices, has, has * 0.5, torch.randn(len(steps), 18))


def pushed(
    memory: BEVMemory | None, features: torch.Tensor, motion: EgoMotion, grid: BEVGrid, size: int = 1
) -> BEVMemory:
    """The memory after a frame (B, C, Y, X) to which ``motion`` leads from the memory's own, as a step makes it."""
    seen = None if memory is None else memory.moved(motion)
    return push_memory(seen, BEVFeatures(features, grid), size)


def aligned(memory: BEVMemory, motion: EgoMotion) -> AlignedHistory:
    """The memory's frames in the frame to which ``motion`` leads."""
    return WarpAlignment()(memory.moved(motion), motion)


def two_samples(cameras: int = 3, size_px: tuple[int, int] = (32, 64)) -> Frame:
    """A frame of two samples with other images, other cameras and other motion."""
    yaws = [[90.0 + 360 / cameras * n for n in range(cameras)], [70.0 - 300 / cameras * n for n in range(cameras)]]
    motion = motion_of([(0.0, 3.0, 5.0), (1.0, -2.0, -20.0)])
    return Frame(torch.randn(2, cameras, 3, *size_px), rig_of(yaws, size_px), motion)


def only(value, index: int):
    """Sample ``index`` of a structure of tensors, as a batch of one."""
    if isinstance(value, torch.Tensor):
        return value[index : index + 1]
    if isinstance(value, tuple) and value and not isinstance(value[0], int | float | str):
        return tuple(only(part, index) for part in value)
    if hasattr(value, "__dataclass_fields__"):
        parts = {name: only(getattr(value, name), index) for name in value.__dataclass_fields__}
        return type(value)(**parts)
    if isinstance(value, tuple) and value and isinstance(value[0], str):
        return value[index : index + 1]
    return value


def labels_of(grid: BEVGrid, counts: list[int], seed: int = 0) -> list[BEVDataSample]:
    """Samples with so many boxes each, anywhere on the grid, and rasters on it."""
    from mmdet3d.structures import LiDARInstance3DBoxes

    generator = torch.Generator().manual_seed(seed)
    samples = []
    for index, count in enumerate(counts):
        boxes = torch.rand(count, 9, generator=generator)
        low = torch.tensor([grid.x_range_m[0], grid.y_range_m[0]])
        boxes[:, :2] = low + boxes[:, :2] * torch.tensor(grid.size_m)
        boxes[:, 3:6] += 0.5
        labels = torch.randint(len(CLASSES), (count,), generator=generator)
        sample = BEVDataSample(metainfo=dict(token=f"t{index}", prev_token="", classes=CLASSES))  # noqa: S106
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(boxes.reshape(-1, 9), box_dim=9),
            labels_3d=labels,
            instance_ids=torch.arange(count),
            attribute_names=[("vehicle.parked", "pedestrian.moving", "")[label] for label in labels],
            past_centers=boxes[:, None, :2] + torch.tensor([[0.0, 0.0], [0.5, -1.0], [1.0, -2.0]]),
        )
        sample.pred_instances_3d = InstanceData(  # for heads that require detection
            bboxes_3d=LiDARInstance3DBoxes(boxes.reshape(-1, 9) + 0.1, box_dim=9),
            scores_3d=torch.linspace(0.9, 0.5, count),
            labels_3d=labels,
        )
        layers = (torch.rand(len(LAYERS), *grid.shape, generator=generator) > 0.5).to(torch.uint8)
        sample.gt_rasters = {
            "map": BEVRaster(layers, LAYERS, grid),
            "vehicle": BEVRaster(layers[:1], ("vehicle",), grid),
        }
        sample.gt_scene = {
            "time": ("day", "night")[(seed + index) % 2],
            "weather": "rain",
            "location": ("boston", "queenstown")[(seed + index) % 2],
        }
        masks = thing_masks(boxes, grid)
        sample.gt_panoptic = panoptic_map(
            masks, labels, torch.arange(count), layers.flip(0), (CLASSES, LAYERS[::-1]), grid
        )
        samples.append(sample)
    return samples
