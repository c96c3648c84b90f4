"""Necks on image features and on B_t; mmdet's are used by name."""

from bevstack.models.necks.bev_unet import BEVUNet
from bevstack.models.necks.top_down import TopDownNeck

__all__ = ["BEVUNet", "TopDownNeck"]
