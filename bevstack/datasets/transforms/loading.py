"""Read the camera images of a clip from disk, and what the cameras took just before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from mmcv.transforms.base import BaseTransform

from bevstack.datasets.transforms.names import require_images
from bevstack.errors import InputError
from bevstack.images import read_image
from bevstack.registry import TRANSFORMS

_PLACE_OF_SWEEPS = "must come right after LoadMultiViewImages, before all that changes images"


@TRANSFORMS.register_module()
class LoadMultiViewImages(BaseTransform):
    """Decode every camera of every frame: adds ``images``, a list of N (H, W, 3) uint8 RGB arrays, to each frame.

    Reads ``image_paths`` and checks each file against ``image_size_px`` of the tables. Errors as :func:`read_image`.
    A frame whose features are kept (:class:`bevstack.datasets.kept_samples.KeptSample`) gets black images of that size,
    which take no memory, so that what follows finds the same sizes and draws the same random numbers.

    Args:
        reduced: decode JPEG at half size (see :func:`read_image`: other pixels, twice as fast); intrinsics follow.
    """

    loads_images = True

    def __init__(self, reduced: bool = False) -> None:
        self.reduced = reduced

    def transform(self, results: dict) -> dict:
        """Add ``images`` to every frame; with ``reduced`` also change ``pixels_from_camera`` and ``image_size_px``."""
        for frame in results["frames"]:
            sizes = np.asarray(frame["image_size_px"])
            paths = frame["image_paths"]
            if (kept := frame.get("kept")) is not None and kept.features is not None:
                frame["images"] = [np.broadcast_to(np.uint8(0), (*map(int, size), 3)) for size in sizes]
                continue
            images = [self.read(path, tuple(size)) for path, size in zip(paths, sizes, strict=True)]
            frame["images"] = images
            if self.reduced:
                frame["image_size_px"] = np.array([image.shape[:2] for image in images], dtype=np.int64)
                parts = zip(paths, frame["image_size_px"], sizes, strict=True)
                scale = np.array([reduced_scale(*part) for part in parts])
                frame["pixels_from_camera"] = scale[:, :, None] * frame["pixels_from_camera"]
        return results

    def read(self, path: str, size_px: tuple[int, int]) -> np.ndarray:
        """The pixels of one file, (H, W, 3) uint8 RGB; ``size_px`` (height, width) is what the tables say."""
        return read_image(path, size_px, self.reduced)


def halves_exactly(path: str | Path) -> bool:
    """Whether decoding at half size halves exactly: libjpeg does (an odd last row or column is padded), for others
    the picture is resized to fit."""
    return str(path).lower().endswith((".jpg", ".jpeg"))


def reduced_scale(path: str | Path, reduced_px: Sequence[int], stored_px: Sequence[int]) -> tuple[float, float, float]:
    """Factors of the rows (u, v, 1) of a camera's intrinsics when its file is decoded at half size.

    Args:
        path: the file.
        reduced_px, stored_px: (height, width) of what was decoded, and of the file.
    """
    if halves_exactly(path):
        return 0.5, 0.5, 1.0
    return reduced_px[1] / stored_px[1], reduced_px[0] / stored_px[0], 1.0


@TRANSFORMS.register_module()
class LoadCameraSweeps(BaseTransform):
    """Decode what each camera took before each frame: adds ``sweeps``, S lists of N images, oldest first.

    Stands right after :class:`LoadMultiViewImages` and before all that changes images; from there on what happens to a
    camera's image happens to its sweeps. Reads ``sweep_paths``, which the dataset adds where it finds this transform.
    A file is decoded once, however often a clip shows it.

    With ``still_height_m`` each sweep is seen as if the camera had stood where it stands at the frame, as far as that
    can be without knowing distances: what lies on the plane at that height above the ground, or infinitely far above
    the horizon, keeps its place in the image unless it moves by itself. Grey is what the sweep does not show.

    Args:
        num_sweeps: S.
        reduced: as :class:`LoadMultiViewImages` was told.
        still_height_m: of the plane; 0.5 is the middle of the lower half of a car. None: sweeps stay as they are.

    Raises:
        InputError: in use: a file is broken, or of another size than the camera's image of the frame.
        InputError: images are not loaded yet, or were changed already.
        ValueError: ``num_sweeps`` below 1.
    """

    def __init__(self, num_sweeps: int, reduced: bool = False, still_height_m: float | None = None) -> None:
        if num_sweeps < 1:
            raise ValueError(f"LoadCameraSweeps: num_sweeps: {num_sweeps} must be at least 1")
        self.num_sweeps, self.reduced, self.still_height_m = num_sweeps, reduced, still_height_m

    def check_place(self, before: Sequence[object]) -> None:
        """Refuse a place before the images are there, or after they have changed."""
        require_images(self, before, _PLACE_OF_SWEEPS)
        if any(getattr(step, "changes_images", False) for step in before):
            raise InputError("pipeline", "LoadCameraSweeps", _PLACE_OF_SWEEPS)

    def transform(self, results: dict) -> dict:
        """Add ``sweeps`` to every frame; nothing else changes."""
        frames = results["frames"]
        if "images" not in frames[-1] or results.get("images_changed"):
            raise InputError("pipeline", "LoadCameraSweeps", _PLACE_OF_SWEEPS)
        decoded = {
            str(path): image
            for frame in frames
            for path, image in zip(frame["image_paths"], frame["images"], strict=True)
        }
        for frame in frames:
            frame["sweeps"] = [
                [self._image(path, image, decoded) for path, image in zip(paths, frame["images"], strict=True)]
                for paths in frame["sweep_paths"]
            ]
            self.stabilise(frame)
        return results

    def stabilise(self, frame: dict) -> None:
        """Change the ``sweeps`` of a frame as ``still_height_m`` says, in place."""
        if self.still_height_m is None:
            return
        for moment, moved in zip(frame["sweeps"], frame["sweep_from_camera"], strict=True):
            for n, image in enumerate(moment):
                place = frame["pixels_from_camera"][n], moved[n], frame["height_in_camera"][n]
                moment[n] = stabilised(image, *place, self.still_height_m)

    def _image(self, path: str, keyframe: np.ndarray, decoded: dict[str, np.ndarray]) -> np.ndarray:
        if path not in decoded:
            decoded[path] = read_image(path, reduced=self.reduced)
        image = decoded[path]
        if image.shape != keyframe.shape:
            (height, width), (rows, columns) = image.shape[:2], keyframe.shape[:2]
            raise InputError(path, "size", f"{width}x{height}, the camera's image of the frame is {columns}x{rows}")
        return image


def stabilised(
    image: np.ndarray,
    pixels_from_camera: np.ndarray,
    sweep_from_camera: np.ndarray,
    height_in_camera: np.ndarray,
    still_height_m: float,
) -> np.ndarray:
    """An older image of a camera as the camera at another place would show it (:class:`LoadCameraSweeps`).

    Args:
        image: (H, W, 3) uint8, taken where ``sweep_from_camera`` (4, 4) leads.
        pixels_from_camera: (3, 3); height_in_camera: (4,), its product with (x, y, z, 1) is a height in metres.
        still_height_m: of the plane that keeps its place.
    """
    rotation, way = sweep_from_camera[:3, :3], sweep_from_camera[:3, 3]
    if not way.any() and np.array_equal(rotation, np.eye(3)):
        return image
    # A point of the plane on the ray r is r / w away, w = up.r / below; what is above the horizon has w < 0 and counts
    # as infinitely far away (w = 0). It lies on the ray (rotation + way up^T / below) r of the older image.
    up, below = height_in_camera[:3], still_height_m - height_in_camera[3]
    from_pixels = np.linalg.inv(pixels_from_camera)
    centre = np.array([[1.0, 0.0, -0.5], [0.0, 1.0, -0.5], [0.0, 0.0, 1.0]])  # OpenCV's pixel i has its centre at i
    height, width = image.shape[:2]
    pictures = []
    for ray in (rotation, rotation + np.outer(way, up) / below):
        matrix = centre @ pixels_from_camera @ ray @ from_pixels @ np.linalg.inv(centre)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        pictures.append(cv2.warpPerspective(image, matrix, (width, height), flags=flags, borderValue=(127, 127, 127)))
    slope = up @ from_pixels / below  # w of the pixel (u, v, 1)
    columns, rows = np.arange(width) + 0.5, np.arange(height) + 0.5
    on_plane = slope[0] * columns[None] + slope[1] * rows[:, None] + slope[2] > 0
    return np.where(on_plane[..., None], pictures[1], pictures[0])
