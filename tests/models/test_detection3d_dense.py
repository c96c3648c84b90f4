"""Dense detection: which cells learn which box, and that a peak anywhere among them decodes to that box."""

from __future__ import annotations

import math

import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor

from bevstack.geometry import BEVGrid
from bevstack.geometry.heading_bins import encode_heading
from bevstack.models.heads import DenseDetectionHead
from bevstack.models.heads.detection3d_dense_outputs import localisation_quality
from bevstack.structures import BEVDataSample, BEVFeatures

GRID = BEVGrid(shape=(12, 16), x_range_m=(-16, 16), y_range_m=(-8, 16))  # 2 m cells
NEAR = [3.3, 4.4, -1.0, 4.5, 1.9, 1.6, 2.0, 3.0, -1.0]
FAR = [6.1, 5.2, -0.5, 0.7, 0.6, 1.8, -0.4, float("nan"), float("nan")]


def head_of(**options) -> DenseDetectionHead:
    return DenseDetectionHead(4, GRID, ("car", "pedestrian"), channels=4, **options)


def instances_of(*boxes: list[float], labels: tuple[int, ...] = (0, 1)) -> InstanceData:
    return InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(torch.tensor(boxes).reshape(-1, 9), box_dim=9),
        labels_3d=torch.tensor(labels[: len(boxes)]),
    )


def raw_that_fits(
    head: DenseDetectionHead, instances: InstanceData, peak: tuple[int, int] | None = None
) -> dict[str, Tensor]:
    """Raw outputs that say exactly what the targets ask; with ``peak`` (row, column) the only peak is there."""
    heatmap, cells, codes, _ = head.targets(instances, torch.device("cpu"))
    outputs, codes = head.outputs, codes.nan_to_num()
    at_cells = {"box": codes[:, outputs.regressed]}
    if outputs.heading_bins:
        bins = encode_heading(torch.atan2(codes[:, 6], codes[:, 7]), outputs.heading_bins)
        at_cells["heading"] = torch.cat([bins.weights, bins.residuals], dim=1)
    if outputs.moving:
        moves = codes[:, 8:].norm(dim=1, keepdim=True) > 0.5
        at_cells["motion"] = torch.cat([20 * moves - 10.0, codes[:, 8:]], dim=1)
    if outputs.quality:
        at_cells["quality"] = torch.full((len(codes), 1), 10.0)
    raw = {name: torch.zeros(1, values.shape[1], *GRID.shape) for name, values in at_cells.items()}
    for name, values in at_cells.items():
        raw[name].flatten(2)[0, :, cells] = values.t()
    if peak is not None:
        heatmap = torch.zeros_like(heatmap)
        heatmap[instances.labels_3d[0], peak[0], peak[1]] = 1
    return {"heatmap": (heatmap * 20 - 10).unsqueeze(0), **raw}


def decoded(head: DenseDetectionHead, raw: dict[str, Tensor]) -> InstanceData:
    return head.predict(raw, [BEVDataSample()])[0]["pred_instances_3d"]


@pytest.mark.parametrize("reach", [0, 1, 2])
def test_the_cells_around_a_centre_share_its_box(reach):
    # Closed form: the centre (3.3, 4.4) m lies in column (3.3 + 16) / 2 = 9.65, row (4.4 + 8) / 2 = 6.2.
    head = head_of(criterion=dict(reach_cells=reach))
    _, cells, codes, shares = head.targets(instances_of(NEAR), torch.device("cpu"))
    around = range(-reach, reach + 1)
    assert sorted(cells.tolist()) == sorted((6 + r) * 16 + 9 + c for r in around for c in around)
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))
    columns, rows = cells % 16, cells // 16
    torch.testing.assert_close(columns + 0.5 + codes[:, 0], torch.full_like(codes[:, 0], 9.65))
    torch.testing.assert_close(rows + 0.5 + codes[:, 1], torch.full_like(codes[:, 1], 6.2))
    assert cells[shares.argmax()] == 6 * 16 + 9


