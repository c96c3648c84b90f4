"""The behaviour head: where it looks, what it can learn from history alone, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from mmengine.structures import InstanceData

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid, apply_transform
from bevstack.models.heads import BehaviourHead
from bevstack.models.heads.behaviour_tracks import (
    TrackJitter,
    extrapolated_tracks,
    in_box_axes,
    sampled_history,
    sampling_points,
)
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVFeatures
from bevstack.structures.behaviour import BEHAVIOUR_GROUPS, BEHAVIOURS, behaviours_of
from bevstack.structures.boxes import lidar_boxes
from tests.models.scenes import aligned, motion_of, pushed

GRID = BEVGrid(shape=(24, 28), x_range_m=(-14, 14), y_range_m=(-12, 12))
TEMPORAL = [
    dict(type="TrackLSTM"), dict(type="TrackConvolution"), dict(type="TrackTransformer", num_layers=1, num_heads=2)
]  # fmt: skip
CLASSES = ("car", "pedestrian", "barrier")
STEPS = [(0.0, 2.0, 6.0), (0.5, 1.5, -4.0)]  # the car's two last motions: x m, y m, yaw deg


def box(x: float, y: float, length=2.0, width=2.0, yaw=0.0, vx=math.nan, vy=math.nan) -> list[float]:
    return [x, y, -1.0, length, width, 1.5, yaw, vx, vy]


def bev_of(maps: list[torch.Tensor]) -> BEVFeatures:
    """B_t with its past, of three frames' maps (B, C, Y, X), oldest first, taken while the car made STEPS."""
    moves, memory = [motion_of([step] * len(maps[0])) for step in (None, *STEPS)], None
    for features, move in zip(maps[:-1], moves, strict=False):
        memory = pushed(memory, features, move, GRID, size=2)
    return BEVFeatures(maps[-1], GRID, BEVFeatures(maps[-1], GRID), aligned(memory, moves[-1]))


# --- where it looks -------------------------------------------------------------------------------------------------


def test_the_past_is_sampled_where_the_point_was_then():
    # Closed form: maps whose value is the place itself, in each frame's own coordinates. What is read at a place of the
    # current frame is that place moved by previous_from_current, once for the frame before, twice for the one before.
    maps = [GRID.cell_centers().movedim(-1, 0).unsqueeze(0)] * 3
    head = BehaviourHead(2, GRID, CLASSES, history_channels=2, num_frames=3)
    raw = head.encode(bev_of(maps))
    points = torch.tensor([[3.0, 4.0], [-6.0, 1.0]])
    read = sampled_history(raw["history"][0], GRID, points.expand(1, 3, 2, 2))[0]
    before = [motion_of([step]).previous_from_current[0] for step in STEPS]
    ground = torch.nn.functional.pad(points, (0, 1))
    expected = [ground, apply_transform(before[1], ground), apply_transform(before[0] @ before[1], ground)]
    torch.testing.assert_close(read, torch.stack(expected)[..., :2], rtol=1e-4, atol=1e-4)
    assert raw["seconds"].tolist() == [[0.0, 0.5, 1.0]] and raw["valid"].tolist() == [[1.0, 1.0, 1.0]]


def test_outside_and_unknown_places_read_zero():
    points = torch.tensor([[0.0, 0.0], [40.0, 0.0], [math.nan, math.nan]]).view(3, 1, 1, 2)
    read = sampled_history(torch.ones(1, 2, *GRID.shape), GRID, points)
    assert read[:, 0, 0].tolist() == [[1, 1], [0, 0], [0, 0]]


def test_tracks_go_back_along_the_velocity():
    # centre - velocity * seconds, by hand; an unknown velocity counts as none.
    boxes = torch.tensor([box(1.0, 2.0, vx=2.0, vy=-1.0), box(5.0, 5.0)])
    tracks = extrapolated_tracks(boxes, torch.tensor([0.0, 0.5, 1.5]))
    assert tracks.tolist() == [[[1, 2], [0, 2.5], [-2, 3.5]], [[5, 5]] * 3]


def test_a_box_is_sampled_along_its_heading():
    # A bus of 10 m x 3 m that heads along +y: 5 m ahead is +y, 1.5 m to its left is -x. A pedestrian: one metre.
    boxes = torch.tensor([box(0.0, 0.0, 10.0, 3.0, math.pi / 2), box(0.0, 0.0, 0.6, 0.6)])
    points = sampling_points(boxes, torch.tensor([[[1.0, 2.0]], [[0.0, 0.0]]]))
    expected = [[[1, 2], [1, 7], [1, -3], [-0.5, 2], [2.5, 2]], [[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]]]
    torch.testing.assert_close(points[:, 0], torch.tensor(expected, dtype=torch.float32))
    ahead = in_box_axes(boxes, torch.tensor([[0.0, 3.0], [0.0, 3.0]]))
    torch.testing.assert_close(ahead, torch.tensor([[3.0, 0.0], [0.0, 3.0]]))


