"""The front door: a trained model on images, calibrations and poses of anyone's own, without a dataset.

    predictor = Predictor(load_model("work_dirs/demo"))
    prediction, memory = predictor.step(images, rig)                      # the first moment
    prediction, memory = predictor.step(images, rig, motion, memory)      # the next one
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from bevstack.datasets.ego_state import CanBusForm, CorrectedCanBus, EgoState
from bevstack.datasets.transforms.packing import PackBEVInputs
from bevstack.engine.camera_health import CameraChecks, CameraHealth, hide_cameras
from bevstack.engine.compilation import compile_form
from bevstack.engine.cpu_memory import keep_freed_memory
from bevstack.engine.image_steps import ImageSteps, as_image
from bevstack.engine.label_checks import check_trained_cameras
from bevstack.engine.models import class_names, precision_of
from bevstack.engine.prediction import BEVPrediction
from bevstack.engine.stored_config import data_settings
from bevstack.engine.visualize import build_visualizer
from bevstack.errors import InputError
from bevstack.images import read_image
from bevstack.models import BEVPerception
from bevstack.models.inference_form import inference_form
from bevstack.registry import TASK_UTILS
from bevstack.structures import BEVDataSample, BEVMemory
from bevstack.structures.moment import Image, Moment, Motion, Rig, Sweeps
from bevstack.structures.rigid_arrays import rigid_inverse
from bevstack.tracking import track_samples
from bevstack.visualization import CameraView


class Predictor:
    """A model ready for images: decoding, resizing and normalisation as its config tests it, and typed answers.

    It keeps nothing from one step to the next; what is remembered is handed out and in. On a CPU the process keeps the
    memory that a step frees (:mod:`bevstack.engine.cpu_memory`).

    Args:
        model: of :func:`bevstack.load_model`, in evaluation mode. ``predictor.model`` is a form of it that is faster
            (:func:`bevstack.models.inference_form.inference_form`), with the weights of now.
        config: what was done to images in training and test; the model's own by default.
        dtype: "float32", "bfloat16", "float16" or "auto"; what the config tests in by default.
        camera_checks: looks at every camera of a moment and says in ``prediction.camera_health`` what is wrong with it
            (:class:`bevstack.engine.camera_health.CameraChecks`); None does not look.
        mask_unhealthy: whether a camera with a fault sees nothing, as one without an image; needs ``camera_checks``.

    Raises:
        InputError: no config, one without a test pipeline, a model that makes no steps, or a format that the device
            does not have.
    """

    def __init__(
        self,
        model: BEVPerception,
        config: Config | None = None,
        dtype: str | None = None,
        camera_checks: CameraChecks | None = None,
        mask_unhealthy: bool = False,
    ) -> None:
        if mask_unhealthy and camera_checks is None:
            raise InputError("Predictor", "mask_unhealthy", "needs camera_checks: nobody else says what is unhealthy")
        self.camera_checks, self.mask_unhealthy = camera_checks, mask_unhealthy
        classes: tuple[str, ...] = () if config is None else class_names(config)
        config = getattr(model, "config", None) if config is None else config
        if config is None:
            raise InputError("Predictor", "config", "the model carries none: take load_model(), or hand one in")
        if not hasattr(model, "step") or not hasattr(model, "predictions"):
            raise InputError("Predictor", "model", f"{type(model).__name__} makes no steps; take a BEVPerception")
        device = next(model.parameters()).device
        if device.type == "cpu":
            keep_freed_memory()
        self.model, self.config = inference_form(model), config
        compile_form(self.model, config)
        self.classes = classes or getattr(model, "classes", ()) or class_names(config)
        self.steps = ImageSteps.of_config(config)
        self.precision = precision_of(config, device, dtype, self.model)
        form = data_settings(config).get("can_bus_form") or CorrectedCanBus()
        self.can_bus_form: CanBusForm = TASK_UTILS.build(form) if isinstance(form, Mapping) else form

    def step(
        self,
        images: Sequence[Image],
        rig: Rig,
        motion: Motion | None = None,
        memory: BEVMemory | None = None,
        sweeps: Sweeps | None = None,
        health: CameraHealth | None = None,
        image_ages_s: Sequence[float] | None = None,
    ) -> tuple[BEVPrediction, BEVMemory | None]:
        """What the model says of one moment, and what it remembers of it.

        Args:
            images: one a camera of the rig: (H, W, 3) or (3, H, W) uint8 RGB arrays or tensors, or paths; None for a
                camera without an image, which then sees nothing. Files are decoded as in training; where the config
                decodes at half size, arrays are halved in its place, which gives nearly the same pixels.
            rig: the cameras, in the order that the model learned; fewer than it was built for are its first ones.
            motion: since the moment before; None where there was none.
            memory: what the step of the moment before returned; None at the start of a stream.
            sweeps: what the cameras took before, for video backbones.
            health: ``camera_health`` of the prediction of the moment before, which ``camera_checks`` compares with.
            image_ages_s: how long before the moment each image was taken, for ``camera_checks``.

        Raises:
            InputError: whatever of it does not fit the model or itself, in one line.
        """
        pose = None if motion is None else motion.global_from_bev
        place = {} if pose is None else {"global_from_bev": pose}
        sample, memory = self._sample(Moment(images, rig, motion, sweeps, image_ages_s), memory, place, health)
        return BEVPrediction.of_sample(sample), memory

    def stream(self, moments: Iterable[Moment], track: bool = False) -> Iterator[BEVPrediction]:
        """What the model says of each moment of a clip, with its memory of those before.

        Args:
            moments: in the order of time. One without a motion, or whose motion has no previous moment, starts anew.
            track: whether to give the boxes identities, by the config's ``tracker``.

        Raises:
            InputError: see :meth:`step`; or ``track`` without a tracker in the config.
        """
        samples = self._samples(moments)
        if track:
            if not self.config.get("tracker"):
                reason = "absent: nothing to track with; CenterPointTracker needs no training"
                raise InputError(self.config.filename or "config", "tracker", reason)
            samples = track_samples(TASK_UTILS.build(self.config["tracker"]), samples)
        return map(BEVPrediction.of_sample, samples)

    def draw(
        self,
        prediction: BEVPrediction,
        images: Sequence[Image],
        rig: Rig,
        score_thr: float = 0.3,
        layout: str | None = None,
    ) -> np.ndarray:
        """A picture of a prediction: boxes in the cameras, and panels from above, as ``tools/visualize.py`` draws it.

        Args:
            prediction: of a :meth:`step` with these images and this rig.
            images, rig: see there; a camera without an image is grey.
            score_thr: least score of a box that is drawn.
            layout: "wide" (panels right of the cameras) or "tall" (below them); the config's by default.

        Returns:
            (H, W, 3) uint8 RGB.
        """
        pictures = [self._picture(image, f"images[{n}]") for n, image in enumerate(images)]
        grey = np.full_like(next(picture for picture in pictures if picture is not None), 127)
        views = [
            CameraView(name, grey if picture is None else picture, pixels_from_camera, camera_from_bev)
            for name, picture, pixels_from_camera, camera_from_bev in zip(
                rig.names, pictures, rig.pixels_from_camera, rig.camera_from_bev, strict=True
            )
        ]
        sample = prediction.sample.new()
        sample.pop("timestamp_s", None)  # along a stream it begins at 0, which is no date to write on a picture
        return build_visualizer(self.config, score_thr, layout).draw(sample, views)

    @staticmethod
    def _picture(image: Image, place: str) -> np.ndarray | None:
        if image is None:
            return None
        return read_image(image) if isinstance(image, str) or hasattr(image, "__fspath__") else as_image(image, place)

    def _samples(self, moments: Iterable[Moment]) -> Iterator[BEVDataSample]:
        """The predicted samples of a clip, each with its place, time and stream."""
        memory: BEVMemory | None = None
        health: CameraHealth | None = None
        stream, seconds, global_from_bev = -1, 0.0, np.eye(4)
        for moment in moments:
            motion = moment.motion or Motion.start()
            if motion.previous_from_current is not None and stream >= 0:
                seconds += motion.seconds
                global_from_bev = global_from_bev @ motion.previous_from_current
            else:
                memory, health, stream, seconds, global_from_bev = None, None, stream + 1, 0.0, np.eye(4)
            if motion.global_from_bev is not None:
                global_from_bev = motion.global_from_bev
            names = dict.fromkeys(("scene_token", "scene_name"), f"stream {stream}")
            place = dict(timestamp_s=seconds, global_from_bev=global_from_bev, **names)
            sample, memory = self._sample(moment, memory, place, health)
            health = sample.metainfo.get("camera_health")
            yield sample

    def _sample(
        self, moment: Moment, memory: BEVMemory | None, place: Mapping[str, Any], health: CameraHealth | None
    ) -> tuple[BEVDataSample, BEVMemory | None]:
        """One predicted sample, with ``place`` in its metainfo, and the memory after it."""
        if memory is not None and moment.motion is None:
            reason = "absent, though there is a memory: say how the car moved since, or leave the memory out"
            raise InputError("step", "motion", reason)
        motion = moment.motion or Motion.start()
        batch = self._batch(moment, motion, place, health)
        frame = batch["inputs"].frames[-1]
        with torch.no_grad(), self.precision.autocast():
            try:
                bev, memory = self.model.step(frame, memory if motion.has_previous else None)
            except InputError:
                raise
            except (AssertionError, ValueError) as error:
                height, width = frame.rig.padded_size_px
                raise InputError("model", type(self.model).__name__, f"{error} (images of {width}x{height})") from error
            (sample,) = self.model.predictions(bev, batch["data_samples"])
        return sample, memory

    def _batch(
        self, moment: Moment, motion: Motion, place: Mapping[str, Any], health: CameraHealth | None
    ) -> dict[str, Any]:
        """A moment as the model's preprocessor leaves a batch of one sample."""
        trained = {"dataset_meta": {"cameras": getattr(self.model, "cameras", ())}}
        check_trained_cameras(self.model, trained, moment.rig.names, "rig")
        moment = with_all_cameras(moment, getattr(getattr(self.model, "encoder", None), "num_cameras", 0))
        frame = self.steps(moment.images, moment.rig, moment.sweeps)
        if self.camera_checks is not None:
            rig = moment.rig
            health = self.camera_checks(
                frame, rig.names, rig.ego_from_bev, health, moment.image_ages_s, motion.previous_from_current
            )
            place = {**place, "camera_health": health}
            if self.mask_unhealthy:
                hide_cameras(frame, ~health.well)
        frame |= {
            "previous_from_current": motion.previous_from_current if motion.has_previous else np.eye(4),
            "has_previous": motion.has_previous,
            "seconds": motion.seconds,
            "can_bus": can_bus_vector(self.can_bus_form, motion, moment.rig.ego_from_bev),
        }
        packed = PackBEVInputs().transform({"frames": [frame], "classes": self.classes})
        info: dict[str, Any] = {"token": "", "prev_token": "", "camera_names": list(moment.rig.names)}
        info |= {"given_pixels_from_camera": moment.rig.pixels_from_camera, **place}
        packed["data_samples"].set_metainfo(info)
        with torch.no_grad(), self.precision.autocast():
            return self.model.data_preprocessor(pseudo_collate([packed]), False)


