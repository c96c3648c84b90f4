"""BEVFormer at its base size: ResNet-101 with deformable convolutions, 200 x 200 cells, 6 + 6 layers, 900 queries."""

from mmengine.config import read_base

with read_base():
    from .nuscenes_clips import *

channels = 256
bev_grid = dict(shape=(200, 200), **ranges_m)
model = dict(
    type="BEVPerception",
    data_preprocessor=dict(
        type="BEVPreprocessor",
        channel_order="bgr",
        mean=(103.53, 116.28, 123.675),
        std=(1.0, 1.0, 1.0),
        pad_divisor=32,
        photometric=dict(
            brightness_delta=32, contrast_range=(0.5, 1.5), saturation_range=(0.5, 1.5), hue_delta=18
        ),
        grid_mask=dict(use_h=True, use_w=True, rotate=1, ratio=0.5, mode=1, prob=0.7),
        dtype="autocast",  # the backbone begins with a convolution, which would round them
    ),
    backbone=dict(
        type="mmdet.ResNet",
        depth=101,
        num_stages=4,
        out_indices=(1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN2d", requires_grad=False),
        norm_eval=True,
        style="caffe",
        dcn=dict(type="DCNv2", deform_groups=1),
        stage_with_dcn=(False, False, True, True),
    ),
    neck=dict(
        type="mmdet.FPN",
        in_channels=[512, 1024, 2048],
        out_channels=channels,
        start_level=0,
        add_extra_convs="on_output",
        num_outs=4,
        relu_before_extra_convs=True,
    ),
    encoder=dict(
        type="BEVFormerEncoder",
        grid=bev_grid,
        channels=channels,
        num_cameras=6,
        num_levels=4,
        num_layers=6,
        num_heads=8,
        num_points=8,
        num_heights=4,
        temporal_points=4,
        feed_forward_channels=512,
        dropout=0.1,
        motion_embedding=dict(type="MotionEmbedding", channels=channels),
    ),
    heads=dict(
        detection=dict(
            type="QueryDetectionHead",
            in_channels=channels,
            grid=bev_grid,
            classes=classes,
            num_queries=900,
            decoder=dict(num_layers=6, num_heads=8, num_points=4, feed_forward_channels=512, dropout=0.1),
            criterion=dict(
                class_weight=2.0,
                box_weight=0.25,
                code_weights=(1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.2, 0.2),
                class_cost=2.0,
                box_cost=0.25,
            ),
            decoding=dict(max_num=300, post_center_range_m=(-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)),
        ),
    ),
)
