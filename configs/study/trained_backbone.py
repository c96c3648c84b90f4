"""The demo, whose backbone learns, too, at a tenth of the rate; its features are then not kept."""

from mmengine.config import read_base

with read_base():
    from ..demo import *  # noqa: F403

model["backbone"]["frozen_stages"] = -1
optim_wrapper["paramwise_cfg"] = dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))
train_cfg.pop("kept_features")
