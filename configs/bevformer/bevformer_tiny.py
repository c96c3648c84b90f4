"""BEVFormer-tiny: ResNet-50, 800 x 450 images, 50 x 50 cells (docs/reference.md 5, tiny).

Published: 35.4 NDS, 25.2 mAP (docs/reference.md 2.1).
"""

from mmengine.config import read_base

with read_base():
    from .bevformer_small import *

train_pipeline[1]["scale"] = 0.5
test_pipeline[1]["scale"] = 0.5
train_dataloader["dataset"].update(pipeline=train_pipeline)
test_dataloader["dataset"].update(pipeline=test_pipeline)
val_dataloader = test_dataloader

model["data_preprocessor"].update(channel_order="rgb", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
model["backbone"] = dict(
    type="mmdet.ResNet",
    depth=50,
    num_stages=4,
    out_indices=(3,),
    frozen_stages=1,
    norm_cfg=dict(type="BN", requires_grad=False),
    norm_eval=True,
    style="pytorch",
)
bev_grid.update(shape=(50, 50))
model["encoder"].update(grid=bev_grid)
model["heads"]["detection"].update(grid=bev_grid)
load_from = "ckpts/resnet50-0676ba61.pth"  # torchvision's ImageNet weights
