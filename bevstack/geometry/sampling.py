"""Reading a BEV tensor at places given in metres: the one place where BEV features are interpolated."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from bevstack.geometry.bev_grid import BEVGrid
from bevstack.geometry.transforms import full_precision


def sample_bev(field: Tensor, grid: BEVGrid, points: Tensor) -> Tensor:
    """Read a BEV tensor bilinearly at points of its own BEV frame; zero outside its extent.

    Args:
        field: (B, C, Y, X).
        grid: whose extent the field covers; its shape plays no part.
        points: (B, ..., 2) metres (x, y), or (1, ..., 2) for the same places in all samples; NaN is not allowed.

    Returns:
        (B, C, ...) float32, whatever autocast says.
    """
    places = grid.sampling_grid(points.float())
    shape = places.shape[1:-1]
    if len(shape) != 2:
        places = places.flatten(1, -2).unsqueeze(2) if shape else places[:, None, None]
    places = places.expand(field.shape[0], -1, -1, -1)
    with full_precision(field):
        values = F.grid_sample(field.float(), places, mode="bilinear", padding_mode="zeros", align_corners=False)
    return values if len(shape) == 2 else values.flatten(2).unflatten(2, shape) if shape else values[:, :, 0, 0]
