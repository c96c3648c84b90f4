"""The picture's way in as OpenMMLab's BEVFormer pipelines have it, beside ours, for comparison.

Restated with NumPy and OpenCV, step by step: LoadMultiViewImageFromFiles (to float32),
PhotoMetricDistortionMultiViewImage, NormalizeMultiviewImage, RandomScaleImageMultiViewImage, PadMultiViewImage,
DefaultFormatBundle3D, and the joining of a clip's frames, with the published settings
(docs/reference.md 5, small, base, tiny, Augmentation). GridMask is not in it: there it is a part of the model. Both
sides draw the same distortions of one seed, and give the same clip to one grey level.

What a benchmark measures::

    images = usual_images(paths), our_images(paths)      # or leave the paths, and decoding is measured with the rest
    usual_clip(images[0], BASE, seed), our_clip(images[1], BASE, seed)      # training; without seed: testing
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.dataset import pseudo_collate
from torch import Tensor

from bevstack.datasets.transforms import PackBEVInputs, ResizeImages
from bevstack.images import read_image
from bevstack.models.image_augmentation import PhotometricDistortion
from bevstack.models.preprocessor import BEVPreprocessor

Images = Sequence[Sequence[str | Path | np.ndarray]]
"""T lists of N images of one size: files, or (H, W, 3) uint8 as they were decoded."""


@dataclass(frozen=True)
class PipelineSettings:
    """How a published configuration treats its images.

    Args:
        num_frames: T of a training clip.
        mean, std: of the channels as the network sees them.
        channel_order: "rgb" or "bgr", what the network sees.
        scale: of the images' sides.
        pad_divisor: sides are padded to multiples of it.
    """

    num_frames: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channel_order: str
    scale: float = 1.0
    pad_divisor: int = 32


BASE = PipelineSettings(4, (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), "bgr")
SMALL = PipelineSettings(3, (103.53, 116.28, 123.675), (1.0, 1.0, 1.0), "bgr", scale=0.8)
TINY = PipelineSettings(3, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375), "rgb", scale=0.5)


def usual_images(paths: Sequence[Sequence[str | Path]]) -> list[list[np.ndarray]]:
    """T lists of N files, decoded as the usual pipeline does: (H, W, 3) uint8 BGR."""
    return [[_as_usual(path) for path in frame] for frame in paths]


def our_images(paths: Sequence[Sequence[str | Path]]) -> list[list[np.ndarray]]:
    """T lists of N files, decoded as ours does: (H, W, 3) uint8 RGB."""
    return [[read_image(path) for path in frame] for frame in paths]


def usual_clip(images: Images, settings: PipelineSettings, seed: int | None = None) -> Tensor:
    """A clip (T, N, 3, H, W) float32, ready for the network, by the usual pipeline.

    Args:
        images: files, or what :func:`usual_images` gave.
        settings: :data:`BASE`, :data:`SMALL`, :data:`TINY` or others.
        seed: of the photometric distortion, as training has it; None for none, as in testing.
    """
    if seed is not None:
        torch.manual_seed(seed)
    frames = []
    for frame in images:
        drawn = None if seed is None else PhotometricDistortion().draw(len(frame))
        frames.append(_usual_frame(frame, settings, drawn))
    return torch.stack(frames)


def our_clip(images: Images, settings: PipelineSettings, seed: int | None = None) -> list[Tensor]:
    """A clip, T frames (N, 3, H, W) float32, ready for the network, by this package's transforms and preprocessor.

    The network takes frame by frame, so that nothing joins them. Their memory is used again by later clips once nothing
    holds it. Arguments as :func:`usual_clip`, with images of :func:`our_images`.
    """
    frames = []
    for given in images:
        pixels = [_pixels(image, read_image) for image in given]
        frames.append({"images": pixels, **_calibration(pixels)})
    results = {"frames": frames, "rng": np.random.default_rng(0), "classes": ()}
    results = ResizeImages(scale=settings.scale).transform(results)
    batch = pseudo_collate([PackBEVInputs().transform(results)])
    if seed is not None:
        torch.manual_seed(seed)
    clip = _preprocessor(settings)(batch, training=seed is not None)["inputs"]
    return [frame.images[0] for frame in clip.frames]


def bytes_between_processes(images: Images, settings: PipelineSettings) -> tuple[int, int]:
    """How many bytes of pixels a worker sends for one clip: the usual pipeline, ours.

    The usual one sends padded float32, ours bytes of the images' own size; padding and conversion come after.
    """
    height, width = (max(round(side * settings.scale), 1) for side in _pixels(images[0][0], read_image).shape[:2])
    count = 3 * len(images) * len(images[0])
    padded = [-(-side // settings.pad_divisor) * settings.pad_divisor for side in (height, width)]
    return 4 * count * padded[0] * padded[1], count * height * width


def distorted(image: Any, drawn: Mapping[str, Tensor], m: int) -> np.ndarray:
    """PhotoMetricDistortionMultiViewImage on one (H, W, 3) float32 BGR image, which it may change.

    Args:
        image: 0 ... 255.
        drawn: of M images, see :meth:`bevstack.models.image_augmentation.PhotometricDistortion.draw`, (M,) and (M, 3).
        m: which of them.
    """
    brightness, first, last, hue_deg, saturation = (
        float(drawn[name][m]) for name in ("brightness", "contrast_first", "contrast_last", "hue_deg", "saturation")
    )
    if brightness:
        image += brightness
    if first != 1:
        image *= first
    image = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
    if saturation != 1:
        image[..., 1] *= saturation
    if hue_deg:
        image[..., 0] += hue_deg
        image[..., 0][image[..., 0] > 360] -= 360
        image[..., 0][image[..., 0] < 0] += 360
    image = cv2.cvtColor(image, cv2.COLOR_HSV2BGR)
    if last != 1:
        image *= last
    order = drawn["order"][m].numpy()
    if (order != np.arange(3)).any():
        image = image[..., 2 - order[::-1]]  # the order is one of RGB
    return image


def _usual_frame(images: Sequence, settings: PipelineSettings, drawn: Mapping[str, Tensor] | None) -> Tensor:
    """One moment (N, 3, H, W) float32, step by step."""
    stacked = np.stack([_pixels(image, _as_usual) for image in images], axis=-1).astype(np.float32)
    views = [stacked[..., n] for n in range(len(images))]
    if drawn is not None:
        views = [distorted(view, drawn, m) for m, view in enumerate(views)]
    mean = np.asarray(settings.mean, np.float64).reshape(1, -1)
    inverse = 1 / np.asarray(settings.std, np.float64).reshape(1, -1)
    normalized: list[Any] = []
    for view in views:
        image = view.copy().astype(np.float32)
        if settings.channel_order == "rgb":
            cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
        cv2.subtract(image, mean, image)
        cv2.multiply(image, inverse, image)
        normalized.append(image)
    if settings.scale != 1:
        height, width = (int(side * settings.scale) for side in normalized[0].shape[:2])
        normalized = [cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR) for image in normalized]
    padded = []
    for image in normalized:
        below, right = (-side % settings.pad_divisor for side in image.shape[:2])
        padded.append(cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(0.0,)))
    return torch.from_numpy(np.ascontiguousarray(np.stack([image.transpose(2, 0, 1) for image in padded])))


def _as_usual(path: str | Path) -> np.ndarray:
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def _pixels(image: str | Path | np.ndarray, read: Callable[[str | Path], np.ndarray]) -> np.ndarray:
    return image if isinstance(image, np.ndarray) else read(image)


def _calibration(images: Sequence[np.ndarray]) -> dict[str, Any]:
    """What the pipeline wants to know of a moment beside its images; the pixels do not depend on it."""
    count = len(images)
    return {
        "pixels_from_camera": np.tile(np.eye(3), (count, 1, 1)),
        "camera_from_bev": np.tile(np.eye(4), (count, 1, 1)),
        "image_size_px": np.array([image.shape[:2] for image in images]),
        "previous_from_current": np.eye(4),
        "has_previous": True,
        "seconds": 0.5,
    }


@lru_cache
def _preprocessor(settings: PipelineSettings) -> BEVPreprocessor:
    return BEVPreprocessor(
        settings.mean, settings.std, settings.channel_order, settings.pad_divisor, photometric={}
    )
