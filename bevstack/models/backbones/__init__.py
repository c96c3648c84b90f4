"""Image backbones. Each declares ``channels`` and ``strides`` of the levels it returns; mmdet's are used by name."""

from bevstack.models.backbones.timm_backbone import TimmBackbone

__all__ = ["TimmBackbone"]
