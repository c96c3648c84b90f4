"""nuScenes as BEVFormer uses it: random clips for training, whole scenes as streams for validation and test."""

from mmengine.config import read_base

with read_base():
    from .nuscenes_names import *

data_root = "data/nuscenes"
version = "v1.0-trainval"
ranges_m = dict(x_range_m=(-51.2, 51.2), y_range_m=(-51.2, 51.2), z_range_m=(-5.0, 3.0))
object_grid = dict(shape=(1, 1), **ranges_m)

# The second step sets the size: every configuration states its scale there.
train_pipeline = [
    dict(type="LoadMultiViewImages"),
    dict(type="ResizeImages", scale=1.0),
    dict(type="ObjectRangeFilter", grid=object_grid),
    dict(type="PackBEVInputs"),
]
test_pipeline = [
    dict(type="LoadMultiViewImages"),
    dict(type="ResizeImages", scale=1.0),
    dict(type="PackBEVInputs"),
]
train_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="ClipSampler"),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="NuScenesBEVDataset",
        data_root=data_root,
        version=version,
        split="train",
        pipeline=train_pipeline,
        num_frames=4,
        queue="random",
        classes=classes,
        use_valid_flag=True,
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="SceneShardedSampler"),
    batch_sampler=dict(type="SceneBatchSampler"),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        type="NuScenesBEVDataset",
        data_root=data_root,
        version=version,
        split="val",
        pipeline=test_pipeline,
        test_mode=True,
        classes=classes,
    ),
)
val_dataloader = test_dataloader
test_evaluator = [dict(type="NuScenesDetectionMetric", data_root=data_root, version=version, split="val")]
val_evaluator = test_evaluator
test_cfg = dict(type="StreamingTestLoop", dtype="float32")
val_cfg = dict(type="StreamingValLoop", dtype="float32")
