"""The demo, on training scenes with three times as many of what else than cars drives, and more of it at rest.

    python tools/create_synthetic.py --root data/nuscenes-synthetic-rare --image-size 448x252 --rare 2
    python tools/create_data.py nuscenes --root data/nuscenes-synthetic-rare

Its validation scenes are those of the set without ``--rare``, from the same seed.
"""

from mmengine.config import read_base

with read_base():
    from ..demo import *  # noqa: F403

train_dataloader["dataset"]["data_root"] = "data/nuscenes-synthetic-rare"
