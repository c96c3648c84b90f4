"""The demo in images of 704 x 256 instead of 448 x 160, of the same field of view.

    python tools/create_synthetic.py --root data/nuscenes-synthetic-704 --image-size 704x396
    python tools/create_data.py nuscenes --root data/nuscenes-synthetic-704

The world is that of the set in smaller images, from the same seed.
"""

from mmengine.config import read_base

with read_base():
    from ..demo import *  # noqa: F403

data_root = "data/nuscenes-synthetic-704"
image_pipeline = [
    dict(type="LoadMultiViewImages"),
    dict(type="ResizeCropFlipImages", heights_px=(396,), size=(256, 704), bottom=0.0, left=0.5),
]
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
