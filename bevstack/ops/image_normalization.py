"""Bytes of images to a network's numbers on a CPU, in one pass: colours, normalisation, order, padding."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bevstack.ops.image_kernels import erased, reordered, saturated, scaled, shortened, turned

_BLOCK_ROWS = 32  # rows that wait in the second cache for their conversion to a shorter format
_UNCHANGED = np.arange(3)


def normalize_images(
    images: Sequence[Tensor],
    sizes_px: Sequence[Sequence[int]],
    scale: Tensor,
    bias: Tensor,
    drawn: Mapping[str, Tensor] | None,
    out: Tensor,
) -> None:
    """Distort, normalise, reorder and pad images, from bytes straight to their place.

    ``out``[m] = distorted(images[m]) * scale + bias inside the image's own size, exactly 0 outside. On as many threads
    as torch has, an image each.

    Args:
        images: M images (h, w, 3) uint8, of any sizes and strides.
        sizes_px: M times (height, width), at most the image's and that of ``out``.
        scale, bias: (3,) of the channels as they come out.
        drawn: parameters of M images, as :meth:`bevstack.models.image_augmentation.PhotometricDistortion.draw` gives
            them, its ``order`` being that in which channels come out; None keeps colours and order.
        out: (M, H, W, 3), contiguous, float32 or bfloat16.
    """
    scales, biases = scale.numpy(), bias.numpy()

    def work(m: int) -> None:
        pixels = images[m].contiguous().flatten(1).numpy()
        height, width = (int(min(own, there)) for own, there in zip(sizes_px[m], images[m].shape, strict=False))
        colours = partial(scaled, scale=scales, bias=biases) if drawn is None else kernel_of(drawn, m, scales, biases)
        place = out[m].flatten(1)
        if out.dtype == torch.float32:
            colours(pixels, height, width, 0, out=place.numpy())
            return
        block = np.empty((min(_BLOCK_ROWS, len(place)), place.shape[1]), dtype=np.float32)
        bits = place.view(torch.int16).numpy().view(np.uint16)
        for first_row in range(0, len(place), _BLOCK_ROWS):
            rows = bits[first_row : first_row + _BLOCK_ROWS]
            colours(pixels, height, width, first_row, out=block[: len(rows)])
            shortened(block[: len(rows)], rows)

    _for_each(work, len(images))


def kernel_of(drawn: Mapping[str, Tensor], m: int, scale: np.ndarray, bias: np.ndarray) -> Callable[..., None]:
    """The least work that does what was drawn for image m: a loop that still asks for image, size, row and ``out``.

    Args:
        drawn: see :func:`normalize_images`, values (M,) and ``order`` (M, 3).
        m: number of the image.
        scale, bias: (3,) float32 of the channels as they come out.
    """
    order = drawn["order"][m].numpy()
    brightness, first, last, saturation, hue_deg = (
        float(drawn[name][m]) for name in ("brightness", "contrast_first", "contrast_last", "saturation", "hue_deg")
    )
    if hue_deg == 0 and saturation == 1:
        scale, bias = np.float32(first * last) * scale, np.float32(brightness * first * last) * scale + bias
        if np.array_equal(order, _UNCHANGED):
            return partial(scaled, scale=scale, bias=bias)
        return partial(reordered, order=order, scale=scale, bias=bias)
    colours = partial(
        saturated if hue_deg == 0 else partial(turned, hue=np.float32((hue_deg / 60 + 3) % 6 - 3)),
        brightness=np.float32(brightness),
        contrast=np.float32(first),
        saturation=np.float32(saturation),
    )
    return partial(colours, order=order, scale=np.float32(last) * scale, bias=bias)


def erase_pixels(keep: Tensor, images: Tensor) -> None:
    """Set pixels of images to exactly 0, in place.

    Args:
        keep: (M, H, W) bool, False where a pixel is erased.
        images: (M, H, W, 3), contiguous, float32 or bfloat16.
    """
    masks = keep.contiguous().numpy()
    bits = images.view(torch.int16 if images.dtype.itemsize == 2 else torch.int32).view(*keep.shape[:2], -1).numpy()
    _for_each(lambda m: erased(masks[m], bits[m]), len(images))


def _for_each(work: Callable[[int], None], count: int) -> None:
    """Do the work of each image, on torch's number of threads; loops of numba let go of the interpreter's lock."""
    threads = min(torch.get_num_threads(), count)
    if threads <= 1:
        for m in range(count):
            work(m)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, range(count)):
            pass
