"""BEVFormerV2, ResNet-50, eight frames (published, 24 epochs: 55.3 NDS, 46.0 mAP)."""

from mmengine.config import read_base

with read_base():
    from .bevformerv2_r50_t1 import *

num_frames = 8
model["temporal_fusion"] = dict(type="TemporalConcatenation", channels=channels, num_frames=num_frames)
train_dataloader["dataset"]["num_frames"] = num_frames
test_cfg["type"] = "StreamingTestLoop"
val_cfg["type"] = "StreamingValLoop"
