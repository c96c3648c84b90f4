"""Datasets, transforms and samplers; importing registers what belongs to no one format.

:mod:`bevstack.datasets.base` is what everything else asks of a dataset, :mod:`bevstack.datasets.nuscenes` one format's
room, which nothing here imports.
"""

from bevstack.datasets import transforms
from bevstack.datasets.clip_dataset import ClipDataset
from bevstack.datasets.ego_state import CorrectedCanBus
from bevstack.datasets.samplers import ClipSampler, SceneBatchSampler, SceneShardedSampler, StreamingSampler

__all__ = [
    "ClipDataset",
    "ClipSampler",
    "CorrectedCanBus",
    "SceneBatchSampler",
    "SceneShardedSampler",
    "StreamingSampler",
    "transforms",
]
