"""Dense 3D detection: a heatmap of centres per class and a box at each (CenterPoint, Yin et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from bevstack.geometry import BEVGrid
from bevstack.geometry.box_code import BOX_CODE_SIZE, bottom_centred, decode_boxes, encode_boxes
from bevstack.losses.dense import heatmap_focal_loss
from bevstack.losses.functional import masked_l1_loss, mean_across_ranks
from bevstack.models.heads.base import BEVHead, resample_bev
from bevstack.models.layers.conv import ConvNormReLU, ConvType
from bevstack.models.layers.heatmaps import (
    EMPTY_CELL_LOGIT,
    HeatmapCriterion,
    PeakDecoding,
    circle_nms,
    gaussian_heatmap,
    heatmap_nms,
    nms_radii,
    positive_cells,
)
from bevstack.models.layers.initialization import init_bias
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVFeatures
from bevstack.structures.boxes import lidar_boxes


@dataclass(frozen=True)
class CenterCriterion(HeatmapCriterion):
    """What centres and the boxes at them are trained by; see also :class:`HeatmapCriterion`.

    Args:
        box_weight: of the L1 loss of boxes.
        code_weights: in it, of the ten values that are regressed at a cell: offset of the box's centre from the cell's
            in cells (x, y), height of the box's centre, log of length, width, height, sine and cosine of yaw, velocity
            (x, y) in metres per second.

    Raises:
        ValueError: not ten code weights.
    """

    box_weight: float = 0.25
    code_weights: Sequence[float] = (1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2)

    def __post_init__(self) -> None:
        if len(self.code_weights) != BOX_CODE_SIZE:
            raise ValueError(f"code_weights: {len(self.code_weights)} values, {BOX_CODE_SIZE} are regressed")


@MODELS.register_module()
class DenseDetectionHead(BEVHead):
    """Centre heatmaps and boxes on the head's own grid.

    Args:
        in_channels, grid: see :class:`BEVHead`.
        classes: detection classes, in the order of the labels.
        channels: width of the convolutions.
        criterion: a :class:`CenterCriterion` or its values.
        decoding: a :class:`bevstack.models.layers.heatmaps.PeakDecoding` or its values.
        upscale: the convolutions run on cells that are so many times longer and wider than the grid's, and the last
            one predicts ``upscale`` x ``upscale`` cells at each (Shi et al. 2016, sub-pixel convolution).
        conv: kind of the 3 x 3 convolutions (:class:`bevstack.models.layers.conv.ConvType`).
    """

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid | Mapping,
        classes: Sequence[str],
        channels: int = 64,
        criterion: CenterCriterion | Mapping | None = None,
        decoding: PeakDecoding | Mapping | None = None,
        upscale: int = 1,
        conv: ConvType | Mapping | str = "plain",
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(in_channels, grid, init_cfg)
        self.classes, self.convolved_grid = tuple(classes), self.grid.coarser(upscale)
        self.criterion = CenterCriterion.build(criterion, "criterion")
        self.decoding = PeakDecoding.build(decoding, "decoding")
        code_weights = torch.tensor(self.criterion.code_weights, dtype=torch.float32)
        self.register_buffer("code_weights", code_weights, persistent=False)
        self.register_buffer("nms_radii", nms_radii(self.decoding.nms_radius_m, self.classes), persistent=False)
        self.shared = ConvNormReLU(in_channels, channels, conv=conv)
        self.heatmap = self._branch(channels, len(self.classes), upscale, conv)
        self.box = self._branch(channels, BOX_CODE_SIZE, upscale, conv)
        init_bias(self.heatmap[1], EMPTY_CELL_LOGIT)

    @staticmethod
    def _branch(channels: int, values: int, upscale: int, conv: ConvType | Mapping | str) -> nn.Sequential:
        return nn.Sequential(
            ConvNormReLU(channels, channels, conv=conv),
            nn.Conv2d(channels, values * upscale**2, 1),
            nn.PixelShuffle(upscale),
        )

    def forward(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """``heatmap`` logits (B, K, Y, X) and ``box`` (B, 10, Y, X) on the head's grid."""
        features = self.shared(resample_bev(bev, self.convolved_grid))
        return {"heatmap": self.heatmap(features), "box": self.box(features)}

    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """``loss_heatmap`` and ``loss_box``, per true centre of all ranks; unknown (NaN) velocities count nothing.

        Args:
            raw: :meth:`forward`'s, ``heatmap`` logits (B, K, Y, X) and ``box`` (B, 10, Y, X).
            samples: B, with ``gt_instances_3d`` (:meth:`targets`).

        Returns:
            Two weighted scalars, and ``objects_beyond_grid``, the count of those that ask nothing.
        """
        device = raw["heatmap"].device
        heatmaps, cells, codes, shares = zip(*(self.targets(s.gt_instances_3d, device) for s in samples), strict=True)
        number = mean_across_ranks(float(sum(share.sum() for share in shares)), device).clamp_min(1.0)
        heatmap_loss = heatmap_focal_loss(raw["heatmap"], torch.stack(heatmaps)).sum() / number
        flat = raw["box"].flatten(2)
        predicted = torch.cat([boxes[:, cell].t() for boxes, cell in zip(flat, cells, strict=True)])
        target = torch.cat(codes)
        box_loss = masked_l1_loss(predicted, target, target.isfinite()) * self.code_weights
        box_loss = box_loss * torch.cat(shares).unsqueeze(1)
        return {
            "loss_heatmap": self.criterion.heatmap_weight * heatmap_loss,
            "loss_box": self.criterion.box_weight * box_loss.sum() / number,
            "objects_beyond_grid": self.objects_beyond_grid(
                [sample.gt_instances_3d.bboxes_3d.tensor.to(device) for sample in samples]
            ),
        }

    def targets(self, instances: InstanceData, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What one sample's true boxes ask of the head.

        Args:
            instances: ``bboxes_3d`` (LiDAR boxes, 9 values) and ``labels_3d``; boxes outside the grid ask nothing.

        Returns:
            heatmap (K, Y, X) in [0, 1]; of the R cells that learn a box: flat index (R,), box code (R, 10), NaN where
            unknown, and share (R,): those of one box sum to 1, near cells more than far ones. A cell between two boxes
            learns the nearer one's.
        """
        boxes = instances.bboxes_3d.tensor.to(device).float()
        inside = self.grid.contains(boxes[:, :2])
        boxes, labels = boxes[inside], instances.labels_3d.to(device)[inside]
        rows, columns = self.grid.shape
        place = self.grid.cells_from_metres(boxes[:, :2])
        corner = place.floor().long()
        cell_m = boxes.new_tensor(self.grid.cell_m).mean()
        footprint = (boxes[:, 3] * boxes[:, 4]).clamp_min(1e-4).sqrt() / cell_m
        sigma = (footprint / 6.0).clamp_min(self.criterion.min_sigma_cells)
        heatmap = gaussian_heatmap(corner, sigma, labels, (len(self.classes), rows, columns))
        rest = encode_boxes(boxes)[:, [4, 2, 3, 5, 6, 7, 8, 9]]  # all but the place, the centre's height first
        one_map = torch.zeros_like(labels)  # the box branch does not tell classes apart
        around = positive_cells(place, one_map, (1, rows, columns), self.criterion.reach_cells)
        code = torch.cat([around.offsets, rest[around.points]], dim=1)
        return heatmap, around.cells, code, around.shares

    @torch.no_grad()
    def predict(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> list[dict[str, object]]:
        """``pred_instances_3d`` per sample: ``bboxes_3d`` (R, 9) LiDAR boxes, ``scores_3d`` (R,), ``labels_3d`` (R,).

        Args:
            raw: :meth:`forward`'s, ``heatmap`` logits (B, K, Y, X) and ``box`` (B, 10, Y, X).
            samples: B; not read.
        """
        scores = heatmap_nms(raw["heatmap"].float().sigmoid())
        boxes = raw["box"].float().flatten(2)
        return [{"pred_instances_3d": self._decode(s, b)} for s, b in zip(scores, boxes, strict=True)]

    def _decode(self, scores: Tensor, boxes: Tensor) -> InstanceData:
        """Boxes of one sample from its peaks (K, Y, X) and the codes of its flat cells (10, Y * X)."""
        rows, columns = self.grid.shape
        best, index = scores.flatten().topk(min(4 * self.decoding.max_num, scores.numel()))
        kept = best > self.decoding.score_threshold
        best, index = best[kept], index[kept]
        label, cell = index // (rows * columns), index % (rows * columns)
        code = boxes[:, cell].t()
        place = torch.stack([cell % columns, cell // columns], -1) + 0.5 + code[:, :2]
        xy = self.grid.metres_from_cells(place)
        size = code[:, 3:6].clamp(-5, 5)
        code = torch.cat([xy, size[:, :2], code[:, 2:3], size[:, 2:], code[:, 6:]], dim=1)
        keep = circle_nms(xy, label, self.nms_radii[label])[: self.decoding.max_num]
        tensor = bottom_centred(decode_boxes(code))[keep]
        return InstanceData(bboxes_3d=lidar_boxes(tensor), scores_3d=best[keep], labels_3d=label[keep])
