"""The behaviour panel: colours by attribute, a ring around what is wrong."""

from __future__ import annotations

import numpy as np
import torch
from mmengine.structures import InstanceData

from bevstack.registry import VISUALIZERS
from bevstack.structures import BEVDataSample
from bevstack.structures.behaviour import BEHAVIOURS
from bevstack.structures.boxes import lidar_boxes
from bevstack.visualization import BehaviourPainter, BEVWindow
from bevstack.visualization.behaviour import STYLES

WINDOW = BEVWindow((-20, 20), (-20, 20), 400)


def sample(predicted: str, true: str, score: float = 0.9) -> BEVDataSample:
    """A car at (5, 10) and a barrier without attribute."""
    boxes = torch.tensor([[5.0, 10, -1, 5, 3, 1.5, 0, 0, 0], [-5.0, 10, -1, 5, 3, 1.5, 0, 0, 0]])
    data = BEVDataSample(metainfo=dict(classes=("car", "barrier")))
    for field, name in (("pred_instances_3d", predicted), ("gt_instances_3d", true)):
        labels = torch.tensor([0, 1])
        data.set_field(
            InstanceData(bboxes_3d=lidar_boxes(boxes), labels_3d=labels, attribute_names=[name, ""]), field
        )
    data.pred_instances_3d.scores_3d = torch.tensor([score, score])
    return data


def near_the_car(image: np.ndarray) -> np.ndarray:
    u, v = WINDOW.pixels(np.array([5.0, 10.0])).astype(int)
    return image[v - 12 : v + 13, u - 12 : u + 13].astype(float)


def test_an_attribute_colours_its_box():
    # Expected: more green than in the picture of nothing where the moving car is, grey where it is parked; nothing at
    # the barrier, and nothing for a box of a low score.
    painter = VISUALIZERS.build(dict(type="BehaviourPainter"))
    nothing = painter.paint(sample("vehicle.moving", "vehicle.moving", score=0.1), WINDOW)
    moving = painter.paint(sample("vehicle.moving", "vehicle.moving"), WINDOW)
    assert moving.shape == (400, 400, 3) and moving.dtype == np.uint8
    middle = near_the_car(moving).mean((0, 1))
    assert middle[1] > middle[0] + 20 and near_the_car(nothing).std() < near_the_car(moving).std()
    u, v = WINDOW.pixels(np.array([-5.0, 10.0])).astype(int)
    assert np.array_equal(moving[v - 12 : v + 13, u - 12 : u + 13], nothing[v - 12 : v + 13, u - 12 : u + 13])


def test_what_is_wrong_is_ringed_and_the_truth_has_its_own_panel():
    right = BehaviourPainter().paint(sample("vehicle.parked", "vehicle.parked"), WINDOW)
    wrong = BehaviourPainter().paint(sample("vehicle.parked", "vehicle.moving"), WINDOW)
    changed = np.argwhere((right != wrong).any(-1))
    assert len(changed) and (np.abs(changed[:, ::-1] - WINDOW.pixels(np.array([5.0, 10.0]))) < 15).all()
    truth = near_the_car(BehaviourPainter(truth=True).paint(sample("vehicle.parked", "vehicle.moving"), WINDOW))
    assert truth.mean((0, 1))[1] > truth.mean((0, 1))[0] + 20


def test_without_attributes_there_is_no_panel():
    bare = sample("vehicle.parked", "vehicle.parked")
    assert BehaviourPainter().draws(bare)
    del bare.pred_instances_3d.attribute_names
    assert not BehaviourPainter().draws(bare) and not BehaviourPainter().draws(BEVDataSample())
    assert BehaviourPainter(truth=True).draws(bare)


def test_every_attribute_has_its_own_look():
    assert set(STYLES) == set(BEHAVIOURS)
    assert len({style.letter for style in STYLES.values()}) == len({style.color for style in STYLES.values()}) == 8
