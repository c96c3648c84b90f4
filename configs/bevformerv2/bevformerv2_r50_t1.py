"""BEVFormerV2, ResNet-50, one frame (published, 24 epochs: 45.3 NDS, 38.1 mAP)."""

from mmengine.config import read_base

with read_base():
    from .._base_.bevformerv2_model import *

# Trained on single frames, so tested on single frames; the two- and eight-frame versions go along streams.
test_cfg["type"] = "AutocastTestLoop"
val_cfg["type"] = "AutocastValLoop"
