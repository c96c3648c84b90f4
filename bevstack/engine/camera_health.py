"""Whether each camera of a moment can be trusted: a cheap check of its image and of its calibration.

It keeps nothing: what the next moment compares with is part of the answer, and handed in again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from bevstack.engine.camera_overlap import SeenCamera, disagreement_deg, neighbours
from bevstack.engine.camera_turn import CornersSeen, fits_of_turns, turn_deg
from bevstack.errors import InputError
from bevstack.structures.rigid_arrays import rigid_inverse

FAULTS = ("absent", "black", "blank", "out of focus", "frozen", "late", "calibration")
"""What can be wrong with a camera, in the order in which it is said."""

_WIDTH_PX = 448
_REMEMBERED = 5
_KEPT_A_MOMENT = 0.98
_OUT_OF_SIGHT_M = 1e6


@dataclass(frozen=True)
class CameraHealth:
    """What the check says of N cameras at one moment.

    Args:
        names: of the cameras.
        faults: what is wrong with each, of :data:`FAULTS`; nothing where it is well.
        sharpness: (N,) see :func:`sharpness`; NaN where there is no image, or nothing in it.
        off_deg: by pair of cameras, how far the second one's picture lies to the right of and below the first one's,
            (2,) degrees: medians over the last moments; NaN where they do not tell.
        turned_deg: by camera, how far it is turned about its axes down and to the right from where it is said to be,
            (2,) degrees, by what it saw while the car drove; NaN where that speaks for no turn.
        pictures: N small grey pictures, or None, which the next moment is compared with.
        measured: by pair, the last moments' disagreements, which the next moment's join.
        corners: N pictures' corners, or None, which the next moment finds again.
        fits: by camera, how many corners fit each turn and how many there were, moments long ago counting less.
    """

    names: tuple[str, ...]
    faults: tuple[tuple[str, ...], ...]
    sharpness: np.ndarray
    off_deg: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    turned_deg: Mapping[str, np.ndarray] = field(default_factory=dict)
    pictures: tuple[np.ndarray | None, ...] = field(default=(), repr=False)
    measured: Mapping[tuple[str, str], tuple[tuple[float, float], ...]] = field(default_factory=dict, repr=False)
    corners: tuple[CornersSeen | None, ...] = field(default=(), repr=False)
    fits: Mapping[str, tuple[np.ndarray, float]] = field(default_factory=dict, repr=False)

    @property
    def well(self) -> np.ndarray:
        """(N,) bool: the cameras without a fault."""
        return np.array([not faults for faults in self.faults])

    def as_dict(self) -> dict[str, list[str]]:
        """The faults of each camera by its name."""
        return {name: list(faults) for name, faults in zip(self.names, self.faults, strict=True)}


@dataclass(frozen=True)
class CameraChecks:
    """Limits of the check; docs/robustness.md says how each was found.

    Args:
        black_level: of 255; a picture whose brightest hundredth is darker is black.
        blank_levels: a picture of a smaller standard deviation shows nothing: a covered or glaring lens.
        sharpness: a picture whose finest structures are weaker, against those of twice the size, is out of focus.
        frozen_levels: mean difference to the moment before, of 255, below which the picture is the same one.
        late_seconds: age of an image at which it is late; asked only where ages are given.
        pitch_deg, yaw_deg: disagreement with every neighbour at which a calibration is wrong.
        turned_deg: turns about a camera's axes down and to the right, seen while the car drives, at which its
            calibration is wrong.
        moments: that have to be measured before a calibration is called wrong by its neighbours.
        overlap, driving: whether calibrations are looked at by what neighbours share, and by what changes while the
            car drives; most of the time goes into these.
    """

    black_level: float = 20.0
    blank_levels: float = 4.0
    sharpness: float = 0.85
    frozen_levels: float = 0.3
    late_seconds: float = 0.15
    pitch_deg: float = 1.0
    yaw_deg: float = 3.0
    turned_deg: tuple[float, float] = (2.0, 1.0)
    moments: int = 3
    overlap: bool = True
    driving: bool = True

    def __call__(
        self,
        frame: Mapping[str, Any],
        names: Sequence[str],
        ego_from_bev: np.ndarray,
        before: CameraHealth | None = None,
        image_ages_s: Sequence[float] | None = None,
        before_from_now: np.ndarray | None = None,
    ) -> CameraHealth:
        """Check the cameras of one moment.

        Args:
            frame: of :class:`bevstack.engine.image_steps.ImageSteps`: images, intrinsics, poses and sizes of N cameras.
            names: of the N cameras.
            ego_from_bev: (4, 4) metres; its ground is z = 0 of the car.
            before: what the check said of the moment before, in the same stream.
            image_ages_s: how long before the moment each image was taken.
            before_from_now: (4, 4) metres: from the BEV frame now to the BEV frame of the moment before, where known.

        Raises:
            InputError: not one age a camera, or ``before`` is of other cameras.
        """
        if image_ages_s is not None and len(image_ages_s) != len(names):
            raise InputError("images", "image_ages_s", f"{len(image_ages_s)} ages for {len(names)} cameras")
        if before is not None and before.names != tuple(names):
            raise InputError("camera_health", "names", f"is of {list(before.names)}, the rig has {list(names)}")
        small = [_small(image, size) for image, size in zip(frame["images"], frame["image_size_px"], strict=True)]
        sharp = np.array([np.nan if picture is None else sharpness(picture) for picture in small])
        found: list[list[str]] = []
        for n, picture in enumerate(small):
            earlier = before.pictures[n] if before is not None else None
            faults = self._of_picture(picture, sharp[n], earlier)
            if image_ages_s is not None and picture is not None and not image_ages_s[n] < self.late_seconds:
                faults.append("late")
            found.append(faults)
        usable = [None if faults else picture for picture, faults in zip(small, found, strict=True)]
        cameras = _seen(usable, frame)
        measured = {} if before is None else dict(before.measured)
        off: dict[tuple[str, str], np.ndarray] = {}
        wrong: set[int] = set()
        if self.overlap:
            self._measure(measured, cameras, names, ego_from_bev)
            off = {pair: _median(values, self.moments) for pair, values in measured.items()}
            wrong.update(self._disagreeing(off, names))
        fits = {} if before is None else dict(before.fits)
        corners: list[CornersSeen | None] = [None] * len(names)
        turned: dict[str, np.ndarray] = {}
        if self.driving:
            corners = [None if camera is None else CornersSeen.of(camera) for camera in cameras]
            if before is not None and before_from_now is not None:
                _add_fits(fits, before.corners, corners, names, np.asarray(before_from_now))
            turned = {name: turn_deg(*fit) for name, fit in fits.items()}
            wrong.update(self._turned(turned, names))
        for n in wrong:
            found[n].append("calibration")
        ordered = tuple(tuple(fault for fault in FAULTS if fault in faults) for faults in found)
        return CameraHealth(
            tuple(names), ordered, sharp, off, turned, tuple(small), measured, tuple(corners), fits
        )

    def _of_picture(self, picture: np.ndarray | None, sharp: float, earlier: np.ndarray | None) -> list[str]:
        if picture is None:
            return ["absent"]
        if np.percentile(picture, 99) < self.black_level:
            return ["black"]
        if float(picture.std()) < self.blank_levels:
            return ["blank"]
        faults = ["out of focus"] if sharp < self.sharpness else []
        if earlier is not None and earlier.shape == picture.shape:
            difference = float(cv2.absdiff(picture, earlier).mean())
            faults += ["frozen"] if difference < self.frozen_levels else []
        return faults

    def _measure(
        self,
        measured: dict[tuple[str, str], tuple[tuple[float, float], ...]],
        cameras: list[SeenCamera | None],
        names: Sequence[str],
        ego_from_bev: np.ndarray,
    ) -> None:
        """Add this moment's disagreements of neighbours that both show something."""
        ground_z_m = float(rigid_inverse(np.asarray(ego_from_bev))[2, 3])
        for one, other, shared in neighbours(cameras):
            first, second = cameras[one], cameras[other]
            if first is not None and second is not None:
                found = disagreement_deg(first, second, shared, ground_z_m)
                pair = (names[one], names[other])
                measured[pair] = (*measured.get(pair, ()), found)[-_REMEMBERED:]

    def _disagreeing(self, off_deg: Mapping[tuple[str, str], np.ndarray], names: Sequence[str]) -> list[int]:
        """Cameras that disagree with all their neighbours, of whom there are two or more that tell.

        Where two neighbours disagree with each other alone, nobody knows which of them is wrong.
        """
        wrong = []
        for n, name in enumerate(names):
            own = [values for pair, values in off_deg.items() if name in pair]
            for axis, limit in ((0, self.yaw_deg), (1, self.pitch_deg)):
                told = [abs(values[axis]) for values in own if np.isfinite(values[axis])]
                if len(told) > 1 and min(told) > limit and n not in wrong:
                    wrong.append(n)
        return wrong

    def _turned(self, turned_deg: Mapping[str, np.ndarray], names: Sequence[str]) -> list[int]:
        """Cameras that are turned too far; nobody where it is more than half of those of which it is known.

        So many at once mean that the car did not move as it is said to have moved.
        """
        far = {name for name, turn in turned_deg.items() if (np.abs(turn) >= self.turned_deg).any()}
        wrong = [n for n, name in enumerate(names) if name in far]
        return wrong if 2 * len(wrong) <= len(turned_deg) else []


