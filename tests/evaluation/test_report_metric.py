"""What a report gathers of confidences beside boxes and rasters; counted by hand."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.structures import InstanceData

from bevstack.evaluation.report_metric import ReportMetric
from bevstack.structures import BEVDataSample
from bevstack.structures.boxes import lidar_boxes


def answered(token: str, day: float, place: str | None = "day") -> BEVDataSample:
    """A sample whose scene is day with probability ``day``, and three true boxes with attributes of confidence 0.95,
    0.45 and 0.75: right, wrong, and of a box that has none."""
    sample = BEVDataSample(metainfo={"token": token, "scene_name": "s"})
    sample.set_field({"time": {"names": ("day", "night"), "probabilities": torch.tensor([day, 1 - day])}}, "pred_scene")
    sample.set_field({"time": place}, "gt_scene")
    true = ["vehicle.moving", "vehicle.parked", ""]
    sample.gt_instances_3d = InstanceData(
        bboxes_3d=lidar_boxes(torch.ones(3, 9)), labels_3d=torch.zeros(3, dtype=torch.long), attribute_names=true
    )
    sample.pred_on_truth_3d = InstanceData(
        attribute_names=["vehicle.moving", "vehicle.moving", ""], attribute_scores=torch.tensor([0.95, 0.45, 0.75])
    )
    return sample


def test_confidence_of_scenes_and_behaviour() -> None:
    """Expected: day is believed to 0.85 and right, night to 0.65 (of 0.35 for day) and wrong, an unknown truth counts
    nothing; of each sample one attribute at 0.95 is right, one at 0.45 wrong. Dicts of mmengine are read as samples."""
    metric = ReportMetric(classes=("car",))
    samples = [answered("a", 0.85), answered("b", 0.35), answered("c", 0.5, None)]
    metric.process(None, [samples[0], *(sample.to_dict() for sample in samples[1:])])
    metric.evaluate(3)
    found = metric.findings.calibration
    assert set(found) == {"scene time", "behaviour"}
    expected = np.zeros((10, 3))
    expected[8], expected[6] = [1, 0.85, 1], [1, 0.65, 0]
    np.testing.assert_allclose(found["scene time"], expected, atol=1e-6)
    expected = np.zeros((10, 3))
    expected[9], expected[4] = [3, 2.85, 3], [3, 1.35, 0]
    np.testing.assert_allclose(found["behaviour"], expected, atol=1e-5)
