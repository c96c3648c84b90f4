"""Image and video backbones. Each declares ``channels`` and ``strides`` of its levels; mmdet's are used by name."""

from bevstack.models.backbones.slowfast import SlowFast
from bevstack.models.backbones.slowfast_swin import SlowFastSwin
from bevstack.models.backbones.timm_backbone import TimmBackbone

__all__ = ["SlowFast", "SlowFastSwin", "TimmBackbone"]
