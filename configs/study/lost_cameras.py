"""The demo, with each camera lost in a tenth of the training samples, and the model told so.

Features of images that change by chance are not kept, so that a step costs three times as much.
"""

from mmengine.config import read_base

with read_base():
    from ..demo import *  # noqa: F403

train_dataloader["dataset"]["pipeline"] = [
    image_pipeline[0],
    dict(type="LoseCameras", probability=0.1, each=True, known=True, seed=None),
    *image_pipeline[1:],
    *target_pipeline,
    dict(type="ObjectRangeFilter", grid=head_grid),
    dict(type="PackBEVInputs"),
]
