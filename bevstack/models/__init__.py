"""Models: backbones, necks, the BEV encoder, heads, and the perception model that joins them."""

from bevstack.interop.deform_conv import register_deform_conv
from bevstack.models import backbones, bev, heads, necks
from bevstack.models.perception import BEVPerception
from bevstack.models.preprocessor import BEVPreprocessor

__all__ = ["BEVPerception", "BEVPreprocessor", "backbones", "bev", "heads", "necks"]

register_deform_conv()
