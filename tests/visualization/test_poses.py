"""Skeletons of poses from above, and keypoints in the cameras."""

from __future__ import annotations

import numpy as np
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from bevstack.geometry.keypoints import KEYPOINT_NAMES, pose_keypoints
from bevstack.structures import BEVDataSample
from bevstack.visualization import BEVWindow, ImageKeypointPainter, PosePainter
from bevstack.visualization.palette import CLASS_COLORS, KEYPOINT_COLORS
from tests.visualization.scenes import view

WINDOW = BEVWindow((-10.0, 10.0), (0.0, 20.0), 800)  # 40 px a metre


def sample(scores=(0.9, 0.1)):
    poses = torch.tensor([[0.0, 12.0, 4.0, 2.0, 0.0], [-5.0, 5.0, 1.0, 1.0, 0.0]])
    answer = BEVDataSample(metainfo={"token": "t", "classes": ("car", "pedestrian")})
    answer.pred_keypoints = InstanceData(
        keypoints=pose_keypoints(poses), scores=torch.tensor(scores), labels=torch.tensor([0, 1]), poses=poses
    )
    answer.gt_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(torch.zeros(0, 9), box_dim=9), labels_3d=torch.zeros(0, dtype=torch.long)
    )
    return answer


def color_at(image, x, y):
    """Closed form: u = (x + 10) * 40, v = (20 - y) * 40."""
    return tuple(image[int((20 - y) * 40), int((x + 10) * 40)].tolist())


def test_dots_lie_on_their_keypoints():
    # Expected: a car of 4 x 2 m at (0, 12) that heads along +x: front at x = 2, its left side at y = 13.
    image = PosePainter().paint(sample(), WINDOW)
    places = {"centre": (0, 12), "front_left": (2, 13), "front_right": (2, 11), "rear_right": (-2, 11),
              "rear_left": (-2, 13), "front": (2, 12)}  # fmt: skip
    for name in KEYPOINT_NAMES:
        assert color_at(image, *places[name]) == KEYPOINT_COLORS[name], name
    assert color_at(image, 1, 12) == CLASS_COLORS["car"]  # the line from centre to front
    assert color_at(image, -1, 12) != CLASS_COLORS["car"]
    assert color_at(image, -2, 12) == CLASS_COLORS["car"]  # the rear side of the polygon


def test_weak_poses_and_samples_without():
    weak, strong = PosePainter().paint(sample(), WINDOW), PosePainter(score_thr=0.05).paint(sample(), WINDOW)
    assert color_at(strong, -5, 5) == KEYPOINT_COLORS["centre"] != color_at(weak, -5, 5)
    assert PosePainter().draws(sample()) and not PosePainter().draws(BEVDataSample(metainfo={"classes": ()}))
    assert PosePainter().legend(sample()) == KEYPOINT_NAMES


def test_points_in_the_cameras():
    # Expected: the pixel of the ray by the view's own intrinsics, in the camera that saw it; images are copied.
    views = [view(90, "CAM_FRONT"), view(-90, "CAM_BACK")]
    answer = sample()
    answer.pred_image_keypoints = InstanceData(
        rays=torch.tensor([[0.1, 0.05], [-0.1, 0.0]]), cameras=torch.tensor([1, 1]), kinds=torch.tensor([5, 0]),
        scores=torch.tensor([0.8, 0.1]), points_px=torch.zeros(2, 2),
    )  # fmt: skip
    front, back = ImageKeypointPainter(0.3).paint(answer, views, 100)
    assert np.array_equal(front.image, views[0].image)
    column, row = (views[1].pixels_from_camera @ [0.1, 0.05, 1.0])[:2].astype(int)
    assert tuple(back.image[row, column].tolist()) == KEYPOINT_COLORS["front"]
    column, row = (views[1].pixels_from_camera @ [-0.1, 0.0, 1.0])[:2].astype(int)
    assert np.array_equal(back.image[row, column], views[1].image[row, column])  # too weak
    assert not np.array_equal(back.image, views[1].image)
    assert ImageKeypointPainter().draws(answer) and not ImageKeypointPainter().draws(sample())
