"""Image files: the one place where they are decoded."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from bevstack.errors import InputError

_JPEG_START, _JPEG_SCAN, _JPEG_END = b"\xff\xd8", b"\xff\xda", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG", b"IEND\xaeB`\x82"
_FRAME_STARTS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG segments that tell the size (ITU T.81, table B.1)
MOST_PIXELS = 64_000_000
"""A larger image is refused before it is decoded: a small file may hold more than fits into memory."""


def _is_cut_off(data: bytes) -> bool:
    """Whether a JPEG or PNG lacks its end marker (some decoders fill the missing part with grey and say nothing)."""
    if data.startswith(_JPEG_START):
        # Inside entropy-coded data 0xFF is always stuffed, so nothing after the last scan's start can look like an end.
        return data.find(_JPEG_END, data.rfind(_JPEG_SCAN)) < 0
    return data.startswith(_PNG_START) and _PNG_END not in data[-64:]


def stored_size_px(data: bytes) -> tuple[int, int] | None:
    """(height, width) that the header of a JPEG or PNG tells, without decoding; None where it tells none."""
    if data.startswith(_PNG_START) and len(data) >= 24:
        return int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    place = 2
    while data.startswith(_JPEG_START) and place + 9 <= len(data) and data[place] == 0xFF:
        if data[place + 1] in _FRAME_STARTS:
            rows, columns = data[place + 5 : place + 7], data[place + 7 : place + 9]
            return int.from_bytes(rows, "big"), int.from_bytes(columns, "big")
        filled = data[place + 1] == 0xFF  # fill bytes may stand before a marker
        place += 1 if filled else 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def read_image(
    path: str | os.PathLike, size_px: tuple[int, int] | None = None, reduced: bool = False
) -> np.ndarray:
    """Decode one image file.

    The pixels are taken as they are stored: an EXIF orientation is ignored, since intrinsics belong to stored pixels.

    Args:
        path: JPEG, PNG or whatever OpenCV decodes; grey becomes three equal channels, transparency is dropped.
        size_px: (height, width) that the file must have, None for any.
        reduced: decode at half size (libjpeg's scaled DCT, about twice as fast for JPEG). Other pixels than decoding in
            full and resizing; use only where images are to become half size or smaller anyway.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        InputError: missing, unreadable, cut off, not an image, of more than :data:`MOST_PIXELS`, or another size than
            ``size_px``.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(path, "image", error.strerror or "cannot be read") from error
    if not data:
        raise InputError(path, "image", "the file is empty")
    if _is_cut_off(data):
        raise InputError(path, "image", f"the file is cut off after {len(data)} bytes")
    stored = stored_size_px(data)
    if stored is not None and stored[0] * stored[1] > MOST_PIXELS:
        size = f"{stored[1]}x{stored[0]}"
        raise InputError(path, "size", f"{size}, more than the {MOST_PIXELS // 10**6} megapixels that are decoded")
    flags = (cv2.IMREAD_REDUCED_COLOR_2 if reduced else cv2.IMREAD_COLOR) | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise InputError(path, "image", f"cannot be decoded ({error.err})") from error
    if image is None:
        raise InputError(path, "image", "not an image that OpenCV can decode")
    if size_px is not None:
        expected = tuple(int(n) for n in size_px)
        accepted = {tuple(-(-n // 2) for n in expected), tuple(n // 2 for n in expected)} if reduced else {expected}
        if image.shape[:2] not in accepted:
            height, width = image.shape[:2]
            found = f"{width}x{height}" + (" at half size" if reduced else "")
            raise InputError(path, "size", f"{found}, the table says {expected[1]}x{expected[0]}")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
