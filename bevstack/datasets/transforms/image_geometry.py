"""Resize, crop and flip the images of a clip, and the camera matrices with them.

Every change of an image is a 3x3 ``new_from_old`` pixel transform (:mod:`bevstack.geometry.cameras`) that is multiplied
onto ``pixels_from_camera`` from the left, so a point of the world stays on the image content that shows it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import cv2
import mmcv
import numpy as np
from mmcv.transforms.base import BaseTransform

from bevstack.datasets.transforms.names import require_images
from bevstack.errors import InputError
from bevstack.geometry import crop_pixels, flip_pixels, resize_pixels
from bevstack.registry import TRANSFORMS


class ImageTransform(BaseTransform):
    """A change of every image of a clip that moves ``pixels_from_camera`` and ``image_size_px`` along.

    The camera sweeps of a frame, where they are loaded, change as the camera's image does.

    Args:
        per_camera: draw anew for every camera (the frames and sweeps of a camera share the draw); otherwise one draw
            serves the whole clip.
    """

    changes_images = True

    @property
    def draws(self) -> bool:
        """Whether it may change one image differently from one time to the next; assumed where a class says nothing."""
        return True

    def __init__(self, per_camera: bool = False) -> None:
        self.per_camera = per_camera

    def check_place(self, before: Sequence[object]) -> None:
        """Refuse a place before the images are there."""
        require_images(self, before)

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Any:
        """The random part of one change, independent of the image's size."""

    @abstractmethod
    def apply(self, image: np.ndarray, drawn: Any) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8 image -> changed image and (3, 3) float64 ``new_from_old`` pixel transform."""

    def transform(self, results: dict) -> dict:
        """Change images, sweeps, ``pixels_from_camera`` and ``image_size_px`` of every frame; draws from ``rng``."""
        frames = results["frames"]
        num_cameras = len(frames[-1]["images"])
        draws = [self.draw(results["rng"]) for _ in range(num_cameras if self.per_camera else 1)]
        if not self.per_camera:
            draws = draws * num_cameras
        for frame in frames:
            changed = [self.apply(image, drawn) for image, drawn in zip(frame["images"], draws, strict=True)]
            frame["images"] = [image for image, _ in changed]
            new_from_old = np.stack([matrix for _, matrix in changed])
            frame["pixels_from_camera"] = new_from_old @ frame["pixels_from_camera"]
            frame["image_size_px"] = np.array([image.shape[:2] for image, _ in changed], dtype=np.int64)
            if "sweeps" in frame:
                frame["sweeps"] = [
                    [self.apply(image, drawn)[0] for image, drawn in zip(moment, draws, strict=True)]
                    for moment in frame["sweeps"]
                ]
        results["images_changed"] = True
        return results


def _range(value: float | Sequence[float], name: str) -> tuple[float, float]:
    low, high = (value, value) if isinstance(value, int | float) else (float(v) for v in value)
    if low > high:
        raise ValueError(f"{name}: ({low}, {high}) is not an increasing range")
    return float(low), float(high)


def _positive_range(value: float | Sequence[float], name: str) -> tuple[float, float]:
    low, high = _range(value, name)
    if low <= 0:
        raise ValueError(f"{name}: must be positive, not {low}")
    return low, high


@TRANSFORMS.register_module()
class ResizeImages(ImageTransform):
    """Resize images by a factor, or to a size.

    Args:
        scale: factor, or (low, high) to draw it from uniformly; both sides keep their ratio up to a whole pixel.
        size: (H, W) to resize to; exactly one of the two is given.
        interpolation: OpenCV's method by mmcv's names (``bilinear`` as the reference, ``area`` without aliasing, ...).
        per_camera: see :class:`ImageTransform`.

    Raises:
        ValueError: none or both of scale and size, or an empty range.
    """

    def __init__(
        self,
        scale: float | Sequence[float] | None = None,
        size: Sequence[int] | None = None,
        interpolation: str = "bilinear",
        per_camera: bool = False,
    ) -> None:
        super().__init__(per_camera)
        if (scale is None) == (size is None):
            raise ValueError("ResizeImages: give either scale or size")
        self.scale_range = None if scale is None else _positive_range(scale, "ResizeImages: scale")
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.interpolation = interpolation

    @property
    def draws(self) -> bool:
        """Whether the factor is drawn from a range."""
        return self.scale_range is not None and self.scale_range[0] < self.scale_range[1]

    def draw(self, rng: np.random.Generator) -> float | None:
        """The factor, None where a size is given."""
        return None if self.scale_range is None else rng.uniform(*self.scale_range)

    def apply(self, image: np.ndarray, drawn: float | None) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8, resized, and (3, 3) float64 with the factors that whole-pixel sizes really give."""
        height, width = image.shape[:2]
        factor = 1.0 if drawn is None else drawn  # with a size there is none
        new_height, new_width = self.size or (max(round(height * factor), 1), max(round(width * factor), 1))
        matrix = resize_pixels(new_width / width, new_height / height).numpy()
        if (new_height, new_width) == (height, width):
            return image, matrix
        return mmcv.imresize(image, (new_width, new_height), interpolation=self.interpolation), matrix


