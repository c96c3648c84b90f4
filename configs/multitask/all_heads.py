"""Every head on one trunk: the demo's network and data with more questions asked of the same B_t.

Detection, map and vehicle segmentation, masks (panoptic), keypoints, behaviour, scene and appearance (for tracking)
are trained together with ``python tools/train.py configs/multitask/all_heads.py``. Any head can be left out, but
behaviour and appearance describe what detection finds.
"""

from mmengine.config import read_base

with read_base():
    from ..demo import *  # noqa: F403

history_frames = 4
things = classes
stuff = ("ped_crossing", "carpark_area", "walkway", "drivable_area")  # the first one that lies on a cell owns it
scene_tasks = dict(time=("day", "night"), weather=("dry", "rain"))

model["heads"]["masks"] = dict(
    type="MaskSegmentationHead",
    in_channels=64,
    grid=head_grid,
    things=things,
    stuff=stuff,
    channels=64,
    num_queries=60,
    pixel_decoder=dict(channels=48, num_convs=1),
    decoder=dict(num_layers=2),
    decoding=dict(object_threshold=0.3),
)
model["heads"]["keypoints"] = dict(type="KeypointHead", in_channels=64, grid=head_grid, classes=classes, channels=32)
model["heads"]["behaviour"] = dict(
    type="BehaviourHead",
    in_channels=64,
    grid=bev_grid,
    classes=classes,
    num_frames=history_frames,
    on_truth=True,
)
model["heads"]["scene"] = dict(
    type="SceneHead", in_channels=64, grid=bev_grid, tasks=scene_tasks, image_channels=channels
)
model["heads"]["appearance"] = dict(type="AppearanceHead", in_channels=64, grid=bev_grid)

# The panoptic map is made of map layers on its own grid; the raster of that name is then drawn anew on the finer one.
target_pipeline = [
    dict(type="LoadBEVMap", grid=head_grid),
    dict(type="MakePanopticMap", grid=head_grid, things=things, stuff=stuff),
    dict(type="LoadBEVMap", grid=map_grid),
    dict(type="RasteriseBoxes", grid=map_grid),
    dict(type="LoadPastCenters", num_frames=history_frames),
    dict(type="LoadSceneLabels"),
]
train_dataloader["sampler"]["max_stream_length"] = 10  # most samples then have the whole history behind them
train_dataloader["dataset"]["pipeline"] = [
    *image_pipeline,
    *target_pipeline,
    dict(type="ObjectRangeFilter", grid=head_grid),
    dict(type="PackBEVInputs"),
]
test_dataloader["dataset"]["pipeline"] = [*image_pipeline, *target_pipeline, dict(type="PackBEVInputs")]

tracker = dict(type="DeepSortTracker", min_score=0.15)  # fewer, better boxes: each starts a track
sample_visualizer = dict(
    type="SampleVisualizer",
    layout="tall",
    painters=[
        dict(type="PredictionPainter"),
        dict(type="TruthPainter"),
        dict(type="PanopticPainter"),
        dict(type="PanopticPainter", field="gt_panoptic", title="panoptic truth"),
        dict(type="BehaviourPainter"),
        dict(type="ScenePainter"),
        dict(type="PosePainter", title="keypoints"),
        dict(type="TrackPainter"),
    ],
)

metrics_of_head = dict(
    detection=[dict(type="NuScenesDetectionMetric", data_root=data_root, version=version, split="val")],
    map=[dict(type="BEVSegmentationMetric", name="map")],
    vehicle=[dict(type="BEVSegmentationMetric", name="vehicle")],
    masks=[dict(type="PanopticMetric")],
    keypoints=[dict(type="KeypointMetric")],
    behaviour=[dict(type="BehaviourMetric")],
    scene=[dict(type="SceneMetric")],
    appearance=[
        dict(
            type="NuScenesTrackingMetric",
            data_root=data_root,
            version=version,
            split="val",
            tracker=tracker,
        )
    ],
)

test_evaluator = [metric for head in model["heads"] for metric in metrics_of_head[head]]
