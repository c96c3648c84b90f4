"""What the video backbones of video_slowfast_swin.py start from: their slow path's Swin, trained on single frames.

Encoder, BEV neck and head start from the demo (``make demo``), so that 700 steps are enough to find cars.
"""

from mmengine.config import read_base

with read_base():
    from .video_slowfast_swin import *  # noqa: F403

steps = 700
model["backbone"]["fusion"] = "none"
for dataloader in (train_dataloader, test_dataloader):
    dataloader["dataset"]["pipeline"] = [
        step for step in dataloader["dataset"]["pipeline"] if step["type"] != "LoadCameraSweeps"
    ]
optim_wrapper["optimizer"]["lr"] = 2e-3
custom_hooks = [
    dict(type="LoadPartsHook", checkpoint="work_dirs/demo", parts=("encoder", "bev_neck", "heads.detection")),
    dict(type="BudgetSchedule", max_steps=steps),
    dict(type="EMAHook", ema_type="MomentumAnnealingEMA", momentum=0.005, gamma=10, priority=49),
]
