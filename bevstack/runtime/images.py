"""Camera images to the model's input: resized, cut, normalised and padded as its file says, in numpy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bevstack.errors import InputError

_ROUNDING_PX = 1.0


def prepared(images: Sequence[np.ndarray | None], described: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Images as the model takes them.

    Args:
        images: N, (H, W, 3) uint8 RGB; None for a camera without an image, which is black.
        described: the file's ``images``.

    Returns:
        (1, N, 3, H, W) float32, and (N, 3, 3) the pixel transforms that belong onto the intrinsics, from the left.

    Raises:
        InputError: an array that is no image, or one of another shape than the file was made for.
    """
    height, width = described["size_px"]
    padded = np.zeros((1, len(images), 3, *described["padded_size_px"]), np.float32)
    transforms = np.tile(np.array(described["pixels_from_source"]), (len(images), 1, 1))
    scale, bias = np.array(described["scale"], np.float32), np.array(described["bias"], np.float32)
    for number, image in enumerate(images):
        if image is None:
            continue
        place = f"images[{number}]"
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InputError("step", place, f"is {image.dtype} {image.shape}; expected uint8 (H, W, 3), RGB")
        transforms[number] = _transform(image.shape[:2], described, place)
        pixels = resampled(image, transforms[number], (height, width))
        if described["channel_order"] == "bgr":
            pixels = pixels[..., ::-1]
        padded[0, number, :, :height, :width] = (pixels * scale + bias).transpose(2, 0, 1)
    return padded, transforms


def _transform(size_px: tuple[int, ...], described: Mapping[str, Any], place: str) -> np.ndarray:
    """(3, 3) pixels of the input from those of an image; the image may be larger or smaller as a whole."""
    height, width = described["source_size_px"]
    if abs(size_px[0] * width / height - size_px[1]) > _ROUNDING_PX * max(1.0, width / height):
        reason = f"{size_px[1]}x{size_px[0]}; the file is for {width}x{height} or that form, smaller or larger"
        raise InputError("step", place, f"{reason}: export again with --image-size")
    scaled = np.diag([width / size_px[1], height / size_px[0], 1.0])
    return np.array(described["pixels_from_source"]) @ scaled


def resampled(image: np.ndarray, new_from_old: np.ndarray, size_px: tuple[int, int]) -> np.ndarray:
    """An image at the pixels of another one, bilinearly and rounded to whole values, black outside.

    Args:
        image: (H, W, C).
        new_from_old: (3, 3) scale and shift of pixel coordinates, in which a pixel's centre is at 0.5.
        size_px: (height, width) of the result.

    Returns:
        (height, width, C) float32.
    """
    rows = _weights(image.shape[0], size_px[0], new_from_old[1, 1], new_from_old[1, 2])
    columns = _weights(image.shape[1], size_px[1], new_from_old[0, 0], new_from_old[0, 2])
    low, high, share, inside = rows
    image = image.astype(np.float32)
    lines = image[low] * (1 - share)[:, None, None] + image[high] * share[:, None, None]
    lines *= inside[:, None, None]
    low, high, share, inside = columns
    result = lines[:, low] * (1 - share)[:, None] + lines[:, high] * share[:, None]
    return np.rint(result * inside[:, None])


def _weights(old: int, new: int, scale: float, shift: float) -> tuple[np.ndarray, ...]:
    """For each new pixel along an axis: the two old ones around it, the second one's share, and 0 where it is off."""
    place = (np.arange(new) + 0.5 - shift) / scale
    inside = ((place >= 0) & (place <= old)).astype(np.float32)
    place = np.clip(place - 0.5, 0, old - 1)
    low = np.floor(place).astype(np.int64)
    return low, np.minimum(low + 1, old - 1), (place - low).astype(np.float32), inside
