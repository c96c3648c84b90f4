"""The keypoint head: targets and losses by closed form, grouping and decoding of given heatmaps, that it can learn."""

from __future__ import annotations

import math

import pytest
import torch
from mmengine.structures import InstanceData

from bevstack.geometry import BEVGrid
from bevstack.geometry.keypoints import KEYPOINT_NAMES, box_poses, pose_keypoints
from bevstack.models.heads import KeypointHead
from bevstack.structures import BEVDataSample, BEVFeatures
from bevstack.structures.boxes import lidar_boxes

CLASSES = ("car", "pedestrian")
GRID = BEVGrid(shape=(40, 50), x_range_m=(-25, 25), y_range_m=(-10, 30))  # 1 m cells
FRONT = KEYPOINT_NAMES.index("front")


def box(x, y, length, width, yaw):
    return [x, y, -1.0, length, width, 1.5, yaw, 0.0, 0.0]


def instances_of(rows, labels):
    return InstanceData(bboxes_3d=lidar_boxes(torch.tensor(rows)), labels_3d=torch.tensor(labels))


SCENE = instances_of(
    [box(3.3, 4.7, 4.5, 1.9, 0.4), box(-8.2, 15.1, 4.2, 1.8, 2.9), box(10.6, -3.4, 0.8, 0.6, -1.2),
     box(-20.1, 2.2, 11.0, 2.9, -2.0), box(24.0, 20.0, 5.0, 2.0, 0.0)],
    [0, 0, 1, 0, 0],
)  # fmt: skip


def head_of(**options):
    torch.manual_seed(0)
    return KeypointHead(8, GRID, CLASSES, channels=16, **options)


