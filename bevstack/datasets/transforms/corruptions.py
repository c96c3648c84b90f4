"""RoboBEV's eight corruptions of camera images at three severities, in numpy and OpenCV, seeded by the image's file.

Source: Xie et al. 2023, RoboBEV (arXiv 2304.06719), and its scripts at github.com/Daniel-xsy/RoboBEV; blur, brightness,
fog and snow are there those of Hendrycks and Dietterich 2019 (arXiv 1903.12261), severities 1 to 3 of 5. The packages
that compute them do not run with current scikit-image; here they are written anew from the parameters. Fog is noise of
octaves in place of the diamond-square one, and blur is one convolution along the motion; else the formulas are theirs.

What a file shows is corrupted the same way wherever it appears, as a keyframe and in the history of a later one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms.base import BaseTransform

from bevstack.datasets.transforms.names import require_images
from bevstack.registry import TRANSFORMS

SEVERITIES = ("easy", "moderate", "hard")
"""Names of the severities 1, 2 and 3."""

Corruption = Callable[[np.ndarray, int, np.random.Generator], np.ndarray]


def quantise_colours(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8: the upper 4, 3 or 2 bits of every value stay."""
    return image & np.uint8(0xFF << (3 + severity) & 0xFF)


_DARKEST = (0.60, 0.50, 0.40, 0.30)
_PHOTONS, _NOISE = (600, 250, 120, 50), (0.008, 0.012, 0.018, 0.026)


def dim(image: np.ndarray, severity: int, rng: np.random.Generator, off_by_one: bool = False) -> np.ndarray:
    """(H, W, 3) uint8 as at night: squared, scaled to at most 0.6, 0.5 or 0.4, with photon noise and sensor noise.

    ``off_by_one``: one level darker, as the published scripts compute it.
    """
    level = severity - (0 if off_by_one else 1)
    values = image.astype(np.float32) / 255
    low, high = float(values.min()), float(values.max())
    values = ((values - low) / max(high - low, 1e-6)) ** 2 * _DARKEST[level]
    values = np.clip(rng.poisson(values * _PHOTONS[level]).astype(np.float32) / _PHOTONS[level], 0, 1)
    values += rng.standard_normal(image.shape, dtype=np.float32) * _NOISE[level]
    return (np.clip(values, 0, 1) * 255).astype(np.uint8)


_BLUR = ((10, 3.0), (15, 5.0), (15, 8.0))


