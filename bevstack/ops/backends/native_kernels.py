"""The loops of the native backend: deformable attention forward and backward, one query and head after another.

Tables of numbers (see :func:`bevstack.ops.jit.run_parallel`), common to both; strides count elements:
1 value, 2 slots, 3 references, 4 offsets, 5 logits, 6 slot weights, 7 level table (H, W, first token), 8 B * Q, 9 S,
10 Z, 11 G, 12 heads, 13 L, 14 P, 15 tokens a map, 16 to 18 strides of offsets over (query, group, head), 19 to 21 of
logits; forward: 22 result; backward: 23 gradient of the result, 24 of value (zeros at first), 25 of offsets and 26 of
logits, both without gaps, 27 of references (B * Q, heads, S, Z, 2) or 0, 28 of slot weights (B * Q, heads, S) or 0,
29 heads a piece.

Softmax inside; bilinear rows are summed in float32, kept in registers; nothing as large as the list of samples exists.
"""

from __future__ import annotations

from functools import cache

import numba
import numpy as np
from numba import carray

from bevstack.ops.jit import (
    FLOAT_RULES,
    SOURCE_STAMP,
    TABLE_SIZE,
    add_scaled,
    as_float,
    compiled,
    draw_number,
    fast_exp,
    float_pointer,
    int_pointer,
    stack_floats,
    stack_ints,
    value_pointer,
)

MOST_SAMPLES = 256  # L * P of one head; their weights lie on the stack
MOST_AT_ONCE = 2048  # samples of several heads that the forward pass places together
MOST_NUMBERS = 2 * MOST_SAMPLES
QUERIES_AT_ONCE = 32

ZERO, ONE, HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)


@numba.njit(inline="always", fastmath=FLOAT_RULES, error_model="numpy")
def _softmax(logits, first, stride, heads, count, weights):
    """Weights (heads, count), one head after another, of logits from place ``first``, heads ``stride`` apart."""
    for h in range(heads):
        most = logits[first + h * stride]
        for i in range(1, count):
            most = max(most, logits[first + h * stride + i])
        for i in range(count):
            weights[h * count + i] = logits[first + h * stride + i] - most
    for n in range(heads * count):
        weights[n] = fast_exp(weights[n])
    for h in range(heads):
        total = ZERO
        for i in range(count):
            total += weights[h * count + i]
        for i in range(count):
            weights[h * count + i] *= ONE / total


@numba.njit(inline="always", fastmath=FLOAT_RULES, error_model="numpy")
def _corners(x, y, width, height):
    """Four pixels around (x, y) and their shares, zero where outside; the pixel is then another, inside."""
    left, top = np.floor(x), np.floor(y)
    right_share, low_share = x - left, y - top
    i, j = np.int64(left), np.int64(top)
    x0, x1 = max(i, 0), max(min(i + 1, width - 1), 0)  # of NaN, too, a pixel inside: its share makes the result NaN
    y0, y1 = max(j, 0), max(min(j + 1, height - 1), 0)
    in_left = ONE if i >= 0 else ZERO
    in_right = ONE if i + 1 < width else ZERO
    in_top = ONE if j >= 0 else ZERO
    in_low = ONE if j + 1 < height else ZERO
    return (
        (y0 * width + x0, y0 * width + x1, y1 * width + x0, y1 * width + x1),
        (ONE - right_share, right_share, ONE - low_share, low_share),
        (in_left, in_right, in_top, in_low),
    )


