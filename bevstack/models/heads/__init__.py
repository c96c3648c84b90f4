"""Heads on B_t; none knows another."""

from bevstack.models.heads.appearance import AppearanceHead
from bevstack.models.heads.base import BEVHead
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
    "DenseDetectionHead",
    "ImageKeypointHead",
    "KeypointHead",
    "MaskSegmentationHead",
    "PerspectiveHead",
    "QueryDetectionHead",
    "SceneHead",
    "SemanticSegmentationHead",
]
