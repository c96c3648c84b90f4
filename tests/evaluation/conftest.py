"""A tiny nuScenes root, and predicted samples made from the devkit's own view of it."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """The tiny root's folder."""
    from tests.evaluation.nuscenes_root import write_root

    return write_root(tmp_path_factory.mktemp("nuscenes"))


@pytest.fixture(scope="session")
def tables(root):
    """The devkit's tables of the tiny root, loaded by the devkit."""
    from nuscenes import NuScenes

    from tests.evaluation.nuscenes_root import VERSION

    return NuScenes(VERSION, str(root), verbose=False)


@pytest.fixture(scope="session")
def noisy_boxes(tables):
    """token -> devkit boxes in the global frame: annotations moved, turned and resized a little, and false ones."""
    from nuscenes.eval.detection.utils import category_to_detection_name
    from nuscenes.utils.data_classes import Box
    from pyquaternion import Quaternion

    rng = np.random.default_rng(1)
    answer = {}
    for sample in tables.sample:
        boxes = []
        for token in sample["anns"]:
            record = tables.get("sample_annotation", token)
            name = category_to_detection_name(record["category_name"])
            copies = 1 + int(rng.random() < 0.3)
            for _ in range(copies if name else 0):
                turn = Quaternion(axis=[0, 0, 1], angle=rng.normal(0, 0.2))
                center = np.array(record["translation"]) + [*rng.normal(0, 0.6, 2), rng.normal(0, 0.1)]
                size = np.array(record["size"]) * rng.uniform(0.8, 1.2, 3)
                box = Box(center, size, turn * Quaternion(record["rotation"]), name=name, score=float(rng.random()))
                box.velocity = np.array([*rng.normal(0, 1, 2), 0.0])
                boxes.append(box)
        answer[sample["token"]] = boxes
    return answer


@pytest.fixture(scope="session")
def sample_of(tables):
    """Makes a BEVDataSample in the LIDAR_TOP frame of boxes in the global frame, moved there by the devkit."""
    from nuscenes.eval.detection.constants import DETECTION_NAMES
    from pyquaternion import Quaternion

    def make(token, boxes, attributes=None):
        import torch
        from mmdet3d.structures import LiDARInstance3DBoxes
        from mmengine.structures import InstanceData

        from bevstack.structures import BEVDataSample

        lidar = tables.get("sample_data", tables.get("sample", token)["data"]["LIDAR_TOP"])
        pose = tables.get("ego_pose", lidar["ego_pose_token"])
        mount = tables.get("calibrated_sensor", lidar["calibrated_sensor_token"])
        rows, global_from_bev = [], np.eye(4)
        for record in (mount, pose):
            step = Quaternion(record["rotation"]).transformation_matrix
            step[:3, 3] = record["translation"]
            global_from_bev = step @ global_from_bev
        for original in boxes:
            box = original.copy()
            for record in (pose, mount):
                box.translate(-np.array(record["translation"]))
                box.rotate(Quaternion(record["rotation"]).inverse)
            width, length, height = box.wlh
            x, y, z = box.center
            yaw = box.orientation.yaw_pitch_roll[0]
            rows.append([x, y, z - height / 2, length, width, height, yaw, *box.velocity[:2]])
        sample = BEVDataSample(
            metainfo={"token": token, "global_from_bev": global_from_bev, "augmented_from_bev": np.eye(4)}
        )
        sample.pred_instances_3d = InstanceData(
            bboxes_3d=LiDARInstance3DBoxes(torch.tensor(rows).reshape(-1, 9), box_dim=9),
            scores_3d=torch.tensor([box.score for box in boxes]),
            labels_3d=torch.tensor([DETECTION_NAMES.index(box.name) for box in boxes], dtype=torch.int64),
        )
        if attributes is not None:
            sample.pred_instances_3d.attribute_names = attributes
        return sample

    return make
