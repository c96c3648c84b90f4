"""The panoptic target: cells of objects by closed form, stuff from the raster, both under the BEV augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bevstack.datasets.transforms import BEVRotateScaleFlip, LoadBEVMap, ObjectRangeFilter, PackBEVInputs
from bevstack.datasets.transforms.bev_targets import RasteriseBoxes, footprint_cells
from bevstack.datasets.transforms.panoptic_targets import MakePanopticMap, thing_masks
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.structures import BEVRaster
from tests.datasets.test_bev_targets import CLASSES, box, random_boxes, results_of

GRID = BEVGrid(shape=(30, 50), x_range_m=(-25.0, 25.0), y_range_m=(-10.0, 20.0))  # cells of 1 m
LAYERS = ("drivable_area", "ped_crossing", "divider")
PRIORITY = ("divider", "ped_crossing", "drivable_area")


def with_map(results, grid=GRID):
    """A road on the right half, a crossing of rows 5-9 on it, a divider in column 40."""
    layers = torch.zeros(3, *grid.shape, dtype=torch.uint8)
    layers[0, :, 25:] = 1
    layers[1, 5:10, 25:] = 1
    layers[2, :, 40] = 1
    results["rasters"]["map"] = BEVRaster(layers, LAYERS, grid)
    return results


def test_owners_by_hand():
    # A car of 4 m x 2 m at (20, 5) covers columns 43-46 and rows 14-15; a pedestrian of 0.4 m at (-20.1, 3.2) stands in
    # column 4, row 13, and covers no centre; a truck lies outside.
    boxes = [box(20, 5), box(-20.1, 3.2, 0.4, 0.4), box(40, 5)]
    results = with_map(results_of(boxes, labels=[0, 7, 1], instance_ids=np.array([7, 8, 9])))
    panoptic = MakePanopticMap(GRID, stuff=PRIORITY)(results)["panoptic"]
    names = [panoptic.classes[label] for label in panoptic.labels]
    assert names == ["car", "pedestrian", "divider", "ped_crossing", "drivable_area"]
    assert panoptic.instance_ids.tolist() == [7, 8, -1, -1, -1]
    expected = torch.full(GRID.shape, -1)
    expected[:, 25:] = 4
    expected[5:10, 25:] = 3
    expected[:, 40] = 2
    expected[14:16, 43:47] = 0
    expected[13, 4] = 1
    assert torch.equal(panoptic.segments, expected)
    assert panoptic.thing_classes == CLASSES and panoptic.stuff_classes == PRIORITY and panoptic.grid == GRID


def test_every_object_on_the_grid_covers_a_cell():
    # Expected: the cells of footprint_cells, and the centre's cell where there are none and it lies on the grid.
    boxes = torch.from_numpy(random_boxes(60))
    boxes[::3, 3:5] = 0.1
    masks = thing_masks(boxes, GRID)
    number, row, column = footprint_cells(boxes, GRID)
    assert masks[number, row, column].all()
    covered = torch.bincount(number, minlength=60)
    inside = GRID.contains(boxes[:, :2])
    expected = torch.where((covered == 0) & inside, 1, covered)
    assert torch.equal(masks.flatten(1).sum(1), expected)
    assert ((covered == 0) & inside).sum() > 3 and (~inside & (covered == 0)).sum() > 3
    assert thing_masks(boxes[:0], GRID).shape == (0, *GRID.shape)


def test_classes_and_visibility_choose_the_things():
    # Expected: things are numbered as the transform names them; labels -1 and unnamed classes are no things.
    boxes = [box(-20, 5), box(-10, 5), box(0.5, 5), box(10, 5)]
    results = with_map(results_of(boxes, labels=[7, 0, -1, 1], visibility=np.array([4, 4, 4, 1])))
    panoptic = MakePanopticMap(GRID, things=("truck", "pedestrian"), stuff=())(results)["panoptic"]
    assert panoptic.labels.tolist() == [1, 0] and panoptic.thing_classes == ("truck", "pedestrian")
    assert panoptic.instance_ids.tolist() == [0, 3]  # the boxes' places, where the dataset names none
    seen = MakePanopticMap(GRID, things=("truck", "pedestrian"), stuff=(), min_visibility=2)(results)["panoptic"]
    assert seen.labels.tolist() == [1]


def test_no_object_and_no_map_layer_there():
    panoptic = MakePanopticMap(GRID, stuff=PRIORITY)(with_map(results_of(np.zeros((0, 9)))))["panoptic"]
    assert panoptic.labels.tolist() == [8, 9, 10]
    empty = MakePanopticMap(GRID, stuff=())(results_of(np.zeros((0, 9))))["panoptic"]
    assert len(empty) == 0 and (empty.segments == -1).all()


@pytest.mark.parametrize("seed", range(4))
def test_things_follow_the_augmentation(seed):
    # Expected: the same cells that RasteriseBoxes paints from the same augmented boxes, all larger than a cell.
    boxes = random_boxes(8, seed=seed)
    boxes[:, 3:5] += 1.5
    results = BEVRotateScaleFlip()(results_of(boxes, labels=range(8), seed=seed))
    assert not np.allclose(results["augmented_from_bev"], np.eye(4))
    results = RasteriseBoxes(GRID, layers={"any": CLASSES})(results)
    panoptic = MakePanopticMap(GRID, stuff=())(results)["panoptic"]
    assert torch.equal(panoptic.segments >= 0, results["rasters"]["vehicle"].layers[0] != 0)


def test_the_sample_carries_it_whatever_the_filters_leave():
    frames = [dict(images=[np.zeros((2, 3, 3), np.uint8)], pixels_from_camera=np.eye(3)[None],
                   camera_from_bev=np.eye(4)[None], image_size_px=np.array([[2, 3]]), previous_from_current=np.eye(4),
                   has_previous=False, seconds=0.0)]  # fmt: skip
    results = with_map(results_of([box(25.5, 5.0)], instance_ids=np.array([3]), frames=frames))
    results = ObjectRangeFilter(GRID)(MakePanopticMap(GRID, stuff=PRIORITY)(results))
    sample = PackBEVInputs()(results)["data_samples"]
    assert len(sample.gt_instances_3d) == 0  # its centre lies outside ...
    assert sample.gt_panoptic.instance_ids.tolist() == [3, -1, -1, -1]  # ... and two of its columns inside
    assert (sample.gt_panoptic.segments == 0).sum() == 2 * 2


def test_what_is_missing_is_named():
    results = with_map(results_of([box(0, 0)]))
    with pytest.raises(InputError, match="MakePanopticMap.things: 'boat' is not there: the dataset has the classes"):
        MakePanopticMap(GRID, things=("boat",), stuff=())(results)
    with pytest.raises(InputError, match="MakePanopticMap.stuff: 'stop_line' is not there: raster 'map' has"):
        MakePanopticMap(GRID)(results)
    with pytest.raises(InputError, match="raster 'ground' is not there: put LoadBEVMap before .*there are \\['map'\\]"):
        MakePanopticMap(GRID, raster="ground")(results)
    with pytest.raises(InputError, match="raster 'map' lies on .* give both the same grid"):
        MakePanopticMap(BEVGrid((30, 50)), stuff=PRIORITY)(results)
    # Where a dataset is built, before the first sample:
    load, paint = LoadBEVMap(GRID), RasteriseBoxes(GRID, name="ground")
    MakePanopticMap(GRID, stuff=PRIORITY).check_place([load])
    MakePanopticMap(GRID, raster="ground", stuff=PRIORITY).check_place([load, paint])
    MakePanopticMap(GRID, stuff=PRIORITY).check_place([lambda results: results])  # of elsewhere: it may make one
    MakePanopticMap(GRID, stuff=()).check_place([])
    with pytest.raises(InputError, match="raster 'map' is not there: put LoadBEVMap before .*there are \\['ground'\\]"):
        MakePanopticMap(GRID, stuff=PRIORITY).check_place([paint])
