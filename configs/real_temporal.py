"""Overfit three consecutive real frames of another make of rig: six cameras of 1936 x 1216, a LIDAR that looks along x.

``BEVSTACK_REALDATA`` names the folder that holds ``dgp-scene02`` (default ``../shared/realdata``). Its index is made by
``tools/create_data.py nuscenes --root $BEVSTACK_REALDATA/dgp-scene02 --version v1.0-mini --out
work_dirs/real_temporal/index``. Clips of two frames: the model sees each frame together with the one before it.
"""

import os

from mmengine.config import read_base

with read_base():
    from .real_keyframe import *  # noqa: F403

data_root = os.path.join(os.environ.get("BEVSTACK_REALDATA", "../shared/realdata"), "dgp-scene02")
index_root = "work_dirs/real_temporal/index"

# This LIDAR frame has its origin on the ground: pillars reach from there to about three metres.
model["encoder"]["grid"]["z_range_m"] = (-0.66, 3.34)  # noqa: F405

pipeline[1] = dict(type="ResizeCropFlipImages", heights_px=(480,), size=(320, 764), bottom=0.25, left=0.5)  # noqa: F405
dataset.update(data_root=data_root, index_root=index_root, split="mini_val")  # noqa: F405
train_dataloader["dataset"].update(data_root=data_root, index_root=index_root, split="mini_val")  # noqa: F405
train_dataloader["dataset"].update(num_frames=2, queue="consecutive")  # noqa: F405
test_dataloader["dataset"].update(data_root=data_root, index_root=index_root, split="mini_val")  # noqa: F405
for loader in (train_dataloader, test_dataloader):  # noqa: F405
    loader["dataset"]["pipeline"][1] = pipeline[1]  # noqa: F405
test_evaluator[0].update(data_root=data_root, split="mini_val")  # noqa: F405
train_cfg.update(max_epochs=150)  # noqa: F405
test_cfg["type"] = "StreamingTestLoop"  # noqa: F405
default_hooks["checkpoint"].update(interval=150)  # noqa: F405
del loader
