"""What ``python tools/compare.py configs/multitask/comparison.py --page docs/comparison.md`` compares.

Every variant is the all-heads config with the heads and changes that stand here, trained for the same number of steps.
The data are those of the demo, in smaller images, so that some thirty trainings end within two hours on two CPU cores;
the video backbones need the demo's weights and a set with camera sweeps (configs/multitask/video_slowfast_swin.py says
how it is made).
"""

from mmengine.config import read_base

with read_base():
    from .._base_.backbones import BACKBONES
    from .all_heads import *  # noqa: F403
    from .video_slowfast_swin import faster_parts, learning_rate, load_sweeps, slowfast_swin

sweeps_root = "data/nuscenes-synthetic-sweeps"
small_images = dict(type="ResizeCropFlipImages", heights_px=(144,), size=(96, 256), bottom=0.0, left=0.5)

detection_columns = [
    ("parameters", "parameters/backbone"),
    ("multiply-adds of the backbone", "multiply_adds/backbone"),
    ("of the neck", "multiply_adds/neck"),
    ("mAP", "mAP"),
    ("AP of cars", "AP/car"),
    ("heatmap loss at the end", "logged/detection.loss_heatmap"),
]

single_frame = "work_dirs/video_single_frame/iter_700.pth"
fusions = ("parallel", "serial", "cross")
sweep_pipeline = [image_pipeline[0], load_sweeps, small_images]
video_changes = {
    "model.neck": dict(type="TopDownNeck", out_channels=channels, out_levels=(0,)),
    "model.heads.detection.criterion": dict(code_weights=(1,) * 10),
    "optim_wrapper.optimizer.lr": learning_rate,
    "optim_wrapper.paramwise_cfg": faster_parts,
    "train_dataloader.dataset.pipeline": [
        *sweep_pipeline,
        *target_pipeline,
        dict(type="ObjectRangeFilter", grid=head_grid),
        dict(type="PackBEVInputs"),
    ],
    "test_dataloader.dataset.pipeline": [*sweep_pipeline, *target_pipeline, dict(type="PackBEVInputs")],
    # one frame alone: what moves is to be seen in the sweeps, not in the memory
    "model.temporal_fusion": None,
}
every_head = ("detection", "map", "vehicle", "masks", "keypoints", "behaviour", "scene", "appearance")

