"""BEVFormer-S, the base without history: every frame is seen alone (paper: 44.8 NDS, 37.5 mAP)."""

from mmengine.config import read_base

with read_base():
    from .bevformer_base import *

train_dataloader["dataset"]["num_frames"] = 1
model["encoder"]["motion_embedding"] = None
test_cfg["type"] = "AutocastTestLoop"
val_cfg["type"] = "AutocastValLoop"
