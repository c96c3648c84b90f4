"""The vocabulary of the package: what one part hands to the next."""

from bevstack.structures.bev import AlignedHistory, BEVFeatures, BEVMemory
from bevstack.structures.clip import Clip
from bevstack.structures.frame import CameraRig, EgoMotion, Frame
from bevstack.structures.panoptic import PanopticMap
from bevstack.structures.sample import BEVDataSample, BEVRaster

__all__ = [
    "AlignedHistory",
    "BEVDataSample",
    "BEVFeatures",
    "BEVMemory",
    "BEVRaster",
    "CameraRig",
    "Clip",
    "EgoMotion",
    "Frame",
    "PanopticMap",
]