comparison = dict(
    steps=250,
    seeds=(0,),
    metrics_of_head=metrics_of_head,
    set={"train_dataloader.dataset.pipeline.1": small_images, "test_dataloader.dataset.pipeline.1": small_images},
    sections=[
        dict(
            title="Heads alone and jointly",
            text="Each head trained alone on the trunk, and all of them together. Behaviour and appearance describe "
            "what detection finds, so that alone means: with detection.",
            rows=[
                ("detection", "mAP", "detection"),
                ("detection", "NDS", "detection"),
                ("map", "mIoU/map", "map"),
                ("vehicle", "iou/vehicle", "vehicle"),
                ("masks", "PQ", "masks"),
                ("masks", "mask_AP50", "masks"),
                ("keypoints", "keypoint_AP50", "keypoints"),
                ("keypoints", "PCK@1m", "keypoints"),
                ("behaviour", "behaviour_f1", "behaviour"),
                ("behaviour", "behaviour_f1_default", "behaviour"),
                ("behaviour", "mAAE", "behaviour"),
                ("appearance", "AMOTA", "appearance"),
                ("appearance", "IDS", "appearance"),
                ("scene", "scene_accuracy/time", "scene"),
                ("scene", "scene_accuracy/weather", "scene"),
            ],
            variants=[
                *(
                    dict(name=head, heads=(head,))
                    for head in ("detection", "map", "vehicle", "masks", "keypoints", "scene")
                ),
                dict(name="behaviour", heads=("detection", "behaviour")),
                dict(name="appearance", heads=("detection", "appearance")),
                dict(name="joint"),
            ],
        ),
        dict(
            title="Backbones",
            text="Detection alone. All but the packaged one start from random weights.",
            columns=detection_columns,
            variants=[
                dict(
                    name=name,
                    heads=("detection",),
                    set={"model.backbone": parts["backbone"], "model.neck": parts["neck"]},
                )
                for name, parts in BACKBONES.items()
            ],
        ),
        dict(
            title="SlowFast and Swin over camera sweeps",
            text="Detection alone, from one keyframe without memory, on a set with sweeps. `none` is the single-frame "
            "twin of the three fusions, trained for 700 steps before. All go on from it; the fast paths start from "
            "1500 steps on clips of known motion (`tools/pretrain_motion.py`, no labels). mAVE: velocity error, m/s.",
            steps=400,
            data_root=sweeps_root,
            set=video_changes,
            prepare=[
                dict(tool="train", arguments=["configs/multitask/video_single_frame.py"], makes=single_frame),
                *(
                    dict(
                        tool="pretrain_motion",
                        arguments=[
                            "configs/multitask/video_slowfast_swin.py",
                            "--out",
                            f"work_dirs/motion/{fusion}.pth",
                            "--cfg-options",
                            f"model.backbone.fusion={fusion}",
                            f"load_from={single_frame}",
                        ],
                        makes=f"work_dirs/motion/{fusion}.pth",
                    )
                    for fusion in fusions
                ),
            ],
            columns=[
                ("mAVE", "mAVE"),
                ("AVE of cars", "AVE/car"),
                ("of pedestrians", "AVE/pedestrian"),
                ("of trucks", "AVE/truck"),
                *detection_columns,
            ],
            variants=[
                dict(
                    name="none",
                    heads=("detection",),
                    set={
                        "load_from": single_frame,
                        "model.backbone": dict(fusion="none", **slowfast_swin),
                        "train_dataloader.dataset.pipeline.1": None,  # no sweeps
                        "test_dataloader.dataset.pipeline.1": None,
                    },
                ),
                *(
                    dict(
                        name=fusion,
                        heads=("detection",),
                        set={
                            "load_from": f"work_dirs/motion/{fusion}.pth",
                            "model.backbone": dict(fusion=fusion, **slowfast_swin),
                        },
                    )
                    for fusion in fusions
                ),
            ],
        ),
        dict(
            title="Balancing the losses",
            text="All heads; what weighs their losses against each other.",
            columns=[
                ("mAP", "mAP"),
                ("map mIoU", "mIoU/map"),
                ("vehicle IoU", "iou/vehicle"),
                ("PQ", "PQ"),
                ("keypoint AP50", "keypoint_AP50"),
                ("behaviour F1", "behaviour_f1"),
                ("time of day", "scene_accuracy/time"),
            ],
            variants=[
                dict(name="FixedWeights"),
                dict(
                    name="UncertaintyWeights",
                    set={
                        "model.loss_balancing": dict(type="UncertaintyWeights"),
                        "optim_wrapper.paramwise_cfg": dict(
                            custom_keys={"balancing.log_variance": dict(decay_mult=0.0)}
                        ),
                    },
                ),
                dict(name="GradNorm", set={"model.loss_balancing": dict(type="GradNorm", interval=10)}),
                dict(
                    name="DynamicWeightAverage",
                    set={"model.loss_balancing": dict(type="DynamicWeightAverage", window=25)},
                ),
            ],
        ),
        dict(
            title="Kinds of convolution",
            text="Map segmentation alone, two 3 x 3 convolutions in the head on its own grid.",
            set={
                "model.heads.map.resample": "features",
                "model.heads.map.num_convs": 2,
                "model.heads.map.upscale": None,
            },
            columns=[
                ("parameters of the head", "parameters/heads.map"),
                ("multiply-adds of the head", "multiply_adds/heads.map"),
                ("mIoU", "mIoU/map"),
                ("drivable area", "iou/drivable_area"),
            ],
            variants=[
                dict(name="plain", heads=("map",)),
                dict(name="depthwise separable", heads=("map",), set={"model.heads.map.conv": "depthwise_separable"}),
                dict(
                    name="grouped, 4 groups",
                    heads=("map",),
                    set={"model.heads.map.conv": dict(kind="grouped", groups=4)},
                ),
            ],
        ),
    ],
)
