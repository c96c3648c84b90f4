"""Loops compiled for this processor by numba (:mod:`bevstack.ops.backends.native_kernels`), on torch's own threads.

CPU, values in float32 or bfloat16 (float16 is brought to float32), up to 256 samples a head. Nothing as large as the
list of samples is ever made; the backward pass has no atomic sums and gives the same bits every time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from bevstack.ops.backends.arguments import Arguments, strided_rows
from bevstack.ops.backends.native_kernels import MOST_SAMPLES, backward_kernel, forward_kernel
from bevstack.ops.jit import run_parallel


def forward(given: Arguments) -> Tensor:
    """(B, Q, h * c) in float32.

    Raises:
        ValueError: more samples a head, or pixels a map, than there is room for.
    """
    batch, queries, _ = given.slots.shape
    heads, channels = given.value.shape[2:]
    result = torch.empty(batch, queries, heads * channels)
    _alive, half, numbers = _table(given)
    run_parallel(forward_kernel(channels, half), [*numbers, result.data_ptr()])
    return result


def backward(given: Arguments, upstream: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of :attr:`Arguments.learned`, in that order and in their dtypes; None where not wanted.

    Args:
        given: of the forward pass.
        upstream: (B, Q, h * c) float32.
        wanted: five flags. Those of value, offsets and logits come together, whichever is wanted.
    """
    batch, queries, num_slots = given.slots.shape
    maps, tokens, heads, channels = given.value.shape
    anchors = given.references.shape[3]
    upstream = upstream.float().contiguous()
    _alive, half, numbers = _table(given)
    to_value = torch.zeros(maps, tokens, heads, channels)
    to_offsets, to_logits = torch.empty(given.offsets.shape), torch.empty(given.logits.shape)
    to_references = torch.zeros(batch, queries, heads, num_slots, anchors, 2) if wanted[1] else None
    to_slot_weights = torch.zeros(batch, queries, heads, num_slots) if wanted[4] else None
    threads = torch.get_num_threads()
    results = (upstream, to_value, to_offsets, to_logits, to_references, to_slot_weights)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in results]
    if given.slots.numel():
        run_parallel(backward_kernel(channels, half), [*numbers, 0, *addresses, -(-heads // threads)])
    return [
        to_value.to(given.value.dtype) if wanted[0] else None,
        None if to_references is None else to_references.sum(2),
        to_offsets if wanted[2] else None,
        to_logits if wanted[3] else None,
        None if to_slot_weights is None else to_slot_weights.sum(2),
    ]


def _table(given: Arguments) -> tuple[tuple[Tensor, ...], bool, list[int]]:
    """Tensors that must live while the kernel runs, whether values are bfloat16, and the numbers."""
    batch, queries, num_slots = given.slots.shape
    heads, tokens = given.value.shape[2], given.value.shape[1]
    groups, levels, points = given.offsets.shape[2], given.offsets.shape[4], given.offsets.shape[5]
    if levels * points > MOST_SAMPLES:
        raise ValueError(f"the native backend takes {MOST_SAMPLES} samples a head, not {levels * points}")
    if tokens * heads * given.value.shape[3] >= 2**31:
        raise ValueError(f"the native backend takes maps of less than 2^31 values, not of {tokens} pixels")
    half = given.value.dtype == torch.bfloat16
    value = (given.value if half else given.value.float()).contiguous()
    slots = given.slots.contiguous()
    references, slot_weights = given.references.contiguous(), given.slot_weights.contiguous()
    offsets, logits = strided_rows(given.offsets, 3), strided_rows(given.logits, 1)
    numbers = [
        *(tensor.data_ptr() for tensor in (value, slots, references, offsets, logits, slot_weights)),
        _level_table(given.shapes).ctypes.data,
        *(batch * queries, num_slots, given.references.shape[3], groups, heads, levels, points, tokens),
        *offsets.stride()[1:4],
        *logits.stride()[1:4],
    ]
    return (value, slots, references, slot_weights, offsets, logits), half, numbers


@lru_cache(maxsize=64)
def _level_table(shapes: tuple[tuple[int, int], ...]) -> np.ndarray:
    """(L, 3) int64: height, width, first token."""
    rows, start = [], 0
    for height, width in shapes:
        rows.append((height, width, start))
        start += height * width
    return np.array(rows, np.int64)