def test_noise_that_is_none_changes_nothing_and_extrapolation_is_the_detectors():
    boxes, tracks = torch.rand(5, 9), torch.rand(5, 3, 2)
    tracks[:, 0] = boxes[:, :2]
    still = TrackJitter(0, 0, 0, 0, 0, 0)
    assert torch.equal(still.boxes(boxes), boxes)
    torch.testing.assert_close(still.tracks(tracks, boxes, torch.tensor([0.0, 0.5, 1.0])), tracks)
    guessed = TrackJitter(0, 0, 0, 0, 0, extrapolated=1.0).tracks(tracks, boxes, torch.tensor([0.0, 0.5, 1.0]))
    assert torch.equal(guessed, extrapolated_tracks(boxes, torch.tensor([0.0, 0.5, 1.0])))
    assert TrackJitter(unknown_velocity=1.0).boxes(boxes)[:, 7:].isnan().all()


@pytest.mark.parametrize("temporal", TEMPORAL, ids=lambda t: t["type"])
def test_frames_that_are_not_valid_have_no_influence(temporal):
    torch.manual_seed(0)
    model = MODELS.build({"channels": 8, **temporal}).eval()
    tokens, valid = torch.randn(3, 4, 8), torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [1, 0, 0, 0]]).bool()
    other = torch.where(valid.unsqueeze(-1), tokens, 100 * torch.randn(3, 4, 8))
    torch.testing.assert_close(model(tokens, valid), model(other, valid), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(tokens, valid)[0], model(tokens.flip(1), valid)[0])  # order counts
    assert model(tokens, valid).shape == (3, 8)


# --- what it learns -------------------------------------------------------------------------------------------------


def toy(generator: torch.Generator, samples: int = 4, agents: int = 6) -> tuple[BEVFeatures, list[BEVDataSample]]:
    """Cars that stand or drive 3 m a frame in any direction, as blobs in B; velocity unknown, the ego moves.

    The current frame shows the same whatever a car does, so it says nothing of it.
    """
    def rand(*shape):
        return torch.rand(*shape, generator=generator)

    low, span = torch.tensor([-9.0, -8.0]), torch.tensor([18.0, 16.0])
    places = low + rand(samples, agents, 2) * span  # in the current BEV frame
    moving, angle = rand(samples, agents) < 0.5, rand(samples, agents) * 2 * math.pi
    step = 3.0 * moving.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], dim=-1)
    before = [motion_of([s]).previous_from_current[0] for s in STEPS]
    frame_from_newest = [before[0] @ before[1], before[1], torch.eye(4)]  # oldest first
    looks = rand(samples, agents, 4) + 0.2
    maps = []
    for age, matrix in zip((2, 1, 0), frame_from_newest, strict=True):
        at = apply_transform(matrix, torch.nn.functional.pad(places - age * step, (0, 1)))[..., :2]
        distance = (GRID.cell_centers() - at[:, :, None, None]).square().sum(-1)
        maps.append(torch.einsum("bgyx,bgc->bcyx", (-distance).exp(), looks))
    truth = []
    for b in range(samples):
        sample = BEVDataSample()
        boxes = torch.tensor([box(x, y) for x, y in places[b].tolist()])
        names = ["vehicle.moving" if m else "vehicle.parked" for m in moving[b]]
        labels = torch.zeros(agents, dtype=torch.long)
        sample.gt_instances_3d = InstanceData(
            bboxes_3d=lidar_boxes(boxes), labels_3d=labels, attribute_names=names,
            past_centers=torch.stack([places[b] - age * step[b] for age in range(3)], dim=1),
        )  # fmt: skip
        sample.pred_instances_3d = InstanceData(bboxes_3d=lidar_boxes(boxes), labels_3d=labels, scores_3d=labels + 1.0)
        truth.append(sample)
    return bev_of(maps), truth


def accuracy(head: BehaviourHead, bev: BEVFeatures, samples: list[BEVDataSample]) -> float:
    right = [
        name == true
        for fields, sample in zip(head.predict(head.encode(bev), samples), samples, strict=True)
        for name, true in zip(
            fields["pred_instances_3d"].attribute_names, sample.gt_instances_3d.attribute_names, strict=True
        )
    ]
    return sum(right) / len(right)


