"""The behaviour metric against counts by hand, and mAAE beside that of the default rule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from bevstack.errors import InputError
from bevstack.evaluation import BehaviourMetric, NuScenesDetectionMetric
from bevstack.structures import BEVDataSample
from bevstack.structures.boxes import lidar_boxes
from tests.evaluation.nuscenes_root import SPLIT, VERSION

CLASSES = ("car", "pedestrian", "bicycle", "barrier")
MOVING, STOPPED, PARKED = "vehicle.moving", "vehicle.stopped", "vehicle.parked"
WALKS, STANDS = "pedestrian.moving", "pedestrian.standing"


def instances(rows, predicted=False) -> InstanceData:
    """Of rows (class, x, attribute[, speed]): boxes in a row along x; the earlier the better their score."""
    boxes = torch.tensor([[row[1], 0, 0, 4, 2, 2, 0, row[3] if len(row) > 3 else 0, 0] for row in rows])
    data = InstanceData(
        bboxes_3d=lidar_boxes(boxes.float().reshape(-1, 9)),
        labels_3d=torch.tensor([CLASSES.index(row[0]) for row in rows], dtype=torch.long),
        attribute_names=[row[2] for row in rows],
    )
    if predicted:
        data.scores_3d = torch.linspace(0.9, 0.1, len(rows))
    return data


def sample(truth, predicted, token="t", on_truth=None) -> BEVDataSample:  # noqa: S107
    data = BEVDataSample(metainfo=dict(token=token, classes=CLASSES))
    data.gt_instances_3d, data.pred_instances_3d = instances(truth), instances(predicted, True)
    if on_truth is not None:
        data.pred_on_truth_3d = InstanceData(attribute_names=on_truth)
    return data


def score(*samples, **options) -> dict[str, float]:
    metric = BehaviourMetric(**options)
    metric.process(None, [sample.to_dict() for sample in samples])
    return metric.evaluate(len(samples))


def test_f1_by_hand():
    # Vehicles: true M M P P S, predicted M P P P P. F1 of M = 2/3 (one of two found, none wrong), of P = 2*2/(2*2+2) =
    # 4/6, of S = 0: mean 4/9. People: true w s, predicted w w: 2/3 and 0, mean 1/3, over the two that occur. Overall:
    # the mean over the five that occur.
    truth = [("car", 0, MOVING), ("car", 10, MOVING), ("car", 20, PARKED), ("car", 30, PARKED), ("car", 40, STOPPED)]
    truth += [("pedestrian", 50, WALKS), ("pedestrian", 60, STANDS), ("barrier", 70, "")]
    guesses = [MOVING, PARKED, PARKED, PARKED, PARKED, WALKS, WALKS, ""]
    predicted = [(name, x + 1, guess) for (name, x, _), guess in zip(truth, guesses, strict=True)]
    found = score(sample(truth[:4], predicted[:4]), sample(truth[4:], predicted[4:], "u"))
    assert found["behaviour_f1/vehicle"] == pytest.approx(4 / 9)
    assert found["behaviour_f1/pedestrian"] == pytest.approx(1 / 3)
    assert math.isnan(found["behaviour_f1/cycle"]) and found["behaviour_matched"] == 7
    assert found["behaviour_f1"] == pytest.approx((2 / 3 + 2 / 3 + 0 + 2 / 3 + 0) / 5)
    assert "behaviour_f1_on_truth" not in found


def test_the_default_rule_goes_by_speed():
    # 1 m/s is moving, 0 parked: the rule is right on both cars, the prediction on one: F1 of M 0, of P 2/3.
    found = score(sample([("car", 0, MOVING), ("car", 9, PARKED)], [("car", 0, PARKED, 1.0), ("car", 9, PARKED, 0.0)]))
    assert found["behaviour_f1_default/vehicle"] == found["behaviour_f1_default"] == 1.0
    assert found["behaviour_f1/vehicle"] == pytest.approx((0 + 2 / 3) / 2)


def test_true_boxes_are_scored_where_they_are_predicted():
    truth = [("car", 0, MOVING), ("car", 10, ""), ("bicycle", 20, "cycle.with_rider")]
    found = score(sample(truth, [], on_truth=[MOVING, PARKED, "cycle.without_rider"]))
    assert found["behaviour_f1_on_truth/vehicle"] == 1.0 and found["behaviour_f1_on_truth/cycle"] == 0.0
    assert found["behaviour_f1_on_truth"] == pytest.approx(1 / 3)
    assert math.isnan(found["behaviour_f1"]) and found["behaviour_matched"] == 0


def test_what_is_refused():
    truth = [("car", 0, MOVING)]
    without = sample(truth, truth)
    del without.pred_instances_3d.attribute_names
    with pytest.raises(InputError, match="attribute_names: the model predicts none"):
        score(without)
    with pytest.raises(InputError, match="'pedestrian.moving' is no attribute of a car: vehicle.moving, "):
        score(sample(truth, [("car", 0, WALKS)]))
    with pytest.raises(InputError, match="more than once"):
        score(sample(truth, truth), sample(truth, truth))


def test_the_detection_score_shows_what_attributes_are_worth(root, tables, noisy_boxes, sample_of):
    # Expected: mAAE_default is the mAAE of the same boxes without attributes. With the attribute of the nearest
    # annotation of the class the error falls.
    def attribute(box, token):
        names = {"vehicle.car": "car", "human.pedestrian.adult": "pedestrian", "vehicle.bicycle": "bicycle"}
        records = [tables.get("sample_annotation", t) for t in tables.get("sample", token)["anns"]]
        near = [r for r in records if names.get(r["category_name"]) == box.name and r["attribute_tokens"]]
        if not near:
            return ""
        nearest = min(near, key=lambda r: np.hypot(*(np.array(r["translation"]) - box.center)[:2]))
        return tables.get("attribute", nearest["attribute_tokens"][0])["name"]

    def scored(with_attributes):
        metric = NuScenesDetectionMetric(root, VERSION, SPLIT)
        metric.dataset_meta = {"classes": DETECTION_NAMES}
        samples = []
        for token, boxes in noisy_boxes.items():
            attributes = [attribute(box, token) for box in boxes] if with_attributes else None
            samples.append(sample_of(token, boxes, attributes).to_dict())
        metric.process(None, samples)
        return metric.evaluate(len(samples))

    from nuscenes.eval.detection.constants import DETECTION_NAMES

    plain, better = scored(False), scored(True)
    assert "mAAE_default" not in plain
    assert better["mAAE_default"] == pytest.approx(plain["mAAE"])
    assert better["AAE_default/car"] == pytest.approx(plain["AAE/car"])
    assert better["mAAE"] < better["mAAE_default"] - 0.01
    assert better["mAP"] == plain["mAP"]
