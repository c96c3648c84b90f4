"""Pipeline transforms of a clip: loading, image geometry, BEV augmentation, object filters, packing.

Each works on one dict for the whole clip (keys: :class:`bevstack.datasets.clip_dataset.ClipDataset`) and opens no files
of a dataset but images; what else it needs it asks of the dict's ``dataset``.
"""

from bevstack.datasets.transforms.bev_augmentation import BEVRotateScaleFlip
from bevstack.datasets.transforms.bev_targets import LoadBEVMap, RasteriseBoxes
from bevstack.datasets.transforms.corruptions import CorruptImages
from bevstack.datasets.transforms.image_geometry import ResizeCropFlipImages, ResizeImages
from bevstack.datasets.transforms.image_views import ImageViews
from bevstack.datasets.transforms.loading import LoadCameraSweeps, LoadMultiViewImages
from bevstack.datasets.transforms.object_filters import ObjectNameFilter, ObjectRangeFilter
from bevstack.datasets.transforms.packing import PackBEVInputs
from bevstack.datasets.transforms.panoptic_targets import MakePanopticMap
from bevstack.datasets.transforms.past_centers import LoadPastCenters
from bevstack.datasets.transforms.scene_labels import LoadSceneLabels
from bevstack.datasets.transforms.sensor_faults import (
    DelayCameras,
    DisturbCalibration,
    DisturbEgoPoses,
    FitCameras,
    LoseCameras,
    SwapCameras,
)

__all__ = [
    "BEVRotateScaleFlip",
    "CorruptImages",
    "DelayCameras",
    "DisturbCalibration",
    "DisturbEgoPoses",
    "FitCameras",
    "ImageViews",
    "LoadBEVMap",
    "LoadCameraSweeps",
    "LoadMultiViewImages",
    "LoadPastCenters",
    "LoadSceneLabels",
    "LoseCameras",
    "MakePanopticMap",
    "ObjectNameFilter",
    "ObjectRangeFilter",
    "PackBEVInputs",
    "RasteriseBoxes",
    "ResizeCropFlipImages",
    "ResizeImages",
    "SwapCameras",
]