@pytest.mark.parametrize("peak", [(r, c) for r in (5, 6, 7) for c in (8, 9, 10)], ids=str)
def test_a_peak_one_cell_off_still_finds_the_box(peak):
    # Expected: the very box that made the targets.
    head, instances = head_of(), instances_of(NEAR)
    found = decoded(head, raw_that_fits(head, instances, peak))
    torch.testing.assert_close(found.bboxes_3d.tensor, instances.bboxes_3d.tensor, rtol=1e-4, atol=1e-4)
    assert found.labels_3d.tolist() == [0]


def test_a_cell_between_two_boxes_learns_the_nearer_one():
    # Columns of the two centres: 9.65 and 11.05; of the cells both reach, column 10's centre (10.5) is nearer to FAR's.
    head, instances = head_of(), instances_of(NEAR, FAR)
    _, cells, codes, shares = head.targets(instances, torch.device("cpu"))
    assert len(cells) == len(set(cells.tolist()))
    for cell, code in zip(cells.tolist(), codes, strict=True):
        center = torch.tensor([cell % 16 + 0.5, cell // 16 + 0.5]) + code[:2]
        distances = {tuple(c): (torch.tensor([cell % 16 + 0.5, cell // 16 + 0.5]) - torch.tensor(c)).norm()
                     for c in ([9.65, 6.2], [11.05, 6.6])}  # fmt: skip
        torch.testing.assert_close(center, torch.tensor(min(distances, key=distances.get)))
    torch.testing.assert_close(shares.sum(), torch.tensor(2.0))
    found = decoded(head, raw_that_fits(head, instances))
    order = found.labels_3d.argsort()
    expected = instances.bboxes_3d.tensor.nan_to_num()
    torch.testing.assert_close(found.bboxes_3d.tensor[order], expected, rtol=1e-4, atol=1e-4)


def test_at_the_border_only_cells_of_the_grid_learn():
    # The corner cell has three neighbours.
    corner = [-15.9, -7.9, *NEAR[2:]]
    _, cells, _, shares = head_of().targets(instances_of(corner), torch.device("cpu"))
    assert sorted(cells.tolist()) == [0, 1, 16, 17]
    torch.testing.assert_close(shares.sum(), torch.tensor(1.0))


def test_outside_the_grid_nothing_is_asked():
    outside = [17.0, 0.0, *NEAR[2:]]
    heatmap, cells, codes, shares = head_of().targets(instances_of(outside), torch.device("cpu"))
    assert heatmap.sum() == 0 and len(cells) == len(codes) == len(shares) == 0


def test_upscale_must_divide_the_grid():
    with pytest.raises(ValueError, match="12 x 16 cells do not divide by 5"):
        head_of(upscale=5)


def test_common_weights_need_finer_cells():
    with pytest.raises(ValueError, match="upscale is 1: weights common to finer cells need 2 or more"):
        head_of(common=True)


def channels_of(head: DenseDetectionHead) -> dict[str, int]:
    """Of each raw output, as its class says."""
    return {"heatmap": len(head.classes), "box": len(head.outputs.regressed), **head.outputs.channels}


def boxed(yaw: float, velocity: tuple[float, float]) -> InstanceData:
    return instances_of([*NEAR[:6], yaw, *velocity])


@pytest.mark.parametrize("bins", [2, 8, 9])
def test_perfect_outputs_give_perfect_boxes(bins):
    # Expected: the very box, at headings in every bin, on their centres and borders; one that stands has speed 0.
    head = head_of(outputs=dict(heading_bins=bins, moving=True, quality=True))
    for step in range(-2 * bins, 2 * bins):
        yaw = step * math.pi / (2 * bins)
        moves = step % 2 == 0
        found = decoded(head, raw_that_fits(head, boxed(yaw, (3.0, -1.0) if moves else (0.3, 0.2))))
        expected = torch.tensor([[*NEAR[:6], yaw, *((3.0, -1.0) if moves else (0.0, 0.0))]])
        turn = found.bboxes_3d.tensor[:, 6] - yaw
        expected[:, 6] += 2 * math.pi * (turn / (2 * math.pi)).round()
        torch.testing.assert_close(found.bboxes_3d.tensor, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", ["threshold", "expected"])
@pytest.mark.parametrize("probability", [0.1, 0.9])
def test_velocity_of_what_may_stand(rule, probability):
    # Closed form: (3, -1) or nothing, whichever is likelier; or (3, -1) times the probability.
    head, instances = head_of(outputs=dict(moving=True), decoding=dict(velocity=rule)), boxed(2.0, (3.0, -1.0))
    raw = raw_that_fits(head, instances)
    raw["motion"][:, 0].fill_(math.log(probability / (1 - probability)))
    factor = probability if rule == "expected" else float(probability > 0.5)
    found = decoded(head, raw).bboxes_3d.tensor[0, 7:]
    torch.testing.assert_close(found, factor * torch.tensor([3.0, -1.0]))


def test_losses_by_hand():
    # One box, nothing predicted: ln 2 for moving, 3 + 1 m/s of velocity, heading as in tests/losses; the box of which
    # velocity is no longer a part; each times its weight. One that stands asks nothing of the velocity.
    options = dict(heading_bins=4, moving=True)
    weights = dict(moving_weight=2.0, velocity_weight=3.0, heading_weight=5.0, box_weight=7.0)
    head = head_of(outputs=options, criterion=dict(weights, reach_cells=0))
    raw = {name: torch.zeros(1, number, *GRID.shape) for name, number in channels_of(head).items()}

    def losses(velocity: tuple[float, float]) -> dict[str, Tensor]:
        sample = BEVDataSample(gt_instances_3d=boxed(math.pi / 6, velocity))
        return {name: pytest.approx(value.item(), rel=1e-5) for name, value in head.loss(raw, [sample]).items()}

    found = losses((3.0, -1.0))
    heading = math.log(4) + 2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3) + 4 / 9
    box = 0.15 + 0.3 + 0.2 + math.log(4.5) + math.log(1.9) + math.log(1.6)  # centre at 9.65, 6.2 cells, -0.2 m
    assert found == found | {
        "loss_moving": 2 * math.log(2), "loss_velocity": 12.0, "loss_heading": 5 * heading, "loss_box": 7 * box
    }  # fmt: skip
    standing = losses((0.4, 0.2))
    assert standing == found | {"loss_velocity": 0.0}


@pytest.mark.parametrize("velocity", [(math.nan, math.nan), (0.4, 0.2), (3.0, -1.0)], ids=["unknown", "still", "moves"])
def test_what_is_not_known_leaves_no_gradient(velocity):
    # Expected: an unknown velocity none in either output; a standing object none in the velocity.
    head = head_of(outputs=dict(heading_bins=4, moving=True))
    raw = {name: torch.randn(1, n, *GRID.shape, requires_grad=True) for name, n in channels_of(head).items()}
    yaw = math.nan if math.isnan(velocity[0]) else 1.0
    losses = head.loss(raw, [BEVDataSample(gt_instances_3d=boxed(yaw, velocity))])
    sum(losses.values()).backward()
    assert all(value.isfinite() for value in losses.values()) and raw["box"].grad.abs().sum() > 0
    assert all(value.grad.isfinite().all() for value in raw.values())
    known = not math.isnan(yaw)
    assert bool(raw["motion"].grad[:, 0].any()) is known and bool(raw["heading"].grad.any()) is known
    assert bool(raw["motion"].grad[:, 1:].any()) is (velocity == (3.0, -1.0))


def test_quality_is_how_near_an_object_of_the_class_is():
    # Closed form: exp(-distance / 2 m); 0 without an object of the class.
    places, labels = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 0, 1])
    true = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    quality = localisation_quality(places, labels, true, torch.tensor([0, 0]), 2.0)
    torch.testing.assert_close(quality, torch.tensor([math.exp(-0.5), math.exp(-1), 0.0]))
    assert (localisation_quality(places, labels, true[:0], labels[:0], 2.0) == 0).all()


def test_quality_is_learned_at_peaks():
    # By hand: 1/4 is predicted everywhere. A peak whose box is the true one costs -ln 1/4, one of a class that is not
    # there -ln 3/4. Only the peak's own cell learns.
    head = head_of(outputs=dict(quality=True), criterion=dict(quality_peaks=1, quality_weight=2.0))
    instances = boxed(2.0, (0.0, 0.0))
    for flipped, expected in ((False, -math.log(0.25)), (True, -math.log(0.75))):
        raw = raw_that_fits(head, instances, (6, 9))
        raw["heatmap"] = raw["heatmap"].flip(1) if flipped else raw["heatmap"]
        raw["quality"].fill_(math.log(1 / 3)).requires_grad_()
        loss = head.loss(raw, [BEVDataSample(gt_instances_3d=instances)])["loss_quality"]
        loss.backward()
        assert loss.item() == pytest.approx(2 * expected, rel=1e-3)
        assert raw["quality"].grad.flatten().nonzero().flatten().tolist() == [6 * 16 + 9]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_quality_ranks_peaks(power):
    # Closed form: p^(1 - power) q^power with p = sigmoid(10), q = 0.3 everywhere.
    head = head_of(outputs=dict(quality=True), decoding=dict(quality_power=power))
    instances = instances_of(NEAR)
    raw = raw_that_fits(head, instances)
    raw["quality"].fill_(math.log(0.3 / 0.7))
    probability = 1 / (1 + math.exp(-10))
    assert decoded(head, raw).scores_3d[0].item() == pytest.approx(probability ** (1 - power) * 0.3**power, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(outputs=dict(heading_bins=1)), "heading_bins: 1: must be 0 or at least 2"),
        (dict(decoding=dict(velocity="median")), "velocity: 'median' is none of threshold, expected"),
        (dict(decoding=dict(quality_power=1.5)), r"quality_power: 1.5 is not in \[0, 1\]"),
    ],
)
def test_a_wrong_option_is_told(options, said):
    with pytest.raises(ValueError, match=said):
        head_of(**options)


def test_a_moving_box_is_learned_where_most_stand():
    # Five boxes of which one moves: after a few steps on one B_t its velocity is there, the others stand exactly, and
    # each heading is its own. Expected: the boxes that it was trained on.
    torch.manual_seed(0)
    places = [(-11.0, -3.0), (-5.0, 5.0), (1.0, 11.0), (7.0, -1.0), (12.0, 9.0)]
    yaws, speeds = (0.0, 3.1, 0.1, -1.6, 1.5), (0.0, 0.0, 0.0, 6.0, 0.0)
    boxes = [[x, y, *NEAR[2:6], yaw, 0.0, -speed] for (x, y), yaw, speed in zip(places, yaws, speeds, strict=True)]
    sample = BEVDataSample(gt_instances_3d=instances_of(*boxes, labels=(0,) * 5))
    head = DenseDetectionHead(
        8, GRID, ("car", "pedestrian"), channels=16, outputs=dict(heading_bins=8, moving=True, quality=True)
    )
    bev, optimizer = BEVFeatures(torch.randn(1, 8, *GRID.shape), GRID), torch.optim.Adam(head.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        sum(head.loss(head(bev), [sample]).values()).backward()
        optimizer.step()
    found = head.predict(head(bev), [sample])[0]["pred_instances_3d"].bboxes_3d.tensor[:5]
    found = found[torch.cdist(torch.tensor(places), found[:, :2]).argmin(1)]
    assert (found[:, :2] - torch.tensor(places)).norm(dim=1).max() < 0.5
    assert (found[3, 7:] - torch.tensor([0.0, -6.0])).norm() < 0.5
    assert (found[[0, 1, 2, 4], 7:] == 0).all()
    assert torch.cos(found[:, 6] - torch.tensor(yaws)).min() > math.cos(math.radians(10))
