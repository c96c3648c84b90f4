"""The demo, that sees each camera twice: the whole image as ever, and its horizon at the resolution of 800 x 450.

    python tools/create_synthetic.py --root data/nuscenes-synthetic-800 --image-size 800x450
    python tools/create_data.py nuscenes --root data/nuscenes-synthetic-800

The second view is 448 columns in the middle and 160 rows around the horizon: 56 % of the image's width. The world is
that of the set in smaller images, from the same seed.
"""

from mmengine.config import read_base

with read_base():
    from ..demo import *  # noqa: F403

data_root = "data/nuscenes-synthetic-800"
image_pipeline = [
    dict(type="LoadMultiViewImages"),
    dict(
        type="ImageViews",
        views=[
            dict(type="ResizeCropFlipImages", heights_px=(252,), size=(160, 448), bottom=0.0, left=0.5),
            dict(type="ResizeCropFlipImages", heights_px=(450,), size=(160, 448), bottom=0.28, left=0.5),
        ],
    ),
]
model["encoder"]["num_cameras"] = 12
train_dataloader["dataset"].update(
    data_root=data_root,
    pipeline=[
        *image_pipeline,
        *target_pipeline,
        dict(type="ObjectRangeFilter", grid=head_grid),
        dict(type="PackBEVInputs"),
    ],
)
test_dataloader["dataset"].update(
    data_root=data_root, pipeline=[*image_pipeline, *target_pipeline, dict(type="PackBEVInputs")]
)
test_evaluator[0]["data_root"] = data_root
train_cfg["kept_features"]["max_bytes"] = 6_000_000_000
