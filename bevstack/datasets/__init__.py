"""Datasets, transforms and samplers. Importing registers them; the devkit is imported only where data is made."""

from bevstack.datasets import transforms
from bevstack.datasets.nuscenes.can_bus import CorrectedCanBus
from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.samplers import ClipSampler, SceneBatchSampler, SceneShardedSampler, StreamingSampler
from bevstack.datasets.wrappers import CBGSDataset, ConcatDataset, RepeatDataset

__all__ = [
    "CBGSDataset",
    "ClipSampler",
    "ConcatDataset",
    "CorrectedCanBus",
    "NuScenesBEVDataset",
    "RepeatDataset",
    "SceneBatchSampler",
    "SceneShardedSampler",
    "StreamingSampler",
    "transforms",
]
