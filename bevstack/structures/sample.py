"""One sample: labels and predictions of a keyframe, and where it comes from."""

from __future__ import annotations

from dataclasses import dataclass

from mmdet3d.structures import Det3DDataSample
from torch import Tensor

from bevstack.geometry import BEVGrid


@dataclass(frozen=True)
class BEVRaster:
    """Named layers on a BEV grid: ``layers`` (K, Y, X), uint8 / bool masks or float probabilities, BEV orientation."""

    layers: Tensor
    classes: tuple[str, ...]
    grid: BEVGrid


class BEVDataSample(Det3DDataSample):
    """Labels and predictions of one keyframe in its (augmented) BEV frame.

    Metainfo (plain values or numpy): ``token``, ``prev_token`` and ``next_token`` ("" at a scene's ends),
    ``scene_token``, ``scene_name``, ``timestamp_s``, ``location``, ``camera_names``, ``image_paths`` and ``lidar_path``
    of the keyframe, ``global_from_bev`` (4, 4) float64 before augmentation, ``augmented_from_bev`` (4, 4) float64
    (identity when the BEV was not augmented), ``classes`` of the labels; of the keyframe's N cameras after every image
    and BEV augmentation ``pixels_from_camera`` (N, 3, 3), ``camera_from_bev`` (N, 4, 4), ``image_size_px`` (N, 2).

    Fields: ``gt_instances_3d`` (bboxes_3d LiDARInstance3DBoxes with 9 values, labels_3d, attribute_names, instance_ids,
    num_lidar_pts, num_radar_pts, visibility, past_centers), ``gt_rasters`` (dict name -> :class:`BEVRaster`),
    ``pred_instances_3d`` (bboxes_3d, scores_3d, labels_3d, where predicted attribute_names), ``pred_rasters`` (dict
    name -> :class:`BEVRaster`), ``gt_panoptic`` and ``pred_panoptic`` (:class:`bevstack.structures.PanopticMap`),
    ``pred_masks`` (masks, scores, labels), ``track_trails`` (:func:`bevstack.tracking.track_samples`); heads may
    add more.
    """
