"""BEVFormer-small: 1280 x 720 images, one feature level, 150 x 150 cells (docs/reference.md 5, small).

Published: 47.9 NDS, 37.0 mAP (docs/reference.md 2.1).
"""

from mmengine.config import read_base

with read_base():
    from .bevformer_base import *

train_pipeline[1]["scale"] = 0.8
test_pipeline[1]["scale"] = 0.8
train_dataloader["dataset"].update(pipeline=train_pipeline, num_frames=3)
test_dataloader["dataset"].update(pipeline=test_pipeline)
val_dataloader = test_dataloader

bev_grid.update(shape=(150, 150))
model["backbone"].update(out_indices=(3,), with_cp=True)
model["neck"].update(in_channels=[2048], num_outs=1)
model["encoder"].update(grid=bev_grid, num_levels=1, num_layers=3)
model["heads"]["detection"].update(grid=bev_grid)