@cache
def forward_kernel(channels: int, half: bool):
    """Machine code of the forward pass for heads of c channels and values in float32, or in bfloat16 (``half``).

    Pixels and shares of a query's samples are found for all heads at once, in loops that become vector code: a head by
    itself has too few samples for that, and finding them one by one takes longer than reading the rows.
    """
    of_half, stamp = int(half), SOURCE_STAMP

    def forward(table):
        t = carray(table, TABLE_SIZE, np.int64)
        if stamp == 0:  # never: it is here to be part of the code that the cache compares
            return
        counter = int_pointer(t.ctypes.data)
        value, slots, references = value_pointer(t[1], of_half), int_pointer(t[2]), float_pointer(t[3])
        offsets, logits, slot_weights = float_pointer(t[4]), float_pointer(t[5]), float_pointer(t[6])
        level_table, result = int_pointer(t[7]), float_pointer(t[22])
        queries, num_slots, anchors, groups, heads = t[8], t[9], t[10], t[11], t[12]
        levels, points, tokens = t[13], t[14], t[15]
        row, samples = heads * channels, levels * points
        at_once = max(min(heads, MOST_AT_ONCE // max(samples, 1)), 1)
        # one sum a corner: no addition waits for that of another corner
        sum_a, sum_b, sum_c, sum_d = (
            stack_floats(channels),
            stack_floats(channels),
            stack_floats(channels),
            stack_floats(channels),
        )
        weights = stack_floats(MOST_AT_ONCE)
        xs, ys, wide, tall = (
            stack_floats(MOST_AT_ONCE),
            stack_floats(MOST_AT_ONCE),
            stack_floats(MOST_AT_ONCE),
            stack_floats(MOST_AT_ONCE),
        )
        share_a, share_b, share_c, share_d = (
            stack_floats(MOST_AT_ONCE),
            stack_floats(MOST_AT_ONCE),
            stack_floats(MOST_AT_ONCE),
            stack_floats(MOST_AT_ONCE),
        )
        place_a, place_b, place_c, place_d = (
            stack_ints(MOST_AT_ONCE),
            stack_ints(MOST_AT_ONCE),
            stack_ints(MOST_AT_ONCE),
            stack_ints(MOST_AT_ONCE),
        )
        starts, row_32 = stack_ints(MOST_AT_ONCE), np.int32(row)
        for h in range(at_once):
            for level in range(levels):
                for p in range(points):
                    n = h * samples + level * points + p
                    tall[n] = np.float32(level_table[3 * level])
                    wide[n] = np.float32(level_table[3 * level + 1])
                    starts[n] = np.int32(level_table[3 * level + 2]) * row_32 + np.int32(h * channels)
        while True:
            first = draw_number(counter) * QUERIES_AT_ONCE
            if first >= queries:
                break
            for q in range(first, min(first + QUERIES_AT_ONCE, queries)):
                for k in range(row):
                    result[q * row + k] = ZERO
                for head in range(0, heads, at_once):
                    number = min(at_once, heads - head)
                    known = False  # whether the weights of the one group are there
                    for s in range(num_slots):
                        source = slots[q * num_slots + s]
                        if source < 0:
                            continue
                        g = s if groups > 1 else 0
                        if groups > 1 or not known:
                            place = q * t[19] + g * t[20] + head * t[21]
                            _softmax(logits, place, t[21], number, samples, weights)
                            known = True
                        scale = slot_weights[q * num_slots + s]
                        anchor = (q * num_slots + s) * anchors * 2
                        for h in range(number):
                            place = q * t[16] + g * t[17] + (head + h) * t[18]
                            for level in range(levels):
                                for p in range(points):
                                    n, z = level * points + p, anchor + 2 * (p % anchors)
                                    m = h * samples + n
                                    xs[m] = references[z] * wide[n] + offsets[place + 2 * n] - HALF
                                    ys[m] = references[z + 1] * tall[n] + offsets[place + 2 * n + 1] - HALF
                        for n in range(number * samples):
                            x, y, width, height = xs[n], ys[n], wide[n], tall[n]
                            outside = (x <= -ONE) | (y <= -ONE) | (x >= width) | (y >= height)
                            x_inside = x if (x > -ONE) & (x < width) else ZERO  # of NaN, too
                            y_inside = y if (y > -ONE) & (y < height) else ZERO
                            left, top = np.floor(x_inside), np.floor(y_inside)
                            right_share = x_inside - left if x == x else x  # noqa: PLR0124  # NaN makes the result NaN
                            low_share = y_inside - top if y == y else y  # noqa: PLR0124
                            weight = weights[n] * scale
                            left_share = ONE - right_share if (left >= ZERO) & ~outside else ZERO
                            right_share = right_share if (left + ONE < width) & ~outside else ZERO
                            up_share = (ONE - low_share) * weight if (top >= ZERO) & ~outside else ZERO
                            low_share = low_share * weight if (top + ONE < height) & ~outside else ZERO
                            share_a[n], share_b[n] = left_share * up_share, right_share * up_share
                            share_c[n], share_d[n] = left_share * low_share, right_share * low_share
                            x0, x1 = np.int32(max(left, ZERO)), np.int32(min(left + ONE, width - ONE))
                            pixels = np.int32(width)
                            y0 = np.int32(max(top, ZERO)) * pixels
                            y1 = np.int32(min(top + ONE, height - ONE)) * pixels
                            place_a[n], place_b[n] = (y0 + x0) * row_32 + starts[n], (y0 + x1) * row_32 + starts[n]
                            place_c[n], place_d[n] = (y1 + x0) * row_32 + starts[n], (y1 + x1) * row_32 + starts[n]
                        base = source * tokens * row + head * channels
                        for h in range(number):
                            own = q * row + (head + h) * channels
                            for k in range(channels):
                                sum_a[k] = result[own + k]
                                sum_b[k] = ZERO
                                sum_c[k] = ZERO
                                sum_d[k] = ZERO
                            for n in range(h * samples, (h + 1) * samples):
                                wa, wb, wc, wd = share_a[n], share_b[n], share_c[n], share_d[n]
                                a, b, c, d = base + place_a[n], base + place_b[n], base + place_c[n], base + place_d[n]
                                for k in range(channels):
                                    sum_a[k] += wa * as_float(value[a + k])
                                    sum_b[k] += wb * as_float(value[b + k])
                                    sum_c[k] += wc * as_float(value[c + k])
                                    sum_d[k] += wd * as_float(value[d + k])
                            for k in range(channels):
                                result[own + k] = (sum_a[k] + sum_b[k]) + (sum_c[k] + sum_d[k])

    return compiled(forward)


@cache
def backward_kernel(channels: int, half: bool):
    """Machine code of the backward pass; a piece of work is some heads of all queries: their columns are its own."""
    of_half, stamp = int(half), SOURCE_STAMP

    def backward(table):
        t = carray(table, TABLE_SIZE, np.int64)
        if stamp == 0:  # never: it is here to be part of the code that the cache compares
            return
        counter = int_pointer(t.ctypes.data)
        value, slots, references = value_pointer(t[1], of_half), int_pointer(t[2]), float_pointer(t[3])
        offsets, logits, slot_weights = float_pointer(t[4]), float_pointer(t[5]), float_pointer(t[6])
        level_table = int_pointer(t[7])
        queries, num_slots, anchors, groups, heads = t[8], t[9], t[10], t[11], t[12]
        levels, points, tokens = t[13], t[14], t[15]
        upstream, to_value, to_offsets, to_logits = (
            float_pointer(t[23]),
            float_pointer(t[24]),
            float_pointer(t[25]),
            float_pointer(t[26]),
        )
        to_references, to_slot_weights = float_pointer(t[27]), float_pointer(t[28])
        wants_references, wants_slot_weights, share = t[27] != 0, t[28] != 0, t[29]
        row, samples = heads * channels, levels * points
        g_row, weights = stack_floats(channels), stack_floats(MOST_SAMPLES)
        to_weights, to_places = stack_floats(MOST_SAMPLES), stack_floats(MOST_NUMBERS)
        while True:
            first = draw_number(counter) * share
            if first >= heads:
                break
            last = min(first + share, heads)
            for q in range(queries):
                for h in range(first, last):
                    for k in range(channels):
                        g_row[k] = upstream[q * row + h * channels + k]
                    known = False
                    for s in range(num_slots):
                        g = s if groups > 1 else 0
                        source = slots[q * num_slots + s]
                        if groups > 1 or s == 0:
                            for n in range(samples):
                                to_weights[n] = ZERO
                            for n in range(2 * samples):
                                to_places[n] = ZERO
                        if source >= 0:
                            if groups > 1 or not known:
                                _softmax(logits, q * t[19] + g * t[20] + h * t[21], 0, 1, samples, weights)
                                known = True
                            scale = slot_weights[q * num_slots + s]
                            place = q * t[16] + g * t[17] + h * t[18]
                            anchor = (q * num_slots + s) * anchors * 2
                            own = ((q * heads + h) * num_slots + s) * anchors * 2
                            of_slot = ZERO
                            for level in range(levels):
                                height, width = level_table[3 * level], level_table[3 * level + 1]
                                base = (source * tokens + level_table[3 * level + 2]) * row + h * channels
                                tall, wide = np.float32(height), np.float32(width)
                                for p in range(points):
                                    z = 2 * (p % anchors)
                                    n = level * points + p
                                    x = references[anchor + z] * wide + offsets[place + 2 * n] - HALF
                                    y = references[anchor + z + 1] * tall + offsets[place + 2 * n + 1] - HALF
                                    if x <= -ONE or y <= -ONE or x >= wide or y >= tall:
                                        continue
                                    pixels, shares, inside = _corners(x, y, width, height)
                                    (a, b, c, d), (left, right, up, low) = pixels, shares
                                    in_left, in_right, in_up, in_low = inside
                                    weight = weights[n] * scale
                                    a, b, c, d = base + a * row, base + b * row, base + c * row, base + d * row
                                    ga, gb, gc, gd = ZERO, ZERO, ZERO, ZERO
                                    for k in range(channels):
                                        ga += g_row[k] * as_float(value[a + k])
                                        gb += g_row[k] * as_float(value[b + k])
                                        gc += g_row[k] * as_float(value[c + k])
                                        gd += g_row[k] * as_float(value[d + k])
                                    ga, gb = ga * in_left * in_up, gb * in_right * in_up
                                    gc, gd = gc * in_left * in_low, gd * in_right * in_low
                                    weight_left, weight_right = weight * left * in_left, weight * right * in_right
                                    share_up, share_low = up * in_up, low * in_low
                                    # One corner after another: near the border two of them are one pixel.
                                    add_scaled(to_value, a, g_row, weight_left * share_up, channels)
                                    add_scaled(to_value, b, g_row, weight_right * share_up, channels)
                                    add_scaled(to_value, c, g_row, weight_left * share_low, channels)
                                    add_scaled(to_value, d, g_row, weight_right * share_low, channels)
                                    seen = up * (left * ga + right * gb) + low * (left * gc + right * gd)
                                    dx = weight * (up * (gb - ga) + low * (gd - gc))
                                    dy = weight * (left * (gc - ga) + right * (gd - gb))
                                    to_weights[n] += scale * seen
                                    to_places[2 * n] += dx
                                    to_places[2 * n + 1] += dy
                                    of_slot += weights[n] * seen
                                    if wants_references:
                                        to_references[own + z] += dx * wide
                                        to_references[own + z + 1] += dy * tall
                            if wants_slot_weights:
                                to_slot_weights[(q * heads + h) * num_slots + s] = of_slot
                        if groups > 1 or s == num_slots - 1:
                            mean = ZERO
                            if known and (groups == 1 or source >= 0):
                                for n in range(samples):
                                    mean += weights[n] * to_weights[n]
                            place = ((q * groups + g) * heads + h) * samples
                            if known and (groups == 1 or source >= 0):
                                for n in range(samples):
                                    to_logits[place + n] = weights[n] * (to_weights[n] - mean)
                            else:
                                for n in range(samples):
                                    to_logits[place + n] = ZERO
                            for n in range(2 * samples):
                                to_offsets[2 * place + n] = to_places[n]

    return compiled(backward)
