"""A world that is mirrored or turned by a quarter asks for mirrored or turned targets, and a head whose weights are
mirrored or turned, too, gives mirrored or turned answers: no side and no direction is preferred anywhere."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor, nn

from bevstack.geometry import BEVGrid
from bevstack.models.heads import DenseDetectionHead, SemanticSegmentationHead
from bevstack.structures import BEVDataSample, BEVFeatures

CELLS = 16
GRID = BEVGrid(shape=(CELLS, CELLS), x_range_m=(-16, 16), y_range_m=(-16, 16))  # 2 m cells
CLASSES = ("car", "pedestrian")
# places of a box code: offset x, y; height; log of length, width, height; sine, cosine of yaw; velocity x, y
DX, DY, SIN, COS, VX, VY = 0, 1, 6, 7, 8, 9


@dataclass(frozen=True)
class Symmetry:
    """x -> -x, or a quarter turn to the left: (x, y) -> (-y, x)."""

    quarter_turn: bool

    def maps(self, values: Tensor) -> Tensor:
        """(..., Y, X): what lay at (x, y) lies where the symmetry brings it."""
        return values.transpose(-2, -1).flip(-1) if self.quarter_turn else values.flip(-1)

    def vectors(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (-y, x) if self.quarter_turn else (-x, y)

    def codes(self, codes: Tensor, dim: int = -1) -> Tensor:
        """Box codes, their ten values along ``dim``."""
        values = list(codes.unbind(dim))
        for x, y in ((DX, DY), (COS, SIN), (VX, VY)):
            values[x], values[y] = self.vectors(values[x], values[y])
        return torch.stack(values, dim)

    def boxes(self, boxes: Tensor) -> Tensor:
        """(G, 9) LiDAR boxes."""
        out = boxes.clone()
        out[:, 0], out[:, 1] = self.vectors(boxes[:, 0], boxes[:, 1])
        out[:, 6] = boxes[:, 6] + math.pi / 2 if self.quarter_turn else math.pi - boxes[:, 6]
        out[:, 7], out[:, 8] = self.vectors(boxes[:, 7], boxes[:, 8])
        return out


SYMMETRIES = [pytest.param(Symmetry(False), id="mirrored"), pytest.param(Symmetry(True), id="turned")]

inside_a_cell = st.tuples(st.integers(0, CELLS - 1), st.floats(0.15, 0.85)).map(lambda at: -16 + 2 * (at[0] + at[1]))
one_box = st.tuples(
    inside_a_cell,
    inside_a_cell,
    st.floats(-2, 1),
    st.floats(0.5, 8),
    st.floats(0.4, 3),
    st.floats(0.5, 4),
    st.floats(-3.1, 3.1),
    st.floats(-9, 9),
    st.floats(-9, 9),
)


def head_of() -> DenseDetectionHead:
    torch.manual_seed(0)
    decoding = dict(max_num=40, score_threshold=0.0)
    return trained(DenseDetectionHead(4, GRID, CLASSES, channels=8, decoding=decoding))


def trained(head: nn.Module) -> nn.Module:
    """Evaluating, with weights of which none is zero and running statistics of their own."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.3)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2)
    return head.eval()


def with_symmetry(head: nn.Module, symmetry: Symmetry) -> nn.Module:
    """The head with every kernel mirrored or turned, and a box branch that predicts mirrored or turned codes."""
    other = copy.deepcopy(head)
    for module in other.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = symmetry.maps(module.weight.data)
    if isinstance(head, DenseDetectionHead):
        last = other.box[1]
        last.weight.data, last.bias.data = (symmetry.codes(part, dim=0) for part in (last.weight.data, last.bias.data))
    return other


@pytest.mark.parametrize("symmetry", SYMMETRIES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(boxes=st.lists(one_box, min_size=1, max_size=6), labels=st.lists(st.integers(0, 1), min_size=6, max_size=6))
def test_targets(symmetry, boxes, labels) -> None:
    # Expected: the heatmap is the map moved; each cell that learns a box is the cell moved, and so are its code and
    # its share.
    head, boxes = head_of(), torch.tensor(boxes)
    labels = torch.tensor(labels[: len(boxes)])
    found = []
    for world in (boxes, symmetry.boxes(boxes)):
        instances = InstanceData(bboxes_3d=LiDARInstance3DBoxes(world, box_dim=9), labels_3d=labels)
        heatmap, cells, codes, shares = head.targets(instances, torch.device("cpu"))
        dense = torch.zeros(11, CELLS * CELLS)
        dense[:, cells] = torch.cat([codes, shares[:, None]], 1).t()
        found.append((heatmap, dense.unflatten(1, (CELLS, CELLS))))
    (heatmap, dense), (other_heatmap, other_dense) = found
    torch.testing.assert_close(other_heatmap, symmetry.maps(heatmap), rtol=1e-4, atol=1e-5)
    wanted = symmetry.maps(torch.cat([symmetry.codes(dense[:10], dim=0), dense[10:]]))
    torch.testing.assert_close(other_dense, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_boxes_of_a_head_with_its_weights(symmetry) -> None:
    # Expected: the same scores in the same order, and every box where the symmetry brings it.
    head = head_of()
    features = torch.randn(1, 4, CELLS, CELLS, generator=torch.Generator().manual_seed(3))
    answers = []
    with torch.no_grad():
        for own, bev in ((head, features), (with_symmetry(head, symmetry), symmetry.maps(features))):
            raw = own(BEVFeatures(bev, GRID))
            answers.append(own.predict(raw, [BEVDataSample()])[0]["pred_instances_3d"])
    one, other = answers
    assert len(one.scores_3d) == 40
    torch.testing.assert_close(other.scores_3d, one.scores_3d)
    assert torch.equal(other.labels_3d, one.labels_3d)
    wanted, found = symmetry.boxes(one.bboxes_3d.tensor), other.bboxes_3d.tensor
    turn = (found[:, 6] - wanted[:, 6] + math.pi).remainder(2 * math.pi) - math.pi
    assert turn.abs().max() < 1e-4
    kept = [0, 1, 2, 3, 4, 5, 7, 8]
    torch.testing.assert_close(found[:, kept], wanted[:, kept], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("symmetry", SYMMETRIES)
def test_layers_of_a_head_with_its_weights(symmetry) -> None:
    # Expected: the raster moved.
    torch.manual_seed(0)
    options = dict(in_channels=4, grid=GRID, raster="map", classes=("road", "grass"), channels=8, num_convs=2)
    head = trained(SemanticSegmentationHead(**options))
    features = torch.randn(1, 4, CELLS, CELLS, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        one = head(BEVFeatures(features, GRID))["logits"]
        other = with_symmetry(head, symmetry)(BEVFeatures(symmetry.maps(features), GRID))["logits"]
    torch.testing.assert_close(other, symmetry.maps(one), rtol=1e-4, atol=1e-5)
