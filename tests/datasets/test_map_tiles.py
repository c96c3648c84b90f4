"""Map tiles: orientation by hand-made polygons, contents by the devkit's get_map_mask."""

from __future__ import annotations

import math
import time

import cv2
import numpy as np
import pytest
from tables import LOCATION, MAP_POLYGONS, VERSION, build_root

from bevstack.datasets.nuscenes.create_data import create_nuscenes
from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.nuscenes.map_tiles import TILES_FOLDER, MapTiles
from bevstack.datasets.nuscenes.taxonomy import MAP_LAYERS
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid

GRID = BEVGrid((200, 200), (-50.0, 50.0), (-50.0, 50.0))
DEVKIT_LAYERS = (
    "drivable_area",
    "ped_crossing",
    "walkway",
    "stop_line",
    "carpark_area",
    "road_divider",
    "lane_divider",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = build_root(tmp_path_factory.mktemp("maps") / "root", maps=True)
    create_nuscenes(root, VERSION)
    return root


@pytest.fixture(scope="module")
def tiles(root):
    return MapTiles.open(root, VERSION)


def pose(x: float, y: float, yaw: float) -> np.ndarray:
    """``global_from_bev`` of a BEV frame whose x axis points at ``yaw``."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([[cos, -sin, 0, x], [sin, cos, 0, y], [0, 0, 1, 1.8], [0, 0, 0, 1.0]])


def devkit_masks(root, x: float, y: float, yaw: float, cells_per_m: int) -> np.ndarray:
    """The six layers by the devkit; its rows grow with the patch's y and columns with its x, turned by ``yaw``."""
    from nuscenes.map_expansion.map_api import NuScenesMap

    size = 100 * cells_per_m
    nusc_map = NuScenesMap(dataroot=str(root), map_name=LOCATION)
    masks = nusc_map.get_map_mask((x, y, 100.0, 100.0), math.degrees(yaw), list(DEVKIT_LAYERS), (size, size))
    return np.concatenate([masks[:5], masks[5:].max(axis=0, keepdims=True)])


def poses(count: int):
    rng = np.random.default_rng(0)
    return [(rng.uniform(95, 130), rng.uniform(190, 210), rng.uniform(-math.pi, math.pi)) for _ in range(count)]


def test_areas_are_the_devkits_at_fine_resolution(root, tiles):
    # The devkit draws at 0.1 m here; every fifth of its pixels from the third on lies under one of our cells' centres.
    for x, y, yaw in poses(4):
        expected = devkit_masks(root, x, y, yaw, cells_per_m=10)[:, 2::5, 2::5]
        found = tiles.layers(LOCATION, pose(x, y, yaw), GRID)
        for layer, name in enumerate(MAP_LAYERS[:5]):
            both, either = (found[layer] & expected[layer]).sum(), (found[layer] | expected[layer]).sum()
            # Half a cell of 0.2 m and the devkit's 0.1 m, on a shape of a few hundred cells.
            assert both >= (0.97 if either > 400 else 0.85) * either, (name, both / either)


def test_masks_of_half_a_metre_differ_from_the_devkits_only_at_the_rim(root, tiles):
    for x, y, yaw in poses(4):
        expected = devkit_masks(root, x, y, yaw, cells_per_m=2)
        found = tiles.layers(LOCATION, pose(x, y, yaw), GRID)
        for mask, other in zip(found, expected, strict=True):
            rim = cv2.morphologyEx(other, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8), iterations=1)
            rim = cv2.dilate(rim, np.ones((3, 3), np.uint8))
            assert not ((mask != other) & (rim == 0)).any()


def test_front_right_is_a_high_row_and_a_high_column(tiles):
    # Ego of scene-0001 looks along global +x, BEV y = global x and BEV x = -global y: the stop line (126..128,
    # 200..210) lies ahead; from (106, 215) it is 20..22 m in front and 5..15 m to the right.
    layer = tiles.layers(LOCATION, pose(106.0, 215.0, -math.pi / 2), GRID)[MAP_LAYERS.index("stop_line")]
    rows, columns = np.nonzero(layer)
    # y 20..22 -> rows 140..144, x 5..15 -> columns 110..130, half a cell more or less where the border cuts cells.
    assert (rows.min(), rows.max()) == (140, 143) and (columns.min(), columns.max()) == (110, 129)


