"""Necks on image features and on B_t; mmdet's are used by name."""

from bevstack.models.necks.bev_unet import BEVUNet
from bevstack.models.necks.neck_sequence import NeckSequence
from bevstack.models.necks.simple_feature_pyramid import SimpleFeaturePyramid
from bevstack.models.necks.top_down import TopDownNeck

__all__ = ["BEVUNet", "NeckSequence", "SimpleFeaturePyramid", "TopDownNeck"]
