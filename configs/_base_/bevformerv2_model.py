"""BEVFormerV2 with ResNet-50: every frame's BEV alone, joined across frames; perspective losses on the image features.

Published values (docs/reference.md 5, V2) but for three: L1 in place of smooth L1 for boxes, one group of object
queries in place of eleven, FCOS3D in place of DD3D as the perspective detector.
"""

from mmengine.config import read_base

with read_base():
    from .bevformer_model import *
    from .runtime import *

classes = tuple(sorted(classes))  # alphabetical, unlike the first version's order
model["backbone"] = dict(
    type="mmdet.ResNet",
    depth=50,
    num_stages=4,
    out_indices=(1, 2, 3),
    frozen_stages=-1,
    norm_cfg=dict(type="BN", requires_grad=True),
    norm_eval=False,
    style="caffe",
)
model["neck"].update(num_outs=5)
model["bev_levels"] = 4
model["encoder"]["motion_embedding"] = None
model["heads"]["detection"].update(classes=classes)
model["heads"]["detection"]["criterion"].update(box_weight=0.75, box_cost=0.75)
model["image_heads"] = dict(
    perspective=dict(
        type="PerspectiveHead", in_channels=channels, classes=classes, strides=(8, 16, 32, 64, 128)
    ),
)
model["loss_weights"] = dict(detection=1.0, perspective=1.0)

train_pipeline = [
    dict(type="LoadMultiViewImages"),
    dict(
        type="ResizeCropFlipImages",
        source_crop_px=(0, 260, 1600, 900),
        heights_px=tuple(range(512, 769, 32)),
        flip_probability=0.5,
    ),
    dict(
        type="BEVRotateScaleFlip",
        rotation_range_deg=(-22.5, 22.5),
        scale_range=(0.95, 1.05),
        flip_x_probability=0.5,
        flip_y_probability=0.5,
    ),
    dict(type="ObjectRangeFilter", grid=object_grid),
    dict(type="PackBEVInputs"),
]
test_pipeline = [
    dict(type="LoadMultiViewImages"),
    dict(type="ResizeCropFlipImages", source_crop_px=(0, 260, 1600, 900), heights_px=(640,)),
    dict(type="PackBEVInputs"),
]
train_dataloader["dataset"].update(pipeline=train_pipeline, classes=classes, num_frames=1, queue="consecutive")
test_dataloader["dataset"].update(pipeline=test_pipeline, classes=classes)
val_dataloader = test_dataloader

optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="float32",
    optimizer=dict(type="AdamW", lr=4e-4, weight_decay=0.01, fused=True),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.5))),
    clip_grad=dict(max_norm=35, norm_type=2),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1.0 / 3, by_epoch=False, begin=0, end=2000),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=24, milestones=[20], gamma=0.1),
]
train_cfg = dict(by_epoch=True, max_epochs=24, val_interval=1)
auto_scale_lr = dict(enable=False, base_batch_size=8)
sync_bn = "torch"
load_from = "ckpts/fcos_r50_coco_2mmdet.pth"
