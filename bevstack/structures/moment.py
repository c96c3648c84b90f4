"""One moment as a user states it: what the cameras took, how they stand, how the car moved. Plain float64 arrays.

Frames are named: *camera* (x right, y down, z forward), *bev* (the frame that the model was trained in; of nuScenes the
lidar's: x right, y forward, z up), *ego* (the car's own; its z = 0 is the ground), *global* (any that stands still).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from bevstack.errors import InputError
from bevstack.structures.rigid_arrays import rigid_inverse

Image: TypeAlias = "np.ndarray | Tensor | str | Path | None"
"""(H, W, 3) or (3, H, W) uint8 RGB, or a file; None where a camera gives no image at this moment."""

_RIGID_TOLERANCE = 5e-3  # calibrations are written with three digits or more


def as_numbers(value: Any, shape: tuple[int | None, ...], file: str, name: str) -> np.ndarray:
    """A value as a float64 array of a shape, None standing for any length.

    Args:
        value: an array, a tensor, or nested lists as a JSON file has them.
        shape: what it must have.
        file, name: for messages.

    Raises:
        InputError: it is not numbers, has another shape, or holds what is not finite.
    """
    value = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(file, name, "is not an array of numbers") from None
    fits = array.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
    if not fits:
        wanted = ", ".join("N" if n is None else str(n) for n in shape)
        raise InputError(file, name, f"has shape {array.shape}, expected ({wanted})")
    if not np.isfinite(array).all():
        raise InputError(file, name, "holds numbers that are not finite")
    return array


def as_poses(value: Any, shape: tuple[int | None, ...], file: str, name: str) -> np.ndarray:
    """As :func:`as_numbers`, for rigid transforms (..., 4, 4): rotation and translation in metres.

    Raises:
        InputError: one of them is no rotation and translation; its place is named.
    """
    array = as_numbers(value, shape, file, name)
    rotation = array[..., :3, :3]
    off = np.abs(rotation @ np.swapaxes(rotation, -1, -2) - np.eye(3)).max((-1, -2)) > _RIGID_TOLERANCE
    off |= np.linalg.det(rotation) < 0
    off |= np.abs(array[..., 3, :] - [0, 0, 0, 1]).max(-1) > _RIGID_TOLERANCE
    if off.any():
        place = "".join(f"[{index}]" for index in np.argwhere(off)[0].tolist())
        raise InputError(file, f"{name}{place}", "is no rotation and translation (a rigid 4 x 4 matrix)")
    return array


@dataclass(frozen=True)
class Rig:
    """The calibration of N cameras, before anything is done to their images.

    Args:
        pixels_from_camera: (N, 3, 3) intrinsics of the images as they are handed in: pixels (u right, v down), the
            centre of the upper left one at (0.5, 0.5).
        camera_from_bev: (N, 4, 4) metres: poses of the cameras, seen from the BEV frame.
        names: of the cameras, in their order; what the model learned belongs to this order (of nuScenes CAM_FRONT,
            CAM_FRONT_RIGHT, CAM_FRONT_LEFT, CAM_BACK, CAM_BACK_LEFT, CAM_BACK_RIGHT).
        ego_from_bev: (4, 4) metres: where the BEV frame stands in the car. Asked for by models that read a ``can_bus``
            vector or camera sweeps; the identity where not given.
        image_size_px: (N, 2) height and width that the intrinsics are for; images of another size are then refused.

    Raises:
        InputError: a shape, a number or a pose that makes no sense.
    """

    pixels_from_camera: np.ndarray
    camera_from_bev: np.ndarray
    names: tuple[str, ...] = ()
    ego_from_bev: np.ndarray = field(default_factory=lambda: np.eye(4))
    image_size_px: np.ndarray | None = None

    def __post_init__(self) -> None:
        intrinsics = as_numbers(self.pixels_from_camera, (None, 3, 3), "rig", "pixels_from_camera")
        number = len(intrinsics)
        off = (np.diagonal(intrinsics, axis1=1, axis2=2) <= 0).any(1)
        off |= np.abs(intrinsics[:, 2] - [0, 0, 1]).max(1) > _RIGID_TOLERANCE
        if number == 0 or off.any():
            place = f"pixels_from_camera[{int(off.argmax())}]" if number else "pixels_from_camera"
            wanted = "[[fu, 0, cu], [0, fv, cv], [0, 0, 1]] in pixels"
            raise InputError("rig", place, f"is no matrix of intrinsics, {wanted}" if number else "has no camera")
        poses = as_poses(self.camera_from_bev, (number, 4, 4), "rig", "camera_from_bev")
        names = tuple(map(str, self.names)) or tuple(f"camera {n}" for n in range(number))
        if len(names) != number:
            raise InputError("rig", "names", f"{len(names)} names for {number} cameras")
        sizes = self.image_size_px
        sizes = None if sizes is None else as_numbers(sizes, (number, 2), "rig", "image_size_px").astype(np.int64)
        mount = as_poses(self.ego_from_bev, (4, 4), "rig", "ego_from_bev")
        values = dict(pixels_from_camera=intrinsics, camera_from_bev=poses, names=names, ego_from_bev=mount)
        for name, value in (values | {"image_size_px": sizes}).items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        """How many cameras there are, N."""
        return len(self.names)

    @classmethod
    def from_ego(
        cls,
        pixels_from_camera: Any,
        ego_from_camera: Any,
        ego_from_bev: Any,
        names: Sequence[str] = (),
        image_size_px: Any = None,
    ) -> Rig:
        """A rig from the places of its cameras in the car.

        Args:
            pixels_from_camera: (N, 3, 3).
            ego_from_camera: (N, 4, 4) metres.
            ego_from_bev: (4, 4) metres: the place of the BEV frame in the car, of nuScenes the lidar's.
            names, image_size_px: see the class.
        """
        mounts = as_poses(ego_from_camera, (None, 4, 4), "rig", "ego_from_camera")
        bev = as_poses(ego_from_bev, (4, 4), "rig", "ego_from_bev")
        return cls(pixels_from_camera, rigid_inverse(mounts) @ bev, tuple(names), bev, image_size_px)

    @property
    def ego_from_camera(self) -> np.ndarray:
        """(N, 4, 4) metres."""
        return self.ego_from_bev @ rigid_inverse(self.camera_from_bev)


@dataclass(frozen=True)
class Motion:
    """How the BEV frame moved since the moment before; made by :meth:`between`, :meth:`from_ego` or :meth:`start`.

    Args:
        previous_from_current: (4, 4) metres: from the BEV frame now to the BEV frame then; None where there was no
            moment before.
        seconds: since the moment before; 0 where there was none.
        global_from_bev: (4, 4) metres, where known: the BEV frame now in a frame that stands still. Only models that
            read a ``can_bus`` vector ask for it, for the car's absolute heading; for others, and for these as far as it
            goes, the frame of the moment before stands in.

    Raises:
        InputError: no rigid transforms, or no time between two moments.
    """

    previous_from_current: np.ndarray | None = None
    seconds: float = 0.0
    global_from_bev: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("previous_from_current", "global_from_bev"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, as_poses(value, (4, 4), "motion", name))
        if not np.isfinite(self.seconds) or (self.seconds > 0) != self.has_previous:
            wanted = "must be positive" if self.has_previous else "must be 0 where nothing came before"
            raise InputError("motion", "seconds", f"{self.seconds} {wanted}")

    @property
    def has_previous(self) -> bool:
        """Whether there was a moment before."""
        return self.previous_from_current is not None

    @classmethod
    def between(cls, global_from_bev_previous: Any, global_from_bev: Any, seconds: float) -> Motion:
        """The motion between two poses (4, 4) of the BEV frame in a frame that stands still, the earlier one first."""
        before = as_poses(global_from_bev_previous, (4, 4), "motion", "global_from_bev_previous")
        now = as_poses(global_from_bev, (4, 4), "motion", "global_from_bev")
        return cls(rigid_inverse(before) @ now, seconds, now)

    @classmethod
    def from_ego(
        cls, global_from_ego_previous: Any, global_from_ego: Any, ego_from_bev: Any, seconds: float
    ) -> Motion:
        """The motion between two poses (4, 4) of the car itself; ``ego_from_bev`` as the :class:`Rig` has it."""
        before = as_poses(global_from_ego_previous, (4, 4), "motion", "global_from_ego_previous")
        now = as_poses(global_from_ego, (4, 4), "motion", "global_from_ego")
        mount = as_poses(ego_from_bev, (4, 4), "motion", "ego_from_bev")
        return cls.between(before @ mount, now @ mount, seconds)

    @classmethod
    def start(cls, global_from_bev: Any = None) -> Motion:
        """The first moment of a stream, where the car is known to stand or not."""
        return cls(None, 0.0, global_from_bev)


@dataclass(frozen=True)
class Sweeps:
    """What the cameras took just before a moment, for video backbones.

    Args:
        images: S lists of N images, oldest first, of the same sizes as those of the moment.
        sweep_from_camera: (S, N, 4, 4) metres: from each camera's frame at the moment to its frame at the sweep. Asked
            for where the config sees the sweeps from where the camera stands now (``still_height_m``).

    Raises:
        InputError: no sweeps, or poses that make no sense.
    """

    images: Sequence[Sequence[Image]]
    sweep_from_camera: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not len(self.images):
            raise InputError("sweeps", "images", "there are none")
        if self.sweep_from_camera is not None:
            shape = (len(self.images), len(self.images[0]), 4, 4)
            poses = as_poses(self.sweep_from_camera, shape, "sweeps", "sweep_from_camera")
            object.__setattr__(self, "sweep_from_camera", poses)


@dataclass(frozen=True)
class Moment:
    """One moment of a clip.

    Args:
        images: N of them, one a camera of the rig.
        rig: the cameras.
        motion: since the moment before; None, or a motion without a previous moment, starts a new stream.
        sweeps: for models with a video backbone.
        image_ages_s: how long before the moment each image was taken, where that is known; only a check of the
            cameras reads it.
    """

    images: Sequence[Image]
    rig: Rig
    motion: Motion | None = None
    sweeps: Sweeps | None = None
    image_ages_s: Sequence[float] | None = None
