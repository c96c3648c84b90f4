"""Datasets, transforms and samplers. Importing registers them; the devkit is imported only where data is made."""

from bevstack.datasets import bev_targets, panoptic_targets, transforms
from bevstack.datasets.can_bus import CorrectedCanBus
from bevstack.datasets.nuscenes_dataset import NuScenesBEVDataset
from bevstack.datasets.samplers import ClipSampler, SceneBatchSampler, SceneShardedSampler, StreamingSampler

__all__ = [
    "ClipSampler",
    "CorrectedCanBus",
    "NuScenesBEVDataset",
    "SceneBatchSampler",
    "SceneShardedSampler",
    "StreamingSampler",
    "bev_targets",
    "panoptic_targets",
    "transforms",
]
