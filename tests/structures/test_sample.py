"""Data samples: they behave as mmdet3d's, and travel."""

import numpy as np
import torch
from mmdet3d.structures import Det3DDataSample
from mmengine.structures import InstanceData

from bevstack.geometry import BEVGrid
from bevstack.structures import BEVDataSample, BEVRaster
from bevstack.structures.boxes import lidar_boxes


def sample():
    out = BEVDataSample(metainfo={"token": "abc", "global_from_bev": np.eye(4)})
    out.gt_instances_3d = InstanceData(
        bboxes_3d=lidar_boxes(torch.rand(2, 9)), labels_3d=torch.tensor([0, 3]), attribute_names=["", "vehicle.moving"]
    )
    out.gt_rasters = {"map": BEVRaster(torch.ones(2, 4, 5, dtype=torch.uint8), ("a", "b"), BEVGrid((4, 5)))}
    return out


def test_it_is_a_sample_of_mmdet3d_with_metainfo_and_fields():
    one = sample()
    assert isinstance(one, Det3DDataSample)
    assert one.token == "abc" and one.metainfo["token"] == "abc" and "gt_rasters" in one
    assert one.gt_rasters["map"].classes == ("a", "b")


def test_objects_are_chosen_together():
    chosen = sample().gt_instances_3d[torch.tensor([False, True])]
    assert chosen.labels_3d.tolist() == [3] and chosen.attribute_names == ["vehicle.moving"]
    assert chosen.bboxes_3d.tensor.shape == (1, 9)


def test_a_copy_keeps_labels_and_rasters():
    one = sample()
    copy = one.to("cpu").detach()
    assert torch.equal(copy.gt_instances_3d.bboxes_3d.tensor, one.gt_instances_3d.bboxes_3d.tensor)
    assert torch.equal(copy.gt_rasters["map"].layers, one.gt_rasters["map"].layers) and copy.token == "abc"
