"""AP for any list of classes: the devkit's numbers where both apply, its own classes elsewhere, and what it refuses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.structures import InstanceData
from nuscenes.eval.common.config import config_factory
from nuscenes.eval.detection.constants import DETECTION_NAMES

from bevstack.errors import InputError
from bevstack.evaluation import CenterDistanceMetric, NuScenesDetectionMetric
from bevstack.models.heads import DenseDetectionHead
from bevstack.registry import METRICS
from bevstack.structures import BEVDataSample
from tests.evaluation.nuscenes_root import SPLIT, VERSION
from tests.evaluation.test_detection_metric import score, true_boxes


def instances(boxes, labels, scores=None, points=None) -> InstanceData:
    """Boxes (x, y) of 4 x 2 x 1.5 m heading along +x, with 9 values."""
    from mmdet3d.structures import LiDARInstance3DBoxes

    rows = [[x, y, 0.0, 4.0, 2.0, 1.5, 0.0, 0.0, 0.0] for x, y in boxes]
    tensor = torch.tensor(rows).reshape(-1, 9)
    made = InstanceData(bboxes_3d=LiDARInstance3DBoxes(tensor, box_dim=9), labels_3d=torch.tensor(labels).long())
    if scores is not None:
        made.scores_3d = torch.tensor(scores)
    if points is not None:
        made.num_lidar_pts, made.num_radar_pts = torch.tensor(points), torch.zeros(len(points), dtype=torch.int64)
    return made


def sample(truth: InstanceData, predicted: InstanceData | None, token="t") -> BEVDataSample:
    made = BEVDataSample(metainfo={"token": token})
    made.gt_instances_3d = truth
    if predicted is not None:
        made.pred_instances_3d = predicted
    return made


def test_the_devkits_numbers_on_its_classes(root, tables, noisy_boxes, sample_of):
    # Expected: the nuScenes metric on the same boxes. Its distances are from the ego, about 1 m from the lidar's, so
    # that cars alone are compared: all of them lie well within both ranges.
    samples = []
    for token, boxes in noisy_boxes.items():
        made = sample_of(token, boxes)
        true, _ = true_boxes(tables, token)
        made.gt_instances_3d = sample_of(token, true).pred_instances_3d
        del made.gt_instances_3d.scores_3d
        samples.append(made)
    expected = score(NuScenesDetectionMetric(root, VERSION, SPLIT, classes=DETECTION_NAMES), samples)
    metric = CenterDistanceMetric(DETECTION_NAMES, config_factory("detection_cvpr_2019").class_range)
    found = score(metric, samples)
    for name in ("car",):
        assert found[f"gt/{name}"] == expected[f"gt/{name}"] > 0
        assert 0 < found[f"AP/{name}"] == pytest.approx(expected[f"AP/{name}"], abs=1e-5)
        for error in ("ATE", "ASE", "AOE", "AVE"):
            assert found[f"{error}/{name}"] == pytest.approx(expected[f"{error}/{name}"], abs=1e-5), (name, error)
    assert math.isnan(found["AP/bus"]) and found["gt/bus"] == 0


def test_classes_of_another_list():
    # Closed form: the forklift is found at its place, AP 1; the crane is found 3 m off, a match at 4 m alone, AP 1 / 4;
    # the error counts matches within 2 m, so the crane's is 1.
    metric = METRICS.build(dict(type="CenterDistanceMetric"))
    metric.dataset_meta = {"classes": ("forklift", "crane", "ship")}
    truth = instances([(5, 5), (10, 0)], [0, 1])
    found = score(metric, [sample(truth, instances([(5, 5), (13, 0)], [0, 1], [0.9, 0.8]))])
    assert found["AP/forklift"] == pytest.approx(1.0) and found["AP/crane"] == pytest.approx(0.25)
    assert found["ATE/forklift"] == pytest.approx(0.0) and found["ATE/crane"] == 1.0
    assert math.isnan(found["AP/ship"]) and found["gt/ship"] == 0
    assert found["mAP"] == pytest.approx(0.625) and found["mATE"] == pytest.approx(0.5)


def test_what_is_far_or_was_not_hit_does_not_count():
    # By hand: of three true forklifts one lies beyond 20 m, one was hit by no point; the third one is found.
    truth = instances([(5, 5), (0, 30), (8, 0)], [0, 0, 0], points=[3, 9, 0])
    predicted = instances([(5, 5), (0, 35)], [0, 0], [0.5, 0.9])
    found = score(CenterDistanceMetric(("forklift",), {"forklift": 20.0}), [sample(truth, predicted)])
    assert found["gt/forklift"] == 1 and found["AP/forklift"] == pytest.approx(1.0)
    everything = score(CenterDistanceMetric(("forklift",), 50.0, min_points=0), [sample(truth, predicted)])
    assert everything["gt/forklift"] == 3 and everything["AP/forklift"] < 1


def test_refusals():
    truth, predicted = instances([(5, 5)], [0]), instances([(5, 5)], [0], [0.5])
    metric = CenterDistanceMetric()
    with pytest.raises(InputError, match="neither the metric nor the dataset names them"):
        score(metric, [sample(truth, predicted)])
    with pytest.raises(InputError, match="predicts no boxes"):
        score(CenterDistanceMetric(("forklift",)), [sample(truth, None)])
    with pytest.raises(InputError, match="more than once"):
        score(CenterDistanceMetric(("forklift",)), [sample(truth, predicted)] * 2)


def test_what_does_not_fit_is_refused_before_the_first_prediction():
    metric = CenterDistanceMetric(max_distance_m={"forklift": 40.0})
    with pytest.raises(InputError, match="max_distance_m: says nothing of person"):
        metric.dataset_meta = {"classes": ("forklift", "person")}
    metric = CenterDistanceMetric()
    with pytest.raises(InputError, match="the dataset's 'test' has no annotated box to score by"):
        metric.dataset_meta = {"classes": ("forklift", "person"), "split": "test", "num_annotated": 0}
    metric.dataset_meta = {"classes": ("forklift", "person")}
    grid = {"shape": (8, 8), "x_range_m": (-8.0, 8.0), "y_range_m": (-8.0, 8.0)}
    metric.check_model(SimpleNamespace(heads={"boxes": DenseDetectionHead(4, grid, classes=("forklift", "person"))}))
    with pytest.raises(
        InputError, match="heads.boxes.classes: are person, forklift, but .* reads labels as forklift, p"
    ):
        metric.check_model(
            SimpleNamespace(heads={"boxes": DenseDetectionHead(4, grid, classes=("person", "forklift"))})
        )
