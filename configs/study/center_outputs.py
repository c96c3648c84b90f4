"""The demo, whose detection head says heading by bins, whether something moves, and how well a box lies."""

from mmengine.config import read_base

with read_base():
    from ..demo import *  # noqa: F403

model["heads"]["detection"]["outputs"] = dict(heading_bins=8, moving=True, quality=True)
