"""Which true objects count and who finds whom: by hand, and against the devkit's own matching."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bevstack.evaluation.true_objects import class_ranges, countable, match_by_distance


def test_who_finds_whom():
    # By hand: the best score takes the nearest object of its class, though the second is nearer to it; 2 m is too far;
    # another class is no match.
    places, true = np.array([[1.0, 0], [0.1, 0], [12.0, 0], [30.0, 0]]), np.array([[0.0, 0], [10.0, 0], [30.0, 0]])
    labels, true_labels, scores = np.array([0, 0, 0, 1]), np.array([0, 0, 0]), np.array([0.9, 0.8, 0.7, 0.95])
    assert match_by_distance(places, labels, scores, true, true_labels, 2.0) == [(0, 0)]
    assert match_by_distance(places, labels, scores, true, true_labels, 2.1) == [(0, 0), (2, 1)]
    assert match_by_distance(places, labels, scores, true[:0], true_labels[:0], 2.0) == []
    assert match_by_distance(places[:0], labels[:0], scores[:0], true, true_labels, 2.0) == []


def test_a_limit_for_each_object():
    # By hand: the nearest object (1 m) allows half a metre only, so the next one (2 m, allows 3 m) is found.
    places, true = np.array([[0.0, 0]]), np.array([[1.0, 0], [-2.0, 0]])
    arguments = (np.array([0]), np.array([0.5]), true, np.array([0, 0]))
    assert match_by_distance(places, *arguments, np.array([0.5, 3.0])) == [(0, 1)]
    assert match_by_distance(places, *arguments, 3.0) == [(0, 0)]


def test_matches_are_the_devkits():
    # Expected: the devkit's accumulate() counts as many matches, on a lattice where distances of exactly 2 m occur.
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.common.utils import center_distance
    from nuscenes.eval.detection.algo import accumulate
    from nuscenes.eval.detection.data_classes import DetectionBox

    rng = np.random.default_rng(0)
    true, places = rng.integers(0, 9, (20, 2)).astype(float), rng.integers(0, 9, (25, 2)).astype(float)
    scores = (1 + rng.permutation(25)) / 25
    pairs = match_by_distance(places, np.zeros(25), scores, true, np.zeros(20), 2.0)

    def boxes(rows, values):
        table = EvalBoxes()
        plain = dict(size=(2, 4, 1.5), rotation=(1, 0, 0, 0), velocity=(0, 0), detection_name="car")
        for row, value in zip(rows, values, strict=True):
            box = DetectionBox("t", translation=(*row, 0.0), detection_score=value, attribute_name="", **plain)
            table.add_boxes("t", [box])
        return table

    devkit = accumulate(boxes(true, [-1.0] * 20), boxes(places, scores.tolist()), "car", center_distance, 2.0)
    assert 10 < len(pairs) < 20
    assert devkit.max_recall == pytest.approx(len(pairs) / 20, abs=0.0101)  # it knows recall to hundredths


def test_what_counts():
    # By the detection benchmark: no class or no lidar or radar point at all: left out. Ranges: nuScenes', then 50 m.
    instances = {"labels_3d": torch.tensor([0, 0, 0, -1])}
    assert countable(instances).tolist() == [True, True, True, False]
    instances["num_lidar_pts"] = torch.tensor([1, 0, 0, 5])
    assert countable(instances).tolist() == [True, False, False, False]
    instances["num_radar_pts"] = torch.tensor([0, 0, 2, 5])
    assert countable(instances).tolist() == [True, False, True, False]
    assert class_ranges(("car", "traffic_cone", "tram"), {"car": 60.0}).tolist() == [60.0, 30.0, 50.0]
