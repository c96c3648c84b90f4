"""Pictures to files: a PNG a sample, a GIF or MP4 a scene; each appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from bevstack.errors import InputError
from bevstack.visualization.drawing import fitted
from bevstack.visualization.palette import FIXED_COLORS

CLIP_FORMATS = ("gif", "mp4")


@contextlib.contextmanager
def _complete(path: Path) -> Iterator[Path]:
    """A temporary path of the same ending, renamed to ``path`` when the block ends well, else removed."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise InputError(path, "file", f"cannot be written: {error.strerror or error}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB image.

    Raises:
        InputError: the file cannot be written.
    """
    _, content = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
    with _complete(Path(path)) as temporary:
        temporary.write_bytes(content.tobytes())


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, its pixels as stored (no rotation by EXIF).

    Raises:
        InputError: it is missing or not an image.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, "image", "no such file")
    content = np.fromfile(path, np.uint8)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(content, flags) if content.size else None
    if image is None:
        raise InputError(path, "image", "is not an image")
    return image[..., ::-1]


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
    size = tuple(2 * round(side * scale / 2) for side in (height, width))  # video codecs want even sides
    frames = (fitted(read_image(picture), *size) for picture in pictures)
    with _complete(path) as temporary:
        (_write_gif if path.suffix == ".gif" else _write_mp4)(temporary, frames, fps)


def _with_256_colors(frame: np.ndarray):
    """The frame with the best 256 colours that hold all our own: else the photographs would take most of them."""
    from PIL import Image

    own = [channel for color in FIXED_COLORS for channel in color]
    picture, palette = Image.fromarray(frame), Image.new("P", (1, 1))
    adaptive = picture.quantize(256 - len(own) // 3, dither=Image.Dither.NONE).getpalette()
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
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
            if not writer.isOpened():
                raise InputError(path, "mp4", "this OpenCV has no MPEG-4 encoder; use --format gif")
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
