"""Overfit one real nuScenes keyframe: six 1600 x 900 cameras, 69 annotated objects, a few minutes on a CPU.

``BEVSTACK_REALDATA`` names the folder that holds ``nuscenes-keyframe-a`` (default ``../shared/realdata``). Its index is
made by ``tools/create_data.py nuscenes --root $BEVSTACK_REALDATA/nuscenes-keyframe-a --version v1.0-mini --out
work_dirs/real_keyframe/index``. The set has no map expansion: boxes and vehicle masks are learned, not the map.
"""

import os

from mmengine.config import read_base

with read_base():
    from .demo import *  # noqa: F403

data_root = os.path.join(os.environ.get("BEVSTACK_REALDATA", "../shared/realdata"), "nuscenes-keyframe-a")
index_root = "work_dirs/real_keyframe/index"

head_grid = dict(shape=(256, 256), **extent)  # noqa: F405
model["bev_neck"]["out_grid"] = head_grid  # noqa: F405
model["heads"]["detection"]["grid"] = head_grid  # noqa: F405
model["heads"]["detection"]["decoding"] = dict(nms_radius_m=0.3)  # noqa: F405
model["heads"]["vehicle"].update(grid=head_grid, resample="features")  # noqa: F405
model["heads"].pop("map")  # noqa: F405

pipeline = [
    dict(type="LoadMultiViewImages"),
    dict(type="ResizeCropFlipImages", scale=0.5, size=(320, 800), bottom=0.0, left=0.5),
    dict(type="RasteriseBoxes", grid=head_grid),
]
dataset.update(data_root=data_root, index_root=index_root, split="mini_train")  # noqa: F405
train_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="ClipSampler"),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(
        pipeline=[*pipeline, dict(type="ObjectRangeFilter", grid=head_grid), dict(type="PackBEVInputs")],
        **dataset,  # noqa: F405
    ),
)
test_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="SceneShardedSampler"),
    batch_sampler=dict(type="SceneBatchSampler"),
    collate_fn=dict(type="pseudo_collate"),
    dataset=dict(test_mode=True, pipeline=[*pipeline, dict(type="PackBEVInputs")], **dataset),  # noqa: F405
)
test_evaluator = [
    dict(type="NuScenesDetectionMetric", data_root=data_root, version=version, split="mini_train"),  # noqa: F405
    dict(type="BEVSegmentationMetric", name="vehicle"),
]
optim_wrapper["optimizer"]["lr"] = 1e-3  # noqa: F405
train_cfg = dict(type="ResumableTrainLoop", max_epochs=400)
test_cfg["type"] = "AutocastTestLoop"  # noqa: F405 - one frame has no history
default_hooks["checkpoint"].update(interval=400)  # noqa: F405
custom_hooks = [dict(type="BudgetSchedule")]
