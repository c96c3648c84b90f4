"""The demo, with the BEV turned, scaled and mirrored anew for each stream: free, as images and their features stay."""

from mmengine.config import read_base

with read_base():
    from ..demo import *  # noqa: F403

turned = dict(
    type="BEVRotateScaleFlip", rotation_range_deg=(-22.5, 22.5), scale_range=(0.95, 1.05), constant_along_stream=True
)
train_dataloader["dataset"]["pipeline"] = [
    *image_pipeline,
    turned,
    *target_pipeline,
    dict(type="ObjectRangeFilter", grid=head_grid),
    dict(type="PackBEVInputs"),
]
