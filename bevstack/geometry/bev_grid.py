"""The BEV grid: which piece of ground a BEV tensor covers, and where each of its cells lies, in metres.

Orientation of every BEV tensor (B, C, Y, X): row r grows with +y (row 0 is the rearmost), column c grows with +x
(column 0 is the leftmost, in nuScenes' LIDAR_TOP frame). Cell (r, c) covers [c, c + 1) x [r, r + 1) in cell units.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class BEVGrid:
    """Extent in metres and number of cells of a BEV tensor.

    Args:
        shape: (Y, X) number of rows and columns; need not be square.
        x_range_m, y_range_m: (low, high) extent of columns and rows in the BEV frame.
        z_range_m: (low, high) extent of the pillars.

    Raises:
        ValueError: a range is empty or reversed, or a count is not positive.
    """

    shape: tuple[int, int]
    x_range_m: tuple[float, float] = (-51.2, 51.2)
    y_range_m: tuple[float, float] = (-51.2, 51.2)
    z_range_m: tuple[float, float] = (-5.0, 3.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        for name in ("x_range_m", "y_range_m", "z_range_m"):
            low, high = (float(v) for v in getattr(self, name))
            if not low < high:
                raise ValueError(f"{name}: ({low}, {high}) is not an increasing range")
            object.__setattr__(self, name, (low, high))
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"shape: {self.shape} must be two positive numbers (rows, columns)")

    @classmethod
    def build(cls, grid: BEVGrid | Mapping) -> BEVGrid:
        """Take a built grid or the arguments of one (as configs state them).

        Raises:
            ValueError: an unknown argument; the nearest known one is named.
        """
        if isinstance(grid, BEVGrid):
            return grid
        known = [field.name for field in fields(cls)]
        for key in (key for key in grid if key not in known):
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ValueError(f"grid: unknown key {key!r}; did you mean {near!r}?")
        return cls(**{k: tuple(v) for k, v in grid.items()})

    @property
    def size_m(self) -> tuple[float, float]:
        """(length along x, length along y) in metres."""
        return self.x_range_m[1] - self.x_range_m[0], self.y_range_m[1] - self.y_range_m[0]

    @property
    def cell_m(self) -> tuple[float, float]:
        """(size along x, size along y) of one cell in metres."""
        return self.size_m[0] / self.shape[1], self.size_m[1] / self.shape[0]

    @property
    def num_cells(self) -> int:
        """How many cells there are: Y times X."""
        return self.shape[0] * self.shape[1]

    def finer(self, factor: int) -> BEVGrid:
        """The same ground with every cell cut into ``factor`` x ``factor``."""
        return replace(self, shape=(self.shape[0] * factor, self.shape[1] * factor))

    def coarser(self, factor: int) -> BEVGrid:
        """The same ground with ``factor`` x ``factor`` cells made one.

        Raises:
            ValueError: the factor does not divide the shape.
        """
        if self.shape[0] % factor or self.shape[1] % factor:
            raise ValueError(f"grid: {self.shape[0]} x {self.shape[1]} cells do not divide by {factor}")
        return replace(self, shape=(self.shape[0] // factor, self.shape[1] // factor))

    def cells_from_metres(self, xy: Tensor) -> Tensor:
        """(..., 2) metres (x, y) to continuous cell coordinates (column, row); cell (r, c) is centred at + 0.5."""
        low = xy.new_tensor([self.x_range_m[0], self.y_range_m[0]])
        return (xy - low) / xy.new_tensor(self.cell_m)

    def metres_from_cells(self, cells: Tensor) -> Tensor:
        """(..., 2) continuous cell coordinates (column, row) to metres (x, y); inverse of :meth:`cells_from_metres`."""
        low = cells.new_tensor([self.x_range_m[0], self.y_range_m[0]])
        return cells * cells.new_tensor(self.cell_m) + low

    def normalized_from_metres(self, xy: Tensor) -> Tensor:
        """(..., 2) metres (x, y) to fractions of the grid, (0, 0) at its low corner and (1, 1) at its high corner."""
        return self.cells_from_metres(xy) / xy.new_tensor([self.shape[1], self.shape[0]])

    def contains(self, xy: Tensor) -> Tensor:
        """(..., 2) metres -> (...) bool: inside the extent, the low edge included."""
        cells = self.cells_from_metres(xy)
        return (cells >= 0).all(-1) & (cells < cells.new_tensor([self.shape[1], self.shape[0]])).all(-1)

    def cell_centers(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """(Y, X, 2) metres (x, y) of every cell's centre, computed in float64 and rounded once."""
        rows = torch.arange(self.shape[0], device=device, dtype=torch.float64) + 0.5
        columns = torch.arange(self.shape[1], device=device, dtype=torch.float64) + 0.5
        row, column = torch.meshgrid(rows, columns, indexing="ij")
        return self.metres_from_cells(torch.stack([column, row], dim=-1)).to(dtype)

    def pillar_heights(
        self, num_heights: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """(Z,) metres: from half a metre above the pillar's foot to half a metre below its top, evenly spaced.

        One height alone stands where the reference's ``linspace`` puts it, half a metre above the foot
        (docs/reference.md 4.5, get_reference_points).
        """
        low, high = self.z_range_m
        heights = torch.linspace(0.5, (high - low) - 0.5, num_heights, device=device, dtype=torch.float64)
        return (heights + low).to(dtype)

    def pillar_points(
        self, num_heights: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """(Y, X, Z, 3) metres: every cell's centre at every pillar height."""
        centers = self.cell_centers(device, dtype).unsqueeze(2).expand(-1, -1, num_heights, -1)
        heights = self.pillar_heights(num_heights, device, dtype).expand(*self.shape, -1)
        return torch.cat([centers, heights.unsqueeze(-1)], dim=-1)

    def reference_points(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
        """(Y * X, 2) fractions of the grid (x, y) of every cell's centre, row-major."""
        return self.normalized_from_metres(self.cell_centers(device, torch.float64)).flatten(0, 1).to(dtype)

    def sampling_grid(self, points: Tensor) -> Tensor:
        """(..., 2) metres to ``torch.nn.functional.grid_sample`` coordinates on a tensor of this grid.

        For ``align_corners=False``: (-1, -1) is the low corner, (1, 1) the high corner of the extent.
        """
        return self.normalized_from_metres(points) * 2 - 1

    def same_as(self, other: BEVGrid) -> bool:
        """Whether both grids put the same cells on the same ground."""
        return self.shape == other.shape and all(
            abs(a - b) < 1e-6
            for name in ("x_range_m", "y_range_m")
            for a, b in zip(getattr(self, name), getattr(other, name), strict=True)
        )
