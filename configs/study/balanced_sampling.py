"""The demo, with pieces of streams that hold rare classes shown more often."""

from mmengine.config import read_base

with read_base():
    from ..demo import *  # noqa: F403

train_dataloader["sampler"]["balance"] = 1.0
