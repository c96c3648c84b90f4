"""What goes wrong with sensors: black, late, frozen or swapped cameras, calibration and ego poses that are off.

Each stands behind what loads images. For tests of a trained model (``tools/robustness.py``) all that is drawn depends
on the seed and on the sample, so that a frame has the same fault as a keyframe and in the history of a later one.
Without a seed it is drawn anew each time, as an augmentation in training (``LoseCameras``, ``DisturbCalibration``).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from mmcv.transforms.base import BaseTransform

from bevstack.datasets.transforms.names import require_images
from bevstack.errors import InputError
from bevstack.images import read_image
from bevstack.registry import TRANSFORMS
from bevstack.structures.rigid_arrays import rigid_inverse

_OUT_OF_SIGHT_M = 1e6


def _rng(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in names)])


def _places(results: dict, cameras: Sequence[str], whose: str) -> list[int]:
    there = list(results["camera_names"])
    for name in cameras:
        if name not in there:
            raise InputError("pipeline", f"{whose}.cameras", f"{name!r} is none of {', '.join(there)}")
    return [there.index(name) for name in cameras]


class SensorFault(BaseTransform):
    """A fault that is the same each time a sample is seen, unless it has no seed; images have to be there already."""

    changes_images = True
    seed: int | None = 0

    @property
    def draws(self) -> bool:
        """Whether a sample may look differently from one time to the next."""
        return self.seed is None

    def rng_of(self, results: dict, *names: str) -> np.random.Generator:
        """The generator of what the names stand for, or without a seed the clip's own."""
        return results["rng"] if self.seed is None else _rng(self.seed, *names)

    def check_place(self, before: Sequence[object]) -> None:
        """Refuse a place before the images are there."""
        require_images(self, before)


@TRANSFORMS.register_module()
class LoseCameras(SensorFault):
    """Cameras are black in every frame, or in some.

    Args:
        cameras: names; None for all.
        probability: of a frame to be lost, drawn for each sample: for all of these cameras together.
        each: draw it for each camera instead.
        known: the model is told, as :class:`bevstack.engine.inference.Predictor` tells it of a camera without an image:
            the camera stands so far away that it sees no place of the BEV. Else a black image is taken for the world.
        seed: of the draws; None: drawn anew each time a clip is made, for all its frames alike.

    Raises:
        InputError: in use: an unknown camera.
        ValueError: ``probability`` is none.
    """

    def __init__(
        self,
        cameras: Sequence[str] | None = None,
        probability: float = 1.0,
        each: bool = False,
        known: bool = False,
        seed: int | None = 0,
    ) -> None:
        if not 0 <= probability <= 1:
            raise ValueError(f"probability: {probability} must lie between 0 and 1")
        self.cameras, self.probability, self.seed = cameras, probability, seed
        self.each, self.known = each, known

    def transform(self, results: dict) -> dict:
        """Change ``images`` and ``sweeps`` of what is lost, and ``camera_from_bev`` of what is known to be."""
        cameras = _places(results, results["camera_names"] if self.cameras is None else self.cameras, "LoseCameras")
        lost: list[int] | None = None
        for frame in results["frames"]:
            if lost is None or self.seed is not None:
                draws = self.rng_of(results, frame["token"]).random(len(cameras))
                draws = draws if self.each else np.full(len(cameras), draws[0])
                lost = [n for n, draw in zip(cameras, draws.tolist(), strict=True) if draw < self.probability]
            for images in (frame["images"], *frame.get("sweeps", ())):
                for n in lost:
                    images[n] = np.zeros_like(images[n])
            if self.known and lost:
                poses = np.array(frame["camera_from_bev"])
                poses[lost, 2, 3] -= _OUT_OF_SIGHT_M
                frame["camera_from_bev"] = poses
        return results


