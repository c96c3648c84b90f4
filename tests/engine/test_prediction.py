"""Typed answers: what a sample holds, named, on the host, and as plain values."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from bevstack import BEVPrediction
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.geometry.keypoints import KEYPOINT_NAMES
from bevstack.structures import BEVDataSample, BEVRaster, PanopticMap
from bevstack.structures.boxes import lidar_boxes
from tests.engine.front_door import pose

GRID = BEVGrid(shape=(2, 3), x_range_m=(0, 3), y_range_m=(0, 2))
BOXES = [[1, 2, -1, 4, 2, 1.5, 0.5, 3, 4], [5, 6, -1, 1, 1, 2, 0, 0.01, 0]]
INTRINSICS = np.array([[[100.0, 0, 50], [0, 100, 40], [0, 0, 1]]] * 2)


def full_sample() -> BEVDataSample:
    """One of everything that heads say."""
    sample = BEVDataSample(metainfo=dict(classes=("car", "pedestrian"), camera_names=["LEFT", "RIGHT"]))
    sample.set_metainfo(dict(image_size_px=np.array([[80, 100], [0, 0]]), given_pixels_from_camera=INTRINSICS))
    sample.pred_instances_3d = InstanceData(
        bboxes_3d=lidar_boxes(torch.tensor(BOXES)),
        scores_3d=torch.tensor([0.75, 0.25]),
        labels_3d=torch.tensor([0, 1]),
        attribute_names=["vehicle.stopped", ""],
        track_ids=torch.tensor([7, -1]),
    )
    layers = torch.tensor([[[0.1, 0.2, 0.3], [0.4, 0.5, 0.6]]], dtype=torch.bfloat16)
    sample.pred_rasters = {"map": BEVRaster(layers, ("road",), GRID)}
    segments = torch.tensor([[0, 0, -1], [1, 1, 1]])
    sample.pred_panoptic = PanopticMap(segments, torch.tensor([1, 2]), torch.tensor([4, -1]), ("a", "b"), ("s",), GRID)
    sample.pred_masks = InstanceData(masks=segments[None] == 0, scores=torch.tensor([0.5]), labels=torch.tensor([1]))
    sample.pred_keypoints = InstanceData(
        keypoints=torch.arange(12.0).view(1, 6, 2),
        keypoint_scores=torch.full((1, 6), 0.5),
        scores=torch.tensor([0.5]),
        labels=torch.tensor([1]),
        poses=torch.zeros(1, 5),
    )
    sample.pred_scene = {"time": {"names": ("day", "night"), "probabilities": torch.tensor([0.25, 0.75])}}
    sample.pred_image_keypoints = InstanceData(
        points_px=torch.zeros(2, 2),
        rays=torch.tensor([[0.1, -0.2], [0.0, 0.0]]),
        cameras=torch.tensor([0, 1]),
        kinds=torch.tensor([5, 0]),
        scores=torch.tensor([0.5, 0.5]),
    )
    sample.pred_density = torch.tensor([[1.0, torch.inf]])
    return sample


def test_everything_is_named():
    # Expected: by hand from the sample. The second camera gave no image (its size is 0): its keypoint is left out. A
    # ray (0.1, -0.2) falls on 100 x 0.1 + 50 and 100 x -0.2 + 40 pixels of the image that was handed in.
    prediction = BEVPrediction.of_sample(full_sample())
    boxes = prediction.boxes
    assert boxes.names == ("car", "pedestrian") and boxes.frame == "bev" and len(boxes) == 2
    assert boxes.attributes == ("vehicle.stopped", "") and boxes.track_ids.tolist() == [7, -1]
    np.testing.assert_allclose(boxes.centers, [[1, 2, -0.25], [5, 6, 0]])
    assert prediction.rasters["map"].layers.dtype == torch.float32 and prediction.rasters["map"].classes == ("road",)
    assert prediction.masks.names == ("b",) and prediction.masks.masks.sum() == 2 and prediction.masks.grid == GRID
    assert prediction.keypoints.names == ("pedestrian",) and prediction.keypoints.kinds == KEYPOINT_NAMES
    assert prediction.scene == {"time": {"day": 0.25, "night": 0.75}}
    found = prediction.image_keypoints
    assert found.cameras == ("LEFT",) and found.kinds == ("front",)
    np.testing.assert_allclose(found.points_px, [[60, 20]], rtol=1e-6)
    assert set(prediction.others) == {"pred_density"}


def test_everything_as_plain_values():
    # Expected: what JSON takes, NaN and infinity not among it, and back.
    prediction = BEVPrediction.of_sample(full_sample())
    plain = prediction.as_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    first = plain["boxes"][0]
    assert first["class"] == "car" and first["score"] == 0.75 and first["size_m"] == [4, 2, 1.5] and first["yaw"] == 0.5
    assert first["velocity_mps"] == [3, 4] and first["attribute"] == "vehicle.stopped" and first["track_id"] == 7
    assert plain["rasters"]["map"]["layers"]["road"][1] == pytest.approx([0.4, 0.5, 0.6], abs=2e-3)
    assert plain["panoptic"]["owners"] == [[0, 0, -1], [1, 1, 1]]
    assert plain["panoptic"]["segments"][1] == {"class": "s", "thing": False, "instance": -1}
    assert plain["masks"]["instances"] == [{"class": "b", "score": 0.5, "mask": [[1, 1, 0], [0, 0, 0]]}]
    assert plain["keypoints"][0]["points"]["front"] == {"xy_m": [10, 11], "score": 0.5}
    assert plain["image_keypoints"][0]["camera"] == "LEFT" and plain["scene"]["time"]["night"] == 0.75
    assert plain["others"] == {"pred_density": [[1.0, None]]}
    short = prediction.as_dict(cells=False)
    assert "owners" not in short["panoptic"] and "mask" not in short["masks"]["instances"][0]


def test_what_no_head_says_is_not_there():
    prediction = BEVPrediction.of_sample(BEVDataSample())
    assert prediction.as_dict() == {"frame": "bev"} and prediction.boxes is None and prediction.masks is None
    with pytest.raises(InputError, match="prediction: boxes: the model predicts none"):
        prediction.nuscenes_boxes(np.eye(4))


def test_unknown_velocities_and_labels():
    sample = full_sample()
    boxes = torch.tensor(BOXES)
    boxes[0, 7:] = torch.nan
    sample.pred_instances_3d.bboxes_3d = lidar_boxes(boxes)
    sample.pred_instances_3d.labels_3d = torch.tensor([0, 5])
    prediction = BEVPrediction.of_sample(sample)
    assert prediction.boxes.names == ("car", "class 5")
    assert [box["velocity_mps"] is None for box in prediction.as_dict()["boxes"]] == [True, False]
    assert prediction.nuscenes_boxes(np.eye(4)).velocity[0].tolist() == [0, 0]


def test_some_boxes():
    boxes = BEVPrediction.of_sample(full_sample()).boxes.above(0.5)
    assert boxes.names == ("car",) and boxes.attributes == ("vehicle.stopped",) and boxes.track_ids.tolist() == [7]
    assert len(boxes.above(0.9)) == 0 and boxes.above(0.9).as_dicts() == []


def test_boxes_in_another_frame():
    # Expected: by hand: a quarter turn to the left and a shift of 10 m.
    boxes = BEVPrediction.of_sample(full_sample()).boxes.moved(pose(10, 0, 90), "ego")
    assert boxes.frame == "ego" and boxes.names == ("car", "pedestrian")
    np.testing.assert_allclose(boxes.boxes[0], [8, 1, -1, 4, 2, 1.5, 0.5 + np.pi / 2, -4, 3], atol=1e-5)


def test_boxes_of_the_nuscenes_challenge():
    # Expected: by hand: centre of gravity, (width, length, height), a quaternion (w, x, y, z), attributes by name.
    car = BEVPrediction.of_sample(full_sample()).nuscenes_boxes(pose(10, 0, 90), "token").records()[0]
    assert car["sample_token"] == "token" and car["detection_name"] == "car" and car["detection_score"] == 0.75
    np.testing.assert_allclose(car["translation"], [8, 1, -0.25], atol=1e-6)
    np.testing.assert_allclose(car["size"], [2, 4, 1.5])
    half = (0.5 + np.pi / 2) / 2
    np.testing.assert_allclose(car["rotation"], [np.cos(half), 0, 0, np.sin(half)], atol=1e-6)
    np.testing.assert_allclose(car["velocity"], [-4, 3], atol=1e-6)
    assert car["attribute_name"] == "vehicle.stopped"
