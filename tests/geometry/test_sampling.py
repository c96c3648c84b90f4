"""Reading B at places in metres. Expected values: a field that is linear in metres is reproduced exactly."""

import pytest
import torch

from bevstack.geometry import BEVGrid, sample_bev

GRID = BEVGrid(shape=(20, 40), x_range_m=(-20, 20), y_range_m=(-5, 15))


def linear_field(batch: int = 2) -> torch.Tensor:
    x, y = GRID.cell_centers().unbind(-1)
    return torch.stack([torch.stack([x, 2 * y - x + b]) for b in range(batch)])


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 5)], ids=str)
@pytest.mark.parametrize("shared", [False, True])
def test_values_are_those_of_the_place(shape, shared):
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(1 if shared else 2, *shape, 2, generator=generator) * torch.tensor([39.0, 19.0])
    points = points + torch.tensor([-19.5, -4.5])
    found = sample_bev(linear_field(), GRID, points)
    x, y = points.unbind(-1)
    sample = torch.arange(2.0).view(2, *[1] * len(shape))
    expected = torch.stack([x.expand(2, *shape), (2 * y - x).expand(2, *shape) + sample], dim=1)
    assert found.shape == (2, 2, *shape)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_outside_is_zero_and_half_precision_keeps_places():
    field = linear_field().bfloat16()
    assert (sample_bev(field, GRID, torch.tensor([[[100.0, 0.0], [0.0, -50.0]]])) == 0).all()
    point = torch.tensor([[[13.37, 7.77]]])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sample_bev(field, GRID, point), sample_bev(field.float(), GRID, point))
