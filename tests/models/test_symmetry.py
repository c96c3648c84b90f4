"""A world that is mirrored or turned by a quarter asks for mirrored or turned targets, and a model whose weights are
mirrored or turned, too, gives mirrored or turned answers: no side and no direction is preferred anywhere.

Two parts are left out, which even so prefer a side: convolutions of stride 2 (backbones, ``BEVUNet``) take every second
cell, beginning at one edge. A learned positional encoding has a half for columns and one for rows, which no weights of
its own can turn; the turned encoder is given the turned encoding.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData

from bevstack.geometry import project_points
from bevstack.models.heads import DenseDetectionHead, SemanticSegmentationHead
from bevstack.models.perception import BEVPerception
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVFeatures, CameraRig, Frame
from tests.models.scenes import motion_of, rig_of
from tests.models.symmetries import (
    CELLS,
    CLASSES,
    GRID,
    SYMMETRIES,
    Symmetry,
    assert_same_boxes,
    trained,
    with_symmetry,
)

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
    assert len(answers[0].scores_3d) == 40
    assert_same_boxes(symmetry, *answers)


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


SIZE_PX = (32, 64)
LEVELS = ((8, 16), (4, 8))
CHANNELS, CAMERAS = 12, 3
# How history enters: by the encoder's temporal attention, or joined to what the encoder made of each frame.
HISTORIES = {
    "attention": {},
    "concatenation": dict(
        temporal_fusion=dict(type="TemporalConcatenation", channels=CHANNELS, num_frames=2, blocks=1),
    ),
}


def model_of(history: str) -> BEVPerception:
    """Neck, two encoder layers with history, a box and a map head, random weights."""
    torch.manual_seed(0)
    raster = dict(type="SemanticSegmentationHead", raster="map", classes=("road", "grass"), num_convs=1)
    encoder = dict(type="BEVFormerEncoder", num_cameras=CAMERAS, num_levels=2, num_layers=2, num_heads=2, num_points=4)
    encoder |= dict(num_heights=2, feed_forward_channels=16, temporal_points=2 * (history == "attention"))
    common = dict(grid=GRID, channels=CHANNELS)
    decoding = dict(max_num=40, score_threshold=0.0)
    heads = dict(
        detection=dict(type="DenseDetectionHead", in_channels=CHANNELS, classes=CLASSES, decoding=decoding, **common),
        map=dict(raster, in_channels=CHANNELS, **common),
    )
    backbone = dict(type="mmdet.ResNet", depth=18, base_channels=4, out_indices=(1, 2))
    neck = dict(type="TopDownNeck", in_channels=(8, 16), out_channels=CHANNELS, out_levels=(0, 1))
    config = dict(type="BEVPerception", backbone=backbone, neck=neck, encoder=encoder | common, heads=heads)
    return trained(MODELS.build({**config, **HISTORIES[history], "_scope_": "bevstack"}))


def clear_of_edges(rig: CameraRig, pillars: torch.Tensor) -> bool:
    """Whether rounding cannot decide which cameras see which of the (P, 3) points."""
    uv, depth = project_points(rig.pixels_from_bev, pillars)
    ahead = depth > 1e-3
    height, width = SIZE_PX
    gaps = torch.cat([uv, uv - uv.new_tensor([width, height])], -1).abs().amin(-1)
    return bool((depth.abs() > 1e-3).all() and (gaps[ahead] > 1e-4).all())


yaws = st.lists(st.floats(-180, 180), min_size=CAMERAS, max_size=CAMERAS)
steps = st.tuples(st.floats(-3, 3), st.floats(-3, 3), st.floats(-60, 60))


@pytest.mark.parametrize("history", HISTORIES)
@pytest.mark.parametrize("symmetry", SYMMETRIES)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(yaws=yaws, focal=st.floats(25, 60), step=steps, seed=st.integers(0, 1000))
def test_a_model_with_its_weights(symmetry: Symmetry, history: str, yaws, focal, step, seed) -> None:
    # Two moments of random cameras and features. Expected: B_t, memory, map and boxes of the second moment moved.
    model = model_of(history)
    rig = rig_of([yaws], SIZE_PX, focal)
    assume(clear_of_edges(rig, model.encoder.pillars.flatten(0, 1)))
    generator = torch.Generator().manual_seed(seed)
    frames = []
    for motion in (None, step):
        levels = (torch.randn(1, CAMERAS, 8 * 2**n, *LEVELS[n], generator=generator) for n in range(2))
        images = torch.zeros(1, CAMERAS, 3, *SIZE_PX)
        frames.append(Frame(images, rig, motion_of([motion]), features=tuple(levels)))
    found = []
    with torch.no_grad():
        for own, seen in (
            (model, frames),
            (with_symmetry(model, symmetry), [symmetry.frame(frame) for frame in frames]),
        ):
            _, memory = own.step(seen[0])
            bev, memory = own.step(seen[1], memory)
            detection, raster = own.heads["detection"], own.heads["map"]
            boxes = detection.predict(detection(bev), [BEVDataSample()])[0]["pred_instances_3d"]
            found.append((bev.features, memory.features, raster(bev)["logits"], boxes))
    one, other = found
    for before, after in zip(one[:3], other[:3], strict=True):
        assert before.std() > 0.1
        torch.testing.assert_close(after, symmetry.maps(before), rtol=1e-3, atol=1e-3)
    assert_same_boxes(symmetry, one[3], other[3])
