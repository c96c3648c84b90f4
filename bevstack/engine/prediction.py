"""What a model says of one moment, as typed values on the CPU: boxes, rasters, masks, keypoints, labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bevstack.engine.camera_health import CameraHealth
from bevstack.errors import InputError
from bevstack.evaluation.submission import SubmittedBoxes, submitted_boxes
from bevstack.geometry import BEVGrid
from bevstack.geometry.boxes3d import gravity_centers, oriented_boxes, transform_boxes
from bevstack.geometry.keypoints import KEYPOINT_NAMES
from bevstack.structures import BEVDataSample, BEVRaster, PanopticMap
from bevstack.structures.boxes import box_tensor

_KNOWN = {"pred_instances_3d", "pred_rasters", "pred_panoptic", "pred_masks", "pred_keypoints", "pred_scene"}
_KNOWN |= {"pred_image_keypoints", "pred_on_truth_3d"}


@dataclass(frozen=True)
class PredictedBoxes:
    """G boxes, best first as their head gives them.

    Args:
        frame: name of the frame that they are in.
        boxes: (G, 9) float32: x, y, z of the middle of the lower face, length, width, height in metres, yaw in radians
            (counter-clockwise from +x), velocity along x and y in metres per second, NaN where unknown.
        scores: (G,) in [0, 1].
        names: G class names.
        attributes: G names of what each is doing ("vehicle.parked"), "" for none; None where no head says it.
        track_ids: (G,) int64 identities along a stream, -1 for none; None where nothing tracks.
    """

    frame: str
    boxes: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...]
    attributes: tuple[str, ...] | None = None
    track_ids: np.ndarray | None = None

    def __len__(self) -> int:
        """G."""
        return len(self.scores)

    @property
    def centers(self) -> np.ndarray:
        """(G, 3) metres, their middles."""
        return gravity_centers(torch.from_numpy(self.boxes)).numpy()

    def above(self, score: float) -> PredictedBoxes:
        """Those of at least this score."""
        kept = np.flatnonzero(self.scores >= score)
        return replace(
            self,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            names=tuple(self.names[i] for i in kept),
            attributes=None if self.attributes is None else tuple(self.attributes[i] for i in kept),
            track_ids=None if self.track_ids is None else self.track_ids[kept],
        )

    def moved(self, dst_from_src: np.ndarray, frame: str) -> PredictedBoxes:
        """The same boxes in another frame; ``dst_from_src`` (4, 4) leads there, pitch and roll are too small to count.

        ``prediction.boxes.moved(rig.ego_from_bev, "ego")`` are the boxes as the car sees them.
        """
        boxes = transform_boxes(torch.from_numpy(np.array(dst_from_src)), torch.from_numpy(self.boxes).double())
        return replace(self, frame=frame, boxes=boxes.float().numpy())

    def as_dicts(self) -> list[dict[str, Any]]:
        """A dict of plain values a box.

        Keys: ``class``, ``score``, ``center_m``, ``size_m`` (length, width, height), ``yaw`` in radians,
        ``velocity_mps`` (None where unknown) and, where they are predicted, ``attribute`` and ``track_id``.
        """
        rows = []
        for index, (box, center) in enumerate(zip(self.boxes, self.centers, strict=True)):
            row = {
                "class": self.names[index],
                "score": float(self.scores[index]),
                "center_m": center.tolist(),
                "size_m": box[3:6].tolist(),
                "yaw": float(box[6]),
                "velocity_mps": box[7:9].tolist() if np.isfinite(box[7:9]).all() else None,
            }
            row |= {} if self.attributes is None else {"attribute": self.attributes[index]}
            row |= {} if self.track_ids is None else {"track_id": int(self.track_ids[index])}
            rows.append(row)
        return rows


@dataclass(frozen=True)
class PredictedMasks:
    """Instances of things on the ground, best first; they may overlap.

    Args:
        masks: (n, Y, X) bool; rows grow with +y, columns with +x of the BEV frame.
        scores: (n,). names: n class names.
        grid: of the masks.
    """

    masks: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...]
    grid: BEVGrid


@dataclass(frozen=True)
class PredictedKeypoints:
    """Keypoints of n objects on the ground, in metres of the BEV frame.

    Args:
        points: (n, 6, 2) metres (x, y) in the order of ``kinds``. point_scores: (n, 6).
        scores: (n,) of the objects. names: n class names.
        kinds: what the six are.
    """

    points: np.ndarray
    point_scores: np.ndarray
    scores: np.ndarray
    names: tuple[str, ...]
    kinds: tuple[str, ...] = KEYPOINT_NAMES


@dataclass(frozen=True)
class PredictedImageKeypoints:
    """Keypoints in the images of the cameras.

    Args:
        points_px: (n, 2) pixels (u, v) of the images that were handed in.
        cameras: n camera names. kinds: n names of keypoints. scores: (n,).
    """

    points_px: np.ndarray
    cameras: tuple[str, ...]
    kinds: tuple[str, ...]
    scores: np.ndarray


@dataclass(frozen=True)
class BEVPrediction:
    """All that a model says of one moment; a part is None, or empty, where no head of the model says it.

    Args:
        sample: the same as the model gives it, for painters, metrics and trackers.
        boxes: in the frame "bev".
        rasters: by name, layers (K, Y, X) of probabilities with their names and grid.
        panoptic: every cell of the ground with its owner.
        masks, keypoints, image_keypoints: see their classes.
        scene: by question, the probability of each answer.
        others: what heads of your own say, under their fields' names.
    """

    sample: BEVDataSample
    boxes: PredictedBoxes | None = None
    rasters: Mapping[str, BEVRaster] = field(default_factory=dict)
    panoptic: PanopticMap | None = None
    masks: PredictedMasks | None = None
    keypoints: PredictedKeypoints | None = None
    image_keypoints: PredictedImageKeypoints | None = None
    scene: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)
    camera_health: CameraHealth | None = None

    @classmethod
    def of_sample(cls, sample: BEVDataSample) -> BEVPrediction:
        """From a sample with predictions; ``classes`` of its metainfo names the labels, ``camera_health`` is taken
        from there, too."""
        classes = tuple(sample.metainfo.get("classes", ()))
        rasters = sample.pred_rasters if "pred_rasters" in sample else {}
        own = [name for name, _ in sample.items() if name.startswith("pred_") and name not in _KNOWN]
        return cls(
            sample=sample,
            boxes=_boxes(sample, classes) if "pred_instances_3d" in sample else None,
            rasters={
                name: BEVRaster(raster.layers.detach().cpu().float(), tuple(raster.classes), raster.grid)
                for name, raster in rasters.items()
            },
            panoptic=sample.pred_panoptic.to("cpu") if "pred_panoptic" in sample else None,
            masks=_masks(sample) if "pred_masks" in sample and "pred_panoptic" in sample else None,
            keypoints=_keypoints(sample, classes) if "pred_keypoints" in sample else None,
            image_keypoints=_image_keypoints(sample) if "pred_image_keypoints" in sample else None,
            scene=_scene(sample.pred_scene) if "pred_scene" in sample else {},
            others={name: sample.get(name) for name in own},
            camera_health=sample.metainfo.get("camera_health"),
        )

    def as_dict(self, cells: bool = True) -> dict[str, Any]:
        """Nested dicts and lists of plain values, as ``json.dumps`` takes them; what is not predicted is left out.

        Args:
            cells: whether to write out the cells of rasters, masks and the panoptic map, row by row. Row 0 lies at the
                lowest y, column 0 at the lowest x.
        """
        answer: dict[str, Any] = {"frame": "bev"}
        if self.boxes is not None:
            answer["boxes"] = self.boxes.as_dicts()
        if self.rasters:
            answer["rasters"] = {name: _raster_dict(raster, cells) for name, raster in self.rasters.items()}
        if self.panoptic is not None:
            answer["panoptic"] = _panoptic_dict(self.panoptic, cells)
        if self.masks is not None:
            rows = zip(self.masks.names, self.masks.scores.tolist(), self.masks.masks, strict=True)
            listed = [
                {"class": name, "score": score} | ({"mask": mask.astype(int).tolist()} if cells else {})
                for name, score, mask in rows
            ]
            answer["masks"] = {"grid": _plain(vars(self.masks.grid)), "instances": listed}
        if self.keypoints is not None:
            answer["keypoints"] = _keypoint_dicts(self.keypoints)
        if self.image_keypoints is not None:
            found = self.image_keypoints
            columns = zip(found.cameras, found.kinds, found.points_px.tolist(), found.scores.tolist(), strict=True)
            names = ("camera", "kind", "point_px", "score")
            answer["image_keypoints"] = [dict(zip(names, row, strict=True)) for row in columns]
        if self.scene:
            answer["scene"] = {question: dict(answers) for question, answers in self.scene.items()}
        if self.others:
            answer["others"] = _plain(self.others)
        if self.camera_health is not None:
            answer["camera_health"] = self.camera_health.as_dict()
        return answer

    def nuscenes_boxes(self, global_from_bev: np.ndarray, token: str = "") -> SubmittedBoxes:
        """The boxes in nuScenes' global frame, as its detection challenge wants them; ``.records()`` are its JSON.

        Args:
            global_from_bev: (4, 4) metres: the pose of the BEV frame.
            token: of nuScenes' sample.

        Raises:
            InputError: the model predicts no boxes.
        """
        if self.boxes is None:
            raise InputError("prediction", "boxes", "the model predicts none")
        boxes, values = self.boxes, torch.from_numpy(self.boxes.boxes).double()
        values[:, 7:9] = values[:, 7:9].nan_to_num(nan=0.0)  # the challenge takes no box without a velocity
        moved = oriented_boxes(torch.as_tensor(global_from_bev, dtype=torch.float64), values)
        return submitted_boxes(token, moved, boxes.scores, boxes.names, boxes.attributes)


def _numbers(values: Tensor) -> np.ndarray:
    """On the host; floating-point values as float32."""
    values = values.detach().cpu()
    return (values.float() if values.is_floating_point() else values).numpy()


def _named(labels: Tensor, classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(classes[n] if 0 <= n < len(classes) else f"class {n}" for n in labels.detach().cpu().tolist())


def _boxes(sample: BEVDataSample, classes: Sequence[str]) -> PredictedBoxes:
    found = sample.pred_instances_3d
    return PredictedBoxes(
        frame="bev",
        boxes=_numbers(box_tensor(found.bboxes_3d)),
        scores=_numbers(found.scores_3d),
        names=_named(found.labels_3d, classes),
        attributes=tuple(found.attribute_names) if "attribute_names" in found else None,
        track_ids=_numbers(found.track_ids) if "track_ids" in found else None,
    )


def _masks(sample: BEVDataSample) -> PredictedMasks:
    found, panoptic = sample.pred_masks, sample.pred_panoptic
    names = _named(found.labels, panoptic.thing_classes)
    return PredictedMasks(_numbers(found.masks), _numbers(found.scores), names, panoptic.grid)


def _keypoints(sample: BEVDataSample, classes: Sequence[str]) -> PredictedKeypoints:
    found = sample.pred_keypoints
    points, point_scores = _numbers(found.keypoints), _numbers(found.keypoint_scores)
    return PredictedKeypoints(points, point_scores, _numbers(found.scores), _named(found.labels, classes))


def _image_keypoints(sample: BEVDataSample) -> PredictedImageKeypoints:
    """Those of cameras that gave an image, in pixels of what they gave."""
    found, info = sample.pred_image_keypoints, sample.metainfo
    cameras, kinds = _numbers(found.cameras), _numbers(found.kinds)
    kept = np.asarray(info["image_size_px"]).min(1)[cameras] > 0
    rays = np.concatenate([_numbers(found.rays), np.ones((len(cameras), 1))], axis=1)
    pixels = (np.asarray(info["given_pixels_from_camera"])[cameras] @ rays[..., None])[..., 0]
    return PredictedImageKeypoints(
        points_px=(pixels[:, :2] / pixels[:, 2:])[kept],
        cameras=tuple(info["camera_names"][n] for n in cameras[kept]),
        kinds=tuple(KEYPOINT_NAMES[n] for n in kinds[kept]),
        scores=_numbers(found.scores)[kept],
    )


def _scene(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    return {
        question: dict(zip(answer["names"], _numbers(answer["probabilities"]).tolist(), strict=True))
        for question, answer in answers.items()
    }


def _raster_dict(raster: BEVRaster, cells: bool) -> dict[str, Any]:
    layers = dict(zip(raster.classes, raster.layers.tolist(), strict=True)) if cells else list(raster.classes)
    return {"grid": _plain(vars(raster.grid)), "layers": layers}


def _panoptic_dict(panoptic: PanopticMap, cells: bool) -> dict[str, Any]:
    segments = [
        {"class": panoptic.classes[label], "thing": thing, "instance": instance}
        for label, thing, instance in zip(
            panoptic.labels.tolist(), panoptic.is_thing.tolist(), panoptic.instance_ids.tolist(), strict=True
        )
    ]
    owners = {"owners": panoptic.segments.tolist()} if cells else {}
    return {"grid": _plain(vars(panoptic.grid)), "segments": segments, **owners}


def _keypoint_dicts(keypoints: PredictedKeypoints) -> list[dict[str, Any]]:
    rows = zip(keypoints.names, keypoints.scores, keypoints.points, keypoints.point_scores, strict=True)
    return [
        {
            "class": name,
            "score": float(score),
            "points": {
                kind: {"xy_m": place.tolist(), "score": float(trust)}
                for kind, place, trust in zip(keypoints.kinds, points, trusts, strict=True)
            },
        }
        for name, score, points, trusts in rows
    ]


def _plain(value: Any) -> Any:
    """Nested plain values; numbers that are not finite become None, as JSON has none."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if hasattr(value, "items"):  # mmengine's InstanceData
        return {key: _plain(entry) for key, entry in value.items()}
    return value if value is None or isinstance(value, bool | int | str) else str(value)