def with_all_cameras(moment: Moment, num_cameras: int) -> Moment:
    """A moment with as many cameras as a model was built for; those that its rig lacks have no image.

    Args:
        moment: one image, and one of each sweep, a camera of its rig.
        num_cameras: of the model; 0 where it takes any number.

    Raises:
        InputError: images, sweeps and rig do not belong together, or there are more cameras than the model takes.
    """
    images, rig, sweeps = list(moment.images), moment.rig, moment.sweeps
    if len(images) != len(rig):
        raise InputError("images", "number", f"{len(images)} images for the rig's {len(rig)} cameras")
    for s, swept in enumerate(() if sweeps is None else sweeps.images):
        if len(swept) != len(rig):
            raise InputError("sweeps", f"images[{s}]", f"{len(swept)} images for the rig's {len(rig)} cameras")
    if num_cameras and len(rig) > num_cameras:
        reason = f"{len(rig)} cameras; the model was built for {num_cameras} (encoder.num_cameras): leave some out"
        raise InputError("rig", "cameras", reason)
    absent = num_cameras - len(rig)
    if absent <= 0:
        return moment
    sizes = rig.image_size_px
    rig = replace(
        rig,
        pixels_from_camera=np.concatenate([rig.pixels_from_camera, np.tile(np.eye(3), (absent, 1, 1))]),
        camera_from_bev=np.concatenate([rig.camera_from_bev, np.tile(np.eye(4), (absent, 1, 1))]),
        names=(*rig.names, *(f"absent {n}" for n in range(absent))),
        image_size_px=None if sizes is None else np.concatenate([sizes, np.zeros((absent, 2))]),
    )
    if sweeps is not None:
        poses, still = sweeps.sweep_from_camera, np.tile(np.eye(4), (len(sweeps.images), absent, 1, 1))
        poses = None if poses is None else np.concatenate([poses, still], axis=1)
        sweeps = Sweeps([[*swept, *[None] * absent] for swept in sweeps.images], poses)
    ages = None if moment.image_ages_s is None else [*moment.image_ages_s, *[0.0] * absent]
    return Moment([*images, *[None] * absent], rig, moment.motion, sweeps, ages)


def can_bus_vector(form: CanBusForm, motion: Motion, ego_from_bev: np.ndarray) -> np.ndarray:
    """The (18,) ``can_bus`` vector of a moment, from poses alone: accelerations, turn rates and velocities are zero.

    Where the motion does not say where the car is, the BEV frame of the moment before (at a start, of the moment
    itself) stands for the global one; what a form says of absolute heading is then meant from there.

    Args:
        form: the config's.
        motion: since the moment before.
        ego_from_bev: (4, 4), where the BEV frame stands in the car.
    """
    before = motion.previous_from_current
    now = motion.global_from_bev if motion.global_from_bev is not None else np.eye(4) if before is None else before
    previous = None if before is None else EgoState.of_bev_pose(now @ rigid_inverse(before), ego_from_bev)
    return form(EgoState.of_bev_pose(now, ego_from_bev), previous)
