"""The demo, whose encoder reads image features of stride 4 instead of 8: more of what is far and small."""

from mmengine.config import read_base

with read_base():
    from ..demo import *  # noqa: F403

model["backbone"]["out_indices"] = (1, 2, 3, 4)
model["neck"].update(in_channels=(24, 40, 112, 320), conv=cheap)
train_cfg["kept_features"]["max_bytes"] = 6_000_000_000
