"""Gradients of the small operators by finite differences, in double precision.

Deformable attention and deformable convolution have theirs beside their other tests.
"""

from __future__ import annotations

import pytest
import torch

from bevstack.ops.linear import linear
from bevstack.ops.weighted_rows import weighted_rows


@pytest.mark.parametrize("repeated", [False, True])
def test_weighted_rows(repeated: bool) -> None:
    # Rows that several bags share, a row that none has, a weight of zero: expected, finite differences.
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(6, 3, dtype=torch.float64, generator=generator).requires_grad_()
    weights = torch.randn(4, 5, dtype=torch.float64, generator=generator).requires_grad_()
    indices = torch.zeros(4, 5, dtype=torch.long) + 2 if repeated else torch.arange(20).reshape(4, 5) % 5
    assert torch.autograd.gradcheck(lambda rows, shares: weighted_rows(rows, indices, shares), (table, weights))


@pytest.mark.parametrize("activation", ["none", "relu"])
@pytest.mark.parametrize("with_bias", [True, False])
def test_linear(activation: str, with_bias: bool) -> None:
    # Expected: finite differences, of the first and the second derivative.
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, 3, 4), (5, 4), *([(5,)] if with_bias else [])]
    tensors = [torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_() for shape in shapes]

    def product(*given: torch.Tensor) -> torch.Tensor:
        return linear(*given, activation=activation)

    assert torch.autograd.gradcheck(product, tensors) and torch.autograd.gradgradcheck(product, tensors)
