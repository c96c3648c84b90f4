"""Metrics: thin wrappers around the nuScenes devkit's own evaluation, IoU of BEV rasters, and how they are reported."""

from bevstack.evaluation.detection_metric import NuScenesDetectionMetric
from bevstack.evaluation.report import print_table, write_metrics
from bevstack.evaluation.segmentation_metric import BEVSegmentationMetric

__all__ = ["BEVSegmentationMetric", "NuScenesDetectionMetric", "print_table", "write_metrics"]
