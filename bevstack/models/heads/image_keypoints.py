"""Projected 3D keypoints as heatmaps on image features: a box's middle, its ground corners and its front point.

Supervision for the backbone while training, and points in the cameras' images when predicting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.geometry.keypoints import NUM_KEYPOINTS, image_keypoints
from bevstack.geometry.transforms import full_precision
from bevstack.losses.dense import heatmap_focal_loss
from bevstack.losses.functional import mean_across_ranks
from bevstack.models.heads.base import ImageHead
from bevstack.models.layers.conv import ConvNormReLU
from bevstack.models.layers.heatmaps import EMPTY_CELL_LOGIT, gaussian_heatmap, heatmap_nms, positive_cells
from bevstack.models.layers.initialization import init_bias
from bevstack.models.layers.settings import Settings
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, CameraRig


class ImageKeypointTargets(NamedTuple):
    """The V visible keypoints of one sample's objects in all its cameras.

    Args:
        cameras: (V,) index; kinds: (V,) index into ``KEYPOINT_NAMES``; points_px: (V, 2) pixels of the image tensor.
    """

    cameras: Tensor
    kinds: Tensor
    points_px: Tensor


@dataclass(frozen=True)
class ImageKeypointCriterion(Settings):
    """What keypoints on images are trained by.

    Args:
        heatmap_weight, offset_weight: of the two losses.
        sigma_cells: standard deviation of a keypoint's Gaussian.
        reach_cells: how far around a keypoint's cell its offset is learned too
            (:func:`bevstack.models.layers.heatmaps.positive_cells`); 0 for that cell alone.
    """

    heatmap_weight: float = 1.0
    offset_weight: float = 0.5
    sigma_cells: float = 0.8
    reach_cells: int = 1


@dataclass(frozen=True)
class ImageKeypointDecoding(Settings):
    """How keypoints are read from the heatmaps.

    Args:
        max_num: most points of each keypoint in each camera, kept by score.
        score_threshold: points below are dropped.
    """

    max_num: int = 50
    score_threshold: float = 0.1


@MODELS.register_module()
class ImageKeypointHead(ImageHead):
    """One heatmap for each of the six keypoints on one level of the image features, and where in its cell each lies.

    A keypoint is asked for in every camera that it projects into; whether something stands in front of it is not
    looked at. Classes are not told apart. In a config::

        model["image_heads"] = dict(points=dict(type="ImageKeypointHead", in_channels=neck_channels))
        test_evaluator.append(dict(type="ImageKeypointMetric"))

    Args:
        in_channels: see :class:`ImageHead`.
        channels: width of the convolutions.
        level: index of the level that is read.
        criterion: an :class:`ImageKeypointCriterion` or its values.
        decoding: an :class:`ImageKeypointDecoding` or its values.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int = 64,
        level: int = 0,
        criterion: ImageKeypointCriterion | Mapping | None = None,
        decoding: ImageKeypointDecoding | Mapping | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_channels, init_cfg)
        self.level = level
        self.criterion = ImageKeypointCriterion.build(criterion, "criterion")
        self.decoding = ImageKeypointDecoding.build(decoding, "decoding")
        self.shared = ConvNormReLU(in_channels, channels)
        self.heatmap = nn.Conv2d(channels, NUM_KEYPOINTS, 1)
        self.offset = nn.Conv2d(channels, 2 * NUM_KEYPOINTS, 1)
        init_bias(self.heatmap, EMPTY_CELL_LOGIT)

    def forward(self, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """Levels (B, N, C, h, w) to ``heatmap`` logits (B, N, 6, h, w) and ``offset`` (B, N, 12, h, w) from the cell's
        centre, in cells, u before v of each keypoint."""
        level = features[self.level]
        shared = self.shared(level.flatten(0, 1))
        return {
            "heatmap": self.heatmap(shared).unflatten(0, level.shape[:2]),
            "offset": self.offset(shared).unflatten(0, level.shape[:2]),
        }

    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample], rig: CameraRig) -> dict[str, Tensor]:
        """``loss_heatmap`` (focal) and ``loss_offset`` (L1 in cells, by the cells' shares) per visible keypoint of all
        ranks, scalars both.

        Args:
            raw: :meth:`forward`'s, ``heatmap`` logits (B, N, 6, h, w) and ``offset`` (B, N, 12, h, w) in cells.
            samples: B, with ``gt_instances_3d`` in the BEV frame.
            rig: of the images that the features come from.
        """
        heatmap, offset = raw["heatmap"], raw["offset"].float()
        batch, cameras, _, rows, columns = heatmap.shape
        targets = [image_keypoint_targets(*pair, rig) for pair in enumerate(samples)]
        place = torch.cat([t.points_px for t in targets]) / self._cell_px(heatmap, rig)
        limit = place.new_tensor([columns - 1, rows - 1])
        corner = torch.minimum(place.floor(), limit).long()
        channel = torch.cat([(b * cameras + t.cameras) * NUM_KEYPOINTS + t.kinds for b, t in enumerate(targets)])
        number = mean_across_ranks(float(len(place)), heatmap.device).clamp_min(1.0)
        sigma = place.new_full((len(place),), self.criterion.sigma_cells)
        shape = (batch * cameras * NUM_KEYPOINTS, rows, columns)
        focal = heatmap_focal_loss(heatmap.flatten(0, 2), gaussian_heatmap(corner, sigma, channel, shape)).sum()
        positives = positive_cells(place, channel, shape, self.criterion.reach_cells)
        predicted = offset.unflatten(2, (NUM_KEYPOINTS, 2)).flatten(-2).transpose(-1, -2).flatten(0, 3)[positives.cells]
        error = ((predicted - positives.offsets).abs().sum(-1) * positives.shares).sum()
        return {
            "loss_heatmap": self.criterion.heatmap_weight * focal / number,
            "loss_offset": self.criterion.offset_weight * error / number,
        }

    @torch.no_grad()
    def predict(self, raw: dict[str, Tensor], rig: CameraRig) -> list[dict[str, object]]:
        """``pred_image_keypoints`` per sample, an InstanceData of n points of all its cameras.

        ``points_px`` (n, 2) pixels of the image tensor; ``rays`` (n, 2): x / z and y / z in the camera's frame, which
        hold for the same camera's image of any size; ``cameras`` (n,); ``kinds`` (n,) index into ``KEYPOINT_NAMES``;
        ``scores`` (n,).
        """
        heatmap, cell_px = raw["heatmap"].float().sigmoid(), self._cell_px(raw["heatmap"], rig)
        cameras, columns = heatmap.shape[1], heatmap.shape[-1]
        peaks = heatmap_nms(heatmap.flatten(0, 1)).unflatten(0, heatmap.shape[:2]).flatten(-2)
        scores, cells = peaks.topk(min(self.decoding.max_num, peaks.shape[-1]))  # (B, N, 6, P)
        offset = raw["offset"].float().flatten(-2).unflatten(2, (NUM_KEYPOINTS, 2))
        offset = offset.gather(-1, cells.unsqueeze(3).expand(-1, -1, -1, 2, -1)).transpose(-1, -2)
        place = torch.stack([cells % columns, cells // columns], dim=-1) + 0.5 + offset
        points = place * cell_px
        inverse = torch.linalg.inv(rig.pixels_from_camera.float())  # (B, N, 3, 3)
        with full_precision(points):
            rays = F.pad(points, (0, 1), value=1.0) @ inverse.transpose(-1, -2).unsqueeze(2)
        camera, kind = torch.meshgrid(
            torch.arange(cameras, device=cells.device), torch.arange(NUM_KEYPOINTS, device=cells.device), indexing="ij"
        )
        results = []
        for b in range(len(heatmap)):
            keep = scores[b] > self.decoding.score_threshold
            instances = InstanceData(
                points_px=points[b][keep],
                rays=(rays[b, ..., :2] / rays[b, ..., 2:])[keep],
                cameras=camera.unsqueeze(-1).expand_as(keep)[keep],
                kinds=kind.unsqueeze(-1).expand_as(keep)[keep],
                scores=scores[b][keep],
            )
            results.append({"pred_image_keypoints": instances})
        return results

    @staticmethod
    def _cell_px(heatmap: Tensor, rig: CameraRig) -> Tensor:
        """(2,) pixels (u, v) that one cell covers."""
        height, width = rig.padded_size_px
        return torch.tensor([width / heatmap.shape[-1], height / heatmap.shape[-2]], device=heatmap.device)


def image_keypoint_targets(row: int, sample: BEVDataSample, rig: CameraRig) -> ImageKeypointTargets:
    """Where a sample's keypoints stand in its cameras (:func:`bevstack.geometry.keypoints.image_keypoints`).

    Args:
        row: of the sample in the rig's batch.
        sample: with ``gt_instances_3d``.
        rig: of the batch.
    """
    boxes = sample.gt_instances_3d.bboxes_3d.tensor.to(rig.camera_from_bev)
    found = image_keypoints(boxes, rig.pixels_from_bev[row], rig.image_size_px[row])
    return ImageKeypointTargets(found.cameras, found.kinds, found.points_px)
