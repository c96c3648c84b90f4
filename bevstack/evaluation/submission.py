"""Predicted boxes as the nuScenes detection challenge wants them: converted, checked and written.

Format: https://www.nuscenes.org/object-detection; boxes in the global frame, size (width, length, height), rotation as
a quaternion (w, x, y, z), at most 500 boxes a sample, every sample of the split exactly once.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bevstack.datasets.nuscenes.taxonomy import ATTRIBUTE_AT_REST, ATTRIBUTE_MOVING, ATTRIBUTES, DETECTION_CLASSES
from bevstack.errors import InputError
from bevstack.files import atomic_write
from bevstack.geometry import matrix_to_quaternion
from bevstack.geometry.boxes3d import OrientedBoxes

MAX_BOXES_PER_SAMPLE = 500
MOVING_SPEED_MPS = 0.2
"""Above this speed a box counts as moving when its attribute is not predicted."""


@dataclass(frozen=True)
class SubmittedBoxes:
    """The G boxes of one sample, float64, in the global frame.

    Args:
        token: the sample's token.
        translation: (G, 3) metres, centre of gravity.
        size_wlh: (G, 3) metres: width, length, height.
        rotation: (G, 4) unit quaternions (w, x, y, z).
        velocity: (G, 2) m/s along the global x and y axes.
        scores: (G,) confidence.
        names: G detection classes.
        attributes: G attribute names, "" for none.
    """

    token: str
    translation: np.ndarray
    size_wlh: np.ndarray
    rotation: np.ndarray
    velocity: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...]
    attributes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def records(self) -> list[dict]:
        """The sample's entry of the submission JSON."""
        columns = (
            self.translation.tolist(), self.size_wlh.tolist(), self.rotation.tolist(), self.velocity.tolist(),
            self.names, self.scores.tolist(), self.attributes,
        )  # fmt: skip
        fields = ("translation", "size", "rotation", "velocity", "detection_name", "detection_score", "attribute_name")
        rows = zip(*columns, strict=True)
        return [{"sample_token": self.token, **dict(zip(fields, row, strict=True))} for row in rows]


def default_attribute(name: str, speed_mps: float) -> str:
    """The usual attribute of a box whose attribute is not predicted: by class and whether it moves (> 0.2 m/s)."""
    return (ATTRIBUTE_MOVING if speed_mps > MOVING_SPEED_MPS else ATTRIBUTE_AT_REST).get(name, "")