def blur_motion(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 smeared one way along a line of -45 to 45 degrees, half a Gaussian of 3, 5 or 8 pixels."""
    radius, sigma = _BLUR[severity - 1]
    return cv2.filter2D(image, -1, _smear(radius, sigma, rng.uniform(-45, 45)), borderType=cv2.BORDER_REPLICATE)


def _smear(radius: int, sigma: float, angle_deg: float) -> np.ndarray:
    """(2 r + 1, 2 r + 1) kernel: half a Gaussian along a line from the middle outwards."""
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1), np.float32)
    steps = np.arange(radius + 1)
    direction = np.array([np.sin(np.radians(angle_deg)), np.cos(np.radians(angle_deg))])
    rows, columns = np.rint(radius + direction[:, None] * steps).astype(int)
    np.add.at(kernel, (rows, columns), np.exp(-0.5 * (steps / sigma) ** 2))
    return kernel / kernel.sum()


_BRIGHTER = (0.1, 0.2, 0.3)


def brighten(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 with 0.1, 0.2 or 0.3 added to the value of hue, saturation and value."""
    value = image.max(axis=2, keepdims=True).astype(np.float32)
    wanted = np.minimum(value + 255 * _BRIGHTER[severity - 1], 255)
    scale = np.where(value > 0, wanted / np.maximum(value, 1), 0)
    return np.rint(np.where(value > 0, image * scale, wanted)).astype(np.uint8)


_FOG = ((1.5, 2.0), (2.0, 2.0), (2.5, 1.7))


def add_fog(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 behind fog of strength 1.5, 2 or 2.5, whose octaves fall off by 2, 2 or 1.7."""
    strength, decay = _FOG[severity - 1]
    values = image.astype(np.float32) / 255
    brightest = float(values.max())
    fog = octave_noise((image.shape[0], image.shape[1]), decay, rng)[..., None]
    return (np.clip((values + strength * fog) * brightest / (brightest + strength), 0, 1) * 255).astype(np.uint8)


def octave_noise(size_px: tuple[int, int], decay: float, rng: np.random.Generator) -> np.ndarray:
    """(H, W) float32 between 0 and 1: uniform noise on grids that double, each octave weaker by ``decay``."""
    side = 1 << (max(*size_px, 2) - 1).bit_length()
    total, cells, weight = np.zeros((side, side), np.float32), 2, 1.0
    while cells <= side:
        grid = rng.random((cells, cells), dtype=np.float32)
        total += weight * cv2.resize(grid, (side, side), interpolation=cv2.INTER_LINEAR)
        cells, weight = 2 * cells, weight / decay
    total = total[: size_px[0], : size_px[1]]
    return (total - total.min()) / max(float(np.ptp(total)), 1e-6)


_SNOW = ((0.1, 0.3, 3.0, 0.5, 10, 4.0, 0.8), (0.2, 0.3, 2.0, 0.5, 12, 4.0, 0.7), (0.55, 0.3, 4.0, 0.9, 12, 8.0, 0.7))


def add_snow(image: np.ndarray, severity: int, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8, paler and with falling flakes: noise enlarged 3, 2 or 4 times, cut, smeared, added both ways."""
    mean, deviation, zoom, threshold, radius, sigma, kept = _SNOW[severity - 1]
    height, width = image.shape[:2]
    small = (max(1, int(np.ceil(height / zoom))), max(1, int(np.ceil(width / zoom))))
    flakes: np.ndarray = rng.normal(mean, deviation, small).astype(np.float32)
    flakes = cv2.resize(flakes, (width, height), interpolation=cv2.INTER_LINEAR)
    flakes = np.where(flakes < threshold, 0, np.clip(flakes, 0, 1)).astype(np.float32)
    flakes = cv2.filter2D(flakes, -1, _smear(radius, sigma, rng.uniform(-135, -45)))[..., None]
    values = image.astype(np.float32) / 255
    grey = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)[..., None]
    paler = kept * values + (1 - kept) * np.maximum(values, grey * 1.5 + 0.5)
    return (np.clip(paler + flakes + flakes[::-1, ::-1], 0, 1) * 255).astype(np.uint8)


IMAGE_CORRUPTIONS: Mapping[str, Corruption] = {
    "colour_quantisation": quantise_colours,
    "low_light": dim,
    "motion_blur": blur_motion,
    "brightness": brighten,
    "fog": add_fog,
    "snow": add_snow,
}
CORRUPTIONS = ("camera_crash", "frame_lost", *IMAGE_CORRUPTIONS)
"""RoboBEV's eight, in its order."""


@TRANSFORMS.register_module()
class CorruptImages(BaseTransform):
    """Corrupts the images of a clip, history and sweeps included; stands behind what loads them.

    ``camera_crash``: 1, 2 or 3 cameras are black, the same all along the set. ``frame_lost``: every image is black with
    a probability of 1, 2 or 3 sixths. The others change the pixels of every image.

    Args:
        corruption: one of :data:`CORRUPTIONS`.
        severity: 1 (easy), 2 or 3 (hard).
        seed: of all that is drawn.
        as_published: two slips of the published scripts: crashed cameras are drawn with replacement, so that fewer may
            crash, and low light is one level darker.

    Raises:
        ValueError: an unknown corruption or severity.
    """

    changes_images = True
    draws = False  # an image looks the same each time

    def __init__(self, corruption: str, severity: int, seed: int = 0, as_published: bool = False) -> None:
        if corruption not in CORRUPTIONS:
            raise ValueError(f"corruption: {corruption!r} is none of {', '.join(CORRUPTIONS)}")
        if severity not in (1, 2, 3):
            raise ValueError(f"severity: {severity} must be 1 (easy), 2 or 3 (hard)")
        self.corruption, self.severity, self.seed, self.as_published = corruption, severity, seed, as_published

    def check_place(self, before: Sequence[object]) -> None:
        """Refuse a place before the images are there."""
        require_images(self, before)

    def transform(self, results: dict) -> dict:
        """Change ``images``, and ``sweeps`` where there are any, of every frame; sizes and matrices stay."""
        for frame in results["frames"]:
            frame["images"] = self._corrupted(frame["image_paths"], frame["images"])
            if "sweeps" in frame:
                moments = zip(frame["sweep_paths"], frame["sweeps"], strict=True)
                frame["sweeps"] = [self._corrupted(paths, images) for paths, images in moments]
        return results

    def _corrupted(self, paths: Sequence[str], images: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self.corruption == "camera_crash":
            crashed = self.crashed_cameras(len(images))
            return [np.zeros_like(image) if n in crashed else image for n, image in enumerate(images)]
        return [self._corrupt(path, image) for path, image in zip(paths, images, strict=True)]

    def crashed_cameras(self, number: int) -> set[int]:
        """Places of the cameras that are black, of so many."""
        rng = np.random.default_rng([self.seed, number])
        wanted = self.severity if self.as_published else min(self.severity, number)
        return set(rng.choice(number, size=wanted, replace=self.as_published).tolist())

    def _corrupt(self, path: str, image: np.ndarray) -> np.ndarray:
        rng = image_rng(self.seed, path)
        if self.corruption == "frame_lost":
            return np.zeros_like(image) if rng.random() < self.severity / 6 else image
        if self.corruption == "low_light":
            return dim(image, self.severity, rng, self.as_published)
        return IMAGE_CORRUPTIONS[self.corruption](image, self.severity, rng)


def image_rng(seed: int, path: str) -> np.random.Generator:
    """The generator of an image, by its file's name and folder: the same wherever the dataset lies."""
    place = Path(path)
    return np.random.default_rng([seed, zlib.crc32(f"{place.parent.name}/{place.name}".encode())])
