"""The kernels of the triton backend: deformable attention forward and backward, a block of queries and a head each.

A row is one query of one sample, of B * Q; columns of a block are the head's channels, or samples (l, p) of the head,
n = l * P + p. Sizes of maps are constants of the compiled kernel, one for each model. A program looks at slot after
slot, level after level, point after point, reads the four pixels of its rows and sums in float32 in registers: nothing
as large as the list of samples is ever in memory. Places are pixels in float32; outside the map a share is zero, but
zero times NaN is NaN, so that a place which is no number shows in its query.

Strides count elements; the innermost dimension is always dense. A slot below zero is empty, and nothing of it is read.
"""

from __future__ import annotations

try:
    import triton
    import triton.language as tl
except ImportError as error:
    raise ImportError("the triton backend needs triton: pip install 'bevstack[triton]'") from error


@triton.jit
def _softmax_terms(logits, there, count: tl.constexpr, block: tl.constexpr):
    """Largest logit, and sum of exp(logit - largest), of rows of pointers; of zeros where a row is not there."""
    column = tl.arange(0, block)
    taken = there[:, None] & (column < count)[None, :]
    rows = tl.load(logits[:, None] + column[None, :], mask=taken, other=0.0)
    rows = tl.where((column < count)[None, :], rows, -float("inf"))
    most = tl.max(rows, 1)
    return most, tl.sum(tl.exp(rows - most[:, None]), 1)


@triton.jit
def _axis(place, size: tl.constexpr):
    """Low pixel index, share of the high one, and whether either lies inside, as factors one or zero."""
    place = tl.where(place < -2.0, -2.0, place)  # far outside is as good as just outside, and keeps integers small
    place = tl.where(place > size + 1.0, size + 1.0, place)
    low = tl.floor(place)
    share = place - low
    index = tl.where(low == low, low, 0.0).to(tl.int32)
    return index, share, (index >= 0) & (index < size), (index >= -1) & (index < size - 1)


@triton.jit
def _pixels(values, token, token_stride, read, channel, channels: tl.constexpr):
    """(rows, channels) values in float32 of one pixel for each row; zero where not read."""
    taken = read[:, None] & (channel < channels)[None, :]
    pointers = values[:, None] + (token * token_stride)[:, None] + channel[None, :]
    return tl.load(pointers, mask=taken, other=0.0).to(tl.float32)


@triton.jit
def _add_pixels(gradients, token, addend, added, channel, heads: tl.constexpr, channels: tl.constexpr, unit):
    """Add (rows, channels) to one pixel for each row: in float32, or as whole numbers of 1 / unit where it is given.

    Whole numbers give the same sum in whichever order they come.
    """
    taken = added[:, None] & (channel < channels)[None, :]
    pointers = gradients[:, None] + (token * (heads * channels))[:, None] + channel[None, :]
    if unit is not None:
        scaled = addend * unit
        addend = tl.where(scaled == scaled, scaled, 0.0).to(tl.int64)
    tl.atomic_add(pointers, addend, mask=taken, sem="relaxed")


