"""The end of every pipeline: one dict of tensors and one data sample."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import numpy as np
import torch
from mmcv.transforms.base import BaseTransform
from mmengine.structures import InstanceData
from torch import Tensor
from torch.utils.data import get_worker_info

from bevstack.buffers import ReusedBuffers
from bevstack.registry import TRANSFORMS
from bevstack.structures import BEVDataSample
from bevstack.structures.boxes import lidar_boxes

META_KEYS = (
    "token",
    "prev_token",
    "next_token",
    "scene_token",
    "scene_name",
    "scene_description",
    "timestamp_s",
    "location",
    "camera_names",
    "lidar_path",
    "image_paths",
    "global_from_bev",
    "augmented_from_bev",
    "classes",
    "pixels_from_camera",
    "camera_from_bev",
    "image_size_px",
)
"""Metainfo of a data sample; what the pipeline's dict lacks is taken from the keyframe, else left out."""

_INSTANCE_KEYS = ("attribute_names", "instance_ids", "num_lidar_pts", "num_radar_pts", "visibility")


_BUFFERS = ReusedBuffers()


def stack_images(images: list[list[np.ndarray]]) -> Tensor:
    """T lists of N images (H, W, 3) uint8 to one (T, N, 3, H, W) tensor, zero-padded at the bottom and the right.

    The tensor's memory stays in the order (T, N, H, W, 3): nothing is transposed here, and what follows on the device
    is channels-last. In a loader's worker it is memory that both processes see, so that sending it copies nothing;
    elsewhere that of an earlier clip that nothing holds any more.
    """
    shapes = [image.shape for frame in images for image in frame]
    height, width = np.array(shapes)[:, :2].max(axis=0).tolist()
    shape = (len(images), len(images[0]), height, width, 3)
    if get_worker_info() is None:
        stacked = _BUFFERS.empty(shape, torch.uint8)
    else:
        storage: Any = torch.UntypedStorage._new_shared(math.prod(shape))
        stacked = torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)
    for place, image in zip(stacked.numpy().reshape(-1, height, width, 3), chain(*images), strict=True):
        rows, columns = image.shape[:2]
        place[:rows, :columns] = image
        place[rows:] = 0
        place[:rows, columns:] = 0
    return stacked.permute(0, 1, 4, 2, 3)


@TRANSFORMS.register_module()
class PackBEVInputs(BaseTransform):
    """``results`` -> ``dict(inputs=..., data_samples=BEVDataSample)``, to be collated with ``pseudo_collate``.

    ``inputs``: ``images`` (T, N, 3, H, W) uint8 RGB, zero-padded to the largest camera; ``pixels_from_camera``
    (T, N, 3, 3), ``camera_from_bev`` (T, N, 4, 4), ``previous_from_current`` (T, 4, 4) float32; ``image_size_px``
    (T, N, 2) int64 without padding; ``has_previous`` (T,) bool; ``seconds`` (T,) and ``can_bus`` (T, 18) float32 (NaN
    where the dataset has none); where camera sweeps are loaded, ``sweeps`` (T, S, N, 3, H, W) uint8, as ``images``;
    where the dataset keeps features, ``sample_identity`` (2,) int64 and ``features`` (bytes,) uint8, empty where they
    have still to be computed, else ``images`` (T, N, 3, 0, 0) are (:class:`bevstack.datasets.kept_samples.KeptSample`).

    The sample holds the keyframe's boxes as ``gt_instances_3d`` (where ``boxes`` are there; with their ``past_centers``
    where :class:`bevstack.datasets.transforms.LoadPastCenters` found them), ``gt_rasters``, and ``gt_panoptic`` where
    :class:`bevstack.datasets.transforms.panoptic_targets.MakePanopticMap` made one.
    """

    def transform(self, results: dict) -> dict:
        """Build the tensors and the sample; ``results`` is left as it is."""
        frames = results["frames"]

        def stacked(key: str, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.stack([np.asarray(frame[key]) for frame in frames])).to(dtype)

        inputs = {
            "images": self._images(frames),
            "pixels_from_camera": stacked("pixels_from_camera", torch.float32),
            "camera_from_bev": stacked("camera_from_bev", torch.float32),
            "image_size_px": stacked("image_size_px", torch.int64),
            "previous_from_current": stacked("previous_from_current", torch.float32),
            "has_previous": stacked("has_previous", torch.bool),
            "seconds": stacked("seconds", torch.float32),
            "can_bus": self._can_bus(frames),
        }
        if "sweeps" in frames[-1]:
            moments = [moment for frame in frames for moment in frame["sweeps"]]
            inputs["sweeps"] = stack_images(moments).unflatten(0, (len(frames), -1))
        if (kept := frames[-1].get("kept")) is not None:
            inputs["sample_identity"] = torch.tensor([kept.number, kept.identity])
            inputs["features"] = torch.empty(0, dtype=torch.uint8) if kept.features is None else kept.features
        return {"inputs": inputs, "data_samples": self._data_sample(results)}

    @staticmethod
    def _images(frames: list[dict]) -> Tensor:
        kept = frames[-1].get("kept")
        if kept is None or kept.features is None:
            return stack_images([frame["images"] for frame in frames])
        return torch.empty(len(frames), len(frames[-1]["images"]), 3, 0, 0, dtype=torch.uint8)

    @staticmethod
    def _can_bus(frames: list[dict]) -> Tensor:
        values = [frame.get("can_bus") for frame in frames]
        rows = [np.full(18, np.nan) if value is None else np.asarray(value, dtype=np.float64) for value in values]
        return torch.from_numpy(np.stack(rows)).to(torch.float32)

    @staticmethod
    def _data_sample(results: dict) -> BEVDataSample:
        sample = BEVDataSample()
        keyframe = results["frames"][-1]
        meta = {key: results[key] if key in results else keyframe.get(key) for key in META_KEYS}
        meta["augmented_from_bev"] = np.eye(4) if meta["augmented_from_bev"] is None else meta["augmented_from_bev"]
        sample.set_metainfo({key: value for key, value in meta.items() if value is not None})
        if "boxes" in results:
            boxes = torch.from_numpy(np.asarray(results["boxes"], dtype=np.float32))
            instances = InstanceData(
                bboxes_3d=lidar_boxes(boxes),
                labels_3d=torch.from_numpy(np.asarray(results["labels"], dtype=np.int64)),
            )
            for key in _INSTANCE_KEYS:
                if key in results:
                    instances.set_field(_per_object(results[key]), key)
            if "past_centers" in results:
                past_centers = np.asarray(results["past_centers"], dtype=np.float32)
                instances.set_field(torch.from_numpy(past_centers), "past_centers")
            sample.gt_instances_3d = instances
        sample.gt_rasters = dict(results.get("rasters", {}))
        if "scene_labels" in results:
            sample.gt_scene = dict(results["scene_labels"])
        if "panoptic" in results:
            sample.gt_panoptic = results["panoptic"]
        return sample


def _per_object(values) -> Tensor | list:
    """Numbers as a tensor, names as a list."""
    array = np.asarray(values)
    return torch.from_numpy(array.astype(np.int64)) if array.dtype.kind in "iub" else list(values)
