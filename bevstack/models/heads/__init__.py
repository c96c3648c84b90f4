"""Heads on B_t; none knows another."""

from bevstack.models.heads.base import BEVHead
from bevstack.models.heads.detection3d_dense import DenseDetectionHead
from bevstack.models.heads.detection3d_query import QueryDetectionHead
from bevstack.models.heads.perspective3d import PerspectiveHead
from bevstack.models.heads.semantic_segmentation import SemanticSegmentationHead

__all__ = [
    "BEVHead",
    "DenseDetectionHead",
    "PerspectiveHead",
    "QueryDetectionHead",
    "SemanticSegmentationHead",
]
