"""Loops over the pixels of one image, compiled for this processor by numba at first use and kept on disk.

Each reads bytes once and writes normalised numbers once; what lies between stays in the first cache, a row at a time.
An image is (H, W * 3) uint8, three channels beside each other; ``height`` and ``width`` are those of its own content.
``out`` is (rows, W' * 3) float32 and begins at the image's row ``first_row``; what of it lies outside the content
becomes exactly 0. ``order`` (3,) says which channel comes out as the first, second and third.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np

from bevstack.ops.jit import kept

# A product and a sum may be one instruction, which rounds once less; no other liberty is taken.
_RULES: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
_ZERO, _ONE, _TWO, _THREE, _FOUR, _SIX = (np.float32(number) for number in (0, 1, 2, 3, 4, 6))
_SMALLEST = np.float32(np.finfo(np.float32).tiny)
_SHORT_BITS, _HALF_LESS_ONE, _ODD = (np.uint32(number) for number in (16, 0x7FFF, 1))


def compiled(function: Callable) -> Callable:
    """The function as numba compiles it; kept on disk where there is a place for it, else compiled in each process."""
    return kept(partial(numba.njit, **_RULES), function)


@compiled
def _split(pixels, brightness, contrast, width, planes) -> None:
    """A row of bytes, (byte + brightness) * contrast, to a row for each channel (3, W)."""
    red, green, blue = planes[0], planes[1], planes[2]
    for x in range(width):
        red[x] = (np.float32(pixels[3 * x]) + brightness) * contrast
        green[x] = (np.float32(pixels[3 * x + 1]) + brightness) * contrast
        blue[x] = (np.float32(pixels[3 * x + 2]) + brightness) * contrast


@compiled
def _join(planes, order, scale, bias, width, row) -> None:
    """The inverse of :func:`_split`, in another order of the channels; ``scale`` and ``bias`` (3,) are those of it."""
    first, second, third = planes[order[0]], planes[order[1]], planes[order[2]]
    for x in range(width):
        row[3 * x] = first[x] * scale[0] + bias[0]
        row[3 * x + 1] = second[x] * scale[1] + bias[1]
        row[3 * x + 2] = third[x] * scale[2] + bias[2]


@compiled
def scaled(image, height, width, first_row, scale, bias, out) -> None:
    """``out`` = image * scale + bias, channels in their order; ``scale``, ``bias`` (3,)."""
    columns = 3 * width
    scales, biases = np.empty(columns, dtype=np.float32), np.empty(columns, dtype=np.float32)
    for i in range(columns):
        scales[i], biases[i] = scale[i % 3], bias[i % 3]
    for y in range(len(out)):
        row, filled = out[y], 0
        if first_row + y < height:
            pixels, filled = image[first_row + y], columns
            for i in range(columns):
                row[i] = np.float32(pixels[i]) * scales[i] + biases[i]
        row[filled:] = _ZERO


@compiled
def reordered(image, height, width, first_row, order, scale, bias, out) -> None:
    """``out`` = image * scale + bias, with the channels in another order; ``scale``, ``bias`` (3,)."""
    planes = np.empty((3, width), dtype=np.float32)
    for y in range(len(out)):
        row, filled = out[y], 0
        if first_row + y < height:
            filled = 3 * width
            _split(image[first_row + y], _ZERO, _ONE, width, planes)
            _join(planes, order, scale, bias, width, row)
        row[filled:] = _ZERO


@compiled
def saturated(image, height, width, first_row, brightness, contrast, saturation, order, scale, bias, out) -> None:
    """As :func:`turned` without a turn: each channel moves along the line to the pixel's largest one."""
    planes = np.empty((3, width), dtype=np.float32)
    red, green, blue = planes[0], planes[1], planes[2]
    for y in range(len(out)):
        row, filled = out[y], 0
        if first_row + y < height:
            filled = 3 * width
            _split(image[first_row + y], brightness, contrast, width, planes)
            for x in range(width):
                r, g, b = red[x], green[x], blue[x]
                value = max(max(r, g), b)
                factor = saturation if value > _ZERO else (-saturation if value < _ZERO else _ZERO)
                red[x] = value - factor * (value - r)
                green[x] = value - factor * (value - g)
                blue[x] = value - factor * (value - b)
            _join(planes, order, scale, bias, width, row)
        row[filled:] = _ZERO


@compiled
def turned(image, height, width, first_row, brightness, contrast, hue, saturation, order, scale, bias, out) -> None:
    """(image + brightness) * contrast, hue and saturation, a new order, then * scale + bias.

    ``hue`` is in sixths of a turn, -3 ... 3. The formulas are those of
    :func:`bevstack.models.image_augmentation.shift_hue_scale_saturation`, which says where they come from.
    """
    planes = np.empty((3, width), dtype=np.float32)
    red, green, blue = planes[0], planes[1], planes[2]
    for y in range(len(out)):
        row, filled = out[y], 0
        if first_row + y < height:
            filled = 3 * width
            _split(image[first_row + y], brightness, contrast, width, planes)
            for x in range(width):
                r, g, b = red[x], green[x], blue[x]
                value = max(max(r, g), b)
                chroma = value - min(min(r, g), b)
                inverse = _ONE / max(chroma, _SMALLEST)
                place = (r - g) * inverse + _FOUR
                place = (b - r) * inverse + _TWO if value == g else place
                place = (g - b) * inverse if value == r else place
                place += hue
                place = place + _SIX if place < _ZERO else place
                place = place - _SIX if place >= _SIX else place
                factor = saturation if value > _ZERO else (-saturation if value < _ZERO else _ZERO)
                chroma *= factor
                red[x] = value - chroma * min(max(_TWO - abs(place - _THREE), _ZERO), _ONE)
                green[x] = value - chroma * min(max(abs(place - _TWO) - _ONE, _ZERO), _ONE)
                blue[x] = value - chroma * min(max(abs(place - _FOUR) - _ONE, _ZERO), _ONE)
            _join(planes, order, scale, bias, width, row)
        row[filled:] = _ZERO


@compiled
def shortened(numbers, out) -> None:
    """float32 numbers (rows, W) to the bits of bfloat16 (rows, W) uint16, to the nearest, halves to even."""
    for y in range(len(out)):
        bits, row = numbers[y].view(np.uint32), out[y]
        for i in range(len(row)):
            row[i] = (bits[i] + _HALF_LESS_ONE + ((bits[i] >> _SHORT_BITS) & _ODD)) >> _SHORT_BITS


@compiled
def erased(keep, out) -> None:
    """Set the pixels of ``out`` (H, W * 3), integers of any width, to 0 where ``keep`` (H, W) is false."""
    for y in range(len(out)):
        row, kept = out[y], keep[y]
        for x in range(len(kept)):
            stays = kept[x]
            row[3 * x] = row[3 * x] if stays else 0
            row[3 * x + 1] = row[3 * x + 1] if stays else 0
            row[3 * x + 2] = row[3 * x + 2] if stays else 0
