"""Boxes from the BEV frame to the global one, default attributes, and submission files."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from pyquaternion import Quaternion

from bevstack.evaluation.submission import (
    ATTRIBUTES,
    DETECTION_CLASSES,
    default_attribute,
    submitted_boxes,
    write_submission,
)
from bevstack.geometry.boxes3d import oriented_boxes
from bevstack.structures.poses import boxes_in_global, global_from_augmented

TILTED = Quaternion(axis=[0.1, -0.05, 1.0], angle=2.0).transformation_matrix
TILTED[:3, 3] = [600.0, 1600.0, 2.0]
BOXES = np.array(
    [
        [10.0, 20.0, -1.0, 4.5, 1.9, 1.6, 0.3, 3.0, -1.0],
        [-7.0, 5.0, -1.5, 0.6, 0.7, 1.8, -2.8, 0.0, 0.1],
        [0.0, -30.0, 0.0, 11.0, 2.9, 3.4, 3.1, -8.0, 2.0],
    ]
)
SCORES, NAMES = np.array([0.9, 0.4, 0.2]), ("car", "pedestrian", "bus")


def global_boxes(token, boxes, scores, names, global_from_bev, augmented_from_bev=None):
    """The way of a sample's boxes into a submission."""
    sample = {"token": token, "global_from_bev": global_from_bev, "augmented_from_bev": augmented_from_bev}
    moved = oriented_boxes(global_from_augmented(sample), torch.from_numpy(boxes))  # mmdet3d's boxes are float32
    return submitted_boxes(token, moved, scores, names)


def test_box_lies_where_its_matrix_puts_it():
    # Expected, closed form: the gravity centre through the matrix, the box's own x axis as the length axis, the
    # velocity through the rotation; size as width, length, height.
    answer = global_boxes("t", BOXES, SCORES, NAMES, TILTED)
    for row, (x, y, z, length, width, height, yaw, vx, vy) in enumerate(BOXES):
        center = TILTED @ [x, y, z + height / 2, 1]
        np.testing.assert_allclose(answer.translation[row], center[:3], atol=1e-9)
        np.testing.assert_allclose(answer.size_wlh[row], [width, length, height])
        axis = TILTED[:3, :3] @ [math.cos(yaw), math.sin(yaw), 0]
        np.testing.assert_allclose(Quaternion(answer.rotation[row]).rotate([1, 0, 0]), axis, atol=1e-9)
        np.testing.assert_allclose(answer.velocity[row], (TILTED[:3, :3] @ [vx, vy, 0])[:2], atol=1e-9)


@pytest.mark.parametrize("flip", [np.diag([1.0, 1.0, 1.0]), np.diag([-1.0, 1.0, 1.0]), np.diag([1.0, -1.0, 1.0])])
def test_augmentation_is_undone(flip):
    # Expected: the answer of the same boxes before they were turned by 0.4, scaled by 1.1, flipped and moved.
    augmented_from_bev = np.eye(4)
    augmented_from_bev[:3, :3] = flip @ Quaternion(axis=[0, 0, 1], angle=0.4).rotation_matrix * 1.1
    augmented_from_bev[:3, 3] = [0.5, -0.2, 0.1]
    augmented = BOXES.copy()
    linear = augmented_from_bev[:2, :2]
    augmented[:, :2] = BOXES[:, :2] @ linear.T + [0.5, -0.2]
    augmented[:, 2] = BOXES[:, 2] * 1.1 + 0.1
    augmented[:, 3:6] *= 1.1
    heading = np.stack([np.cos(BOXES[:, 6]), np.sin(BOXES[:, 6])], -1) @ linear.T
    augmented[:, 6] = np.arctan2(heading[:, 1], heading[:, 0])
    augmented[:, 7:] = BOXES[:, 7:] @ linear.T
    expected = global_boxes("t", BOXES, SCORES, NAMES, TILTED)
    answer = global_boxes("t", augmented, SCORES, NAMES, TILTED, augmented_from_bev)
    for field in ("translation", "size_wlh", "velocity"):
        np.testing.assert_allclose(getattr(answer, field), getattr(expected, field), atol=1e-9)
    for turned, straight in zip(answer.rotation, expected.rotation, strict=True):
        assert Quaternion.absolute_distance(Quaternion(turned), Quaternion(straight)) < 1e-9
    assert answer.attributes == expected.attributes == ("vehicle.moving", "pedestrian.standing", "vehicle.moving")


def test_boxes_without_velocity_stand_still():
    # Expected: what a head that predicts no velocity can say; a number that is not finite would be refused.
    boxes = LiDARInstance3DBoxes(torch.from_numpy(BOXES[:, :7]), box_dim=7)
    moved = boxes_in_global({"global_from_bev": TILTED}, boxes)
    assert moved.velocities.isnan().all()
    answer = submitted_boxes("t", moved, SCORES, NAMES, with_velocity=False)
    assert (answer.velocity == 0).all() and answer.attributes[0] == "vehicle.parked"


@pytest.mark.parametrize(
    ("name", "at_rest", "moving"),
    [
        ("car", "vehicle.parked", "vehicle.moving"),
        ("truck", "vehicle.parked", "vehicle.moving"),
        ("trailer", "vehicle.parked", "vehicle.moving"),
        ("construction_vehicle", "vehicle.parked", "vehicle.moving"),
        ("bus", "vehicle.stopped", "vehicle.moving"),
        ("pedestrian", "pedestrian.standing", "pedestrian.moving"),
        ("bicycle", "cycle.without_rider", "cycle.with_rider"),
        ("motorcycle", "cycle.without_rider", "cycle.with_rider"),
        ("barrier", "", ""),
        ("traffic_cone", "", ""),
    ],
)
def test_default_attributes(name, at_rest, moving):
    # Expected: the rule that public nuScenes detectors use, with 0.2 m/s as the limit.
    assert (default_attribute(name, 0.2), default_attribute(name, 0.21)) == (at_rest, moving)


def test_names_are_the_devkits():
    from nuscenes.eval.detection import constants

    assert sorted(DETECTION_CLASSES) == sorted(constants.DETECTION_NAMES)
    assert sorted(ATTRIBUTES) == sorted(constants.ATTRIBUTE_NAMES)


def test_a_written_file_holds_the_boxes(tmp_path):
    # Expected: what the devkit reads of it, value by value.
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.data_classes import DetectionBox

    written = global_boxes("t", BOXES, SCORES, NAMES, TILTED)
    empty = global_boxes("u", np.zeros((0, 9)), np.zeros(0), (), TILTED)
    write_submission(tmp_path / "r.json", {"t": written, "u": empty}, {"use_camera": True})
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["meta"] == {"use_camera": True} and list(content["results"]) == ["t", "u"]
    read = EvalBoxes.deserialize(content["results"], DetectionBox)
    for field, name in (("translation", "translation"), ("size", "size_wlh"), ("rotation", "rotation")):
        np.testing.assert_array_equal([getattr(box, field) for box in read["t"]], getattr(written, name))
    np.testing.assert_array_equal([box.velocity for box in read["t"]], written.velocity)
    assert [box.detection_score for box in read["t"]] == SCORES.tolist() and read["u"] == []
    named = [(box.detection_name, box.attribute_name) for box in read["t"]]
    assert named == list(zip(NAMES, written.attributes, strict=True))
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