def test_hole_and_width_of_lines(tiles):
    layers = tiles.layers(LOCATION, pose(95.0, 216.0, 0.0), BEVGrid((40, 40), (-4.0, 4.0), (-2.0, 2.0)))
    assert not layers[MAP_LAYERS.index("walkway")].any()  # wholly inside the hole (90..100, 213..219)
    fine = BEVGrid((100, 10), (-5.0, 5.0), (-2.5, 2.5))
    divider = tiles.layers(LOCATION, pose(80.0, 200.0, 0.0), fine)[MAP_LAYERS.index("divider")]
    # A line along y = 0, 1.5 m wide: 30 of the 0.05 m rows, less or more by at most one tile cell of 0.2 m.
    assert np.abs(divider.sum(axis=0).astype(int) - 30).max() <= 4
    assert abs(np.nonzero(divider[:, 0])[0].mean() - 49.5) <= 2


@pytest.mark.parametrize("augment", ["flip_x", "flip_y", "scale", "turn"])
def test_augmented_frames(tiles, augment):
    grid, base = BEVGrid((120, 80), (-20.0, 20.0), (-30.0, 30.0)), pose(112.0, 195.0, 0.4)
    plain = tiles.layers(LOCATION, base, grid)
    # The reference values are index operations on the plain raster, or another call in other words.
    if augment == "flip_x":
        expected, change = plain[:, :, ::-1], np.diag([-1.0, 1, 1, 1])
    elif augment == "flip_y":
        expected, change = plain[:, ::-1], np.diag([1.0, -1, 1, 1])
    elif augment == "scale":
        expected, change = plain, np.diag([2.0, 2, 1, 1])
        grid = BEVGrid((120, 80), (-10.0, 10.0), (-15.0, 15.0))
    else:
        expected, change = tiles.layers(LOCATION, pose(112.0, 195.0, 1.1), grid), pose(0, 0, 0.7)
    found = tiles.layers(LOCATION, base @ change, grid)
    assert (found != expected).mean() < 0.005
    assert expected.any()


def test_nothing_beyond_the_map(tiles):
    assert not tiles.layers(LOCATION, pose(5000.0, 5000.0, 0.3), GRID).any()
    layers = tiles.layers(LOCATION, pose(60.0, 200.0, 0.0), GRID)
    assert not layers[:, :, :95].any() and layers[:, :, 105:].any()


def test_fast_enough_for_every_sample(tiles):
    tiles.layers(LOCATION, pose(110.0, 200.0, 0.0), GRID)
    seconds = []
    for x, y, yaw in poses(20):
        start = time.perf_counter()
        tiles.layers(LOCATION, pose(x, y, yaw), GRID)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2e-3


def test_all_cells_are_drawn_from_the_polygons(tiles):
    # Areas by the shoelace formula, over the whole map at 0.25 m cells.
    grid = BEVGrid((400, 480), (0.0, 120.0), (0.0, 100.0))
    layers = tiles.layers(LOCATION, pose(50.0, 140.0, 0.0), grid)
    for name, (exterior, holes) in MAP_POLYGONS.items():
        area = sum(
            sign * cv2.contourArea(np.float32(ring)) for sign, ring in [(1, exterior), *((-1, h) for h in holes)]
        )
        perimeter = sum(cv2.arcLength(np.float32(ring), True) for ring in [exterior, *holes])
        found = layers[MAP_LAYERS.index(name)].sum() * 0.25**2
        assert abs(found - area) < 0.15 * perimeter, (name, found, area)


def test_without_map_expansion(tmp_path, recwarn):
    root = build_root(tmp_path / "root")
    create_nuscenes(root, VERSION)
    tiles = MapTiles.open(root, VERSION)
    assert not tiles.has(LOCATION)
    with pytest.raises(InputError, match="no map of 'singapore-onenorth'"):
        tiles.layers(LOCATION, np.eye(4), GRID)
    dataset = NuScenesBEVDataset(root, VERSION, "tiny_train")
    assert not dataset[0]["has_map"]
    with pytest.raises(InputError, match="no map of 'singapore-onenorth'"):
        NuScenesBEVDataset(root, VERSION, "tiny_train", pipeline=[dict(type="LoadBEVMap", grid=GRID)])


def test_map_in_a_pipeline(root):
    dataset = NuScenesBEVDataset(root, VERSION, "tiny_train", pipeline=[dict(type="LoadBEVMap", grid=GRID)])
    sample = dataset[0]
    assert sample["has_map"]
    # The ego stands in the middle of the drivable area, with the road's end (x = 160) 59 m ahead of the lidar.
    drivable = sample["rasters"]["map"].layers[0]
    assert drivable[100, 100] == 1 and drivable[100, 0] == 0


def test_damaged_tiles(root, tmp_path):
    import shutil

    copy = shutil.copytree(root, tmp_path / "root")
    path = copy / "bevstack-index" / VERSION / TILES_FOLDER / f"{LOCATION}.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="cannot be read"):
        MapTiles.open(copy, VERSION)
