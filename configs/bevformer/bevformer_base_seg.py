"""BEVFormer-base on segmentation alone, by two protocols (docs/reference.md 1, Map layers, Painted boxes).

``map``: BEVFusion's six map layers on 100 m x 100 m at 0.5 m, sigmoid focal loss; IoU at 0.5 and at the best threshold.
``vehicle``: Lift-Splat-Shoot's boxes painted on the same cells; its ``vehicle`` and ``car``, together with
``drivable_area`` (road) and ``divider`` (lane) of the map, are the four columns of BEVFormer's Table 4. For PointBeV's
"visible" numbers set ``min_visibility=2`` in ``RasteriseBoxes``.
"""

from mmengine.config import read_base

with read_base():
    from .bevformer_base import *

painted_classes = dict(vehicle=vehicle_classes, car=("car",))
map_grid = dict(shape=(200, 200), x_range_m=(-50.0, 50.0), y_range_m=(-50.0, 50.0))
segmentation = dict(
    type="SemanticSegmentationHead",
    in_channels=channels,
    grid=map_grid,
    channels=channels,
    num_convs=2,
    criterion=dict(cell_weight=10.0, dice_weight=0.0),
)
segmentation_heads = dict(
    map=dict(raster="map", classes=map_layers, **segmentation),
    vehicle=dict(raster="vehicle", classes=tuple(painted_classes), **segmentation),
)
model["heads"] = segmentation_heads

load_rasters = [
    dict(type="LoadBEVMap", grid=map_grid, layers=map_layers),
    dict(type="RasteriseBoxes", grid=map_grid, layers=painted_classes),
]
train_dataloader["dataset"]["pipeline"] = [*train_pipeline[:2], *load_rasters, *train_pipeline[2:]]
test_dataloader["dataset"]["pipeline"] = [*test_pipeline[:2], *load_rasters, *test_pipeline[2:]]
val_dataloader = test_dataloader
segmentation_metrics = [
    dict(type="BEVSegmentationMetric", name="map"),
    dict(type="BEVSegmentationMetric", name="vehicle"),
]
test_evaluator = segmentation_metrics
val_evaluator = test_evaluator
