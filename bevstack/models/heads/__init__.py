"""Heads on B_t, on boxes in it, and on image features; none knows another."""

from bevstack.models.heads.appearance import AppearanceHead
from bevstack.models.heads.base import BEVHead, BoxHead, ImageHead, LabelledBoxes
from bevstack.models.heads.behaviour import BehaviourHead
from bevstack.models.heads.detection3d_dense import DenseDetectionHead
from bevstack.models.heads.detection3d_query import QueryDetectionHead
from bevstack.models.heads.image_keypoints import ImageKeypointHead
from bevstack.models.heads.keypoints import KeypointHead
from bevstack.models.heads.mask_segmentation import MaskSegmentationHead
from bevstack.models.heads.perspective3d import PerspectiveHead
from bevstack.models.heads.scene import SceneHead
from bevstack.models.heads.semantic_segmentation import SemanticSegmentationHead

__all__ = [
    "AppearanceHead",
    "BEVHead",
    "BehaviourHead",
    "BoxHead",
    "DenseDetectionHead",
    "ImageHead",
    "ImageKeypointHead",
    "KeypointHead",
    "LabelledBoxes",
    "MaskSegmentationHead",
    "PerspectiveHead",
    "QueryDetectionHead",
    "SceneHead",
    "SemanticSegmentationHead",
]
