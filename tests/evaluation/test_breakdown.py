"""Scores taken apart: every number of these small runs is worked out by hand, AP also against the devkit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from bevstack.evaluation import breakdown
from bevstack.evaluation.detection_table import DetectionTable, detection_record
from bevstack.structures import BEVDataSample
from bevstack.structures.boxes import lidar_boxes

CLASSES = ("car", "pedestrian")


def instances(rows, **more):
    """Rows (label, x, y[, speed]) as boxes of 4 x 2 x 1.5 m."""
    table = torch.tensor([[row[1], row[2], -1, 4, 2, 1.5, 0, 0, row[3] if len(row) > 3 else 0] for row in rows])
    labels = torch.tensor([row[0] for row in rows]).long()
    return InstanceData(bboxes_3d=lidar_boxes(table.reshape(-1, 9).float()), labels_3d=labels, **more)


def sample(predicted, scores, true, token="t", scene="s", visibility=None):
    made = BEVDataSample(metainfo={"token": token, "scene_name": scene})
    made.pred_instances_3d = instances(predicted, scores_3d=torch.tensor(scores, dtype=torch.float64))
    made.gt_instances_3d = instances(true)
    if visibility is not None:
        made.gt_instances_3d.visibility = torch.tensor(visibility)
    return made


def table_of(*samples):
    return DetectionTable.of_records([detection_record(one, CLASSES) for one in samples], CLASSES)


OBJECTS = [(0, 5, 5), (0, -15, 0), (0, 25, 0), (1, 8, 0), (1, -8, 0), (0, 0, -35)]


def moved(by):
    return [(label, x + by, y) for label, x, y in OBJECTS]


def all_of(table):
    return breakdown.by_class(table, 0.3)[-1]


def test_perfect_predictions():
    # Expected: everything found, nothing wrong, no distance.
    line = all_of(table_of(sample(OBJECTS, [0.9] * 6, OBJECTS)))
    assert (line.objects, line.recall, line.precision, line.ap, line.off_m) == pytest.approx((6, 1, 1, 1, 0))


@pytest.mark.parametrize(("by", "ap"), [(0.4, 1.0), (0.7, 0.75), (1.5, 0.5), (3.0, 0.25), (4.5, 0.0)])
def test_predictions_shifted_by_a_known_distance(by, ap):
    # Expected: at each of 0.5, 1, 2, 4 m either all are found (AP 1) or none is (AP 0); recall and distance at 2 m.
    line = all_of(table_of(sample(moved(by), [0.9] * 6, OBJECTS)))
    assert line.ap == pytest.approx(ap)
    assert line.recall == line.precision == (by < 2)
    assert line.off_m == pytest.approx(by, abs=1e-6) if by < 2 else math.isnan(line.off_m)


def test_half_of_the_objects_missing():
    # Expected: precision 1 up to recall 0.5 (recalls 0.11 to 0.50 of 0.11 to 1.00 count): 40 / 90 for both classes.
    kept = [OBJECTS[0], OBJECTS[1], OBJECTS[3]]
    line = all_of(table_of(sample(kept, [0.9] * 3, OBJECTS)))
    assert (line.recall, line.precision) == (0.5, 1)
    assert line.ap == pytest.approx(40 / 90)


def test_average_precision_is_the_devkits():
    # Expected: calc_ap of the devkit on curves of random runs.
    from nuscenes.eval.detection.algo import calc_ap
    from nuscenes.eval.detection.data_classes import DetectionMetricData

    rng = np.random.default_rng(0)
    for objects in (15, 40):
        scores, hits = rng.random(60), rng.random(60) < objects / 60
        objects = max(objects, int(hits.sum()))
        order = np.argsort(-scores)
        found = np.cumsum(hits[order])
        curve = np.interp(np.linspace(0, 1, 101), found / objects, found / np.arange(1, 61), right=0)
        rest = {name: np.zeros(101) for name in ("trans_err", "vel_err", "scale_err", "orient_err", "attr_err")}
        data = DetectionMetricData(recall=np.linspace(0, 1, 101), precision=curve, confidence=np.ones(101), **rest)
        own = breakdown.average_precision(breakdown.precision_curve(scores, hits, objects))
        assert own == pytest.approx(calc_ap(data, 0.1, 0.1)) and 0 < own < 1


def test_weights_are_repetitions():
    # Expected: a prediction of weight 2 counts as the same one twice, one of weight 0 as none.
    scores, hits = np.array([0.9, 0.7, 0.5, 0.3]), np.array([True, False, True, True])
    weights = np.array([2, 1, 0, 3])
    weighted = breakdown.precision_curve(scores, hits, 6.0, weights)
    repeated = breakdown.precision_curve(np.repeat(scores, weights), np.repeat(hits, weights), 6.0)
    np.testing.assert_array_equal(weighted, repeated)


def test_groups_of_distance_speed_visibility_and_scene():
    # Expected, by hand: an object at 9 m is found by a box that says 10.5 m: it counts at 9 m. A false alarm
    # counts where it says. At night nothing is found.
    day = sample([(0, 10.5, 0), (0, 0, 12)], [0.9, 0.8], [(0, 9, 0, 3), (0, 0, -25)], "a", "noon", visibility=[4, 1])
    night = sample([], [], [(1, 5, 0)], "b", "late", visibility=[4])
    table = table_of(day, night)
    lines = breakdown.by_range(table, "distance_m", (0, 10, 20, 30), "m", 0.3)
    assert [(line.name, line.objects) for line in lines] == [("0 to 10 m", 2), ("10 to 20 m", 0), ("20 to 30 m", 1)]
    assert [line.recall for line in lines] == [0.5, pytest.approx(math.nan, nan_ok=True), 0]
    assert [line.precision for line in lines[:2]] == [1, 0] and math.isnan(lines[2].precision)
    assert lines[0].off_m == pytest.approx(1.5)
    fast = breakdown.by_range(table, "speed", (0, 1, math.inf), "m/s", 0.3)
    assert [(line.name, line.objects, line.recall) for line in fast] == [("0 to 1 m/s", 2, 0), ("from 1 m/s", 1, 1)]
    seen = breakdown.by_visibility(table, 0.3)
    assert [(line.name, line.objects, line.recall) for line in seen] == [("0 to 40 %", 1, 0), ("80 to 100 %", 2, 0.5)]
    assert all(math.isnan(line.precision) for line in seen)
    kinds = {"noon": breakdown.conditions_of("Bus")[0], "late": breakdown.conditions_of("Night, rain")[0]}
    assert [(g.name, g.objects, g.recall) for g in breakdown.by_scene(table, kinds, 0.3)] == [
        ("day", 2, 0.5),
        ("night", 1, 0),
    ]
    assert breakdown.conditions_of("Night, rain") == ("night", "rain")
    assert breakdown.conditions_of("") == ("unknown", "unknown")


def test_what_objects_were_taken_for():
    # Expected, by hand: one car found; a car taken for a pedestrian by the better of two boxes on it, the other is a
    # false alarm; a pedestrian missed since its box scores 0.2; a car out of nothing.
    true = [(0, 5, 0), (0, 15, 0), (1, -10, 0)]
    predicted = [(0, 5, 0), (1, 15, 0.5), (1, 15, 0), (1, -10, 0), (0, 0, 20)]
    table = table_of(sample(predicted, [0.9, 0.8, 0.7, 0.2, 0.6], true))
    np.testing.assert_array_equal(breakdown.confusions(table, 0.3), [[1, 1, 0], [0, 0, 1], [1, 1, 0]])
    # Worst: the two boxes beside the car (0.8, 0.7), the one out of nothing (0.6), misses at 15 m and 10 m.
    expected = 0.8 + 0.7 + 0.6 + (1 - 15 / 60) + (1 - 10 / 60)
    assert breakdown.sample_errors(table, 0.3) == pytest.approx([expected])


def test_calibration_error():
    # Expected: 10 answers of 0.95, of which 9 are right, and 10 of 0.15, of which 5 are: (10 x .05 + 10 x .35) / 20.
    confidence = np.repeat([0.95, 0.15], 10)
    right = np.arange(20) % 10 < np.repeat([9, 5], 10)
    counts = breakdown.calibration_counts(confidence, right)
    assert breakdown.expected_calibration_error(counts) == pytest.approx(0.2)
    np.testing.assert_allclose(counts[[1, 9]], [[10, 1.5, 5], [10, 9.5, 9]])
    assert breakdown.calibration_counts(np.array([1.0]), np.array([True]))[9, 0] == 1  # 1 belongs to the last tenth
    assert math.isnan(breakdown.expected_calibration_error(np.zeros((10, 3))))


def test_a_table_comes_back_as_it_was_written(tmp_path):
    table = table_of(sample(OBJECTS, [0.9] * 6, OBJECTS, "a", "one"), sample([], [], [(1, 5, 0)], "b", "two"))
    table.save(tmp_path / "t.npz")
    again = DetectionTable.load(tmp_path / "t.npz")
    assert again.classes == CLASSES and again.tokens.tolist() == ["a", "b"] and again.hit.dtype == bool
    np.testing.assert_array_equal(again.found_score, table.found_score)
    assert again.true_sample.tolist() == [0] * 6 + [1]