@pytest.mark.parametrize("temporal", TEMPORAL, ids=lambda t: t["type"])
def test_moving_and_parked_are_told_apart_by_history_alone(temporal):
    # Expected: without history there is nothing to tell them apart by, and half the guesses are right; with it most
    # are. Velocities are unknown, so that every track is "it stood still" and only B can contradict.
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    jitter = dict(center_m=0.1, velocity_mps=0.0, unknown_velocity=1.0, extrapolated=1.0)
    head = BehaviourHead(
        4, GRID, ("car",), history_channels=4, num_frames=3, temporal=temporal, channels=16, jitter=jitter
    )
    optimizer = torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(60):
        bev, samples = toy(generator)
        optimizer.zero_grad()
        head.loss(head.encode(bev), samples)["loss_attribute"].backward()
        optimizer.step()
    head.eval()
    bev, samples = toy(generator, samples=30)
    assert accuracy(head, bev, samples) > 0.88
    blind = replace(bev, history=None)
    assert 0.35 < accuracy(head, blind, samples) < 0.65


# --- what comes out, and what is refused ----------------------------------------------------------------------------


def test_attributes_fit_their_class():
    assert len(BEHAVIOURS) == len(set(BEHAVIOURS)) == 8
    assert behaviours_of("bicycle") == BEHAVIOUR_GROUPS["cycle"].attributes and behaviours_of("barrier") == ()
    bev, samples = toy(torch.Generator().manual_seed(2), samples=1)
    predicted = samples[0].pred_instances_3d
    predicted.labels_3d = torch.tensor([0, 1, 2, 0, 1, -1])
    head = BehaviourHead(4, GRID, CLASSES, history_channels=4, num_frames=3, on_truth=True).eval()
    fields = head.predict(head.encode(bev), samples)[0]
    answer = fields["pred_instances_3d"]
    for name, label, score in zip(answer.attribute_names, answer.labels_3d, answer.attribute_scores, strict=True):
        possible = behaviours_of(CLASSES[label]) if label >= 0 else ()
        assert name in (possible or ("",)) and (score > 1 / 3 if name else score == 0)
    assert "attribute_names" not in predicted  # the sample's own are left as they are
    assert answer.bboxes_3d is predicted.bboxes_3d
    assert len(fields["pred_on_truth_3d"].attribute_names) == len(samples[0].gt_instances_3d.labels_3d)


def test_frames_of_unknown_age_are_not_used():
    bev, samples = toy(torch.Generator().manual_seed(2), samples=1)
    unknown = replace(bev.history, seconds=torch.full_like(bev.history.seconds, torch.nan))
    head = BehaviourHead(4, GRID, CLASSES, history_channels=4, num_frames=4).eval()
    raw = head.encode(replace(bev, history=unknown))
    assert raw["valid"].tolist() == [[1.0, 0.0, 0.0, 0.0]] and raw["seconds"].tolist() == [[0.0] * 4]
    assert head.encode(bev)["valid"].tolist() == [[1.0, 1.0, 1.0, 0.0]]  # and the fourth frame is not there
    assert "vehicle" in head.predict(raw, samples)[0]["pred_instances_3d"].attribute_names[0]


def test_only_boxes_of_known_attributes_train():
    bev, samples = toy(torch.Generator().manual_seed(3), samples=1)
    true, head = samples[0].gt_instances_3d, BehaviourHead(4, GRID, CLASSES, history_channels=4, num_frames=3).eval()
    before = head.loss(head.encode(bev), samples)["loss_attribute"]
    attributes = list(true.attribute_names)
    attributes[0] = ""
    true.attribute_names = attributes
    assert not torch.isclose(head.loss(head.encode(bev), samples)["loss_attribute"], before)
    true.labels_3d = torch.full_like(true.labels_3d, 2)  # barriers have none
    assert head.loss(head.encode(bev), samples)["loss_attribute"] == 0


def test_what_is_missing_is_named():
    bev, samples = toy(torch.Generator().manual_seed(3), samples=1)
    head = BehaviourHead(4, GRID, CLASSES, history_channels=4, num_frames=4)
    with pytest.raises(InputError, match="LoadPastCenters.num_frames: 3 frames, the head reads 4"):
        head.loss(head.encode(bev), samples)
    del samples[0].gt_instances_3d.past_centers
    with pytest.raises(InputError, match="past_centers: not there: add dict.type='LoadPastCenters', num_frames=4"):
        head.loss(head.encode(bev), samples)
    with pytest.raises(ValueError, match="compares past frames with bev.encoded, and there is none"):
        head.encode(BEVFeatures(bev.features, GRID))
    with pytest.raises(ValueError, match="none of .'barrier'. has attributes"):
        BehaviourHead(4, GRID, ("barrier",), history_channels=4)
    with pytest.raises(ValueError, match="num_frames: 1"):
        BehaviourHead(4, GRID, CLASSES, history_channels=4, num_frames=1)
    with pytest.raises(ValueError, match="kernel_size: 2"):
        MODELS.build(dict(type="TrackConvolution", channels=4, kernel_size=2))


def test_the_required_heads_name_is_an_argument():
    head = BehaviourHead(4, GRID, CLASSES, history_channels=4, detection="boxes", num_frames=5)
    assert head.requires == ("boxes",) and head.history_frames == 4
