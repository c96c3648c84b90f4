"""Modulated deformable convolution (DCNv2) as one function, in plain torch.

Each tap of the kernel looks at its own place, moved by an offset and weighted by a mask; the places are gathered into
columns (rows of channels, so that one bilinear sample is four weighted rows) and multiplied by the kernel as one matrix
product. The work goes in pieces of bounded size whose columns are computed again in the backward pass, so that memory
stays at a few times one piece whatever the size of the input. Where no gradient is asked for, the pieces are small
enough to stay in a CPU's cache, and the input gets a border of zeros in place of tests of what is inside.

Sources: Zhu et al. 2019, Deformable ConvNets v2, eq. 1; conventions of mmcv's operator, docs/reference.md 4.8, DCNv2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bevstack.geometry.transforms import full_precision
from bevstack.ops.packed_layers import packed_dtype, packed_matrix
from bevstack.ops.weighted_rows import weighted_rows

_Pair = int | tuple[int, int]

CACHED_COLUMNS = 2**21
"""Column values that are held at once where no gradient is asked for: 8 MiB in float32."""


def modulated_deform_conv(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: _Pair = 1,
    padding: _Pair = 0,
    dilation: _Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
    max_columns: int = 2**24,
) -> Tensor:
    """Convolution whose taps are moved by ``offset`` and weighted by ``mask``.

    A tap (i, j) of output pixel (r, c) samples the input bilinearly at row ``r * stride - padding + i * dilation + dy``
    and column likewise; outside the input there is zero. With zero offsets and a mask of ones it is ``conv2d``.

    Args:
        x: (B, C, H, W).
        offset: (B, D * kh * kw * 2, H', W') pixels; per deform group and tap (dy, dx), taps row-major.
        mask: (B, D * kh * kw, H', W'), applied as it is given.
        weight: (C', C / groups, kh, kw).
        bias: (C',) or None.
        stride, padding, dilation: as of ``conv2d``.
        groups: of the convolution.
        deform_groups: D, groups of input channels that share offsets and mask.
        max_columns: most column values held at once (a float32 piece of the default takes 64 MiB). A piece has whole
            images or whole output rows, so one output row is always allowed. Without gradient at most
            :data:`CACHED_COLUMNS` are.

    Returns:
        (B, C', H', W'), in channels-last memory.

    Raises:
        ValueError: sizes do not fit each other.
    """
    batch, channels, height, width = x.shape
    out_channels, _, kernel_h, kernel_w = weight.shape
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    rows, columns = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip((height, width), padding, dilation, (kernel_h, kernel_w), stride, strict=True)
    )
    taps = kernel_h * kernel_w
    if channels % groups or channels % deform_groups or out_channels % groups or weight.shape[1] * groups != channels:
        sizes = f"{channels} channels, weight {tuple(weight.shape)}"
        raise ValueError(f"{sizes}, {groups} groups and {deform_groups} deform groups do not fit")
    for name, tensor, depth in (("offset", offset, 2 * deform_groups * taps), ("mask", mask, deform_groups * taps)):
        if tuple(tensor.shape) != (batch, depth, rows, columns):
            raise ValueError(f"{name} is {tuple(tensor.shape)}, expected {(batch, depth, rows, columns)}")

    if x.is_meta:
        return x.new_empty(batch, out_channels, rows, columns)
    if torch.compiler.is_exporting():
        return one_node(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups)
    dtype = torch.promote_types(x.dtype, torch.float32)
    tokens = x.permute(0, 2, 3, 1).to(dtype).contiguous()
    offset = offset.to(dtype).view(batch, deform_groups, taps, 2, rows, columns).permute(0, 4, 5, 2, 1, 3)
    mask = mask.to(dtype).view(batch, deform_groups, taps, rows, columns).permute(0, 3, 4, 2, 1)
    places = offset + _tap_places(rows, columns, (kernel_h, kernel_w), stride, padding, dilation, offset)
    # (groups, taps * C / groups, C' / groups): the matrix that columns of one group are multiplied by.
    matrix = weight.view(groups, out_channels // groups, -1, taps).permute(0, 3, 2, 1).flatten(1, 2)

    remember = torch.is_grad_enabled() and any(t.requires_grad for t in (tokens, places, mask, matrix))
    if not remember:
        max_columns = min(max_columns, CACHED_COLUMNS)
        if torch.is_autocast_enabled(x.device.type):  # once, not in every piece
            matrix = matrix.to(torch.get_autocast_dtype(x.device.type))
        packs = groups == 1 and packed_dtype(tokens, matrix) == matrix.dtype
        packed = packed_matrix(matrix[0].t()) if packs else None
        tokens = F.pad(tokens, (0, 0, *_BORDER, *_BORDER))
    row_values = columns * taps * channels
    images_a_piece = max(1, max_columns // (rows * row_values))
    rows_a_piece = rows if images_a_piece > 1 else max(1, min(rows, max_columns // row_values))
    pieces = []
    # Split, not sliced: the gradient of a slice is as large as the whole.
    for images in zip(*(tensor.split(images_a_piece) for tensor in (tokens, places, mask)), strict=True):
        for place, share in zip(*(tensor.split(rows_a_piece, dim=1) for tensor in images[1:]), strict=True):
            if remember:
                arguments = (images[0], place, share, matrix)
                done = checkpoint(_convolve_piece, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                with full_precision(images[0]):
                    sampled = _sampled_from_bordered(images[0], place, share)
                done = _times_matrix(sampled, share, matrix, packed)
            pieces.append(done.flatten(0, 1))
    result = (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).view(batch, rows, columns, out_channels)
    if bias is not None:
        result = result + bias.to(result.dtype)
    return result.permute(0, 3, 1, 2)


@torch.library.custom_op("bevstack::modulated_deform_conv", mutates_args=())
def one_node(
    x: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    deform_groups: int,
) -> Tensor:
    """:func:`modulated_deform_conv` as one node of an exported graph, for which other runtimes have an operator.

    Args:
        x, offset, mask, weight, bias, groups, deform_groups: as there.
        stride, padding, dilation: pairs.

    Returns:
        (B, C', H', W').
    """
    by, around, apart = ((size[0], size[1]) for size in (stride, padding, dilation))
    return modulated_deform_conv(x, offset, mask, weight, bias, by, around, apart, groups, deform_groups).contiguous()


@one_node.register_fake
def _one_node_shape(x, offset, mask, weight, bias, stride, padding, dilation, groups, deform_groups):
    return x.new_empty(x.shape[0], weight.shape[0], *mask.shape[2:])


def _pair(value: _Pair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _tap_places(rows, columns, kernel, stride, padding, dilation, like: Tensor) -> Tensor:
    """(H', W', taps, 1, 2) where each tap looks before its offset moves it, as (row, column) pixel indices."""
    starts = [
        (torch.arange(n, device=like.device) * s - p)[:, None] + torch.arange(k, device=like.device) * d
        for n, k, s, p, d in zip((rows, columns), kernel, stride, padding, dilation, strict=True)
    ]
    row = starts[0][:, None, :, None].expand(rows, columns, *kernel)
    column = starts[1][None, :, None, :].expand(rows, columns, *kernel)
    return torch.stack([row, column], dim=-1).flatten(2, 3).unsqueeze(3).to(like.dtype)


def _convolve_piece(tokens: Tensor, places: Tensor, mask: Tensor, matrix: Tensor) -> Tensor:
    """One piece: n images, r output rows.

    Args:
        tokens: (n, H, W, C).
        places: (n, r, W', taps, D, 2).
        mask: (n, r, W', taps, D).
        matrix: (g, taps * C / g, C' / g).

    Returns:
        (n * r, W', C').
    """
    channels, deform_groups = tokens.shape[-1], mask.shape[4]
    with full_precision(tokens):
        indices, weights = _corners(tokens.shape[1], tokens.shape[2], places, mask)
        table = tokens.reshape(-1, channels // deform_groups)
        sampled = weighted_rows(table, indices.flatten(0, -2), weights.flatten(0, -2))
    return _times_matrix(sampled, mask, matrix)


def _times_matrix(sampled: Tensor, mask: Tensor, matrix: Tensor, packed: Tensor | None = None) -> Tensor:
    """The columns of a piece, (n * r * W' * taps * D, C / D), times the kernel, packed or not: (n * r, W', C')."""
    images, rows, columns, taps, _ = mask.shape
    groups, _, group_outputs = matrix.shape
    channels = sampled.numel() // (images * rows * columns * taps)
    sampled = sampled.view(images * rows * columns, taps, channels).to(matrix.dtype)
    if packed is not None:
        result = torch.ops.mkldnn._linear_pointwise(sampled.flatten(1), packed, None, "none", [], "")
    elif groups == 1:
        result = sampled.flatten(1) @ matrix[0]
    else:
        sampled = sampled.unflatten(2, (groups, -1)).permute(2, 0, 1, 3).flatten(2)
        result = torch.bmm(sampled, matrix).transpose(0, 1)
    return result.reshape(images * rows, columns, groups * group_outputs)


_BORDER = (1, 2)
"""Zero pixels before and behind rows and columns: a place that is held within one pixel has its corners there."""


def _sampled_from_bordered(tokens: Tensor, places: Tensor, mask: Tensor) -> Tensor:
    """The columns of a piece, (n * r * W' * taps * D, C / D), as :func:`_convolve_piece` samples them; no gradient.

    Args:
        tokens: (n, H + 3, W + 3, C), with the border.
        places, mask: see there.
    """
    images, height, width, channels = tokens.shape
    deform_groups = mask.shape[4]
    bound = places.new_tensor([height - sum(_BORDER), width - sum(_BORDER)])
    # minimum and maximum keep what is not a number; as an integer it must be some pixel all the same
    places, mask = torch.minimum(places.contiguous().clamp_min(-1), bound), mask.contiguous()
    low = places.floor()
    after = places - low
    corner = torch.minimum(low.int().clamp_min_(-1), bound.int())
    first = torch.arange(images, device=mask.device, dtype=torch.int32).view(-1, 1, 1, 1, 1) * (height * width)
    pixel = first + (corner[..., 0] + 1) * width + (corner[..., 1] + 1)
    indices = pixel * deform_groups + torch.arange(deform_groups, device=mask.device, dtype=torch.int32)
    steps = torch.tensor([0, 1, width, width + 1], device=mask.device, dtype=torch.int32) * deform_groups
    down, right = after.unbind(-1)
    down = torch.stack([1 - down, down], dim=-1) * mask.unsqueeze(-1)
    right = torch.stack([1 - right, right], dim=-1)
    weights = (down.unsqueeze(-1) * right.unsqueeze(-2)).flatten(-2)
    indices = indices.unsqueeze(-1) + steps
    table = tokens.reshape(-1, channels // deform_groups)
    return F.embedding_bag(indices.view(-1, 4), table, mode="sum", per_sample_weights=weights.view(-1, 4))


def _corners(height: int, width: int, places: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The four pixels around each place and their share of its mask.

    Returns: row of the (n * H * W * D, C / D) table and weight, both (n, r, W', taps, D, 4); weight zero outside.
    """
    images, deform_groups = mask.shape[0], mask.shape[4]
    bound = places.new_tensor([height, width])
    # A place a whole pixel or more outside counts nothing and, as in mmcv, has no gradient, at exactly one pixel too.
    weight = torch.where(((places > -1) & (places < bound)).all(-1), mask, 0)
    places = torch.minimum(places.clamp_min(-1), bound)
    low = places.detach().floor()
    share_y, share_x = (places - low).unbind(-1)
    row, column = low.long().unbind(-1)
    first = torch.arange(images, device=mask.device).view(-1, 1, 1, 1, 1) * (height * width)
    group = torch.arange(deform_groups, device=mask.device)
    indices, weights = [], []
    for dy in (0, 1):
        for dx in (0, 1):
            y, x = row + dy, column + dx
            inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            pixel = torch.where(inside, first + y * width + x, 0)
            indices.append(pixel * deform_groups + group)
            share = (share_y if dy else 1 - share_y) * (share_x if dx else 1 - share_x)
            weights.append(share * weight * inside)
    return torch.stack(indices, dim=-1), torch.stack(weights, dim=-1)
