"""Who owns a cell of the panoptic map, on maps small enough to write down."""

from __future__ import annotations

import pytest
import torch

from bevstack.geometry import BEVGrid
from bevstack.structures import PanopticMap
from bevstack.structures.panoptic import panoptic_map

GRID = BEVGrid((1, 6))
CLASSES = (("car", "pedestrian"), ("divider", "ped_crossing", "drivable_area"))


def row(text):
    """One row of cells, "#" where the mask is."""
    return torch.tensor([[letter == "#" for letter in text]])


def made(things, labels, stuff):
    masks = torch.stack([row(text) for text in things]) if things else torch.zeros(0, 1, 6, dtype=torch.bool)
    ids = torch.arange(10, 10 + len(things))
    return panoptic_map(masks, torch.tensor(labels).long(), ids, torch.stack(list(map(row, stuff))), CLASSES, GRID)


def test_things_before_stuff_and_stuff_by_priority():
    # By hand: the car takes cells 2-3, the divider 1, the crossing what is left of 0-2, the road what is left at all.
    panoptic = made(["..##.."], [0], [".##...", "###...", "#####."])
    assert panoptic.segments.tolist() == [[2, 1, 0, 0, 3, -1]]
    assert panoptic.labels.tolist() == [0, 2, 3, 4] and panoptic.instance_ids.tolist() == [10, -1, -1, -1]
    assert panoptic.is_thing.tolist() == [True, False, False, False]
    assert panoptic.cell_labels().tolist() == [[3, 2, 0, 0, 4, -1]]
    assert panoptic.masks().long().sum((1, 2)).tolist() == [2, 1, 1, 1] and len(panoptic) == 4
    assert panoptic.classes == ("car", "pedestrian", "divider", "ped_crossing", "drivable_area")


def test_of_two_things_the_smaller_owns_what_both_cover():
    # By hand: whichever comes first, the pedestrian (1 cell) cuts into the car (4 cells).
    for order in (0, 1):
        things, labels = ["####..", "..#..."], [0, 1]
        panoptic = made(things[::-1] if order else things, labels[::-1] if order else labels, ["......"] * 3)
        assert panoptic.cell_labels().tolist() == [[0, 0, 1, 0, -1, -1]]
        assert panoptic.labels.tolist() == (labels[::-1] if order else labels)


def test_of_equally_large_things_the_first_owns():
    panoptic = made(["###...", ".###.."], [0, 0], ["......"] * 3)
    assert panoptic.segments.tolist() == [[0, 0, 0, 1, -1, -1]]


def test_what_has_no_cell_left_is_no_segment():
    # By hand: the second pedestrian stands in the cell of the first, the car on the grid's outside; no crossing.
    panoptic = made(["......", "#.....", "#....."], [0, 1, 1], [".#....", ".#....", "......"])
    assert panoptic.segments.tolist() == [[0, 1, -1, -1, -1, -1]]
    assert panoptic.labels.tolist() == [1, 2] and panoptic.instance_ids.tolist() == [11, -1]
    empty = made([], [], ["......"] * 3)
    assert len(empty) == 0 and empty.masks().shape == (0, 1, 6) and (empty.cell_labels() == -1).all()


def test_moves_as_one_and_refuses_contradictions():
    panoptic = made(["..##.."], [0], [".##...", "###...", "#####."])
    there = panoptic.to("meta")
    assert there.segments.is_meta and there.labels.is_meta and there.instance_ids.is_meta and there.grid == GRID
    with pytest.raises(ValueError, match="segments have \\(2, 6\\) cells"):
        PanopticMap(torch.zeros(2, 6).long(), torch.zeros(1).long(), torch.zeros(1).long(), *CLASSES, GRID)
    with pytest.raises(ValueError, match="2 labels for 1 instance ids"):
        PanopticMap(torch.zeros(1, 6).long(), torch.zeros(2).long(), torch.zeros(1).long(), *CLASSES, GRID)
