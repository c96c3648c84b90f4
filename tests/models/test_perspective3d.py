"""Targets of the perspective head: where boxes of the BEV frame stand in a camera, plain and mirrored."""

from __future__ import annotations

import math

import pytest
import torch

from bevstack.models.heads.perspective3d import PerspectiveHead, camera_targets
from bevstack.structures import BEVDataSample, CameraRig

# A camera at the BEV frame's origin that looks along +y, x of the camera along +x, y down.
CAMERA_FROM_BEV = torch.tensor([[1.0, 0, 0, 0], [0, 0, -1, 0], [0, 1, 0, 0], [0, 0, 0, 1]])
PIXELS_FROM_CAMERA = torch.tensor([[200.0, 0, 160], [0, 200, 60], [0, 0, 1]])
SIZE = torch.tensor([120, 320])
FLIP = torch.tensor([[-1.0, 0, 320], [0, 1, 0], [0, 0, 1]])


def car(x=2.0, y=20.0, yaw=0.4):
    return torch.tensor([[x, y, -1.5, 4.5, 1.9, 1.6, yaw, float("nan"), float("nan")]])


def targets(boxes, camera_from_bev=CAMERA_FROM_BEV, pixels_from_camera=PIXELS_FROM_CAMERA):
    return camera_targets(boxes, torch.zeros(len(boxes)).long(), camera_from_bev, pixels_from_camera, SIZE, 4.0)


def test_a_car_ahead():
    # closed form: middle at (2, 20, -.7) m -> u = 160 + 200 * 2 / 20, v = 60 + 200 * .7 / 20
    in_camera, in_image = targets(car())
    torch.testing.assert_close(in_camera.centers_2d, torch.tensor([[180.0, 67.0]]))
    torch.testing.assert_close(in_camera.depths, torch.tensor([20.0]))
    left, top, right, bottom = in_image.bboxes[0].tolist()
    assert left < 180 < right and top < 67 < bottom


def test_the_box_is_mmdet3ds_camera_box():
    # expected: mmdet3d's own conversion of the same LiDAR box
    from mmdet3d.structures import Box3DMode, LiDARInstance3DBoxes

    for yaw in (0.4, -2.0, 3.0):
        box = car(yaw=yaw)[:, :7]
        expected = LiDARInstance3DBoxes(box).convert_to(Box3DMode.CAM, CAMERA_FROM_BEV, correct_yaw=True).tensor[0]
        ours = targets(car(yaw=yaw))[0].bboxes_3d[0]
        torch.testing.assert_close(ours[:6], expected[:6], atol=1e-5, rtol=0)
        turn = (ours[6] - expected[6]) / (2 * math.pi)
        assert abs(turn - turn.round()) < 1e-5


def test_a_mirrored_image_shows_a_mirrored_world():
    # expected: the picture of the car at -x that heads to pi - yaw, seen by the camera as it was
    mirrored = targets(car(2.0, 20.0, 0.4), pixels_from_camera=FLIP @ PIXELS_FROM_CAMERA)
    expected = targets(car(-2.0, 20.0, math.pi - 0.4))
    torch.testing.assert_close(mirrored[0].bboxes_3d, expected[0].bboxes_3d, atol=1e-5, rtol=0)
    torch.testing.assert_close(mirrored[0].centers_2d, expected[0].centers_2d, atol=1e-4, rtol=0)
    torch.testing.assert_close(mirrored[1].bboxes, expected[1].bboxes, atol=1e-3, rtol=0)


@pytest.mark.parametrize("flip", [False, True])
def test_bev_augmentation_changes_nothing_in_the_camera(flip):
    from bevstack.datasets.transforms.bev_augmentation import bev_similarity
    from bevstack.geometry.boxes3d import transform_boxes

    augmented_from_bev = torch.from_numpy(bev_similarity(0.3, 1.05, flip, False)).float()
    box = torch.nan_to_num(car())
    moved = targets(transform_boxes(augmented_from_bev, box), CAMERA_FROM_BEV @ torch.linalg.inv(augmented_from_bev))
    plain = targets(box)
    torch.testing.assert_close(moved[0].bboxes_3d, plain[0].bboxes_3d, atol=1e-4, rtol=0)
    torch.testing.assert_close(moved[1].bboxes, plain[1].bboxes, atol=1e-2, rtol=0)


def test_what_cannot_be_seen_is_no_target():
    # behind, outside to the left, too far to have four pixels, and one that is seen
    boxes = torch.cat([car(y=-20.0), car(x=-30.0), car(y=500.0), car()])
    in_camera, in_image = targets(boxes)
    assert len(in_camera.depths) == len(in_image.bboxes) == 1


def test_losses_are_finite_with_and_without_objects_and_reach_the_features():
    from mmengine.structures import InstanceData

    from bevstack.structures.boxes import lidar_boxes

    torch.manual_seed(0)
    head = PerspectiveHead(
        16,
        ["car", "bus"],
        strides=(8, 16),
        regress_ranges=((-1, 64), (64, 1e8)),
        detector={
            "feat_channels": 32,
            "cls_branch": (32,),
            "reg_branch": ((32,),) * 4,
            "dir_branch": (32,),
            "centerness_branch": (32,),
            "stacked_convs": 1,
        },
    )
    rig = CameraRig(
        PIXELS_FROM_CAMERA.expand(2, 1, 3, 3), CAMERA_FROM_BEV.expand(2, 1, 4, 4), SIZE.expand(2, 1, 2), (128, 320)
    )
    samples = []
    for boxes in (car(), car()[:0]):
        sample = BEVDataSample()
        sample.gt_instances_3d = InstanceData(bboxes_3d=lidar_boxes(boxes), labels_3d=torch.zeros(len(boxes)).long())
        samples.append(sample)
    features = [torch.randn(2, 1, 16, 128 // s, 320 // s, requires_grad=True) for s in (8, 16)]
    for chosen in (samples, samples[1:] * 2):
        losses = head.loss(head(features), chosen, rig)
        assert {"loss_cls", "loss_depth", "loss_size", "loss_centerness"} <= set(losses)
        assert all(torch.isfinite(value).all() for value in losses.values())
    sum(head.loss(head(features), samples, rig).values()).backward()
    assert all(level.grad.abs().sum() > 0 for level in features)
