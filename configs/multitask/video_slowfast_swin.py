"""Velocity from camera sweeps: SlowFast x Swin at 12 Hz against its single-frame twin, by one variable.

    python tools/create_synthetic.py --root data/nuscenes-synthetic-sweeps --train-scenes 100 --val-scenes 16 \
        --frames 16 --image-size 256x144 --sweeps --seed 7
    python tools/create_data.py nuscenes --root data/nuscenes-synthetic-sweeps
    python tools/train.py configs/multitask/video_single_frame.py
    python tools/pretrain_motion.py configs/multitask/video_slowfast_swin.py --out work_dirs/motion/serial.pth \
        --cfg-options load_from=work_dirs/video_single_frame/iter_700.pth
    python tools/train.py configs/multitask/video_slowfast_swin.py --cfg-options load_from=work_dirs/motion/serial.pth

The first training, of the twin, needs the demo's weights; the slow path starts from it. The fast path starts from
clips of known motion, which need no labels. Sweeps are seen from where the camera stands at the keyframe, so that what
stands still on the ground hardly moves in them. There is no memory of earlier B_t: what moves is to be seen in the
sweeps or not at all. ``tools/compare.py configs/multitask/comparison.py --only SlowFast`` does all that for every
fusion.
"""

from mmengine.config import read_base

with read_base():
    from ..demo import *  # noqa: F403

fusion = "serial"  # parallel, serial, cross; none: the slow path's Swin on the keyframe alone
num_sweeps = 6  # with the keyframe 7 frames in 0.5 s: the slow path sees the keyframe and the one before
steps = 400
data_root = "data/nuscenes-synthetic-sweeps"

slowfast_swin = dict(
    type="SlowFastSwin",
    num_sweeps=num_sweeps,
    alpha=6,
    beta=1 / 4,
    embed_dim=48,
    depths=(1, 1, 2),
    num_heads=(2, 4, 8),
    window_size=4,
    out_indices=(1, 2),
)
load_sweeps = dict(type="LoadCameraSweeps", num_sweeps=num_sweeps, still_height_m=0.5)
learning_rate = 8e-4  # higher ones undo what the slow path knows when the fast one joins it
faster_parts = dict(custom_keys={f"backbone.{part}": dict(lr_mult=2.0) for part in ("fast", "laterals", "joins")})

model["backbone"] = dict(fusion=fusion, **slowfast_swin)
model["neck"] = dict(type="TopDownNeck", out_channels=channels, out_levels=(0,))
model["temporal_fusion"] = None
model["heads"] = dict(detection=model["heads"]["detection"])
model["heads"]["detection"]["criterion"] = dict(code_weights=(1,) * 10)  # a metre per second counts as much as a metre

image_pipeline = [
    dict(type="LoadMultiViewImages"),
    *([] if fusion == "none" else [load_sweeps]),
    dict(type="ResizeCropFlipImages", heights_px=(144,), size=(96, 256), bottom=0.0, left=0.5),
]
train_dataloader["dataset"].update(
    data_root=data_root,
    pipeline=[*image_pipeline, dict(type="ObjectRangeFilter", grid=head_grid), dict(type="PackBEVInputs")],
)
test_dataloader["dataset"].update(data_root=data_root, pipeline=[*image_pipeline, dict(type="PackBEVInputs")])
test_evaluator = [dict(type="NuScenesDetectionMetric", data_root=data_root, version=version, split="val")]

optim_wrapper["optimizer"]["lr"] = learning_rate
optim_wrapper["paramwise_cfg"] = faster_parts
train_cfg = dict(type="StreamingTrainLoop", max_epochs=100)  # the schedule ends it
default_hooks["checkpoint"].update(interval=1, max_keep_ckpts=1)
custom_hooks = [
    dict(type="BudgetSchedule", max_steps=steps),
    dict(type="EMAHook", ema_type="MomentumAnnealingEMA", momentum=0.005, gamma=10, priority=49),
]
