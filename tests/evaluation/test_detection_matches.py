"""Which prediction found which true box: pairs, distances and what counts, worked out by hand."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.structures import InstanceData

from bevstack.evaluation.detection_matches import detection_matches
from bevstack.structures import BEVDataSample
from bevstack.structures.boxes import lidar_boxes

CLASSES = ("car", "pedestrian")


def instances(rows, scores=None, **more):
    """Rows (label, x, y) as boxes of 4 x 2 x 1.5 m."""
    table = torch.tensor([[x, y, -1, 4, 2, 1.5, 0, 0, 0] for _, x, y in rows]).reshape(-1, 9)
    found = InstanceData(bboxes_3d=lidar_boxes(table), labels_3d=torch.tensor([row[0] for row in rows]).long(), **more)
    if scores is not None:
        found.scores_3d = torch.tensor(scores)
    return found


def sample(predicted, true):
    made = BEVDataSample(metainfo={"classes": CLASSES})
    made.pred_instances_3d, made.gt_instances_3d = predicted, true
    return made


def test_each_takes_the_nearest_free_box_of_its_class_by_falling_score():
    # Expected, by hand: row 1 (0.9) takes the car 0.5 m off; row 0 (0.8) is nearer to it (0.3 m), but it is taken, and
    # the other car 1.7 m off is free; the pedestrian at a car's place finds none; row 3 is 2 m off, not nearer.
    true = instances([(0, 0, 10), (0, 2, 10), (1, 20, 0)])
    predicted = instances([(0, 0.3, 10), (0, 0, 10.5), (1, 2, 10), (1, 20, 2)], [0.8, 0.9, 0.7, 0.6])
    matches = detection_matches(sample(predicted, true), CLASSES)
    np.testing.assert_array_equal(matches.true_row, [1, 0, -1, -1])
    np.testing.assert_allclose(matches.distance_m, [1.7, 0.5, np.nan, np.nan], atol=1e-5)
    assert matches.counted.all() and matches.counted_truth.all()


def test_what_does_not_count_finds_nothing_and_is_not_found():
    # Expected: nuScenes counts cars to 50 m and pedestrians to 40 m; a label of -1 has no class; without a lidar or
    # radar point an object does not count; so the two predictions that lie right on such objects find nothing.
    true = instances(
        [(1, 0, 41), (0, 0, 41), (-1, 0, 5), (0, 9, 0)],
        num_lidar_pts=torch.tensor([5, 5, 5, 0]),
        num_radar_pts=torch.tensor([0, 0, 0, 0]),
    )
    predicted = instances([(1, 0, 41), (0, 0, 41), (0, 9, 0)], [0.9, 0.9, 0.9])
    matches = detection_matches(sample(predicted, true), CLASSES)
    assert matches.counted_truth.tolist() == [False, True, False, False]
    assert matches.counted.tolist() == [False, True, True]
    assert matches.true_row.tolist() == [-1, 1, -1]


def test_without_truth_there_is_nothing_to_say():
    only = BEVDataSample(metainfo={"classes": CLASSES})
    only.pred_instances_3d = instances([(0, 0, 5)], [0.9])
    assert detection_matches(only, CLASSES) is None


def test_no_boxes_at_all():
    matches = detection_matches(sample(instances([], []), instances([])), CLASSES)
    assert len(matches.true_row) == len(matches.counted_truth) == 0