def perfect(head, instances, high=12.0):
    """Raw outputs that say exactly what the truth asks for."""
    target = head.targets(instances, "cpu")
    logit = high * (2 * target.heatmap.eq(1).float() - 1)
    around = high * (2 * target.keypoint_heatmap.eq(1).float() - 1)
    offset, vectors = torch.zeros(6, 2, GRID.num_cells), torch.zeros(10, GRID.num_cells)
    for point, cell, value, _ in zip(*target.positives, strict=True):
        kind, place = cell // GRID.num_cells, cell % GRID.num_cells
        offset[kind, :, place] = value
        if kind == 0:
            vectors[:, place] = target.vectors[point // 6].flatten()
    raw = {"heatmap": logit, "keypoint_heatmap": around, "offset": offset.flatten(0, 1), "vectors": vectors}
    return {name: value.unflatten(-1, GRID.shape).unsqueeze(0) if value.ndim == 2 else value.unsqueeze(0)
            for name, value in raw.items()}  # fmt: skip


def predicted(head, raw):
    return head.predict(raw, [BEVDataSample()])[0]["pred_keypoints"]


def in_order_of(found, points):
    """Rows of the prediction in the order of the true centres."""
    return torch.cdist(points[:, 0], found.keypoints[:, 0]).argmin(1)


@pytest.mark.parametrize("reach", [0, 1])
def test_targets_of_one_car(reach):
    # Closed form: 4 x 2 m at (3.25, 4.5) heading +y; column = x + 25, row = y + 10 in cells of 1 m.
    car = instances_of([box(3.25, 4.5, 4.0, 2.0, math.pi / 2)], [1])
    target = head_of(criterion=dict(reach_cells=reach)).targets(car, "cpu")
    points, cells, offsets, shares = target.positives
    kinds, columns, rows = cells // GRID.num_cells, cells % 50, cells % GRID.num_cells // 50
    assert torch.equal(kinds, points)  # one object
    # centre, front left, front right, rear right, rear left, front
    for kind, (column, row) in enumerate([(28, 14), (27, 16), (29, 16), (29, 12), (27, 12), (28, 16)]):
        own, steps = kinds == kind, range(-reach, reach + 1)
        values = zip(offsets[own].tolist(), shares[own].tolist(), strict=True)
        learned = dict(zip(zip(columns[own].tolist(), rows[own].tolist(), strict=True), values, strict=True))
        assert set(learned) == {(column + i, row + j) for i in steps for j in steps}
        # the point lies 0.25 cells left of the cell's centre; a cell i columns to the right sees it i more to the left
        weights = {(i, j): math.exp(-0.5 * ((-0.25 - i) ** 2 + j**2)) for i in steps for j in steps}
        for (i, j), weight in weights.items():
            offset, share = learned[column + i, row + j]
            assert offset == pytest.approx([-0.25 - i, -j], abs=1e-5)
            assert share == pytest.approx(weight / sum(weights.values()), abs=1e-5)
    vectors = torch.tensor([[-1.0, 2.0], [1.0, 2.0], [1.0, -2.0], [-1.0, -2.0], [0.0, 2.0]])
    torch.testing.assert_close(target.vectors[0], vectors, atol=1e-5, rtol=0)
    assert target.heatmap[1, 14, 28] == 1 and target.heatmap.eq(1).sum() == 1 and target.heatmap[0].max() == 0
    for kind, (row, column) in enumerate([(16, 27), (16, 29), (12, 29), (12, 27), (16, 28)]):
        assert target.keypoint_heatmap[kind, row, column] == 1 and target.keypoint_heatmap[kind].eq(1).sum() == 1
    # one cell beside, sigma 0.8 cells: exp(-1 / (2 * 0.64))
    assert target.heatmap[1, 14, 29].item() == pytest.approx(math.exp(-0.5 / 0.64))


def test_what_lies_off_the_grid():
    # Expected: the last car's front end is at x = 26.5 beyond 25; a box whose centre is outside asks nothing.
    head = head_of()
    target = head.targets(SCENE, "cpu")
    assert target.inside[:4].all() and target.inside[4].tolist() == [True, False, False, True, True, False]
    learned = torch.zeros(30).index_add(0, target.positives.points, target.positives.shares)
    torch.testing.assert_close(learned.view(5, 6), target.inside.float())  # shares of one keypoint sum to 1
    assert target.keypoint_heatmap.eq(1).sum(dim=(1, 2)).tolist() == [4, 4, 5, 5, 4]
    outside = head.targets(instances_of([box(25.5, 20.0, 4.0, 2.0, 0.0)], [0]), "cpu")
    assert len(outside.vectors) == len(outside.positives.cells) == 0 and outside.heatmap.max() == 0


def test_perfect_heatmaps_give_the_keypoints_back():
    # Expected: the truth itself, headings included; keypoints off the grid come from the vectors alone.
    head = head_of()
    found = predicted(head, perfect(head, SCENE))
    truth = pose_keypoints(box_poses(SCENE.bboxes_3d.tensor))
    assert found.keypoints.shape == (5, 6, 2) and found.keypoint_scores.shape == (5, 6) and found.poses.shape == (5, 5)
    order = in_order_of(found, truth)
    torch.testing.assert_close(found.keypoints[order], truth, atol=1e-4, rtol=0)
    torch.testing.assert_close(found.poses[order], box_poses(SCENE.bboxes_3d.tensor), atol=1e-4, rtol=1e-4)
    assert torch.equal(found.labels[order], SCENE.labels_3d)
    assert (found.scores > 0.99).all()
    inside = head.targets(SCENE, "cpu").inside
    assert (found.keypoint_scores[order][inside] > 0.99).all() and (found.keypoint_scores[order][~inside] == 0).all()


@pytest.mark.parametrize("peak", [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1)], ids=str)
def test_peaks_one_cell_off_still_give_the_pose(peak):
    # Expected: the truth itself, wherever around the keypoints' own cells their peaks are.
    head, scene = head_of(), SCENE[:2]
    raw = perfect(head, scene)
    for name in ("heatmap", "keypoint_heatmap"):
        raw[name] = raw[name].roll(peak, (2, 3))
    found = predicted(head, raw)
    truth = pose_keypoints(box_poses(scene.bboxes_3d.tensor))
    assert len(found.scores) == 2 and (found.keypoint_scores > 0.99).all()
    torch.testing.assert_close(found.keypoints[in_order_of(found, truth)], truth, atol=1e-4, rtol=0)


