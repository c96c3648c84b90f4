"""The demo: a small temporal multi-camera model learns boxes and map on the synthetic set, on two CPU cores.

What makes it small: images of 160 x 448 without the sky, one encoder layer on 64 x 64 cells of 1.6 m, heads that
convolve these cells and predict four finer ones in each, depthwise-separable convolutions where plain ones showed no
better score at equal steps (docs/attention_and_convolution.md). What makes it learn in minutes: a frozen ImageNet
backbone with activations fused into its convolutions, whose features are kept from the first epoch on, heads that look
at different heights from the first step, streaming training (each step continues four scenes, so that the history is
free), a one-cycle schedule over a time budget, an average of the weights.
"""

from mmengine.config import read_base

with read_base():
    from ._base_.nuscenes_names import *  # noqa: F403
    from ._base_.runtime import *  # noqa: F403

data_root = "data/nuscenes-synthetic"
version = "v1.0-mini"
train_seconds = 510

extent = dict(x_range_m=(-51.2, 51.2), y_range_m=(-51.2, 51.2))
bev_grid = dict(shape=(64, 64), z_range_m=(-2.5, 1.5), **extent)
head_grid = dict(shape=(128, 128), **extent)
map_grid = dict(shape=(200, 200), x_range_m=(-50.0, 50.0), y_range_m=(-50.0, 50.0))

channels = 96
cheap = "depthwise_separable"
model = dict(
    type="BEVPerception",
    data_preprocessor=dict(type="BEVPreprocessor", mean=(127, 127, 127), std=(128, 128, 128)),
    backbone=dict(
        type="TimmBackbone",
        name="tf_efficientnet_lite0",
        pretrained="packaged",
        fold_norm=True,
        frozen_stages=7,
        images_at_once=6,
    ),
    neck=dict(type="TopDownNeck", in_channels=(40, 112, 320), out_channels=channels, out_levels=(0,)),
    encoder=dict(
        type="BEVFormerEncoder",
        grid=bev_grid,
        channels=channels,
        num_levels=1,
        num_layers=1,
        num_heads=4,
        num_points=4,
        temporal_points=0,
        feed_forward_channels=2 * channels,
        dropout=0.0,
        embedding_std=0.05,
        start=dict(ring_px=0.1, height_focus=3.0),
    ),
    temporal_fusion=dict(
        type="TemporalConcatenation", channels=channels, num_frames=2, blocks=1, narrow=True, conv=cheap
    ),
    bev_neck=dict(type="BEVUNet", in_channels=channels, widths=(channels, 128), out_channels=64, conv=cheap),
    heads=dict(
        detection=dict(
            type="DenseDetectionHead", in_channels=64, grid=head_grid, classes=classes, upscale=2, common=True
        ),
        map=dict(
            type="SemanticSegmentationHead",
            in_channels=64,
            grid=map_grid,
            raster="map",
            classes=map_layers,
            channels=64,
            num_convs=1,
            resample="logits",
            upscale=2,
            conv=cheap,
            criterion=dict(cell_weight=2.0, gamma=0.0, alpha=-1.0),
        ),
        vehicle=dict(
            type="SemanticSegmentationHead",
            in_channels=64,
            grid=map_grid,
            raster="vehicle",
            classes=("vehicle",),
            channels=64,
            num_convs=1,
            resample="logits",
            upscale=2,
            criterion=dict(cell_weight=2.0, gamma=0.0, alpha=-1.0),
        ),
    ),
)

image_pipeline = [
    dict(type="LoadMultiViewImages"),
    dict(type="ResizeCropFlipImages", heights_px=(252,), size=(160, 448), bottom=0.0, left=0.5),
]
target_pipeline = [
    dict(type="LoadBEVMap", grid=map_grid),
    dict(type="RasteriseBoxes", grid=map_grid),
]
dataset = dict(type="NuScenesBEVDataset", data_root=data_root, version=version, classes=classes)
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="StreamingSampler", batch_size=4, max_stream_length=5),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        split="train",
        pipeline=[
            *image_pipeline,
            *target_pipeline,
            dict(type="ObjectRangeFilter", grid=head_grid),
            dict(type="PackBEVInputs"),
        ],
        **dataset,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="SceneShardedSampler"),
    batch_sampler=dict(type="SceneBatchSampler"),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        split="val", test_mode=True, pipeline=[*image_pipeline, *target_pipeline, dict(type="PackBEVInputs")], **dataset
    ),
)
test_evaluator = [
    dict(type="NuScenesDetectionMetric", data_root=data_root, version=version, split="val"),
    dict(type="BEVSegmentationMetric", name="map"),
    dict(type="BEVSegmentationMetric", name="vehicle"),
]

optim_wrapper = dict(
    type="AutocastOptimWrapper",
    dtype="auto",
    optimizer=dict(type="AdamW", lr=3e-3, weight_decay=0.01, fused=True),
    clip_grad=dict(max_norm=35),
)
auto_scale_lr = dict(enable=False, base_batch_size=4)
train_cfg = dict(
    type="StreamingTrainLoop", max_epochs=12, kept_features=dict(max_bytes=3_000_000_000, required=False)
)
test_cfg = dict(type="StreamingTestLoop", dtype="auto")
custom_hooks = [
    dict(type="BudgetSchedule", max_seconds=train_seconds),
    dict(type="MaxSecondsHook", max_seconds=train_seconds),
    dict(type="EMAHook", ema_type="MomentumAnnealingEMA", momentum=0.005, gamma=10, priority=49),
]
