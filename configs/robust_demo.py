"""The demo, trained against faulty sensors: cameras that are lost, calibrations that are off, light of all kinds.

Each of the three stands alone (``lost``, ``off``, ``light``) and may be left out; no corruption of
``tools/robustness.py`` is trained on. Images differ from epoch to epoch, so that the frozen backbone's features cannot
be kept: a step takes longer than the demo's. ``tools/compare.py configs/robust_demo.py --page PAGE`` trains the demo,
each of the three alone and all of them at equal steps; ``tools/robustness.py`` scores what it leaves.
"""

from mmengine.config import read_base

with read_base():
    from .demo import *  # noqa: F403

# one image in ten is black, and nobody tells the model
lost = dict(type="LoseCameras", probability=0.1, each=True, seed=None)
# the mount of every camera is told with an error of half a degree about each axis and of 5 cm along it
off = dict(type="DisturbCalibration", rotation_deg=0.5, translation_m=0.05, seed=None)
# brightness, contrast, saturation and hue of every image; channels keep their places
light = dict(swap_channels=False)

learning_pipeline = [
    image_pipeline[0],
    lost,
    off,
    *image_pipeline[1:],
    *target_pipeline,
    dict(type="ObjectRangeFilter", grid=head_grid),
    dict(type="PackBEVInputs"),
]
train_dataloader["dataset"].update(pipeline=learning_pipeline)
model["data_preprocessor"].update(photometric=light)

_pipeline = "train_dataloader.dataset.pipeline"
_without = [step for step in learning_pipeline if step not in (lost, off)]
_plain = {_pipeline: _without, "model.data_preprocessor.photometric": None}
_lost_alone = [step for step in learning_pipeline if step is not off]
_off_alone = [step for step in learning_pipeline if step is not lost]
comparison = dict(
    steps=600,
    seeds=(0,),
    sections=[
        dict(
            title="Against faulty sensors",
            text="The demo's model on clean images, after the same steps.",
            columns=[("mAP", "mAP"), ("NDS", "NDS"), ("drivable area", "iou/drivable_area")],
            variants=[
                dict(name="nothing", set=_plain),
                dict(name="lost cameras", set={**_plain, _pipeline: _lost_alone}),
                dict(name="calibration off", set={**_plain, _pipeline: _off_alone}),
                dict(name="light", set={_pipeline: _without}),
                dict(name="all three", set={}),
            ],
        ),
    ],
)
