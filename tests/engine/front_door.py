"""What tests of the front door share: a small model in a checkpoint, a rig of three cameras, images, a drive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import nn

from bevstack.engine.models import build_model
from bevstack.engine.stored_config import plain_config
from bevstack.structures.moment import Motion, Rig

GRID = dict(shape=(12, 10), x_range_m=(-15, 15), y_range_m=(-18, 18), z_range_m=(-3, 2))
CLASSES = ("car", "pedestrian")
CAMERAS = ("CAM_FRONT", "CAM_LEFT", "CAM_RIGHT")
SIZE_PX = (48, 80)
EGO_FROM_BEV = np.array([[0, 1, 0, 0.9], [-1, 0, 0, 0], [0, 0, 1, 1.8], [0, 0, 0, 1]], float)


def small_config(**model: Any) -> Config:
    """Three cameras, one encoder layer that remembers, boxes and a map; ``model`` changes parts of the model."""
    raster = dict(raster="map", classes=("road", "grass"), channels=4, num_convs=1)
    heads = dict(
        boxes=dict(
            type="DenseDetectionHead",
            in_channels=8,
            grid=GRID,
            classes=CLASSES,
            channels=4,
            decoding=dict(score_threshold=0.0),
        ),
        map=dict(type="SemanticSegmentationHead", in_channels=8, grid=GRID, **raster),
    )
    parts = dict(
        type="BEVPerception",
        data_preprocessor=dict(type="BEVPreprocessor"),
        backbone=dict(type="mmdet.ResNet", depth=18, base_channels=4, out_indices=(1,)),
        neck=dict(type="TopDownNeck", in_channels=(8,), out_channels=8, out_levels=(0,)),
        encoder=dict(
            type="BEVFormerEncoder",
            grid=GRID,
            channels=8,
            num_cameras=len(CAMERAS),
            num_levels=1,
            num_layers=1,
            num_heads=2,
            num_points=4,
            feed_forward_channels=8,
            dropout=0.0,
        ),
        heads=heads,
    )
    pipeline = [dict(type="LoadMultiViewImages"), dict(type="ResizeImages", scale=0.75), dict(type="PackBEVInputs")]
    dataset = dict(type="NuScenesBEVDataset", data_root="absent", version="v1.0", split="val", pipeline=pipeline)
    loader = dict(batch_size=1, dataset=dict(dataset, classes=CLASSES))
    return Config(dict(default_scope="bevstack", model={**parts, **model}, test_dataloader=loader))


def trained(cfg: Config) -> nn.Module:
    """The config's model as after some training: no weight is zero, so that every path counts."""
    torch.manual_seed(0)
    model = build_model(cfg, "cpu")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    return model


def saved(path: Path, cfg: Config, **meta: Any) -> Path:
    """A checkpoint of :func:`trained`, as training writes it in what the front door reads."""
    content = {"state_dict": trained(cfg).state_dict(), "meta": {"config": plain_config(cfg), **meta}}
    torch.save(content, path)
    return path


def rig_of(size_px: tuple[int, int] = SIZE_PX, **changes: Any) -> Rig:
    """Three cameras 1.5 m above the ground, looking ahead, to the left and to the right, each 90 degrees wide."""
    height, width = size_px
    intrinsics = np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1]], float)
    poses = []
    for yaw in np.radians([0, 70, -70]):  # of the car's axes: x ahead, y to the left
        pose = np.eye(4)
        pose[:3, 0] = np.sin(yaw), -np.cos(yaw), 0
        pose[:3, 1] = 0, 0, -1
        pose[:3, 2] = np.cos(yaw), np.sin(yaw), 0
        pose[:3, 3] = 1.2, 0, 1.5
        poses.append(pose)
    settings = dict(pixels_from_camera=[intrinsics] * 3, ego_from_camera=poses, ego_from_bev=EGO_FROM_BEV)
    return Rig.from_ego(**{**settings, "names": CAMERAS, **changes})


def images_of(seed: int, size_px: tuple[int, int] = SIZE_PX, number: int = 3) -> list[np.ndarray]:
    """Images with large and small structures."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (number, 6, 8, 3))
    rows, columns = np.arange(size_px[0]) * 6 // size_px[0], np.arange(size_px[1]) * 8 // size_px[1]
    grain = rng.integers(0, 55, (number, *size_px, 3))
    return list((coarse[:, rows][:, :, columns] + grain).astype(np.uint8))


def pose(x: float, y: float, yaw_deg: float) -> np.ndarray:
    """(4, 4): somewhere on a plane."""
    yaw = np.radians(yaw_deg)
    matrix = np.eye(4)
    matrix[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    matrix[:2, 3] = x, y
    return matrix


def drive(steps: int) -> list[Motion]:
    """So many motions of a car that drives ahead and turns; the first has no moment before."""
    poses = [pose(100 + 2 * t, 50 + 0.5 * t, 10 * t) @ EGO_FROM_BEV for t in range(steps)]
    return [Motion.start(poses[0]), *(Motion.between(a, b, 0.5) for a, b in zip(poses, poses[1:], strict=False))]
