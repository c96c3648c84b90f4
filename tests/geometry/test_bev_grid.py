"""The BEV grid against closed forms, square and not."""

import pytest
import torch

from bevstack.geometry import BEVGrid

SQUARE = BEVGrid(shape=(50, 50))
WIDE = BEVGrid(shape=(30, 80), x_range_m=(-40.0, 40.0), y_range_m=(-5.0, 25.0), z_range_m=(-3.0, 5.0))
GRIDS = pytest.mark.parametrize("grid", [SQUARE, WIDE], ids=["square", "wide"])


def test_cells_of_the_reference():
    # docs/reference.md 5, tiny: 50 cells over 102.4 m are 2.048 m each.
    assert SQUARE.cell_m == pytest.approx((2.048, 2.048)) and SQUARE.num_cells == 2500
    assert WIDE.cell_m == pytest.approx((1.0, 1.0)) and WIDE.size_m == (80.0, 30.0)


def test_front_right_is_high_row_high_column():
    column, row = WIDE.cells_from_metres(torch.tensor([35.5, 20.5])).tolist()
    assert (row, column) == (25.5, 75.5)  # (20.5 + 5) / 1, (35.5 + 40) / 1
    column, row = WIDE.cells_from_metres(torch.tensor([-39.5, -4.5])).tolist()
    assert (row, column) == (0.5, 0.5)


@GRIDS
def test_cell_centres_fall_into_their_cells_and_back(grid):
    centers = grid.cell_centers()
    assert centers.shape == (*grid.shape, 2)
    cells = grid.cells_from_metres(centers)
    rows, columns = torch.meshgrid(torch.arange(grid.shape[0]), torch.arange(grid.shape[1]), indexing="ij")
    torch.testing.assert_close(cells, torch.stack([columns, rows], -1) + 0.5, atol=1e-4, rtol=0)
    torch.testing.assert_close(grid.metres_from_cells(cells), centers, atol=1e-4, rtol=0)
    assert grid.contains(centers).all()


@GRIDS
def test_low_edge_is_inside_high_edge_is_not(grid):
    low = torch.tensor([grid.x_range_m[0], grid.y_range_m[0]], dtype=torch.float64)
    high = torch.tensor([grid.x_range_m[1], grid.y_range_m[1]], dtype=torch.float64)
    assert grid.contains(low) and not grid.contains(high)
    assert grid.contains(high - 1e-6) and not grid.contains(low - 1e-6)


def test_pillar_heights_are_those_of_the_reference():
    # docs/reference.md 4.5, get_reference_points: metres -4.5, -2.167, .167, 2.5 for four heights over (-5, 3).
    expected = torch.tensor([-4.5, -4.5 + 7 / 3, -4.5 + 14 / 3, 2.5])
    torch.testing.assert_close(SQUARE.pillar_heights(4), expected)
    torch.testing.assert_close(SQUARE.pillar_heights(1), torch.tensor([-4.5]))


@GRIDS
def test_pillar_points_are_centres_at_every_height(grid):
    points = grid.pillar_points(3)
    assert points.shape == (*grid.shape, 3, 3)
    for z, height in enumerate(grid.pillar_heights(3)):
        assert torch.equal(points[:, :, z, :2], grid.cell_centers())
        assert (points[:, :, z, 2] == height).all()


@GRIDS
def test_reference_points_are_row_major_fractions(grid):
    # docs/reference.md 4.5, get_reference_points, Frames: x = (c + .5) / W, y = (r + .5) / H, index = r * W + c.
    rows, columns = grid.shape
    reference = grid.reference_points()
    for row, column in [(0, 0), (3, 7), (rows - 1, columns - 1)]:
        expected = torch.tensor([(column + 0.5) / columns, (row + 0.5) / rows])
        torch.testing.assert_close(reference[row * columns + column], expected, atol=1e-6, rtol=0)


@GRIDS
def test_sampling_at_cell_centres_returns_the_cells(grid):
    g = torch.Generator().manual_seed(0)
    features = torch.randn(2, 3, *grid.shape, generator=g)
    where = grid.sampling_grid(grid.cell_centers()).expand(2, -1, -1, -1)
    sampled = torch.nn.functional.grid_sample(features, where, align_corners=False)
    torch.testing.assert_close(sampled, features, atol=1e-3, rtol=0)


def test_sampling_grid_resamples_by_metres():
    # A tensor that holds x of its own cells, read on another grid, gives that grid's x (bilinear is exact on a ramp).
    ramp = WIDE.cell_centers()[..., 0][None, None]
    other = BEVGrid(shape=(20, 64), x_range_m=(-32.0, 32.0), y_range_m=(0.0, 20.0))
    read = torch.nn.functional.grid_sample(ramp, WIDE.sampling_grid(other.cell_centers())[None], align_corners=False)
    torch.testing.assert_close(read[0, 0], other.cell_centers()[..., 0], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"shape": (0, 5)},
        {"shape": (5,)},
        {"shape": (5, 5), "x_range_m": (3.0, 3.0)},
        {"shape": (5, 5), "y_range_m": (2, 1)},
    ],
)
def test_impossible_grids_are_refused(arguments):
    with pytest.raises(ValueError):
        BEVGrid(**arguments)


def test_building_from_a_config_and_comparing():
    built = BEVGrid.build({"shape": [30, 80], "x_range_m": [-40, 40], "y_range_m": [-5, 25], "z_range_m": [-3, 5]})
    assert built == WIDE and BEVGrid.build(WIDE) is WIDE
    assert built.same_as(WIDE) and not built.same_as(BEVGrid(shape=(30, 80)))
    assert WIDE.same_as(BEVGrid(shape=(30, 80), x_range_m=(-40, 40), y_range_m=(-5, 25), z_range_m=(0, 1)))


def test_finer_and_coarser_cover_the_same_ground():
    # Closed form: 4 x 6 cells of 2 m x 1 m, cut in two along both sides.
    grid = BEVGrid(shape=(4, 6), x_range_m=(0, 12), y_range_m=(-2, 2))
    finer = grid.finer(2)
    assert finer.shape == (8, 12) and finer.cell_m == (1.0, 0.5) and finer.x_range_m == grid.x_range_m
    assert finer.coarser(2) == grid and finer.coarser(4).shape == (2, 3)
    with pytest.raises(ValueError, match="4 x 6 cells do not divide by 4"):
        grid.coarser(4)
