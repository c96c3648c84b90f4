"""What a call of deformable attention hands to its backend."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Arguments:
    """A checked call: sizes fit, everything but the values is float32 (float64 with double values).

    Args:
        value: (M, tokens, h, c) in float32, bfloat16, float16 or float64.
        shapes: (H_l, W_l) of the L levels.
        slots: (B, Q, S) int64, -1 where empty.
        references: (B, Q, S, Z, 2) fractions (x, y).
        offsets: (B, Q, G, h, L, P, 2) pixels.
        logits: (B, Q, G, h, L * P).
        slot_weights: (B, Q, S).
    """

    value: Tensor
    shapes: tuple[tuple[int, int], ...]
    slots: Tensor
    references: Tensor
    offsets: Tensor
    logits: Tensor
    slot_weights: Tensor

    @property
    def learned(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Value (M, tokens, h, c) and what has the shapes above: of these a gradient can be asked, in this order."""
        return self.value, self.references, self.offsets, self.logits, self.slot_weights


def strided_rows(tensor: Tensor, inner: int) -> Tensor:
    """A tensor (B, Q, ...) that kernels can stride through: its last ``inner`` dimensions are one dense block, B and Q
    are one dimension; a copy where it is not so."""
    block = 1
    for size, stride in zip(reversed(tensor.shape[-inner:]), reversed(tensor.stride()[-inner:]), strict=True):
        if size > 1 and stride != block:
            return tensor.contiguous()
        block *= size
    if tensor.shape[0] > 1 and tensor.stride(0) != tensor.shape[1] * tensor.stride(1):
        return tensor.contiguous()
    overlapping = any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.contiguous() if overlapping else tensor