@TRANSFORMS.register_module()
class DelayCameras(SensorFault):
    """Cameras show what they showed some samples ago in the same stream, or at its start; calibration says now.

    Before so many samples have passed they show the oldest image that there is. Sweeps stay as they are. It stands
    right behind what loads images, before they are resized or cropped.

    Args:
        cameras: names; None for all.
        samples: how many samples late; None: frozen at the stream's first one.
        probability: of a sample to be late, drawn for each sample and camera.
        seed: of the draws.

    Raises:
        InputError: in use: an unknown camera, or a file that is broken.
        ValueError: ``samples`` below 1, or ``probability`` is none.
    """

    def __init__(
        self,
        cameras: Sequence[str] | None = None,
        samples: int | None = None,
        probability: float = 1.0,
        seed: int = 0,
    ) -> None:
        if samples is not None and samples < 1:
            raise ValueError(f"samples: {samples} must be at least 1")
        if not 0 <= probability <= 1:
            raise ValueError(f"probability: {probability} must lie between 0 and 1")
        self.cameras, self.samples, self.probability, self.fault_seed = cameras, samples, probability, seed

    def transform(self, results: dict) -> dict:
        """Change ``images`` of the late cameras in every frame."""
        names = results["camera_names"] if self.cameras is None else self.cameras
        late = list(zip(_places(results, names, "DelayCameras"), names, strict=True))
        for frame in results["frames"]:
            earlier = results["dataset"].earlier_tokens(frame["token"], self.samples or 1_000_000)
            late_now = [n for n, name in late if self._draw(frame["token"], name) < self.probability]
            if not earlier or not late_now:
                continue
            views = results["dataset"].camera_views(earlier[-1])
            for n in late_now:
                frame["images"][n] = _fitted(read_image(views.image_paths[n]), frame["images"][n])
        return results

    def _draw(self, token: str, camera: str) -> float:
        return float(_rng(self.fault_seed, token, camera).random())


@TRANSFORMS.register_module()
class SwapCameras(SensorFault):
    """Two cameras have each other's images: a cable in the wrong socket. Sizes stay each camera's own.

    Args:
        cameras: two names.

    Raises:
        InputError: in use: an unknown camera.
        ValueError: not two different names.
    """

    def __init__(self, cameras: Sequence[str]) -> None:
        if len(set(cameras)) != 2:
            raise ValueError(f"cameras: {list(cameras)} must be two different names")
        self.cameras = tuple(cameras)

    def transform(self, results: dict) -> dict:
        """Change ``images`` and ``sweeps`` of every frame."""
        first, second = _places(results, self.cameras, "SwapCameras")
        for frame in results["frames"]:
            for images in (frame["images"], *frame.get("sweeps", ())):
                images[first], images[second] = _fitted(images[second], images[first]), _fitted(
                    images[first], images[second]
                )
        return results


def _fitted(image: np.ndarray, like: np.ndarray) -> np.ndarray:
    """(H, W, 3) in the size of another image."""
    if image.shape == like.shape:
        return image
    return cv2.resize(image, like.shape[1::-1], interpolation=cv2.INTER_LINEAR)


@TRANSFORMS.register_module()
class FitCameras(SensorFault):
    """As many cameras as a model was built for: what is too many at the end is left out, what lacks sees nothing.

    A camera that lacks is black and stands so far away that it sees no place of the BEV, as
    :class:`bevstack.engine.inference.Predictor` has it. Stands right behind what loads images.

    Args:
        number: of the model's cameras.

    Raises:
        InputError: in use: cameras lack and there are camera sweeps.
        ValueError: ``number`` below 1.
    """

    def __init__(self, number: int) -> None:
        if number < 1:
            raise ValueError(f"number: {number} must be at least 1")
        self.number = number

    def transform(self, results: dict) -> dict:
        """Change all that a frame has of each camera, and ``camera_names``."""
        names = list(results["camera_names"])
        lacking = self.number - len(names)
        if lacking == 0:
            return results
        results["camera_names"] = [*names, *(f"absent {n}" for n in range(lacking))][: self.number]
        for frame in results["frames"]:
            if "sweeps" in frame:
                raise InputError("pipeline", "FitCameras", f"takes no camera sweeps; the set has {len(names)} cameras")
            black, far = np.zeros_like(frame["images"][0]), np.eye(4)
            far[2, 3] = -_OUT_OF_SIGHT_M
            filled = {
                "images": black,
                "image_paths": "",
                "pixels_from_camera": np.eye(3),
                "camera_from_bev": far,
                "image_size_px": np.array(black.shape[:2]),
            }
            for key, value in filled.items():
                whole = [*frame[key], *[value] * max(lacking, 0)][: self.number]
                frame[key] = whole if isinstance(frame[key], list) else np.stack(whole)
        return results


