"""OKS-AP and PCK by hand, against pycocotools' own similarity, and what the metric leaves out and refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bevstack.errors import InputError
from bevstack.evaluation import KeypointMetric
from bevstack.evaluation.keypoint_metric import SIGMAS, object_keypoint_similarity
from bevstack.geometry.boxes3d import transform_boxes
from bevstack.geometry.keypoints import box_poses, pose_keypoints
from bevstack.registry import METRICS

CLASSES = ("car", "barrier", "traffic_cone")


class Boxes:
    """Stands for LiDARInstance3DBoxes, of which the metric reads only the tensor."""

    def __init__(self, rows):
        self.tensor = torch.tensor(rows).reshape(-1, 9)


def box(x, y, yaw=0.0, length=4.0, width=2.0):
    return [x, y, -1.0, length, width, 1.5, yaw, 0.0, 0.0]


def sample_of(truth, found, labels=None, found_labels=None, scores=None, token="t", points=None):  # noqa: S107
    """True boxes and found ones, whose keypoints are predicted."""
    labels, found_labels = labels or [0] * len(truth), found_labels or [0] * len(found)
    instances = {"bboxes_3d": Boxes(truth), "labels_3d": torch.tensor(labels).long()}
    if points is not None:
        instances["num_lidar_pts"], instances["num_radar_pts"] = (torch.tensor(column) for column in points)
    poses = box_poses(Boxes(found).tensor)
    scores = scores or [1 - 0.1 * n for n in range(len(found))]
    predicted = {
        "keypoints": pose_keypoints(poses),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(found_labels).long(),
    }
    return {"token": token, "gt_instances_3d": instances, "pred_keypoints": predicted}


def evaluate(samples, **options):
    metric = KeypointMetric(**{"classes": CLASSES, **options})
    metric.process(None, samples)
    return metric.evaluate(len(samples))


def test_a_perfect_answer():
    metrics = evaluate([sample_of([box(5, 10, 0.3), box(-20, 3)], [box(5, 10, 0.3), box(-20, 3)])])
    for key in ("keypoint_AP", "keypoint_AP50", "keypoint_AP75", "keypoint_AP/car", "keypoint_AP50/car",
                "PCK@0.5m", "PCK@1m", "PCK@1m/car", "keypoint_matched"):  # fmt: skip
        assert metrics[key] == pytest.approx(1.0), key
    assert metrics["keypoint_gt/car"] == 2 and metrics["keypoint_gt/barrier"] == 0
    assert math.isnan(metrics["keypoint_AP/barrier"]) and math.isnan(metrics["PCK@1m/barrier"])


def test_a_car_that_is_half_a_metre_off():
    # By hand: 4 x 2 m, all keypoints 0.5 m away: OKS = exp(-.25 / (2 * 8 * .2^2)) = exp(-.390625) = .6766, so right
    # at 4 of the 10 thresholds.
    metrics = evaluate([sample_of([box(5, 10, 0.7)], [box(5.3, 10.4, 0.7)])])
    assert metrics["keypoint_AP"] == pytest.approx(0.4)
    assert metrics["keypoint_AP50"] == pytest.approx(1.0) and metrics["keypoint_AP75"] == 0.0
    assert metrics["PCK@1m"] == 1.0
    # 0.7 m: OKS = exp(-.49 / .64) = .465 is below them all; PCK sees the difference between 0.5 m and 1 m.
    metrics = evaluate([sample_of([box(5, 10, 0.7)], [box(5.7, 10, 0.7)])])
    assert metrics["keypoint_AP"] == 0.0 and metrics["PCK@0.5m"] == 0.0 and metrics["PCK@1m"] == 1.0


def test_a_car_turned_around():
    # By hand: the centre is right, the other keypoints are 4 m off and more: OKS = (1 + 5 e) / 6, e < exp(-16 / .64),
    # below .5; PCK 1/6 at both distances.
    metrics = evaluate([sample_of([box(5, 10)], [box(5, 10, math.pi)])])
    assert metrics["keypoint_AP"] == 0.0 and metrics["keypoint_matched"] == 1.0
    assert metrics["PCK@0.5m"] == metrics["PCK@1m"] == pytest.approx(1 / 6)


def test_what_looks_the_same_from_two_or_four_sides():
    # Expected: a barrier has no front, a cone not even a length axis; a quarter turn of a barrier is wrong.
    barrier, cone = box(5, 10, 0.2, 0.5, 2.5), box(-5, 10, 0.2, 0.4, 0.4)
    for turns in range(4):
        angle = 0.2 + turns * math.pi / 2
        found = [box(5, 10, angle, 0.5, 2.5), box(-5, 10, angle, 0.4, 0.4)]
        metrics = evaluate([sample_of([barrier, cone], found, [1, 2], [1, 2])])
        assert metrics["keypoint_AP/traffic_cone"] == pytest.approx(1.0, abs=1e-6)
        assert metrics["PCK@0.5m/traffic_cone"] == 1.0
        assert metrics["keypoint_AP/barrier"] == pytest.approx(1.0 if turns % 2 == 0 else 0.0, abs=1e-6)


def test_one_of_two_is_found():
    # By COCO's definition: precision is 1 up to recall .5, which are 51 of the 101 recalls; PCK is of the found one.
    metrics = evaluate([sample_of([box(5, 10), box(-20, 3)], [box(5, 10)])])
    assert metrics["keypoint_AP"] == pytest.approx(51 / 101)
    assert metrics["PCK@0.5m"] == 1.0 and metrics["keypoint_matched"] == 0.5


def test_false_poses_cost_by_their_score():
    # By hand: before the right one, a false pose halves the precision everywhere; after it, it costs nothing.
    # A second pose on the same car is false, too.
    for scores, expected in (((0.5, 0.9), 0.5), ((0.9, 0.5), 1.0)):
        metrics = evaluate([sample_of([box(5, 10)], [box(5, 10), box(-20, 3)], scores=scores)])
        assert metrics["keypoint_AP"] == pytest.approx(expected)
    metrics = evaluate([sample_of([box(5, 10), box(20, 3)], [box(5, 10), box(5, 10), box(20, 3)])])
    # scores 1, .9, .8: precision 1, 1/2, 2/3; interpolated 1 for the 51 recalls up to .5, 2/3 for the 50 above
    assert metrics["keypoint_AP"] == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_classes_do_not_mix_and_weigh_the_same():
    # Expected: a car's pose called a barrier is a miss and a false one; the mean is over the two classes with truth.
    truth = [box(5, 10), box(-5, 10), box(15, 10, 0.0, 0.5, 2.5)]
    metrics = evaluate([sample_of(truth, [*truth[:2], truth[2]], [0, 0, 1], [0, 0, 0])])
    assert metrics["keypoint_AP/car"] == pytest.approx(1.0) and metrics["keypoint_AP/barrier"] == 0.0
    assert metrics["keypoint_AP"] == pytest.approx(0.5)
    assert metrics["keypoint_matched"] == pytest.approx(0.5) and math.isnan(metrics["PCK@1m/barrier"])
    assert metrics["PCK@1m"] == 1.0


def test_matches_are_within_two_metres_and_one_to_one():
    # By hand: the first pose takes the nearest car (1 m); the second one (0.5 m from the same car) gets the other, 1.5
    # m away; a pose 2.1 m away gets none.
    truth = [box(0, 10), box(2, 10)]
    metrics = evaluate([sample_of(truth, [box(-1, 10), box(0.5, 10)])])
    assert metrics["keypoint_matched"] == 1.0 and metrics["PCK@1m"] == pytest.approx(0.5)
    metrics = evaluate([sample_of([box(0, 10)], [box(2.1, 10)])])
    assert metrics["keypoint_matched"] == 0.0 and math.isnan(metrics["PCK@1m"])


def test_objects_that_do_not_count():
    # Expected: cars without a lidar or radar point, cars at 50 m or beyond (cones at 30 m) and labels below zero are
    # left out; poses out there are not held against the model.
    truth = [box(5, 10), box(-5, 10), box(15, 10), box(0, 50.5), box(0, 31, 0.0, 0.4, 0.4), box(9, 9)]
    points = ([3, 0, 0, 9, 9, 9], [0, 0, 1, 0, 0, 0])
    labels = [0, 0, 0, 0, 2, -1]
    found = [box(0, 50.5), box(0, 31, 0.0, 0.4, 0.4), box(5, 10), box(15, 10)]
    metrics = evaluate([sample_of(truth, found, labels, [0, 2, 0, 0], points=points)])
    assert metrics["keypoint_gt/car"] == 2 and metrics["keypoint_gt/traffic_cone"] == 0
    assert metrics["keypoint_AP"] == pytest.approx(1.0)
    metrics = evaluate([sample_of(truth, found, labels, [0, 2, 0, 0], points=points)], range_m={"car": 60.0})
    assert metrics["keypoint_gt/car"] == 3


def test_similarity_is_cocos():
    # Expected: pycocotools' computeOks on the same points, areas and sigmas.
    from pycocotools.cocoeval import COCOeval

    rng = np.random.default_rng(0)
    true, found = rng.normal(size=(4, 6, 2)), rng.normal(size=(3, 6, 2))
    areas, sigmas = rng.uniform(1, 20, 4), rng.uniform(0.05, 0.2, 6)
    evaluation = COCOeval(iouType="keypoints")
    evaluation.params.kpt_oks_sigmas = sigmas
    seen = np.full((6, 1), 2)
    evaluation._gts[0, 0] = [
        {"keypoints": np.hstack([points, seen]).ravel(), "bbox": [0, 0, 1, 1], "area": area}
        for points, area in zip(true, areas, strict=True)
    ]
    evaluation._dts[0, 0] = [
        {"keypoints": np.hstack([points, seen]).ravel(), "score": 1 - 0.1 * n} for n, points in enumerate(found)
    ]
    ours = object_keypoint_similarity(found, [points[None] for points in true], areas, sigmas)
    np.testing.assert_allclose(ours, evaluation.computeOks(0, 0), rtol=1e-9)


def test_order_and_splits_do_not_matter():
    generator = torch.Generator().manual_seed(0)
    samples = []
    for index in range(5):
        truth = [box(*(torch.rand(3, generator=generator) * 40 - 20).tolist()) for _ in range(6)]
        found = [[value + 0.3 * n for n, value in enumerate(row)] for row in truth[:4]]
        samples.append(sample_of(truth, found, token=f"s{index}", scores=[0.5, 0.5, 0.7, 0.5]))
    np.testing.assert_equal(evaluate(samples), evaluate(samples[::-1]))


def test_augmentation_changes_nothing():
    # Expected: poses and boxes in a mirrored, turned and scaled BEV frame score what they score in the plain one.
    from bevstack.datasets.transforms.bev_augmentation import bev_similarity

    truth, found = [box(5, 10, 0.3), box(-20, 3), box(0, 49)], [box(5.2, 10, 0.4), box(-20.5, 3.6), box(0, 49)]
    matrix = bev_similarity(0.4, 1.1, True, False)
    moved = [transform_boxes(torch.from_numpy(matrix), torch.tensor(rows)).tolist() for rows in (truth, found)]
    augmented = {**sample_of(*moved), "augmented_from_bev": matrix}
    plain, changed = evaluate([sample_of(truth, found)]), evaluate([augmented])
    assert 0.1 < plain["keypoint_AP"] < 0.9
    for key, value in plain.items():
        assert changed[key] == pytest.approx(value, nan_ok=True, abs=1e-6), key


def test_nothing_there():
    # Expected: no poses is AP 0; no objects is NaN; both are scored without complaint.
    metrics = evaluate([sample_of([box(5, 10)], [])])
    assert metrics["keypoint_AP"] == 0.0 and metrics["keypoint_matched"] == 0.0
    metrics = evaluate([sample_of([], [box(5, 10)])])
    assert math.isnan(metrics["keypoint_AP"]) and metrics["keypoint_gt/car"] == 0


def test_what_is_refused():
    sample = sample_of([box(5, 10)], [box(5, 10)])
    with pytest.raises(InputError, match="pred_keypoints: sample t has none: add a KeypointHead"):
        evaluate([{key: value for key, value in sample.items() if key != "pred_keypoints"}])
    with pytest.raises(InputError, match="t: sample is there more than once"):
        evaluate([sample, sample])
    with pytest.raises(InputError, match="no sample was scored"):
        evaluate([])
    with pytest.raises(InputError, match="sigmas: must be 6 positive numbers"):
        KeypointMetric(CLASSES, sigmas=SIGMAS[:5])
    with pytest.raises(InputError, match="has label 3, but there are 3 classes"):
        evaluate([sample_of([box(5, 10)], [box(5, 10)], found_labels=[3])])
    sample["pred_keypoints"]["keypoints"][0, 0, 0] = math.nan
    with pytest.raises(InputError, match="not finite"):
        evaluate([sample])
    with pytest.raises(InputError, match="classes: neither the metric nor the dataset names them"):
        evaluate([sample], classes=None)


def test_registered():
    assert METRICS.get("KeypointMetric") is KeypointMetric