def require_detection_classes(classes: Sequence[str], file: str, field: str = "classes") -> None:
    """Refuse class names that the nuScenes detection score does not know.

    Raises:
        InputError: names the first unknown class and the nearest known one.
    """
    for name in classes:
        if name not in DETECTION_CLASSES:
            near = difflib.get_close_matches(str(name), DETECTION_CLASSES, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else "CenterDistanceMetric scores classes of your own"
            raise InputError(file, field, f"'{name}' is no class of the nuScenes detection score; {hint}")


def submitted_boxes(
    token: str,
    boxes: OrientedBoxes,
    scores: np.ndarray,
    names: Sequence[str] | np.ndarray,
    attributes: Sequence[str] | None = None,
    with_velocity: bool = True,
) -> SubmittedBoxes:
    """Boxes of a sample as the challenge wants them.

    Args:
        token: the sample's token.
        boxes: G in the global frame, float64 (:func:`bevstack.structures.poses.boxes_in_global`).
        scores: (G,).
        names: G class names.
        attributes: G attribute names; None for the default by class and speed.
        with_velocity: whether the boxes have velocities; else 0 is submitted.
    """
    velocity = boxes.velocities.numpy() if with_velocity else np.zeros((len(names), 2))
    if attributes is None:
        speeds = np.hypot(velocity[:, 0], velocity[:, 1])
        attributes = [default_attribute(name, speed) for name, speed in zip(names, speeds, strict=True)]
    return SubmittedBoxes(
        token=token,
        translation=boxes.centers.numpy(),
        size_wlh=boxes.sizes.numpy()[:, [1, 0, 2]],
        rotation=matrix_to_quaternion(boxes.rotations).numpy(),
        velocity=velocity,
        scores=np.asarray(scores, dtype=np.float64),
        names=tuple(names),
        attributes=tuple(attributes),
    )


def with_default_attributes(boxes: SubmittedBoxes) -> SubmittedBoxes:
    """The same boxes with the attributes that they would have if none were predicted (:func:`default_attribute`)."""
    speeds = np.hypot(*boxes.velocity.T)
    names = (default_attribute(name, speed) for name, speed in zip(boxes.names, speeds, strict=True))
    return replace(boxes, attributes=tuple(names))


def check_submission(
    submitted: Iterable[SubmittedBoxes], tokens: Sequence[str], split: str, file: str | os.PathLike
) -> dict[str, SubmittedBoxes]:
    """Boxes by token in the order of ``tokens``, whatever order they came in.

    Raises:
        InputError: a sample of the split is missing, is there twice or does not belong to it; more than 500 boxes in
            a sample; a value that is not finite; a size or quaternion of no extent; an unknown class or attribute.
    """
    wanted, by_token = set(tokens), {}
    for boxes in submitted:
        if boxes.token not in wanted:
            raise InputError(file, f"results/{boxes.token}", f"is not a sample of split '{split}'")
        if boxes.token in by_token:
            raise InputError(file, f"results/{boxes.token}", "sample is there more than once")
        _check_boxes(boxes, file)
        by_token[boxes.token] = boxes
    missing = [token for token in tokens if token not in by_token]
    if missing:
        reason = f"{len(missing)} of the {len(tokens)} samples of split '{split}' are missing, first {missing[0]}"
        raise InputError(file, "results", reason)
    return {token: by_token[token] for token in tokens}


def _check_boxes(boxes: SubmittedBoxes, file: str | os.PathLike) -> None:
    place = f"results/{boxes.token}"
    if len(boxes) > MAX_BOXES_PER_SAMPLE:
        raise InputError(file, place, f"{len(boxes)} boxes; at most {MAX_BOXES_PER_SAMPLE} are allowed")
    values = {
        "translation": boxes.translation, "size": boxes.size_wlh, "rotation": boxes.rotation,
        "velocity": boxes.velocity, "detection_score": boxes.scores,
    }  # fmt: skip
    for field, value in values.items():
        bad = ~np.isfinite(value.reshape(len(boxes), -1)).all(axis=1) if len(boxes) else np.zeros(0, bool)
        if bad.any():
            raise InputError(file, f"{place}[{int(bad.argmax())}].{field}", "is not finite")
    if len(boxes) and (bad := (boxes.size_wlh <= 0).any(axis=1)).any():
        raise InputError(file, f"{place}[{int(bad.argmax())}].size", "must be positive")
    if len(boxes) and (bad := np.abs(np.linalg.norm(boxes.rotation, axis=1) - 1) > 1e-2).any():
        raise InputError(file, f"{place}[{int(bad.argmax())}].rotation", "is not a unit quaternion")
    for row, (name, attribute) in enumerate(zip(boxes.names, boxes.attributes, strict=True)):
        require_detection_classes((name,), str(file), f"{place}[{row}].detection_name")
        if attribute and attribute not in ATTRIBUTES:
            raise InputError(file, f"{place}[{row}].attribute_name", f"'{attribute}' is no nuScenes attribute")


def write_submission(
    path: str | os.PathLike, submitted: Mapping[str, SubmittedBoxes], meta: Mapping[str, bool]
) -> None:
    """Write the official JSON, whole or not at all; samples in the mapping's order."""
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write('{"meta": ' + json.dumps(dict(meta)) + ', "results": {')
        for number, (token, boxes) in enumerate(submitted.items()):
            file.write((",\n" if number else "\n") + json.dumps(token) + ": " + json.dumps(boxes.records()))
        file.write("\n}}\n")