@TRANSFORMS.register_module()
class DisturbCalibration(SensorFault):
    """Where the cameras are said to be is off, by the same all along a scene: they were moved, or measured badly.

    Args:
        rotation_deg: standard deviation of the angle about each axis of the camera.
        translation_m: standard deviation along each axis.
        common: whether all cameras are off by one motion of the rig, else each by its own.
        seed: of the draws; None: drawn anew each time a clip is made, for all its frames alike.

    Raises:
        ValueError: a negative deviation.
    """

    changes_images = False

    def __init__(
        self, rotation_deg: float = 0.0, translation_m: float = 0.0, common: bool = False, seed: int | None = 0
    ) -> None:
        if rotation_deg < 0 or translation_m < 0:
            raise ValueError(f"deviations must not be negative: {rotation_deg} degrees, {translation_m} m")
        self.rotation_deg, self.translation_m, self.common, self.seed = rotation_deg, translation_m, common, seed

    def transform(self, results: dict) -> dict:
        """Change ``camera_from_bev`` of every frame."""
        scene, names = results["scene_token"], results["camera_names"]
        if self.common:
            moved = np.stack([self._motion(self.rng_of(results, scene))] * len(names))
        else:
            moved = np.stack([self._motion(self.rng_of(results, scene, name)) for name in names])
        for frame in results["frames"]:
            right = np.asarray(frame["camera_from_bev"])
            frame["camera_from_bev"] = right @ moved if self.common else moved @ right
        return results

    def _motion(self, rng: np.random.Generator) -> np.ndarray:
        return random_motion(rng, self.rotation_deg, self.translation_m)


def random_motion(rng: np.random.Generator, rotation_deg: float, translation_m: float) -> np.ndarray:
    """(4, 4) rigid: normal angles about x, y and z as one rotation vector, and a normal shift."""
    matrix = np.eye(4)
    matrix[:3, :3] = cv2.Rodrigues(np.radians(rng.normal(0, 1, 3) * rotation_deg))[0]
    matrix[:3, 3] = rng.normal(0, 1, 3) * translation_m
    return matrix


@TRANSFORMS.register_module()
class DisturbEgoPoses(SensorFault):
    """How the ego moved from frame to frame is off: noise in every pose, and now and then a jump.

    A sample's pose is off by the same for the step that leads to it and for the one that leaves it. CAN-bus vectors and
    the boxes that are scored stay as they are.

    Args:
        rotation_deg: standard deviation of the heading.
        translation_m: standard deviation along x and y.
        jump_m: length of a jump, in a direction that is drawn.
        jump_probability: of a sample to be one where the pose has jumped.
        seed: of the draws.

    Raises:
        ValueError: a negative deviation, or a probability that is none.
    """

    changes_images = False

    def __init__(
        self,
        rotation_deg: float = 0.0,
        translation_m: float = 0.0,
        jump_m: float = 0.0,
        jump_probability: float = 0.0,
        seed: int = 0,
    ) -> None:
        if min(rotation_deg, translation_m, jump_m) < 0 or not 0 <= jump_probability <= 1:
            raise ValueError("deviations must not be negative, and a probability lies between 0 and 1")
        self.rotation_deg, self.translation_m, self.fault_seed = rotation_deg, translation_m, seed
        self.jump_m, self.jump_probability = jump_m, jump_probability

    def transform(self, results: dict) -> dict:
        """Change ``previous_from_current`` of every frame that has one before it."""
        frames = results["frames"]
        for place, frame in enumerate(frames):
            if not frame["has_previous"]:
                continue
            if place:
                before = frames[place - 1]["token"]
            else:
                before = next(iter(results["dataset"].earlier_tokens(frame["token"], 1)), "")
            off = rigid_inverse(self._error(before)) @ np.asarray(frame["previous_from_current"])
            frame["previous_from_current"] = off @ self._error(frame["token"])
        return results

    def _error(self, token: str) -> np.ndarray:
        """(4, 4): the told BEV frame of a sample in the right one."""
        rng, matrix = _rng(self.fault_seed, token), np.eye(4)
        yaw = np.radians(rng.normal(0, 1) * self.rotation_deg)
        matrix[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
        matrix[:2, 3] = rng.normal(0, 1, 2) * self.translation_m
        jumps, direction = rng.random() < self.jump_probability, rng.uniform(0, 2 * np.pi)
        matrix[:2, 3] += jumps * self.jump_m * np.array([np.cos(direction), np.sin(direction)])
        return matrix