def test_neighbours_contest_cells_by_kind():
    # By hand: two objects of two classes, centres in columns 30.2 and 31.7 of row 20.5. Both reach columns 30 and 31:
    # 30 (centre 30.5) is the first one's (0.3 against 1.2), 31 (31.5) the second one's (1.3 against 0.2). The fronts,
    # in columns 30.6 and 32.1, are shared out by themselves: both reach column 31 alone, 0.9 against 0.6.
    pair = instances_of([box(5.2, 10.5, 0.8, 0.6, 0.0), box(6.7, 10.5, 0.8, 0.6, 0.0)], [0, 1])
    points, cells, _, shares = head_of().targets(pair, "cpu").positives

    def columns(object_index, kind):
        own = points == object_index * 6 + kind
        assert shares[own].sum().item() == pytest.approx(1.0)
        return set((cells[own] % 50).tolist())

    assert columns(0, 0) == {29, 30} and columns(1, 0) == {31, 32}
    assert columns(0, FRONT) == {29, 30} and columns(1, FRONT) == {31, 32, 33}
    assert len(set(cells.tolist())) == len(cells)


def test_losses_by_hand():
    # By hand: a car alone on the map, no regression at all (zeros). Reach 0: every keypoint is (-0.25, 0) cells from
    # its cell's centre, the centre's error .25 and the mean of the others' .25: 0.5. Vectors (-1, 2), (1, 2), (1, -2),
    # (-1, -2), (0, 2) m: (4 * 3 + 2) / 5 = 2.8.
    sample = BEVDataSample()
    sample.gt_instances_3d = instances_of([box(3.25, 4.5, 4.0, 2.0, math.pi / 2)], [0])
    shapes = {"heatmap": 2, "keypoint_heatmap": 5, "offset": 12, "vectors": 10}
    raw = {name: torch.zeros(1, width, *GRID.shape) for name, width in shapes.items()}
    losses = head_of(criterion=dict(reach_cells=0, offset_weight=1.0, vector_weight=1.0)).loss(raw, [sample])
    assert losses["loss_offset"].item() == pytest.approx(0.5) and losses["loss_vector"].item() == pytest.approx(2.8)
    # Reach 1: the shares of a keypoint sum to 1, so the vectors' loss is the same; the offset's is the mean of |x| plus
    # that of |y| by shares, which are products of exp(-x^2 / 2), x = .75, -.25, -1.25, and exp(-y^2 / 2), y = 1, 0, -1.
    across, along = (0.75, -0.25, -1.25), (1.0, 0.0, -1.0)
    mean = sum(sum(abs(d) * math.exp(-0.5 * d * d) for d in ds) / sum(math.exp(-0.5 * d * d) for d in ds)
               for ds in (across, along))  # fmt: skip
    losses = head_of(criterion=dict(offset_weight=1.0, vector_weight=1.0)).loss(raw, [sample])
    assert losses["loss_offset"].item() == pytest.approx(2 * mean, rel=1e-5)
    assert losses["loss_vector"].item() == pytest.approx(2.8, rel=1e-5)


def test_vectors_snap_to_peaks():
    # Expected: vectors that are 0.4 m off still give the exact keypoints, as the peaks are within half of 2 m; without
    # peaks the keypoints are where the vectors say, with the low probability that stands there.
    head = head_of()
    scene = SCENE[:2]
    truth = pose_keypoints(box_poses(scene.bboxes_3d.tensor))
    raw = perfect(head, scene)
    raw["vectors"] = raw["vectors"] + 0.4 / math.sqrt(2)
    found = predicted(head, raw)
    order = in_order_of(found, truth)
    torch.testing.assert_close(found.keypoints[order], truth, atol=1e-4, rtol=0)
    raw["keypoint_heatmap"] = torch.full_like(raw["keypoint_heatmap"], -12.0)
    found = predicted(head, raw)
    expected = truth.clone()
    expected[:, 1:] += 0.4 / math.sqrt(2)
    torch.testing.assert_close(found.keypoints[in_order_of(found, truth)], expected, atol=1e-4, rtol=0)
    assert (found.keypoint_scores[:, 1:] < 1e-4).all()