@TRANSFORMS.register_module()
class ResizeCropFlipImages(ImageTransform):
    """Image augmentation of BEVDet and BEVFormerV2 ("IDA") in one cut and one resize.

    First a fixed part of the source is taken (``source_crop_px``), then it is resized by a drawn factor or to a drawn
    height, then a window of ``size`` is cut from the result, then that is mirrored. Only the pixels of the window are
    resized. Cuts in the source are at whole pixels; the pixel transform is that of what was really done.

    Args:
        scale: factor or (low, high) to draw it from, relative to the source image.
        heights_px: heights after resizing, one of which is drawn (BEVFormerV2: 512 ... 768); exactly one of scale and
            heights_px is given.
        size: (H, W) of the window; None keeps all of the resized image. A window that reaches over the border shows
            black there.
        source_crop_px: (left, top, right, bottom) of the source to keep; None keeps all.
        bottom: fraction, or (low, high), of the resized height that is left out below the window.
        left: where the window lies between the left (0) and the right border (1), or a (low, high) range.
        flip_probability: of mirroring.
        interpolation: see :class:`ResizeImages`.
        per_camera: see :class:`ImageTransform`.

    Raises:
        ValueError: none or both of scale and heights_px, or an empty range.
        InputError: in use, a source crop outside the image, or a window that shows nothing of it.
    """

    def __init__(
        self,
        scale: float | Sequence[float] | None = None,
        heights_px: Sequence[int] | None = None,
        size: Sequence[int] | None = None,
        source_crop_px: Sequence[int] | None = None,
        bottom: float | Sequence[float] = 0.0,
        left: float | Sequence[float] = 0.5,
        flip_probability: float = 0.0,
        interpolation: str = "bilinear",
        per_camera: bool = False,
    ) -> None:
        super().__init__(per_camera)
        if (scale is None) == (heights_px is None):
            raise ValueError("ResizeCropFlipImages: give either scale or heights_px")
        self.scale_range = None if scale is None else _positive_range(scale, "ResizeCropFlipImages: scale")
        self.heights_px = tuple(int(height) for height in heights_px or ())
        self.size = None if size is None else (int(size[0]), int(size[1]))
        self.source_crop_px = None if source_crop_px is None else tuple(int(edge) for edge in source_crop_px)
        self.bottom_range = _range(bottom, "ResizeCropFlipImages: bottom")
        self.left_range = _range(left, "ResizeCropFlipImages: left")
        self.flip_probability = flip_probability
        self.interpolation = interpolation

    @property
    def draws(self) -> bool:
        """Whether anything is drawn from more than one value."""
        ranges = [self.bottom_range, self.left_range, self.scale_range or (0.0, 0.0)]
        wide = any(low < high for low, high in ranges)
        return wide or len(set(self.heights_px)) > 1 or 0 < self.flip_probability < 1

    def draw(self, rng: np.random.Generator) -> tuple[float, float, float, bool]:
        """(factor or height, bottom, left, mirrored)."""
        drawn = rng.uniform(*self.scale_range) if self.scale_range else float(rng.choice(self.heights_px))
        bottom, left = rng.uniform(*self.bottom_range), rng.uniform(*self.left_range)
        return drawn, bottom, left, bool(rng.random() < self.flip_probability)

    def apply(self, image: np.ndarray, drawn: tuple[float, float, float, bool]) -> tuple[np.ndarray, np.ndarray]:
        """(H, W, 3) uint8, cut, resized and mirrored as drawn, and (3, 3) float64 of what was really done."""
        amount, bottom, left, mirrored = drawn
        image, shift = self._source_part(image)
        height, width = image.shape[:2]
        scale = amount if self.scale_range else amount / height
        resized_height, resized_width = max(round(height * scale), 1), max(round(width * scale), 1)
        rows, columns = self.size or (resized_height, resized_width)
        first_row = round((1 - bottom) * resized_height) - rows if self.size else 0
        first_column = round(left * (resized_width - columns)) if self.size else 0
        row_cut = _source_cut(first_row, rows, resized_height, height)
        column_cut = _source_cut(first_column, columns, resized_width, width)
        image, matrix = self._cut_and_resize(image, row_cut, column_cut, (rows, columns))
        matrix = matrix @ shift
        if mirrored:
            image, matrix = cv2.flip(image, 1), flip_pixels(columns).numpy() @ matrix
        return image, matrix

    def _source_part(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.source_crop_px is None:
            return image, np.eye(3)
        left, top, right, bottom = self.source_crop_px
        height, width = image.shape[:2]
        if not (0 <= left < right <= width and 0 <= top < bottom <= height):
            reason = f"{self.source_crop_px} is not inside an image of {width}x{height}"
            raise InputError("pipeline", "ResizeCropFlipImages.source_crop_px", reason)
        return image[top:bottom, left:right], crop_pixels(left, top).numpy()

    def _cut_and_resize(self, image, row_cut, column_cut, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        (top, bottom, first_row, last_row), (left, right, first_column, last_column) = row_cut, column_cut
        part = image[top:bottom, left:right]
        target = (last_column - first_column, last_row - first_row)
        if part.shape[1::-1] != target:
            part = mmcv.imresize(part, target, interpolation=self.interpolation)
        scale = resize_pixels(target[0] / (right - left), target[1] / (bottom - top))
        matrix = (crop_pixels(-first_column, -first_row) @ scale @ crop_pixels(left, top)).numpy()
        if part.shape[:2] == size:
            return part, matrix
        canvas = np.zeros((*size, 3), dtype=image.dtype)
        canvas[first_row:last_row, first_column:last_column] = part
        return canvas, matrix


def _source_cut(first: int, count: int, resized: int, source: int) -> tuple[int, int, int, int]:
    """Along one axis: the source pixels [low, high) that fill the window's pixels [start, stop).

    The window is [first, first + count) of an axis of ``source`` pixels resized to ``resized``. What lies outside the
    resized axis is left to the canvas.

    Raises:
        InputError: the window shows nothing of the image.
    """
    start, stop = max(first, 0), min(first + count, resized)
    if start >= stop:
        reason = f"the window [{first}, {first + count}) lies outside an image resized to {resized} pixels"
        raise InputError("pipeline", "ResizeCropFlipImages", reason)
    low = min(round(start * source / resized), source - 1)
    high = max(round(stop * source / resized), low + 1)
    return low, high, start - first, stop - first
