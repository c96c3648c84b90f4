"""Strokes on numpy RGB images: antialiased lines with sub-pixel ends, translucent polygons, text."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

_SHIFT = 4  # OpenCV's fixed-point bits: ends of lines lie on sixteenths of a pixel

Color = tuple[int, int, int]


class Text(NamedTuple):
    """A line of text: where, what, how large. ``anchor`` is Pillow's: "lt" left top, "mm" middle, "rb" right bottom."""

    xy: tuple[float, float]
    text: str
    size_px: float = 14
    color: Color = (33, 37, 41)
    anchor: str = "lt"
    bold: bool = False
    halo: Color | None = None


@functools.lru_cache(maxsize=64)
def _font(size_px: int, bold: bool):
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")), size_px)


def text_width(text: str, size_px: float, bold: bool = False) -> float:
    """Width of a line of text in pixels."""
    return _font(max(6, round(size_px)), bold).getlength(text)


def draw_texts(image: np.ndarray, texts: Sequence[Text]) -> np.ndarray:
    """A copy of ``image`` (H, W, 3) uint8 with lines of text on it."""
    picture = Image.fromarray(image)
    pen = ImageDraw.Draw(picture)
    for line in texts:
        font = _font(max(6, round(line.size_px)), line.bold)
        stroke = max(1, round(line.size_px / 9)) if line.halo is not None else 0
        pen.text(line.xy, line.text, line.color, font, line.anchor, stroke_width=stroke, stroke_fill=line.halo)
    return np.asarray(picture).copy()


def _fixed(points: np.ndarray) -> np.ndarray:
    # Pixel i of ours covers [i, i + 1); OpenCV puts integer coordinates on pixel centres.
    return np.round((np.asarray(points, np.float64) - 0.5) * (1 << _SHIFT)).astype(np.int32)


def clip_segment(start: np.ndarray, end: np.ndarray, width: float, height: float, margin: float = 16.0):
    """The part of a segment inside the image and ``margin`` pixels around it (Liang-Barsky), or None.

    Args:
        start, end: (2,) pixels (u, v).
        width, height: of the image.
    """
    step, low, high = end - start, 0.0, 1.0
    for axis, limit in enumerate((width + margin, height + margin)):
        for delta, room in ((-step[axis], start[axis] + margin), (step[axis], limit - start[axis])):
            if delta == 0:
                if room < 0:
                    return None
            elif delta < 0:
                low = max(low, room / delta)
            else:
                high = min(high, room / delta)
    return None if low > high else (start + low * step, start + high * step)


def draw_segment(image: np.ndarray, start: np.ndarray, end: np.ndarray, color: Color, width_px: float = 1.0) -> None:
    """Draw one antialiased line on (H, W, 3) uint8 in place; ends (2,) in continuous pixel coordinates, anywhere."""
    part = clip_segment(np.asarray(start, float), np.asarray(end, float), image.shape[1], image.shape[0])
    if part is not None:
        ends = _fixed(np.stack(part))
        cv2.line(image, ends[0].tolist(), ends[1].tolist(), color, max(1, round(width_px)), cv2.LINE_AA, _SHIFT)


def draw_polygon(image: np.ndarray, corners: np.ndarray, color: Color, alpha: float) -> None:
    """Fill a convex polygon (P, 2) of pixels translucently on (H, W, 3) uint8, in place."""
    height, width = image.shape[:2]
    low = np.floor(np.clip(corners.min(0) - 1, 0, (width, height))).astype(int)
    high = np.ceil(np.clip(corners.max(0) + 1, 0, (width, height))).astype(int)
    if (high <= low).any():
        return
    limit = 1 << 20  # far corners: keep them inside OpenCV's fixed-point range
    patch = image[low[1] : high[1], low[0] : high[0]]
    mask = np.zeros(patch.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, _fixed(np.clip(corners - low, -limit, limit)), (255,), cv2.LINE_AA, _SHIFT)
    paint(patch, mask.astype(np.float32) * (alpha / 255), color)


def draw_outline(image: np.ndarray, corners: np.ndarray, color: Color, width_px: float = 1.0) -> None:
    """Draw a closed polygon (P, 2) of pixels on (H, W, 3) uint8, in place."""
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        draw_segment(image, start, end, color, width_px)


def paint(image: np.ndarray, coverage: np.ndarray, color: Color) -> None:
    """Blend one colour over an image (H, W, 3), in place; ``coverage`` (H, W) in 0..1."""
    cover = coverage[..., None].astype(np.float32)
    image[...] = np.round(image * (1 - cover) + np.asarray(color, np.float32) * cover).astype(np.uint8)


def fitted(image: np.ndarray, height: int, width: int, background: Color = (255, 255, 255)) -> np.ndarray:
    """An image (H, W, 3) uint8 scaled to fit (height, width, 3), centred on ``background``."""
    scale = min(height / image.shape[0], width / image.shape[1])
    size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
    resized = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    canvas = np.full((height, width, 3), background, np.uint8)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = resized
    return canvas
