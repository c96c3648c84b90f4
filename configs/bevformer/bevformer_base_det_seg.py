"""BEVFormer-base on detection and segmentation (published numbers: docs/reference.md 2.2)."""

from mmengine.config import read_base

with read_base():
    from .._base_.bevformer_model import model as detection_model
    from .bevformer_base_seg import *

model["heads"] = dict(detection=detection_model["heads"]["detection"], **segmentation_heads)
model["loss_weights"] = dict(detection=1.0, map=1.0, vehicle=1.0)
test_evaluator = [
    dict(type="NuScenesDetectionMetric", data_root=data_root, version=version, split="val"),
    *segmentation_metrics,
]
val_evaluator = test_evaluator
