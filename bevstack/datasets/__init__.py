"""Datasets, transforms and samplers; importing registers what belongs to no one format.

:mod:`bevstack.datasets.base` is what everything else asks of a dataset, :mod:`bevstack.datasets.nuscenes` one format's
room, which nothing here imports.
"""

from bevstack.datasets import transforms
from bevstack.datasets.clip_dataset import ClipDataset
from bevstack.datasets.ego_state import CorrectedCanBus
from bevstack.datasets.samplers import ClipSampler, SceneBatchSampler, SceneShardedSampler, StreamingSampler
from bevstack.datasets.wrappers import CBGSDataset, ConcatDataset, RepeatDataset

__all__ = [
    "CBGSDataset",
    "ClipDataset",
    "ClipSampler",
    "ConcatDataset",
    "CorrectedCanBus",
    "RepeatDataset",
    "SceneBatchSampler",
    "SceneShardedSampler",
    "StreamingSampler",
    "transforms",
]
