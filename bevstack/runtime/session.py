"""Loading an exported file and stepping through a stream with it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bevstack.errors import InputError
from bevstack.runtime.boxes import Boxes, decoded, sigmoid
from bevstack.runtime.images import prepared
from bevstack.runtime.visibility import require_room

Memory = Mapping[str, np.ndarray]
"""What a step leaves for the next one; to be handed on as it is."""

_OUT_OF_SIGHT_M = 1e6


@dataclass(frozen=True)
class Motion:
    """How the BEV frame moved since the moment before.

    Args:
        previous_from_current: (4, 4) metres; None at the start of a stream.
        seconds: time since then.
        can_bus: (18,) ego state, asked for by models that read it (the file's input ``can_bus``).
    """

    previous_from_current: np.ndarray | None = None
    seconds: float = 0.5
    can_bus: np.ndarray | None = None


@dataclass(frozen=True)
class Prediction:
    """What a model says of one moment.

    Args:
        raw: every output by its name, as ``detection.heatmap``.
        boxes: of each detection head, by the head's name.
        layers: (K, Y, X) probabilities of each segmentation head, by the head's name.
    """

    raw: dict[str, np.ndarray]
    boxes: dict[str, Boxes] = field(default_factory=dict)
    layers: dict[str, np.ndarray] = field(default_factory=dict)


class ExportedModel:
    """A file of ``tools/export.py`` as a function of images; it remembers nothing of one step in the next but its rig.

    Args:
        session: an ``onnxruntime.InferenceSession`` of the file.
        file: for messages.

    Attributes:
        described: what the file says of itself: ``classes``, ``grid``, ``images``, ``memory``, ``heads``.

    Raises:
        InputError: the file carries no description, or one of another interface.
    """

    def __init__(self, session: Any, file: str) -> None:
        self.session, self.file = session, file
        self._good_rig: np.ndarray | None = None
        self.described = description_of(session, file)
        if "heads" not in self.described:
            if self.described.get("part", "model") != "model":
                raise InputError(file, "part", f"{self.described['part']!r}: a part alone has no boxes to give")
            raise InputError(file, "interface", f"{self.described.get('interface')!r} is run by its own harness")
        self.inputs = {entry.name: tuple(entry.shape) for entry in session.get_inputs()}
        self.outputs = [entry.name for entry in session.get_outputs()]

    def step(
        self,
        images: Sequence[np.ndarray | None],
        pixels_from_camera: np.ndarray,
        camera_from_bev: np.ndarray,
        motion: Motion | None = None,
        memory: Memory | None = None,
    ) -> tuple[Prediction, Memory]:
        """What the model says of one moment, and what it remembers of it.

        Args:
            images: N, (H, W, 3) uint8 RGB, in the order of the cameras that the model learned; None for one without.
            pixels_from_camera: (N, 3, 3) intrinsics of these images; the centre of the first pixel is at (0.5, 0.5).
            camera_from_bev: (N, 4, 4) metres.
            motion: since the moment before; None at the start of a stream, whatever memory there is.
            memory: what the step of the moment before returned; None at the start.

        Raises:
            InputError: what is given does not fit the model or itself.
        """
        number = self.described["num_cameras"]
        intrinsics, poses = np.array(pixels_from_camera, np.float64), np.array(camera_from_bev, np.float64)
        for name, array, shape in (
            ("pixels_from_camera", intrinsics, (number, 3, 3)),
            ("camera_from_bev", poses, (number, 4, 4)),
        ):
            if array.shape != shape or not np.isfinite(array).all():
                raise InputError("step", name, f"has shape {array.shape}; expected {shape}, finite numbers")
        if len(images) != number:
            raise InputError("step", "images", f"{len(images)} images; the model has {number} cameras")
        pixels, new_from_old = prepared(images, self.described["images"])
        poses[[image is None for image in images], 2, 3] -= _OUT_OF_SIGHT_M  # all ground lies behind the camera
        intrinsics = new_from_old @ intrinsics
        self._check_rig(intrinsics, poses)
        given = {
            "images": pixels,
            "pixels_from_camera": intrinsics[None].astype(np.float32),
            "camera_from_bev": poses[None].astype(np.float32),
            **self._motion(motion, memory),
        }
        return self.run(given | self._remembered(memory))

    def run(self, given: Mapping[str, np.ndarray]) -> tuple[Prediction, Memory]:
        """The same of inputs that are prepared already, by the names of the file's inputs; others are left out."""
        values = self.session.run(None, {name: given[name] for name in self.inputs})
        raw = dict(zip(self.outputs, values, strict=True))
        memory = {name: raw.pop(output) for name, output in self.described["memory"].items()}
        prediction = Prediction(raw)
        for name, head in self.described["heads"].items():
            of_head = {key[len(name) + 1 :]: value for key, value in raw.items() if key.startswith(f"{name}.")}
            if "boxes" in head:
                prediction.boxes[name] = decoded(of_head, head)
            elif head.get("layers") == "sigmoid":
                prediction.layers[name] = sigmoid(of_head["logits"][0] / head["temperature"])
        return prediction, memory

    def _check_rig(self, intrinsics: np.ndarray, poses: np.ndarray) -> None:
        """Refuse a rig that the file has no room for; one that was found good is not looked at again."""
        given = np.concatenate([intrinsics.ravel(), poses.ravel()])
        if self._good_rig is None or not np.array_equal(given, self._good_rig):
            require_room(intrinsics, poses, self.described)
            self._good_rig = given

    def _motion(self, motion: Motion | None, memory: Memory | None) -> dict[str, np.ndarray]:
        motion = Motion() if motion is None else motion
        before = motion.previous_from_current
        matrix = np.eye(4, dtype=np.float32) if before is None else np.asarray(before, np.float32)
        if matrix.shape != (4, 4):
            raise InputError("step", "motion.previous_from_current", f"has shape {matrix.shape}; expected (4, 4)")
        can_bus = motion.can_bus
        if can_bus is None:
            if "can_bus" in self.inputs and before is not None:
                raise InputError("step", "motion.can_bus", "absent; the model reads the ego's (18,) vector")
            can_bus = self.described["can_bus_at_start"]
        return {
            "previous_from_current": matrix[None],
            "has_previous": np.array([before is not None and (memory is not None or not self.described["memory"])]),
            "seconds": np.array([0.0 if before is None else motion.seconds], np.float32),
            "can_bus": np.asarray(can_bus, np.float32).reshape(1, 18),
        }

    def _remembered(self, memory: Memory | None) -> dict[str, np.ndarray]:
        """The memory, or an empty one: frames that are not valid, at the place of now."""
        if memory is not None:
            return dict(memory)
        empty: dict[str, np.ndarray] = {}
        for name in self.described["memory"]:
            shape = self.inputs.get(name)
            if shape is None:
                continue
            if name == "memory_poses":
                empty[name] = np.broadcast_to(np.eye(4, dtype=np.float32), shape).copy()
            else:
                empty[name] = np.zeros(shape, bool if name == "memory_valid" else np.float32)
        return empty


def load(
    file: str | os.PathLike, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> ExportedModel:
    """An exported model, ready to step.

    Args:
        file, threads, providers: as in :func:`open_session`.

    Raises:
        InputError: the file cannot be read, or is no exported model; ONNX Runtime is not installed.
    """
    return ExportedModel(open_session(file, threads, providers), os.fspath(file))


def open_session(
    file: str | os.PathLike, threads: int = 0, providers: Sequence[str] = ("CPUExecutionProvider",)
) -> Any:
    """An ``onnxruntime.InferenceSession`` of any ONNX file.

    Args:
        file: of ``tools/export.py``, of whatever interface.
        threads: for each step; 0: as many as there are cores.
        providers: of ONNX Runtime, the first that can take an operator does.

    Raises:
        InputError: the file cannot be read; ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(file, "onnxruntime", "is not installed: pip install onnxruntime") from error
    if not os.path.isfile(file):
        raise InputError(file, "file", "not there")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(os.fspath(file), options, providers=list(providers))
    except Exception as error:  # noqa: BLE001 - its errors have no common class; all of them say that it cannot be read
        raise InputError(file, "model", str(error).splitlines()[0]) from error


def description_of(session: Any, file: str | os.PathLike) -> dict[str, Any]:
    """What an exported file says of itself.

    Args:
        session: of :func:`open_session`.
        file: for the message.

    Raises:
        InputError: it says nothing.
    """
    text = session.get_modelmeta().custom_metadata_map.get("bevstack")
    if text is None:
        raise InputError(file, "metadata", "no entry 'bevstack': not a file of tools/export.py")
    described: dict[str, Any] = json.loads(text)
    return described
