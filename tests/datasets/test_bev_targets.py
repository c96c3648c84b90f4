"""BEV rasters: orientation, exactness and agreement under augmentation, against closed forms and shapely."""

import math

import numpy as np
import pytest
import torch
from shapely.geometry import Point, Polygon

from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.nuscenes.taxonomy import MAP_LAYERS
from bevstack.datasets.transforms import BEVRotateScaleFlip
from bevstack.datasets.transforms.bev_targets import LoadBEVMap, RasteriseBoxes, footprint_cells, rasterise_boxes
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.geometry.boxes3d import box_footprints, points_in_footprint

GRID = BEVGrid(shape=(60, 100), x_range_m=(-25.0, 25.0), y_range_m=(-10.0, 20.0))
CLASSES = ("car", "truck", "construction_vehicle", "bus", "trailer", "motorcycle", "bicycle", "pedestrian")


def box(x, y, length=4.0, width=2.0, yaw=0.0):
    return [x, y, -1.0, length, width, 1.5, yaw, 0.0, 0.0]


def random_boxes(count=25, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([box(*rng.uniform([-28, -13], [28, 23]), *rng.uniform(0.3, 9, 2), rng.uniform(-3.2, 3.2))
                     for _ in range(count)])  # fmt: skip


class PaintedMap:
    """A dataset of nuScenes' names at one place; its map layer k is on where global (x, y) lies in polygon k.

    Exact at every cell's centre. Without polygons there is no map.
    """

    taxonomy = NuScenesBEVDataset.taxonomy
    classes = CLASSES
    locations = ("somewhere",)

    def __init__(self, polygons=()):
        self.polygons = polygons

    def require_map(self, location):
        assert location == "somewhere"
        if not len(self.polygons):
            raise InputError("root", "location", "no map of 'somewhere'")

    def map_raster(self, location, global_from_bev, grid):
        assert location == "somewhere"
        centers = grid.cell_centers().double().flatten(0, 1).numpy()
        centers = centers @ global_from_bev[:2, :2].T + global_from_bev[:2, 3]
        inside = points_in_footprint(torch.from_numpy(centers), torch.from_numpy(self.polygons))
        return inside.view(-1, *grid.shape).to(torch.uint8).numpy()


def results_of(boxes, labels=None, seed=0, **extra):
    boxes = np.array(boxes, dtype=np.float64)
    pose = np.eye(4)
    pose[:2, :2] = [[math.cos(0.8), -math.sin(0.8)], [math.sin(0.8), math.cos(0.8)]]
    pose[:3, 3] = [400.0, 900.0, 1.8]
    return {
        "frames": [],
        "boxes": boxes,
        "labels": np.zeros(len(boxes), dtype=int) if labels is None else np.array(labels),
        "visibility": np.full(len(boxes), 4),
        "classes": CLASSES,
        "rasters": {},
        "location": "somewhere",
        "global_from_bev": pose,
        "augmented_from_bev": np.eye(4),
        "rng": np.random.default_rng(seed),
        "stream_rng": np.random.default_rng(seed),
        "dataset": PaintedMap(),
        **extra,
    }


def test_front_right_is_high_row_high_column():
    # A car 15 m ahead and 20 m to the right: row (15 + 10) / 0.5 = 50, column (20 + 25) / 0.5 = 90.
    raster = RasteriseBoxes(GRID)(results_of([box(20.0, 15.0)]))["rasters"]["vehicle"]
    rows, columns = torch.nonzero(raster.layers[0], as_tuple=True)
    assert raster.layers.shape == (1, 60, 100) and raster.layers.dtype == torch.uint8
    # 4 m along x and 2 m along y: columns 86 ... 93 and rows 48 ... 51, and nothing else.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (48, 51, 86, 93) and len(rows) == 32
    assert raster.classes == ("vehicle",) and raster.grid == GRID


def test_rear_left_is_low_row_low_column_and_yaw_turns_the_length():
    layers = RasteriseBoxes(GRID)(results_of([box(-20.0, -5.0, yaw=math.pi / 2)]))["rasters"]["vehicle"].layers
    rows, columns = torch.nonzero(layers[0], as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (6, 13, 8, 11)


def test_cells_are_those_whose_centres_shapely_finds_inside():
    boxes = torch.from_numpy(random_boxes())
    painted = rasterise_boxes(boxes, torch.ones(1, len(boxes), dtype=torch.bool), GRID)[0]
    polygons = [Polygon(corners.tolist()) for corners in box_footprints(boxes)]
    centers = GRID.cell_centers()
    expected = torch.zeros(GRID.shape, dtype=torch.uint8)
    for row in range(0, 60, 2):  # every second row: shapely is slow
        for column in range(100):
            point = Point(centers[row, column].tolist())
            expected[row, column] = any(polygon.contains(point) for polygon in polygons)
    assert torch.equal(painted[::2], expected[::2]) and 0.05 < expected[::2].double().mean() < 0.9


def test_pairs_of_box_and_cell_are_unique_and_on_the_grid():
    boxes = torch.from_numpy(random_boxes(50, seed=2))
    index, row, column = footprint_cells(boxes, GRID)
    pairs = torch.stack([index, row, column], 1)
    assert len(torch.unique(pairs, dim=0)) == len(pairs)
    assert row.min() >= 0 and row.max() < 60 and column.min() >= 0 and column.max() < 100


def test_boxes_over_and_beyond_the_border():
    # Half of the first box is on the grid, the others lie outside in all four directions.
    outside = [box(-60, 0), box(60, 0), box(0, -40), box(0, 60)]
    layers = RasteriseBoxes(GRID)(results_of([box(25.0, 0.0), *outside]))["rasters"]["vehicle"].layers
    assert layers.sum() == 16 and layers[0, 18:22, 96:].all()


@pytest.mark.parametrize("boxes", [np.zeros((0, 9)), np.array([box(500.0, 0.0)])], ids=["none", "far away"])
def test_nothing_to_paint(boxes):
    layers = RasteriseBoxes(GRID)(results_of(boxes))["rasters"]["vehicle"].layers
    assert layers.shape == (1, 60, 100) and layers.sum() == 0


def test_layers_by_class():
    boxes = [box(-10.0, 0.0), box(0.0, 0.0), box(10.0, 0.0), box(20.0, 0.0)]
    transform = RasteriseBoxes(GRID, name="objects", layers={"big": ["bus", "truck"], "person": ["pedestrian"]})
    raster = transform(results_of(boxes, labels=[1, 3, 7, -1]))["rasters"]["objects"]
    assert raster.classes == ("big", "person")
    assert raster.layers[0].sum() == 64 and raster.layers[1].sum() == 32 and raster.layers[:, :, 80:].sum() == 0
    with pytest.raises(ValueError, match="tram"):
        RasteriseBoxes(GRID, layers={"rail": ["tram"]})(results_of(boxes))


def test_pedestrians_are_no_vehicles():
    layers = RasteriseBoxes(GRID)(results_of([box(0.0, 0.0), box(10.0, 0.0)], labels=[7, 6]))["rasters"][
        "vehicle"
    ].layers
    assert layers[0, :, 40:60].sum() == 0 and layers.sum() == 32


def test_visibility_filter():
    results = results_of([box(-10.0, 0.0), box(0.0, 0.0), box(10.0, 0.0)], visibility=np.array([1, 2, 4]))
    assert RasteriseBoxes(GRID)(results)["rasters"]["vehicle"].layers.sum() == 96
    assert RasteriseBoxes(GRID, min_visibility=2)(results)["rasters"]["vehicle"].layers.sum() == 64


def test_small_objects_show_only_where_centres_are_marked():
    results = results_of([box(0.05, 0.05, 0.2, 0.2), box(90.0, 0.0, 0.2, 0.2)])  # on a corner of four cells; outside
    assert RasteriseBoxes(GRID)(results)["rasters"]["vehicle"].layers.sum() == 0
    layers = RasteriseBoxes(GRID, mark_centers=True)(results)["rasters"]["vehicle"].layers
    assert layers.sum() == 1 and layers[0, 20, 50] == 1


@pytest.mark.parametrize("seed", range(6))
def test_raster_of_an_augmented_sample_is_the_warped_raster(seed):
    # A cell of the augmented raster is on exactly where its centre, moved back by inv(A), lies in a plain box.
    plain = random_boxes(seed=seed)
    results = RasteriseBoxes(GRID)(BEVRotateScaleFlip()(results_of(plain, seed=seed)))
    back = torch.from_numpy(np.linalg.inv(results["augmented_from_bev"]))
    centers = GRID.cell_centers().double().flatten(0, 1)
    centers = centers @ back[:2, :2].T + back[:2, 3]
    expected = points_in_footprint(centers, torch.from_numpy(plain)).any(0).view(GRID.shape)
    got = results["rasters"]["vehicle"].layers[0].bool()
    assert (got != expected).sum() == 0 and 100 < expected.sum() < GRID.num_cells


# The map


def in_global(boxes, pose):
    """Boxes of the BEV frame as boxes on the global ground plane."""
    out = np.array(boxes)
    out[:, :2] = out[:, :2] @ pose[:2, :2].T + pose[:2, 3]
    out[:, 6] += math.atan2(pose[1, 0], pose[0, 0])
    return out


def with_map(results):
    """Six map polygons that coincide with the first six boxes."""
    results["dataset"] = PaintedMap(in_global(results["boxes"][:6], results["global_from_bev"]))
    return results


def test_the_map_is_the_datasets_and_has_all_layers():
    raster = LoadBEVMap(GRID)(with_map(results_of(random_boxes(6))))["rasters"]["map"]
    assert raster.classes == MAP_LAYERS and raster.layers.shape == (6, 60, 100) and raster.layers.dtype == torch.uint8


def test_chosen_layers_keep_their_order():
    results = with_map(results_of(random_boxes(6)))
    everything = LoadBEVMap(GRID)(results)["rasters"]["map"].layers
    chosen = LoadBEVMap(GRID, layers=("divider", "walkway"))(results)["rasters"]["map"]
    assert chosen.classes == ("divider", "walkway") and torch.equal(chosen.layers, everything[[5, 2]])
    with pytest.raises(ValueError, match="river"):
        LoadBEVMap(GRID, layers=("river",))(results)


@pytest.mark.parametrize("seed", range(6))
def test_map_and_objects_stay_together_under_augmentation(seed):
    # Six map polygons that coincide with six cars: both rasters of the augmented sample must be the same cells.
    boxes = random_boxes(6, seed=seed)
    results = with_map(results_of(boxes, labels=range(6), seed=seed))
    layers = {name: [name] for name in CLASSES[:6]}
    out = BEVRotateScaleFlip()(results)
    out = LoadBEVMap(GRID)(RasteriseBoxes(GRID, name="objects", layers=layers)(out))
    assert not np.allclose(out["augmented_from_bev"], np.eye(4))
    assert out["rasters"]["map"].layers.sum() > 50
    assert torch.equal(out["rasters"]["map"].layers, out["rasters"]["objects"].layers)


def test_a_map_that_is_not_there_says_so():
    with pytest.raises(InputError, match="no map of 'somewhere'"):
        LoadBEVMap(GRID)(results_of([]))


def test_a_dataset_is_refused_before_the_first_sample():
    # Expected: what transform() would say, said of the dataset alone.
    with pytest.raises(InputError, match="no map of 'somewhere'"):
        LoadBEVMap(GRID).check_dataset(PaintedMap())
    with pytest.raises(InputError, match="LoadBEVMap.layers: 'river' is not there: the dataset's map has the layers"):
        LoadBEVMap(GRID, layers=("river",)).check_dataset(PaintedMap(np.zeros((6, 9))))
    with pytest.raises(InputError, match="RasteriseBoxes.layers: 'tram' is not there"):
        RasteriseBoxes(GRID, layers={"rail": ["tram"]}).check_dataset(PaintedMap())
    LoadBEVMap(GRID).check_dataset(PaintedMap(np.zeros((6, 9))))
    RasteriseBoxes(GRID).check_dataset(PaintedMap())


def test_a_dataset_without_names_of_its_own_needs_them_in_the_config():
    results = results_of([box(0.0, 0.0)])
    del results["dataset"], results["visibility"]
    with pytest.raises(InputError, match="RasteriseBoxes.layers: name them"):
        RasteriseBoxes(GRID)(results)
    with pytest.raises(InputError, match="min_visibility: the dataset does not know"):
        RasteriseBoxes(GRID, layers={"any": CLASSES}, min_visibility=2)(results)
    assert RasteriseBoxes(GRID, layers={"any": CLASSES})(results)["rasters"]["vehicle"].layers.sum() == 32
