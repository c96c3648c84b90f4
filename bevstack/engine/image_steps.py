"""What a config's test pipeline does to images, alone: for images that come from no dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config
from torch import Tensor

from bevstack.datasets.transforms.image_geometry import ImageTransform
from bevstack.datasets.transforms.loading import (
    LoadCameraSweeps,
    LoadMultiViewImages,
    halves_exactly,
    reduced_scale,
)
from bevstack.engine.component_names import find_component, suggested_name
from bevstack.engine.config import building
from bevstack.engine.stored_config import data_settings
from bevstack.errors import InputError
from bevstack.images import read_image
from bevstack.registry import TRANSFORMS
from bevstack.structures.moment import Image, Rig, Sweeps

_KINDS = (LoadMultiViewImages, LoadCameraSweeps, ImageTransform)
_OUT_OF_SIGHT_M = 1e6


class ImageSteps:
    """Decoding, camera sweeps and changes of images, as a test pipeline has them; targets and labels are left out.

    Args:
        loading: says whether files are decoded at half size.
        sweeps: how camera sweeps are taken, None where the model wants none.
        changes: resizing, cropping and the like, in order. What a pipeline draws at random is drawn from a fixed seed.
    """

    def __init__(
        self, loading: LoadMultiViewImages, sweeps: LoadCameraSweeps | None, changes: Sequence[ImageTransform]
    ) -> None:
        self.reduced, self.sweeps, self.changes = loading.reduced, sweeps, tuple(changes)

    @classmethod
    def of_config(cls, cfg: Config) -> ImageSteps:
        """The steps of a config's test pipeline that load or change images.

        A change of your own belongs to them where its class derives from
        :class:`bevstack.datasets.transforms.image_geometry.ImageTransform`.

        Raises:
            InputError: the config has no data, a step is unknown or cannot be built.
        """
        pipeline = data_settings(cfg).get("pipeline")
        if pipeline is None:
            reason = "absent: nothing says how images are resized; hand in a config that has it"
            raise InputError(cfg.filename or "config", "test_dataloader.dataset.pipeline", reason)
        steps = []
        with building(cfg):
            for number, step in enumerate(pipeline):
                component = find_component(step["type"]) if isinstance(step, Mapping) else type(step)
                if component is None:
                    place = f"test_dataloader.dataset.pipeline.{number}.type"
                    reason = f"unknown name {step['type']!r}{suggested_name(step['type'])}"
                    raise InputError(cfg.filename or "config", place, reason)
                if isinstance(component, type) and issubclass(component, _KINDS):
                    steps.append(TRANSFORMS.build(step) if isinstance(step, Mapping) else step)
        loading = next((step for step in steps if isinstance(step, LoadMultiViewImages)), LoadMultiViewImages())
        sweeps = next((step for step in steps if isinstance(step, LoadCameraSweeps)), None)
        return cls(loading, sweeps, [step for step in steps if isinstance(step, ImageTransform)])

    def __call__(self, images: Sequence[Image], rig: Rig, sweeps: Sweeps | None = None) -> dict[str, Any]:
        """The images of one moment as the pipeline would leave them.

        A camera without an image (None) gets a black one of size 0 and is put far away, looking away from everything:
        no place of the ground is in its sight.

        Args:
            images: N, one a camera of the rig.
            rig: their calibration.
            sweeps: what they took before, S lists of N, where the steps want them.

        Returns:
            ``images``, N (H, W, 3) uint8 arrays, ``pixels_from_camera`` (N, 3, 3), ``camera_from_bev`` (N, 4, 4),
            ``image_size_px`` (N, 2), and ``sweeps``, S lists of N, where the steps take them.

        Raises:
            InputError: a file that cannot be read, an image that fits neither its calibration nor the steps, sweeps
                that are not what the steps want, or no image at all.
        """
        found = [None if image is None else self._read(image, f"images[{n}]") for n, image in enumerate(images)]
        given = [image for image in found if image is not None]
        if not given:
            raise InputError("images", "number", "every camera lacks its image")
        there = np.array([image is not None for image in found])
        self._check_sizes(found, rig)
        blank = DecodedImage(np.zeros_like(given[0].pixels))
        decoded = [image or blank for image in found]
        scales = np.array([image.scale for image in decoded])
        frame: dict[str, Any] = {
            "images": [image.pixels for image in decoded],
            "pixels_from_camera": scales[:, :, None] * rig.pixels_from_camera,
        }
        wanted = 0 if self.sweeps is None else self.sweeps.num_sweeps
        swept = 0 if sweeps is None else len(sweeps.images)
        if swept != wanted:
            what = f"looks at {wanted} images that each camera took before" if wanted else "takes no earlier images"
            raise InputError("sweeps", "images", f"the model {what}; {swept or 'none'} given")
        if self.sweeps is not None and sweeps is not None:
            self._add_sweeps(frame, self.sweeps, sweeps, rig, there)
        results: dict[str, Any] = {"frames": [frame], "rng": np.random.default_rng(0)}
        for step in self.changes:
            try:
                results = step.transform(results)
            except InputError as error:
                raise InputError("images", error.field, error.reason) from error
            except ValueError as error:
                raise InputError("images", type(step).__name__, str(error)) from error
        frame = results["frames"][-1]
        poses = rig.camera_from_bev.copy()
        poses[~there, 2, 3] -= _OUT_OF_SIGHT_M  # every point of the ground now lies behind the camera
        sizes = np.array([image.shape[:2] for image in frame["images"]], dtype=np.int64)
        return frame | {"camera_from_bev": poses, "image_size_px": np.where(there[:, None], sizes, 0)}

    def _read(self, image: np.ndarray | Tensor | str | Path, place: str) -> DecodedImage:
        """An image as the first step of the pipeline leaves it."""
        if isinstance(image, np.ndarray | Tensor):
            pixels = as_image(image, place)
            if not self.reduced:
                return DecodedImage(pixels)
            height, width = pixels.shape[:2]
            halved = cv2.resize(pixels, (-(-width // 2), -(-height // 2)), interpolation=cv2.INTER_AREA)
            return DecodedImage(halved, (halved.shape[1] / width, halved.shape[0] / height, 1.0))
        if not isinstance(image, str | Path):
            raise InputError("images", place, f"is a {type(image).__name__}; expected an array, a tensor or a path")
        pixels = read_image(image, reduced=self.reduced)
        if not self.reduced:
            return DecodedImage(pixels)
        stored = pixels if halves_exactly(image) else read_image(image)
        return DecodedImage(pixels, reduced_scale(image, pixels.shape[:2], stored.shape[:2]))

    def _check_sizes(self, found: Sequence[DecodedImage | None], rig: Rig) -> None:
        """Refuse images of another size than their intrinsics are for, where the rig says which."""
        if rig.image_size_px is None:
            return
        for name, image, wanted in zip(rig.names, found, rig.image_size_px, strict=True):
            if image is not None and np.abs(image.given_size_px - wanted).max() > self.reduced:
                size = "x".join(f"{length:.0f}" for length in image.given_size_px[::-1])
                reason = f"{size}, its intrinsics are for {wanted[1]}x{wanted[0]}; change them as the image was changed"
                raise InputError("images", name, reason)

    def _add_sweeps(
        self, frame: dict[str, Any], step: LoadCameraSweeps, sweeps: Sweeps, rig: Rig, there: np.ndarray
    ) -> None:
        """Put the sweeps of a moment beside its images, as a step of the pipeline takes them."""
        frame["sweeps"] = [
            self._read_sweep(moment, frame["images"], there, f"images[{s}]") for s, moment in enumerate(sweeps.images)
        ]
        if step.still_height_m is not None:
            if sweeps.sweep_from_camera is None:
                reason = "absent: the model sees sweeps from where the cameras stand now (still_height_m)"
                raise InputError("sweeps", "sweep_from_camera", reason)
            frame["sweep_from_camera"] = sweeps.sweep_from_camera
            frame["height_in_camera"] = rig.ego_from_camera[:, 2]
            step.stabilise(frame)

    def _read_sweep(
        self, moment: Sequence[Image], now: Sequence[np.ndarray], there: np.ndarray, place: str
    ) -> list[np.ndarray]:
        """The images of one earlier moment, as large as those of now; black for cameras without an image now."""
        read = []
        for n, (image, image_now) in enumerate(zip(moment, now, strict=True)):
            if not there[n]:
                read.append(image_now)
                continue
            if image is None:
                raise InputError("sweeps", f"{place}[{n}]", "absent, though the camera has an image of the moment")
            pixels = self._read(image, f"{place}[{n}]").pixels
            if pixels.shape != image_now.shape:
                (height, width), (rows, columns) = pixels.shape[:2], image_now.shape[:2]
                reason = f"{width}x{height}, the image of the moment has {columns}x{rows}"
                raise InputError("sweeps", f"{place}[{n}]", reason)
            read.append(pixels)
        return read


@dataclass(frozen=True)
class DecodedImage:
    """An image after decoding.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        scale: factors of the rows (u, v, 1) of its intrinsics.
    """

    pixels: np.ndarray
    scale: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def given_size_px(self) -> np.ndarray:
        """(2,) height and width before decoding, to a pixel where that halved them."""
        return np.array(self.pixels.shape[:2]) / [self.scale[1], self.scale[0]]


def as_image(image: np.ndarray | Tensor, place: str) -> np.ndarray:
    """An image as (H, W, 3) uint8 RGB.

    Args:
        image: (H, W, 3) or (3, H, W) uint8, an array or a tensor.
        place: for messages.

    Raises:
        InputError: another shape or another kind of numbers.
    """
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if array.dtype != np.uint8:
        raise InputError("images", place, f"is {array.dtype}; expected uint8 RGB, 0 to 255")
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
        array = array.transpose(1, 2, 0)
    if array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise InputError("images", place, f"has shape {array.shape}; expected (H, W, 3) or (3, H, W)")
    return np.ascontiguousarray(array)
