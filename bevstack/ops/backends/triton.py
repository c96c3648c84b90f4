"""Kernels for a GPU (:mod:`bevstack.ops.backends.triton_kernels`), compiled by triton at first use.

CUDA, values in float32, bfloat16 or float16. On the CPU they run in triton's interpreter, where ``TRITON_INTERPRET=1``
stood in the environment before triton was imported: slow, to check what they compute.

Gradients of values are added up by atomics in float32, in whichever order programs come, so that the last bits differ
from run to run. Under ``torch.use_deterministic_algorithms(True)`` they are added up as whole numbers instead, which
gives the same bits every time, for twice the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from bevstack.ops.backends.arguments import Arguments, strided_rows
from bevstack.ops.backends.triton_kernels import backward_kernel, forward_kernel

ROWS_A_PROGRAM = 32  # with 32 channels in bfloat16: 16 bytes a thread and pixel, four warps
NUMBERS_A_BLOCK = 2048  # beyond which a block's columns cost it rows
INTERPRETED_ROWS = 256  # a program costs the interpreter the same, whatever it holds
WHOLE_NUMBER_BITS = 38  # of the largest addend in a deterministic sum; 2**24 of them fit into 63 bits


def forward(given: Arguments) -> Tensor:
    """(B, Q, h * c) in float32."""
    batch, queries, _ = given.slots.shape
    heads, channels = given.value.shape[2:]
    result = torch.empty(batch, queries, heads * channels, device=given.value.device)
    if result.numel():
        tensors, numbers, sizes = _launch(given)
        with _on(given.value):
            forward_kernel[(_blocks(given, sizes) * heads,)](*tensors, result, *numbers, **sizes)
    return result


def backward(given: Arguments, upstream: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of :attr:`Arguments.learned`, in that order and in their dtypes; None where not wanted.

    Args:
        given: of the forward pass.
        upstream: (B, Q, h * c) float32.
        wanted: five flags. Those of offsets and logits come together, whichever is wanted.
    """
    batch, queries, num_slots = given.slots.shape
    heads, anchors, groups = given.value.shape[2], given.references.shape[3], given.offsets.shape[2]
    upstream, device = upstream.float().contiguous(), given.value.device
    exact = torch.are_deterministic_algorithms_enabled()
    to_offsets = torch.empty(given.offsets.shape, device=device)
    to_logits = torch.empty(given.logits.shape, device=device)
    to_value = to_references = to_slot_weights = None
    if wanted[0]:
        to_value = torch.zeros(given.value.shape, device=device, dtype=torch.int64 if exact else torch.float32)
    if wanted[1]:
        to_references = torch.empty(batch, queries, heads, num_slots, anchors, 2, device=device)
    if wanted[4]:
        to_slot_weights = torch.empty(batch, queries, heads, num_slots, device=device)
    if upstream.numel():
        unit = _unit(given, upstream) if exact and wanted[0] else None
        tensors, numbers, sizes = _launch(given)
        outputs = (to_value, to_offsets, to_logits, to_references, to_slot_weights, unit)
        columns = dict(BLOCK_SLOTS=_power(num_slots), BLOCK_ANCHORS=_power(num_slots * anchors))
        with _on(given.value):
            grid = (_blocks(given, sizes) * heads, groups)
            backward_kernel[grid](*tensors, upstream, *outputs, *numbers, **sizes, **columns)
        if to_value is not None and unit is not None:
            # A place or logit that was no number is one in no whole number: it shows in its logit's gradient.
            to_value = (to_value / unit.double() + 0 * to_logits.abs().amax()).float()
    return [
        None if to_value is None else to_value.to(given.value.dtype),
        None if to_references is None else to_references.sum(2),
        to_offsets if wanted[2] else None,
        to_logits if wanted[3] else None,
        None if to_slot_weights is None else to_slot_weights.sum(2),
    ]


def _launch(given: Arguments) -> tuple[list[Tensor], list[int], dict[str, Any]]:
    """What both kernels take: input tensors, sizes and strides that may change, constants they are compiled for."""
    batch, queries, num_slots = given.slots.shape
    heads, channels = given.value.shape[2:]
    groups, levels, points = given.offsets.shape[2], given.offsets.shape[4], given.offsets.shape[5]
    value = given.value if _dense_pixels(given.value) else given.value.contiguous()
    offsets, logits = strided_rows(given.offsets, 3), strided_rows(given.logits, 1)
    tensors = [
        value,
        given.slots.contiguous(),
        given.references.contiguous(),
        offsets,
        logits,
        given.slot_weights.contiguous(),
    ]
    numbers = [batch * queries, *value.stride()[:2], *offsets.stride()[1:4], *logits.stride()[1:4]]
    columns = max(_power(channels), _power(levels * points))
    rows = max(1, min(ROWS_A_PROGRAM, NUMBERS_A_BLOCK // columns))
    if value.device.type == "cpu":
        rows = min(INTERPRETED_ROWS, _power(batch * queries))
    sizes = dict(
        SIZES=tuple(size for shape in given.shapes for size in shape),
        TOKENS=value.shape[1],
        LEVELS=levels,
        POINTS=points,
        ANCHORS=given.references.shape[3],
        SLOTS=num_slots,
        GROUPS=groups,
        HEADS=heads,
        CHANNELS=channels,
        BLOCK=rows,
        BLOCK_CHANNELS=_power(channels),
        BLOCK_SAMPLES=_power(levels * points),
    )
    return tensors, numbers, sizes


def _blocks(given: Arguments, sizes: dict[str, Any]) -> int:
    rows = given.slots.shape[0] * given.slots.shape[1]
    return -(-rows // sizes["BLOCK"])


def _dense_pixels(value: Tensor) -> bool:
    """Whether the (h, c) numbers of a pixel lie one after another; pixels and maps (M, tokens) may lie anywhere."""
    heads, channels = value.shape[2:]
    return value.stride(3) == 1 and (heads == 1 or value.stride(2) == channels)


def _unit(given: Arguments, upstream: Tensor) -> Tensor:
    """(1,): by how much gradients of values are multiplied to be added up as whole numbers."""
    largest = upstream.abs().amax() * torch.where(given.slots >= 0, given.slot_weights, 0.0).abs().amax()
    return (2.0**WHOLE_NUMBER_BITS / largest.clamp_min(1e-30)).reshape(1)


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def _on(tensor: Tensor) -> AbstractContextManager:
    """A context in which kernels start on a tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