def _seen(pictures: Sequence[np.ndarray | None], frame: Mapping[str, Any]) -> list[SeenCamera | None]:
    """The cameras of a frame with their small pictures; None where there is none."""
    cameras: list[SeenCamera | None] = []
    for n, picture in enumerate(pictures):
        if picture is None:
            cameras.append(None)
            continue
        height, width = frame["image_size_px"][n]
        scale = np.diag([picture.shape[1] / width, picture.shape[0] / height, 1.0])
        bev_from_camera = rigid_inverse(np.asarray(frame["camera_from_bev"][n]))
        cameras.append(SeenCamera(picture, scale @ frame["pixels_from_camera"][n], bev_from_camera))
    return cameras


def _add_fits(
    fits: dict[str, tuple[np.ndarray, float]],
    before: Sequence[CornersSeen | None],
    now: Sequence[CornersSeen | None],
    names: Sequence[str],
    before_from_now: np.ndarray,
) -> None:
    """Add how this moment's corners fit each turn of their cameras; what was known fades with each that tells."""
    for name, then, here in zip(names, before, now, strict=True):
        if then is None or here is None:
            continue
        found, corners = fits_of_turns(then, here, before_from_now)
        if corners:
            known, known_corners = fits.get(name, (np.zeros_like(found), 0.0))
            fits[name] = _KEPT_A_MOMENT * known + found, _KEPT_A_MOMENT * known_corners + corners


