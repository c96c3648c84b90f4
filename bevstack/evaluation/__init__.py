"""Metrics: thin wrappers around the nuScenes devkit's own evaluation, IoU of BEV rasters, and how they are reported."""

from bevstack.evaluation.behaviour_metric import BehaviourMetric
from bevstack.evaluation.center_distance_metric import CenterDistanceMetric
from bevstack.evaluation.detection_metric import NuScenesDetectionMetric
from bevstack.evaluation.evaluator import WholeEvaluator
from bevstack.evaluation.image_keypoint_metric import ImageKeypointMetric
from bevstack.evaluation.keypoint_metric import KeypointMetric
from bevstack.evaluation.panoptic_metric import PanopticMetric
from bevstack.evaluation.report import print_table, write_metrics
from bevstack.evaluation.scene_metric import SceneMetric
from bevstack.evaluation.segmentation_metric import BEVSegmentationMetric
from bevstack.evaluation.tracking_metric import NuScenesTrackingMetric

__all__ = [
    "BEVSegmentationMetric",
    "CenterDistanceMetric",
    "BehaviourMetric",
    "ImageKeypointMetric",
    "KeypointMetric",
    "NuScenesDetectionMetric",
    "NuScenesTrackingMetric",
    "PanopticMetric",
    "SceneMetric",
    "WholeEvaluator",
    "print_table",
    "write_metrics",
]
