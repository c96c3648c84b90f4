"""Dense detection: which cells learn which box, and that a peak anywhere among them decodes to that box."""

from __future__ import annotations

import pytest
import torch
from mmdet3d.structures import LiDARInstance3DBoxes
from mmengine.structures import InstanceData
from torch import Tensor

from bevstack.geometry import BEVGrid
from bevstack.models.heads import DenseDetectionHead
from bevstack.structures import BEVDataSample

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
    box = torch.zeros(10, GRID.num_cells)
    box[:, cells] = codes.nan_to_num().t()
    if peak is not None:
        heatmap = torch.zeros_like(heatmap)
        heatmap[instances.labels_3d[0], peak[0], peak[1]] = 1
    return {"heatmap": (heatmap * 20 - 10).unsqueeze(0), "box": box.unflatten(1, GRID.shape).unsqueeze(0)}


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
