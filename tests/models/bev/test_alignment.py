"""Known ego motion gives known alignment in metres, on square and non-square grids. Expected values: closed form."""

import pytest
import torch

from bevstack.geometry import BEVGrid
from bevstack.models.bev import warp_bev
from tests.models.scenes import aligned, motion_of, pushed

GRIDS = [
    BEVGrid(shape=(40, 40), x_range_m=(-20, 20), y_range_m=(-20, 20)),
    BEVGrid(shape=(60, 30), x_range_m=(-15, 15), y_range_m=(-10, 50)),  # 1 m cells, not square, not centred
    BEVGrid(shape=(30, 80), x_range_m=(-20, 20), y_range_m=(-15, 15)),  # cells of 0.5 m x 1 m
]


def blob_at(grid: BEVGrid, x: float, y: float) -> torch.Tensor:
    """A bump of 1.5 m around a point of the grid's frame, (1, 1, Y, X)."""
    distance = (grid.cell_centers() - torch.tensor([x, y])).square().sum(-1)
    return torch.exp(-distance / (2 * 1.5**2))[None, None]


def center_of(features: torch.Tensor, grid: BEVGrid) -> torch.Tensor:
    """Centre of mass in metres."""
    weight = features[0, 0].unsqueeze(-1)
    return (weight * grid.cell_centers()).flatten(0, 1).sum(0) / weight.sum()


@pytest.mark.parametrize("grid", GRIDS, ids=["square", "long", "flat cells"])
@pytest.mark.parametrize("step", [(0.0, 5.0, 0.0), (3.0, 0.0, 0.0), (0.0, 0.0, 30.0), (1.5, 4.0, -12.0)])
def test_a_fixed_thing_moves_as_the_ego_motion_says(grid, step):
    # a thing at p in the previous frame is at current_from_previous @ p in the current one
    thing = torch.tensor([2.0, 6.0])
    motion = motion_of([step])
    memory = pushed(None, blob_at(grid, *thing.tolist()), motion, grid)
    history = aligned(memory, motion)
    current_from_previous = torch.linalg.inv(motion.previous_from_current[0])
    expected = (current_from_previous @ torch.tensor([2.0, 6.0, 0.0, 1.0]))[:2]
    torch.testing.assert_close(center_of(history.features[:, 0], grid), expected, atol=0.06, rtol=0)
    assert history.valid.all() and history.reference_shift is None and history.grid is grid


def test_driving_forward_brings_things_nearer():
    # 5 m forward: what was 12 m ahead is 7 m ahead
    grid = GRIDS[0]
    history = aligned(pushed(None, blob_at(grid, 0, 12), motion_of([None]), grid), motion_of([(0, 5, 0)]))
    torch.testing.assert_close(center_of(history.features[:, 0], grid), torch.tensor([0.0, 7.0]), atol=0.05, rtol=0)


def test_turning_left_moves_what_is_ahead_to_the_right():
    grid = GRIDS[0]
    history = aligned(pushed(None, blob_at(grid, 0, 10), motion_of([None]), grid), motion_of([(0, 0, 90)]))
    torch.testing.assert_close(center_of(history.features[:, 0], grid), torch.tensor([10.0, 0.0]), atol=0.05, rtol=0)


def test_standing_still_is_the_identity_and_what_leaves_is_zero():
    grid = GRIDS[1]
    features = torch.randn(1, 3, *grid.shape)
    torch.testing.assert_close(warp_bev(features, grid, torch.eye(4)[None]), features, atol=1e-4, rtol=0)
    far = torch.eye(4)[None].clone()
    far[:, 1, 3] = 200.0
    assert (warp_bev(features, grid, far) == 0).all()


def test_validity_needs_both_the_memory_and_the_motion():
    grid = GRIDS[0]
    memory = pushed(None, torch.randn(3, 2, *grid.shape), motion_of([None] * 3), grid)
    memory = memory.masked(torch.tensor([True, False, True]))
    history = aligned(memory, motion_of([(0, 1, 0), (0, 1, 0), None]))
    assert history.valid.tolist() == [[True], [False], [False]]


def test_every_frame_of_the_memory_is_brought_into_the_current_one():
    # A standing thing seen from three poses; expected: where the current frame sees it, in every past frame.
    grid, thing = GRIDS[0], torch.tensor([2.0, 6.0, 0.0, 1.0])
    steps = [motion_of([None]), motion_of([(1.0, 3.0, 10.0)]), motion_of([(-0.5, 2.0, -6.0)])]
    global_from_frame, memory = torch.eye(4), None
    for step in steps[:2]:
        global_from_frame = global_from_frame @ step.previous_from_current[0]
        seen = torch.linalg.inv(global_from_frame) @ thing
        memory = pushed(memory, blob_at(grid, *seen[:2].tolist()), step, grid, size=2)
    history = aligned(memory, steps[2])
    seen = torch.linalg.inv(global_from_frame @ steps[2].previous_from_current[0]) @ thing
    for frame in range(2):
        torch.testing.assert_close(center_of(history.features[:, frame], grid), seen[:2], atol=0.08, rtol=0)
        unmoved = center_of(memory.features[:, frame], grid)
        assert (unmoved - seen[:2]).norm() > 1.5
    assert history.valid.tolist() == [[True, True]]
