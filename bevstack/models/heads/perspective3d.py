"""BEVFormerV2's perspective supervision: a monocular detector on the image features, for training only.

The detector itself is mmdet3d's FCOS3D head (Wang et al. 2021). What is here turns boxes of the BEV frame into what it
learns from: per camera, projected centres, depths, sizes, headings and outlines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmdet3d.models.dense_heads import FCOSMono3DHead
from mmengine.structures import InstanceData
from torch import Tensor

from bevstack.geometry.boxes3d import box_corners, oriented_boxes
from bevstack.geometry.transforms import full_precision, rigid_transform
from bevstack.models.heads.base import ImageHead
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, CameraRig

# What FCOS3D answers at each level, in its order; "attributes" is not asked for.
_OUTPUTS = ("scores", "boxes", "directions", "attributes", "centerness")


@MODELS.register_module()
class PerspectiveHead(ImageHead):
    """mmdet3d's FCOS3D head on L levels of image features; its losses pull the backbone towards 3D.

    Args:
        in_channels: see :class:`ImageHead`.
        classes: names of the K classes, in the order of the labels.
        strides: of the L levels in pixels.
        regress_ranges: per level, the sizes in pixels of the objects that belong to it.
        min_size_px: outlines narrower or lower than this are left out.
        detector: further arguments of ``mmdet3d.FCOSMono3DHead``.
    """

    def __init__(
        self,
        in_channels: int,
        classes: Sequence[str],
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        regress_ranges: Sequence[tuple[float, float]] = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8)),
        min_size_px: float = 4.0,
        detector: Mapping | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(in_channels, init_cfg)
        self.classes, self.min_size_px = tuple(classes), min_size_px
        # Without velocity: it is unknown for some objects, and one frame does not show it.
        settings = {
            "bbox_code_size": 7,
            "bbox_coder": {"type": "FCOS3DBBoxCoder", "code_size": 7},
            "group_reg_dims": (2, 1, 3, 1),
            "reg_branch": ((256,), (256,), (256,), (256,)),
            "cls_branch": (256,),
            "dir_branch": (256,),
            "centerness_branch": (64,),
            "stacked_convs": 2,
            "dir_offset": 0.7854,
            "pred_velo": False,
            "pred_attrs": False,
            "train_cfg": {"code_weight": [1.0, 1.0, 0.2, 1.0, 1.0, 1.0, 1.0]},
            **(detector or {}),
        }
        self.detector = FCOSMono3DHead(
            num_classes=len(self.classes),
            in_channels=in_channels,
            strides=tuple(strides),
            regress_ranges=tuple(tuple(limits) for limits in regress_ranges),
            **settings,
        )

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """FCOS3D on L levels (B, N, C, h_l, w_l).

        Returns:
            For each level l logits ``scores.l`` (B, N, K, h_l, w_l), ``boxes.l`` (B, N, 7, h_l, w_l) in FCOS3D's code
            (offset of the projected centre (2), depth, size (3), yaw), ``directions.l`` (B, N, 2, h_l, w_l) and
            ``centerness.l`` (B, N, 1, h_l, w_l).
        """
        outputs = self.detector([level.flatten(0, 1) for level in features])
        return {
            f"{name}.{index}": level.unflatten(0, features[0].shape[:2])
            for name, levels in zip(_OUTPUTS, outputs, strict=True)
            for index, level in enumerate(levels)
            if level is not None
        }

    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample], rig: CameraRig) -> dict[str, Tensor]:
        """FCOS3D's losses of every camera of every sample, against ``gt_instances_3d``.

        Args:
            raw: :meth:`forward`'s, tensors (B, N, ..., h_l, w_l) of each level l.
            samples: B, with ``gt_instances_3d`` in the BEV frame: boxes (G, 9) and labels (G,).
            rig: of the N cameras' images that the features come from.

        Returns:
            Scalars: ``loss_cls``, ``loss_offset``, ``loss_depth``, ``loss_size``, ``loss_rotsin``, ``loss_dir`` and
            ``loss_centerness``, means over the cells that belong to an object.
        """
        boxes_3d, boxes_2d = [], []
        for row, sample in enumerate(samples):
            instances = sample.gt_instances_3d
            boxes = instances.bboxes_3d.tensor.to(rig.camera_from_bev)
            for camera in range(rig.num_cameras):
                with full_precision(boxes):
                    in_camera, in_image = camera_targets(
                        boxes,
                        instances.labels_3d.to(boxes.device),
                        rig.camera_from_bev[row, camera],
                        rig.pixels_from_camera[row, camera],
                        rig.image_size_px[row, camera],
                        self.min_size_px,
                    )
                boxes_3d.append(in_camera)
                boxes_2d.append(in_image)
        levels = range(len(self.detector.strides))
        outputs = [[raw.get(f"{name}.{level}") for level in levels] for name in _OUTPUTS]
        outputs = [[None if level is None else level.flatten(0, 1).float() for level in output] for output in outputs]
        return self.detector.loss_by_feat(*outputs, boxes_3d, boxes_2d, [{}] * len(boxes_3d))


def camera_targets(
    boxes: Tensor,
    labels: Tensor,
    camera_from_bev: Tensor,
    pixels_from_camera: Tensor,
    image_size_px: Tensor,
    min_size_px: float,
) -> tuple[InstanceData, InstanceData]:
    """What a monocular detector should see of boxes in the BEV frame.

    Mirrored images (their intrinsics have a negative determinant) are seen by a camera that is mirrored, too, so that
    the heading fits the picture. A mirrored or scaled BEV frame is undone by ``camera_from_bev``.

    Args:
        boxes: (G, 9), labels: (G,).
        camera_from_bev: (4, 4), pixels_from_camera: (3, 3).
        image_size_px: (2,) (height, width) without padding.
        min_size_px: smallest width and height of an outline.

    Returns:
        3D: ``bboxes_3d`` (V, 7) as mmdet3d's camera boxes (x, y of the bottom, z, l, h, w, yaw), ``labels_3d``,
        ``centers_2d`` (V, 2) pixels, ``depths`` (V,) metres; 2D: ``bboxes`` (V, 4) pixels, ``labels``. An object counts
        where its middle lies in front of the camera and inside its image.
    """
    linear, offset = camera_from_bev[:3, :3], camera_from_bev[:3, 3]
    if torch.det(pixels_from_camera) < 0:
        mirror = linear.new_tensor([-1.0, 1.0, 1.0])
        linear, offset = mirror[:, None] * linear, mirror * offset
        pixels_from_camera = pixels_from_camera * mirror
    moved = oriented_boxes(rigid_transform(linear, offset), boxes)
    centers, (length, width, height) = moved.centers, moved.sizes.unbind(-1)
    corners = box_corners(boxes) @ linear.T + offset
    centers_2d, depths = _projected(centers, pixels_from_camera)
    corners_2d, _ = _projected(corners, pixels_from_camera)
    limit = image_size_px.flip(-1).to(boxes)
    low = torch.minimum(corners_2d.amin(1).clamp_min(0), limit)
    high = torch.minimum(corners_2d.amax(1).clamp_min(0), limit)
    seen = (depths > 0.5) & (corners[..., 2] > 0.1).all(1)
    seen &= ((centers_2d > 0) & (centers_2d < limit)).all(1) & ((high - low) >= min_size_px).all(1)

    yaw = torch.atan2(-moved.rotations[:, 2, 0], moved.rotations[:, 0, 0])
    bottom = centers[:, 1] + height / 2
    in_camera = torch.stack([centers[:, 0], bottom, centers[:, 2], length, height, width, yaw], dim=-1)
    outlines, labels = torch.cat([low, high], dim=-1)[seen], labels[seen]
    places = {"centers_2d": centers_2d[seen], "depths": depths[seen]}
    return (
        InstanceData(bboxes_3d=in_camera[seen], labels_3d=labels, **places),
        InstanceData(bboxes=outlines, labels=labels),
    )


def _projected(points: Tensor, pixels_from_camera: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 3) metres of the camera frame to (..., 2) pixels and (...) depth."""
    depth = points[..., 2]
    pixels = points @ pixels_from_camera.T
    return pixels[..., :2] / depth.clamp_min(0.1).unsqueeze(-1), depth
