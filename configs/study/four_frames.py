"""The demo, whose memory reaches three frames (1.5 s) back instead of one, in streams that are long enough for it."""

from mmengine.config import read_base

with read_base():
    from ..demo import *  # noqa: F403

model["temporal_fusion"]["num_frames"] = 4
train_dataloader["sampler"]["max_stream_length"] = 10