def test_far_peaks_pull_nothing():
    # Expected: vectors 1.2 m off are beyond the radius of 1 m; the peaks stay unused.
    head = head_of()
    truth = pose_keypoints(box_poses(SCENE.bboxes_3d.tensor))[:1]
    raw = perfect(head, SCENE[:1])
    raw["vectors"][:, 1::2] += 1.2
    found = predicted(head, raw)
    torch.testing.assert_close(found.keypoints[:, FRONT], truth[:, FRONT] + torch.tensor([0.0, 1.2]), atol=1e-4, rtol=0)
    # and half of a pedestrian's 0.4 m: 0.3 m is too far for its front point, though near enough for a car's
    raw = perfect(head, SCENE[2:3])
    raw["vectors"][:, 1::2] += 0.3
    truth = pose_keypoints(box_poses(SCENE.bboxes_3d.tensor))[2:3]
    found = predicted(head, raw)
    torch.testing.assert_close(found.keypoints[:, FRONT], truth[:, FRONT] + torch.tensor([0.0, 0.3]), atol=1e-4, rtol=0)


def test_thresholds_and_limits():
    head = head_of(decoding=dict(score_threshold=0.5, max_num=3, nms_radius_m=50.0))
    assert len(predicted(head, perfect(head, SCENE)).scores) == 2  # one of each class: the others are within 50 m
    head = head_of(decoding=dict(max_num=3))
    assert len(predicted(head, perfect(head, SCENE)).scores) == 3
    raw = perfect(head, SCENE)
    raw["heatmap"] = raw["heatmap"] - 30
    found = predicted(head, raw)
    assert found.keypoints.shape == (0, 6, 2) and found.poses.shape == (0, 5)


def test_losses_of_a_perfect_answer_are_nearly_zero():
    # Expected: heatmaps saturate at logits of 12, offsets and vectors are exact.
    head = head_of()
    sample = BEVDataSample()
    sample.gt_instances_3d = SCENE
    losses = head.loss(perfect(head, SCENE), [sample])
    assert losses["loss_offset"] == 0 and losses["loss_vector"].item() == pytest.approx(0, abs=1e-6)
    assert all(value < 1e-3 for value in losses.values())


def test_it_learns_a_scene():
    # Expected: B_t and head fitted to one scene give its poses back to 0.2 m and 5 degrees.
    head = head_of()
    features = torch.randn(1, 8, *GRID.shape, requires_grad=True)
    sample = BEVDataSample()
    sample.gt_instances_3d = SCENE
    optimizer = torch.optim.Adam([features, *head.parameters()], lr=0.02)
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / 150)
        optimizer.zero_grad()
        loss = sum(head.loss(head(BEVFeatures(features, GRID)), [sample]).values())
        loss.backward()
        optimizer.step()
    found = predicted(head, head(BEVFeatures(features, GRID)))
    found = found[found.scores > 0.5]
    truth = pose_keypoints(box_poses(SCENE.bboxes_3d.tensor))
    assert len(found.scores) == 5
    order = in_order_of(found, truth)
    assert (found.keypoints[order] - truth).norm(dim=-1).max() < 0.2
    turn = (found.poses[order, 4] - SCENE.bboxes_3d.tensor[:, 6]) / (2 * math.pi)
    assert ((turn - turn.round()).abs() * 360).max() < 5
    assert torch.equal(found.labels[order], SCENE.labels_3d)
