"""Multi-scale deformable attention over any number of value maps, as one function.

Every query looks into up to S of M value maps (its *slots*): for spatial cross-attention the maps are the cameras that
see the query, for temporal self-attention the previous and the current BEV, for a detection decoder the one BEV. The
function takes raw pixel offsets and raw logits, with the softmax inside, so that fused kernels stand behind it
(:mod:`bevstack.ops.backends`).

Sources: Deformable DETR (Zhu et al. 2021), eq. 3; BEVFormer (Li et al. 2022), eq. 2-5; and
docs/reference.md 4.5, Deformable attention.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bevstack.geometry.transforms import full_precision
from bevstack.ops.backends import backend_for, module_of
from bevstack.ops.backends.arguments import Arguments


def deformable_attention(
    value: Tensor,
    shapes: Sequence[tuple[int, int]],
    slots: Tensor,
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    slot_weights: Tensor,
    backend: str | None = None,
) -> Tensor:
    """Weighted sum of bilinear samples around each query's reference points.

    A sample of level l lies at ``reference * (W_l, H_l) + offset - 0.5`` in that level's pixel indices; outside the map
    it is zero. Point p uses reference (anchor) ``p mod Z``. Attention weights are the softmax of the logits over all
    L * P points of one slot; each slot's result is multiplied by its ``slot_weights`` and the slots are summed.

    Places and weights are computed in float32 and samples are summed in float32, whatever the values' dtype. Places,
    offsets and logits that come in half precision have lost what they lost: a model computes them in float32.

    Args:
        value: (M, sum of H_l * W_l, h, c) value maps: h heads of c channels, levels one after another, row-major.
        shapes: (H_l, W_l) of the L levels.
        slots: (B, Q, S) integer, the value map each slot looks into, -1 for an empty slot.
        references: (B, Q, S, Z, 2) fractions (x, y) of the map; (0, 0) is the outer corner of the first pixel.
        offsets: (B, Q, G, h, L, P, 2) pixels (x, y) of the level; G is S, or 1 when the slots share them.
        logits: (B, Q, G, h, L * P) before the softmax.
        slot_weights: (B, Q, S); ignored where the slot is empty.
        backend: of :data:`bevstack.ops.backends.BACKENDS`; None or ``auto``: what is selected for the process.

    Returns:
        (B, Q, h * c), in the dtype of ``value``.

    Raises:
        ValueError: sizes do not fit each other, or the backend is unknown.
        InputError: the backend that the environment names cannot run here.
    """
    _check_sizes(value, shapes, slots, references, offsets)
    chosen = backend_for(value.device.type, value.dtype == torch.float64, backend)
    dtype = torch.promote_types(value.dtype, torch.float32)
    with full_precision(value):
        places = [tensor.to(dtype) for tensor in (references, offsets, logits, slot_weights)]
        if chosen in ("native", "triton") or value.is_meta:
            sizes = [size for shape in shapes for size in shape]
            return fused(value, sizes, slots.long(), *places, chosen).to(value.dtype)
        given = Arguments(value, tuple((int(h), int(w)) for h, w in shapes), slots.long(), *places)
        return module_of(chosen).forward(given).to(value.dtype)


def _check_sizes(
    value: Tensor, shapes: Sequence[tuple[int, int]], slots: Tensor, references: Tensor, offsets: Tensor
) -> None:
    tokens, num_slots = value.shape[1], slots.shape[2]
    groups, levels, points = offsets.shape[2], offsets.shape[4], offsets.shape[5]
    if tokens != sum(h * w for h, w in shapes) or levels != len(shapes):
        raise ValueError(f"value has {tokens} tokens and offsets {levels} levels; shapes say {tuple(shapes)}")
    if groups not in (1, num_slots) or points % references.shape[3]:
        anchors = references.shape[3]
        raise ValueError(f"{groups} offset groups for {num_slots} slots, {points} points for {anchors} anchors")


def _arguments(
    value: Tensor,
    sizes: Sequence[int],
    slots: Tensor,
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    slot_weights: Tensor,
) -> Arguments:
    """A backend's arguments of an operator's: level sizes one after another are pairs again."""
    shapes = tuple((int(h), int(w)) for h, w in zip(sizes[::2], sizes[1::2], strict=True))
    return Arguments(value, shapes, slots, references, offsets, logits, slot_weights)


@torch.library.custom_op("bevstack::deformable_attention", mutates_args=())
def fused(
    value: Tensor,
    sizes: Sequence[int],
    slots: Tensor,
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    slot_weights: Tensor,
    backend: str,
) -> Tensor:
    """:func:`deformable_attention` as one node of a graph (torch.compile, torch.export), on a backend with kernels.

    Args:
        value, slots, references, offsets, logits, slot_weights: as there, all but the values in float32.
        sizes: H and W of the levels, one after another.
        backend: ``native`` or ``triton``.

    Returns:
        (B, Q, h * c) float32.
    """
    given = _arguments(value, sizes, slots, references, offsets, logits, slot_weights)
    return module_of(backend).forward(given)


@fused.register_fake
def _fused_shape(value, sizes, slots, references, offsets, logits, slot_weights, backend):
    dtype = torch.promote_types(value.dtype, torch.float32)
    return value.new_empty((*slots.shape[:2], value.shape[2] * value.shape[3]), dtype=dtype)


@torch.library.custom_op("bevstack::deformable_attention_backward", mutates_args=())
def fused_backward(
    upstream: Tensor,
    value: Tensor,
    sizes: Sequence[int],
    slots: Tensor,
    references: Tensor,
    offsets: Tensor,
    logits: Tensor,
    slot_weights: Tensor,
    backend: str,
    wanted: Sequence[bool],
) -> list[Tensor]:
    """Gradients of :func:`fused`, as one node.

    Args:
        upstream: (B, Q, h * c) gradient of its result.
        value, sizes, slots, references, offsets, logits, slot_weights, backend: what it was called with.
        wanted: of value, references, offsets, logits and slot weights, in this order.

    Returns:
        Five tensors in the shapes of these; (0,) where not wanted.
    """
    given = _arguments(value, sizes, slots, references, offsets, logits, slot_weights)
    gradients = module_of(backend).backward(given, upstream, wanted)
    return [upstream.new_empty(0) if gradient is None else gradient for gradient in gradients]


@fused_backward.register_fake
def _fused_backward_shapes(upstream, value, sizes, slots, references, offsets, logits, slot_weights, backend, wanted):
    learned = (value, references, offsets, logits, slot_weights)
    return [
        torch.empty_like(tensor) if asked else upstream.new_empty(0)
        for tensor, asked in zip(learned, wanted, strict=True)
    ]


def _remember(ctx, inputs, output) -> None:
    value, ctx.sizes, slots, references, offsets, logits, slot_weights, ctx.backend = inputs
    ctx.save_for_backward(value, slots, references, offsets, logits, slot_weights)


def _differentiate(ctx, upstream: Tensor):
    value, slots, references, offsets, logits, slot_weights = ctx.saved_tensors
    places = (3, 4, 5, 6)
    wanted = [ctx.needs_input_grad[0], *(ctx.needs_input_grad[place] for place in places)]
    if torch.is_grad_enabled():  # the gradient is to be differentiated again: the definition can be, kernels cannot
        given = _arguments(value, ctx.sizes, slots, references, offsets, logits, slot_weights)
        asked = [tensor for tensor, flag in zip(given.learned, wanted, strict=True) if flag]
        found = iter(torch.autograd.grad(module_of("reference").forward(given), asked, upstream, create_graph=True))
        gradients = [next(found) if flag else None for flag in wanted]
    else:
        found = fused_backward(
            upstream, value, ctx.sizes, slots, references, offsets, logits, slot_weights, ctx.backend, wanted
        )
        gradients = [gradient if flag else None for gradient, flag in zip(found, wanted, strict=True)]
    return gradients[0], None, None, *gradients[1:], None


fused.register_autograd(_differentiate, setup_context=_remember)
