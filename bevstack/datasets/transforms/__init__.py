"""Pipeline transforms of a clip: loading, image geometry, BEV augmentation, object filters, packing.

Each works on one dict for the whole clip (keys: :class:`bevstack.datasets.nuscenes_dataset.NuScenesBEVDataset`).
"""

from bevstack.datasets.transforms.bev_augmentation import BEVRotateScaleFlip
from bevstack.datasets.transforms.image_geometry import CropImages, FlipImages, ResizeCropFlipImages, ResizeImages
from bevstack.datasets.transforms.loading import LoadMultiViewImages
from bevstack.datasets.transforms.object_filters import ObjectNameFilter, ObjectPointsFilter, ObjectRangeFilter
from bevstack.datasets.transforms.packing import PackBEVInputs

__all__ = [
    "BEVRotateScaleFlip",
    "CropImages",
    "FlipImages",
    "LoadMultiViewImages",
    "ObjectNameFilter",
    "ObjectPointsFilter",
    "ObjectRangeFilter",
    "PackBEVInputs",
    "ResizeCropFlipImages",
    "ResizeImages",
]
