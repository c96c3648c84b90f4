"""Pictures to files: a PNG a sample, a GIF or MP4 a scene; each appears under its name only when it is complete."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from bevstack.errors import InputError
from bevstack.files import atomic_write
from bevstack.images import read_image
from bevstack.visualization.drawing import fitted
from bevstack.visualization.palette import FIXED_COLORS

CLIP_FORMATS = ("gif", "mp4")


def encoded_image(image: np.ndarray, kind: str) -> bytes:
    """The bytes of an image file.

    Args:
        image: (H, W, 3) or (H, W, 4) uint8 RGB or RGBA.
        kind: ``png``, as small as it gets, ``jpeg`` of quality 78, or ``webp`` of quality 90: a tenth of a PNG of B_t.
    """
    settings = {
        "png": [cv2.IMWRITE_PNG_COMPRESSION, 9],
        "jpeg": [cv2.IMWRITE_JPEG_QUALITY, 78],
        "webp": [cv2.IMWRITE_WEBP_QUALITY, 90],
    }[kind]
    order = [2, 1, 0] if image.shape[2] == 3 else [2, 1, 0, 3]
    _, content = cv2.imencode(f".{kind}", np.ascontiguousarray(image[..., order]), settings)
    return content.tobytes()


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB image.

    Raises:
        InputError: the file cannot be written.
    """
    _, content = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    with atomic_write(path) as temporary:
        temporary.write_bytes(content.tobytes())


def write_clip(path: str | os.PathLike, pictures: Sequence[Path], fps: float, max_width_px: int = 1600) -> None:
    """Join pictures to a GIF or MP4, by the ending of ``path``; one picture is in memory at a time.

    Args:
        path: ``.gif`` or ``.mp4``.
        pictures: image files, in order; all are fitted to the size of the first.
        fps: pictures a second.
        max_width_px: wider pictures are scaled down.

    Raises:
        InputError: another ending, no pictures, or the file cannot be written.
    """
    path = Path(path)
    if path.suffix[1:] not in CLIP_FORMATS or not pictures:
        raise InputError(path, "clip", f"needs at least one picture and one of the formats {', '.join(CLIP_FORMATS)}")
    height, width = read_image(pictures[0]).shape[:2]
    scale = min(1.0, max_width_px / width)
    height, width = (2 * round(side * scale / 2) for side in (height, width))  # video codecs want even sides
    frames = (fitted(read_image(picture), height, width) for picture in pictures)
    with atomic_write(path) as temporary:
        (_write_gif if path.suffix == ".gif" else _write_mp4)(temporary, frames, fps)


def _with_256_colors(frame: np.ndarray):
    """The frame with the best 256 colours that hold all our own: else the photographs would take most of them."""
    own = [channel for color in FIXED_COLORS for channel in color]
    picture, palette = Image.fromarray(frame), Image.new("P", (1, 1))
    adaptive = picture.quantize(256 - len(own) // 3, dither=Image.Dither.NONE).getpalette() or []
    palette.putpalette(adaptive[: 768 - len(own)] + own)
    return picture.quantize(palette=palette, dither=Image.Dither.NONE)


def _write_gif(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    pictures = map(_with_256_colors, frames)
    next(pictures).save(path, save_all=True, append_images=pictures, duration=round(1000 / fps), loop=0)


def _write_mp4(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    writer = None
    for frame in frames:
        if writer is None:
            size = frame.shape[1], frame.shape[0]
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
            if not writer.isOpened():
                raise InputError(path, "mp4", "this OpenCV has no MPEG-4 encoder; use --format gif")
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    if writer is not None:
        writer.release()