@triton.jit
def forward_kernel(
    value, slots, references, offsets, logits, slot_weights, result,
    rows, map_stride, token_stride,
    offset_row, offset_group, offset_head, logit_row, logit_group, logit_head,
    SIZES: tl.constexpr, TOKENS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, ANCHORS: tl.constexpr,
    SLOTS: tl.constexpr, GROUPS: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SAMPLES: tl.constexpr,
):  # fmt: skip
    """Weighted sums (rows, heads * channels) in float32; the grid is one dimension, the head changes fastest."""
    head = tl.program_id(0) % HEADS
    row = (tl.program_id(0) // HEADS).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = row < rows
    channel = tl.arange(0, BLOCK_CHANNELS)
    total = tl.zeros((BLOCK, BLOCK_CHANNELS), tl.float32)
    offsets += row * offset_row + head * offset_head
    logits += row * logit_row + head * logit_head
    value += head * CHANNELS
    most, mass = _softmax_terms(logits, there, LEVELS * POINTS, BLOCK_SAMPLES)
    for slot in range(SLOTS):
        source = tl.load(slots + row * SLOTS + slot, mask=there, other=-1)
        if tl.max(source, 0) >= 0:
            full = source >= 0
            scale = tl.load(slot_weights + row * SLOTS + slot, mask=full, other=0.0)
            group = slot if GROUPS > 1 else 0
            if GROUPS > 1:
                most, mass = _softmax_terms(logits + group * logit_group, there, LEVELS * POINTS, BLOCK_SAMPLES)
            anchors = references + (row * SLOTS + slot) * (ANCHORS * 2)
            pixels = value + source.to(tl.int64) * map_stride
            start = 0
            for level in tl.static_range(LEVELS):
                for point in range(POINTS):
                    sample = level * POINTS + point
                    anchor = anchors + 2 * (point % ANCHORS)
                    place = offsets + group * offset_group + 2 * sample
                    x = tl.load(anchor, mask=full, other=0.0) * SIZES[2 * level + 1]
                    y = tl.load(anchor + 1, mask=full, other=0.0) * SIZES[2 * level]
                    x += tl.load(place, mask=full, other=0.0) - 0.5
                    y += tl.load(place + 1, mask=full, other=0.0) - 0.5
                    column, right, in_left, in_right = _axis(x, SIZES[2 * level + 1])
                    line, low, in_up, in_low = _axis(y, SIZES[2 * level])
                    logit = tl.load(logits + group * logit_group + sample, mask=full, other=0.0)
                    weight = tl.where(full, tl.exp(logit - most) / mass * scale, 0.0)
                    left = (1.0 - right) * in_left.to(tl.float32)
                    right = right * in_right.to(tl.float32)
                    up = (1.0 - low) * in_up.to(tl.float32) * weight
                    low = low * in_low.to(tl.float32) * weight
                    token = start + line * SIZES[2 * level + 1] + column
                    below = token + SIZES[2 * level + 1]
                    a = _pixels(pixels, token, token_stride, full & in_left & in_up, channel, CHANNELS)
                    b = _pixels(pixels, token + 1, token_stride, full & in_right & in_up, channel, CHANNELS)
                    c = _pixels(pixels, below, token_stride, full & in_left & in_low, channel, CHANNELS)
                    d = _pixels(pixels, below + 1, token_stride, full & in_right & in_low, channel, CHANNELS)
                    total += (left * up)[:, None] * a + (right * up)[:, None] * b
                    total += (left * low)[:, None] * c + (right * low)[:, None] * d
                start += SIZES[2 * level] * SIZES[2 * level + 1]
    result += (row * HEADS + head) * CHANNELS
    stored = there[:, None] & (channel < CHANNELS)[None, :]
    tl.store(result[:, None] + channel[None, :], total, mask=stored)


@triton.jit
def backward_kernel(
    value, slots, references, offsets, logits, slot_weights, upstream,
    to_value, to_offsets, to_logits, to_references, to_slot_weights, unit,
    rows, map_stride, token_stride,
    offset_row, offset_group, offset_head, logit_row, logit_group, logit_head,
    SIZES: tl.constexpr, TOKENS: tl.constexpr, LEVELS: tl.constexpr, POINTS: tl.constexpr, ANCHORS: tl.constexpr,
    SLOTS: tl.constexpr, GROUPS: tl.constexpr, HEADS: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_CHANNELS: tl.constexpr, BLOCK_SAMPLES: tl.constexpr,
    BLOCK_SLOTS: tl.constexpr, BLOCK_ANCHORS: tl.constexpr,
):  # fmt: skip
    """All gradients of a block of rows, one head and one group of slots (second dimension of the grid).

    Those of values (as they lie, dense) are added up by atomics; those of offsets (rows, G, heads, L * P, 2) and logits
    (rows, G, heads, L * P) have one writer; those of references (rows, heads, S, Z, 2) and slot weights
    (rows, heads, S) are a head's share. Values, references and slot weights are left out where their pointer is None.
    ``unit`` is a pointer to one number, see :func:`_add_pixels`, or None.
    """
    head = tl.program_id(0) % HEADS
    row = (tl.program_id(0) // HEADS).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1)
    there = row < rows
    channel = tl.arange(0, BLOCK_CHANNELS)
    offsets += row * offset_row + head * offset_head + group * offset_group
    logits += row * logit_row + head * logit_head + group * logit_group
    value += head * CHANNELS
    whole = there[:, None] & (channel < CHANNELS)[None, :]
    gradient = tl.load(
        upstream + ((row * HEADS + head) * CHANNELS)[:, None] + channel[None, :], mask=whole, other=0.0
    )
    most, mass = _softmax_terms(logits, there, LEVELS * POINTS, BLOCK_SAMPLES)
    if unit is not None:
        unit = tl.load(unit)
    # What belongs to a sample, a slot or an anchor is kept in a block of that many columns, and written once.
    of_sample, of_slot, of_anchor = tl.arange(0, BLOCK_SAMPLES), tl.arange(0, BLOCK_SLOTS), tl.arange(0, BLOCK_ANCHORS)
    to_weight = tl.zeros((BLOCK, BLOCK_SAMPLES), tl.float32)
    to_x, to_y = tl.zeros((BLOCK, BLOCK_SAMPLES), tl.float32), tl.zeros((BLOCK, BLOCK_SAMPLES), tl.float32)
    to_scale = tl.zeros((BLOCK, BLOCK_SLOTS), tl.float32)
    to_anchor_x = tl.zeros((BLOCK, BLOCK_ANCHORS), tl.float32)
    to_anchor_y = tl.zeros((BLOCK, BLOCK_ANCHORS), tl.float32)
    seen = tl.zeros((BLOCK,), tl.int1)
    mean = tl.zeros((BLOCK,), tl.float32)
    first = group if GROUPS > 1 else 0
    for slot in range(first, first + SLOTS // GROUPS):
        source = tl.load(slots + row * SLOTS + slot, mask=there, other=-1)
        if tl.max(source, 0) >= 0:
            full = source >= 0
            seen = seen | full
            scale = tl.load(slot_weights + row * SLOTS + slot, mask=full, other=0.0)
            anchors = references + (row * SLOTS + slot) * (ANCHORS * 2)
            pixels = value + source.to(tl.int64) * map_stride
            start = 0
            for level in tl.static_range(LEVELS):
                for point in range(POINTS):
                    sample = level * POINTS + point
                    anchor = anchors + 2 * (point % ANCHORS)
                    x = tl.load(anchor, mask=full, other=0.0) * SIZES[2 * level + 1]
                    y = tl.load(anchor + 1, mask=full, other=0.0) * SIZES[2 * level]
                    x += tl.load(offsets + 2 * sample, mask=full, other=0.0) - 0.5
                    y += tl.load(offsets + 2 * sample + 1, mask=full, other=0.0) - 0.5
                    column, right, in_left, in_right = _axis(x, SIZES[2 * level + 1])
                    line, low, in_up, in_low = _axis(y, SIZES[2 * level])
                    logit = tl.load(logits + sample, mask=full, other=0.0)
                    weight = tl.where(full, tl.exp(logit - most) / mass, 0.0)
                    left, up = 1.0 - right, 1.0 - low
                    token = start + line * SIZES[2 * level + 1] + column
                    below = token + SIZES[2 * level + 1]
                    in_a, in_b = full & in_left & in_up, full & in_right & in_up
                    in_c, in_d = full & in_left & in_low, full & in_right & in_low
                    a = tl.sum(_pixels(pixels, token, token_stride, in_a, channel, CHANNELS) * gradient, 1)
                    b = tl.sum(_pixels(pixels, token + 1, token_stride, in_b, channel, CHANNELS) * gradient, 1)
                    c = tl.sum(_pixels(pixels, below, token_stride, in_c, channel, CHANNELS) * gradient, 1)
                    d = tl.sum(_pixels(pixels, below + 1, token_stride, in_d, channel, CHANNELS) * gradient, 1)
                    factor = weight * scale
                    if to_value is not None:
                        target = to_value + head * CHANNELS + source.to(tl.int64) * (TOKENS * HEADS * CHANNELS)
                        upper, lower = (up * factor)[:, None] * gradient, (low * factor)[:, None] * gradient
                        _add_pixels(target, token, left[:, None] * upper, in_a, channel, HEADS, CHANNELS, unit)
                        _add_pixels(target, token + 1, right[:, None] * upper, in_b, channel, HEADS, CHANNELS, unit)
                        _add_pixels(target, below, left[:, None] * lower, in_c, channel, HEADS, CHANNELS, unit)
                        _add_pixels(target, below + 1, right[:, None] * lower, in_d, channel, HEADS, CHANNELS, unit)
                    answer = up * (left * a + right * b) + low * (left * c + right * d)
                    dx = factor * (up * (b - a) + low * (d - c))
                    dy = factor * (left * (c - a) + right * (d - b))
                    mean += weight * scale * answer
                    here = (of_sample == sample)[None, :]
                    to_weight = tl.where(here, to_weight + (scale * answer)[:, None], to_weight)
                    to_x = tl.where(here, to_x + dx[:, None], to_x)
                    to_y = tl.where(here, to_y + dy[:, None], to_y)
                    if to_slot_weights is not None:
                        own = (of_slot == slot)[None, :]
                        to_scale = tl.where(own, to_scale + (weight * answer)[:, None], to_scale)
                    if to_references is not None:
                        own = (of_anchor == slot * ANCHORS + point % ANCHORS)[None, :]
                        to_anchor_x = tl.where(own, to_anchor_x + (dx * SIZES[2 * level + 1])[:, None], to_anchor_x)
                        to_anchor_y = tl.where(own, to_anchor_y + (dy * SIZES[2 * level])[:, None], to_anchor_y)
                start += SIZES[2 * level] * SIZES[2 * level + 1]
    line = (row * GROUPS + group) * HEADS + head
    stored = there[:, None] & (of_sample < LEVELS * POINTS)[None, :]
    logit = tl.load(logits[:, None] + of_sample[None, :], mask=stored, other=0.0)
    weights = tl.exp(logit - most[:, None]) / mass[:, None]
    jacobian = tl.where(seen[:, None], weights * (to_weight - mean[:, None]), 0.0)
    tl.store(to_logits + (line * (LEVELS * POINTS))[:, None] + of_sample[None, :], jacobian, mask=stored)
    target = to_offsets + (line * (LEVELS * POINTS * 2))[:, None] + 2 * of_sample[None, :]
    tl.store(target, to_x, mask=stored)
    tl.store(target + 1, to_y, mask=stored)
    last = first + SLOTS // GROUPS
    if to_slot_weights is not None:
        target = to_slot_weights + ((row * HEADS + head) * SLOTS)[:, None] + of_slot[None, :]
        tl.store(target, to_scale, mask=there[:, None] & ((of_slot >= first) & (of_slot < last))[None, :])
    if to_references is not None:
        target = to_references + ((row * HEADS + head) * (SLOTS * ANCHORS * 2))[:, None] + 2 * of_anchor[None, :]
        stored = there[:, None] & ((of_anchor >= first * ANCHORS) & (of_anchor < last * ANCHORS))[None, :]
        tl.store(target, to_anchor_x, mask=stored)
        tl.store(target + 1, to_anchor_y, mask=stored)