def sharpness(picture: np.ndarray) -> float:
    """How strong the finest structures of a grey picture are against those of about twice their size.

    The mean absolute difference to the picture blurred by one pixel, over that of the picture blurred by one and by two
    pixels. It depends little on what is shown; noise makes it larger, so that a noisy picture passes. NaN where there
    is nothing to be seen.

    Args:
        picture: (H, W) uint8.
    """
    fine = picture.astype(np.float32)
    middle, coarse = cv2.GaussianBlur(fine, (0, 0), 1.0), cv2.GaussianBlur(fine, (0, 0), 2.0)
    larger = float(np.abs(middle - coarse).mean())
    return float(np.abs(fine - middle).mean()) / larger if larger > 1e-3 else float("nan")


def hide_cameras(frame: dict[str, Any], hidden: np.ndarray) -> None:
    """Take cameras out of sight in a frame, in place: no place of the BEV is seen by them, as without an image.

    Args:
        frame: of :class:`bevstack.engine.image_steps.ImageSteps`.
        hidden: (N,) bool.
    """
    poses, sizes = np.array(frame["camera_from_bev"]), np.array(frame["image_size_px"])
    poses[hidden, 2, 3] -= _OUT_OF_SIGHT_M
    frame["camera_from_bev"] = poses
    if not hidden.all():  # the images' size is that of the largest camera
        frame["image_size_px"] = np.where(hidden[:, None], 0, sizes)


def _small(image: np.ndarray, size_px: np.ndarray) -> np.ndarray | None:
    """(h, w) uint8 grey, at most 448 pixels wide; None where a camera has no image."""
    if min(size_px) == 0:
        return None
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    if width <= _WIDTH_PX:
        return grey
    return cv2.resize(grey, (_WIDTH_PX, max(1, round(height * _WIDTH_PX / width))), interpolation=cv2.INTER_AREA)


def _median(values: Sequence[tuple[float, float]], least: int) -> np.ndarray:
    """(2,) medians over the moments that tell; NaN where these are fewer than ``least``."""
    columns = np.array(values, dtype=np.float64).T
    told = [column[np.isfinite(column)] for column in columns]
    return np.array([np.median(column) if len(column) >= least else np.nan for column in told])
