"""Dense 3D detection: a heatmap of centres per class and a box at each (CenterPoint, Yin et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.geometry import BEVGrid
from bevstack.geometry.box_code import BOX_CODE_SIZE, bottom_centred, decode_boxes, encode_boxes
from bevstack.losses.dense import heatmap_focal_loss
from bevstack.losses.functional import heading_bin_loss, masked_l1_loss, mean_across_ranks
from bevstack.models.heads.base import BEVHead, resample_bev
from bevstack.models.heads.detection3d_dense_outputs import (
    HEADING,
    VELOCITY,
    CenterDecoding,
    CenterOutputs,
    box_codes,
    localisation_quality,
)
from bevstack.models.layers.conv import ConvNormReLU, ConvType, SubcellConvolution
from bevstack.models.layers.heatmaps import (
    EMPTY_CELL_LOGIT,
    HeatmapCriterion,
    circle_nms,
    gaussian_heatmap,
    heatmap_nms,
    nms_radii,
    positive_cells,
)
from bevstack.models.layers.initialization import init_bias
from bevstack.models.layers.temperature import tempered
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
            (x, y) in metres per second. Those of values that the head's ``outputs`` learn otherwise are not read.
        heading_weight: of the loss of heading bins (:func:`bevstack.losses.functional.heading_bin_loss`).
        moving_weight: of the cross-entropy of moving or standing.
        moving_speed_mps: above this true speed an object moves.
        velocity_weight: of the L1 loss of moving objects' velocity, where whether they move is an output.
        quality_weight: of the cross-entropy of quality.
        quality_scale_m: true quality is exp(-distance / scale), 0 where no object of the class is there.
        quality_peaks: so many best peaks of a sample learn their quality.

    Raises:
        ValueError: not ten code weights.
    """

    box_weight: float = 0.25
    code_weights: Sequence[float] = (1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2)
    heading_weight: float = 0.15
    moving_weight: float = 0.25
    moving_speed_mps: float = 0.5
    velocity_weight: float = 0.25
    quality_weight: float = 0.5
    quality_scale_m: float = 2.0
    quality_peaks: int = 100

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
        decoding: a :class:`CenterDecoding` or its values.
        upscale: the convolutions run on cells that are so many times longer and wider than the grid's, and the last
            one predicts ``upscale`` x ``upscale`` cells at each (Shi et al. 2016, sub-pixel convolution).
        conv: kind of the 3 x 3 convolutions (:class:`bevstack.models.layers.conv.ConvType`).
        outputs: what is predicted at a centre beside its box: a :class:`CenterOutputs` or its values.
        common: the finer cells of ``upscale`` have weights in common
            (:class:`bevstack.models.layers.conv.SubcellConvolution`): rare classes are learned sooner.

    Raises:
        ValueError: ``common`` without an ``upscale`` of 2 or more.
    """

    class_layers = ("heatmap.1", "heatmap.1.common")

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid | Mapping,
        classes: Sequence[str],
        channels: int = 64,
        criterion: CenterCriterion | Mapping | None = None,
        decoding: CenterDecoding | Mapping | None = None,
        upscale: int = 1,
        conv: ConvType | Mapping | str = "plain",
        outputs: CenterOutputs | Mapping | None = None,
        common: bool = False,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(in_channels, grid, init_cfg)
        self.classes, self.convolved_grid = tuple(classes), self.grid.coarser(upscale)
        self.criterion = CenterCriterion.build(criterion, "criterion")
        self.decoding = CenterDecoding.build(decoding, "decoding")
        self.outputs = CenterOutputs.build(outputs, "outputs")
        code_weights = torch.tensor(self.criterion.code_weights, dtype=torch.float32)
        self.register_buffer("code_weights", code_weights, persistent=False)
        self.register_buffer("nms_radii", nms_radii(self.decoding.nms_radius_m, self.classes), persistent=False)
        self.shared = ConvNormReLU(in_channels, channels, conv=conv)
        state_values = sum(self.outputs.channels.values())

        def branch(values: int) -> nn.Sequential:
            block = ConvNormReLU(channels, channels, conv=conv)
            if common:
                return nn.Sequential(block, SubcellConvolution(channels, values, upscale))
            return nn.Sequential(block, nn.Conv2d(channels, values * upscale**2, 1), nn.PixelShuffle(upscale))

        self.heatmap = branch(len(self.classes))
        self.box = branch(len(self.outputs.regressed))
        self.state = branch(state_values) if state_values else None
        init_bias(self.heatmap.get_submodule("1.common" if common else "1"), EMPTY_CELL_LOGIT)

    def forward(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """Raw outputs on the head's grid.

        Returns:
            ``heatmap`` logits (B, K, Y, X) and ``box`` (B, 10, Y, X), the values of a box code, without those that
            ``outputs`` learn otherwise: ``heading`` (B, 2 n, Y, X), logits of n bins before their angles; ``motion``
            (B, 3, Y, X), logit of moving before velocity; ``quality`` logits (B, 1, Y, X).
        """
        features = self.shared(resample_bev(bev, self.convolved_grid))
        raw = {"heatmap": self.heatmap(features), "box": self.box(features)}
        if self.state is not None:
            names, channels = zip(*self.outputs.channels.items(), strict=True)
            raw |= dict(zip(names, self.state(features).split(channels, dim=1), strict=True))
        return raw

    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """Losses per true centre of all ranks; what is not known (NaN: a velocity, a heading) counts nothing.

        Args:
            raw: :meth:`forward`'s.
            samples: B, with ``gt_instances_3d`` (:meth:`targets`).

        Returns:
            Weighted scalars ``loss_heatmap`` and ``loss_box``; ``loss_heading`` with heading bins; ``loss_moving`` and
            ``loss_velocity`` (of moving objects alone) where moving is an output; ``loss_quality``, per peak;
            ``objects_beyond_grid``, the count of those that ask nothing.
        """
        device, criterion, outputs = raw["heatmap"].device, self.criterion, self.outputs
        heatmaps, cells, codes, shares = zip(*(self.targets(s.gt_instances_3d, device) for s in samples), strict=True)
        number = mean_across_ranks(float(sum(share.sum() for share in shares)), device).clamp_min(1.0)
        heatmap_loss = heatmap_focal_loss(raw["heatmap"], torch.stack(heatmaps)).sum() / number
        losses = {"loss_heatmap": criterion.heatmap_weight * heatmap_loss}
        target, share = torch.cat(codes), torch.cat(shares)

        def at_cells(name: str) -> Tensor:
            """(R, channels) of a raw output at the cells that learn."""
            return torch.cat([one[:, cell].t() for one, cell in zip(raw[name].flatten(2), cells, strict=True)])

        def per_centre(loss: Tensor) -> Tensor:
            """Sum of (R, ...) over cells by their share, and over values, per true centre."""
            return (loss * share.unsqueeze(1)).sum() / number

        wanted = target[:, outputs.regressed]
        error = masked_l1_loss(at_cells("box"), wanted, wanted.isfinite()) * self.code_weights[outputs.regressed]
        losses["loss_box"] = criterion.box_weight * per_centre(error)
        if outputs.heading_bins:
            logits, angles = at_cells("heading").chunk(2, dim=1)
            heading_loss = heading_bin_loss(logits, angles, torch.atan2(*target[:, HEADING].unbind(1)))
            losses["loss_heading"] = criterion.heading_weight * per_centre(heading_loss.unsqueeze(1))
        if outputs.moving:
            logit, velocity = at_cells("motion").float().split((1, 2), dim=1)
            speed = target[:, VELOCITY].norm(dim=1, keepdim=True)
            moves, known = speed > criterion.moving_speed_mps, speed.isfinite()  # what is not known does not move
            moving_loss = F.binary_cross_entropy_with_logits(logit, moves.float(), known.float(), reduction="none")
            losses["loss_moving"] = criterion.moving_weight * per_centre(moving_loss)
            velocity_loss = masked_l1_loss(velocity, target[:, VELOCITY], moves.expand(-1, 2))
            losses["loss_velocity"] = criterion.velocity_weight * per_centre(velocity_loss)
        if outputs.quality:
            losses["loss_quality"] = criterion.quality_weight * self._quality_loss(raw, samples)
        losses["objects_beyond_grid"] = self.objects_beyond_grid(
            [sample.gt_instances_3d.bboxes_3d.tensor.to(device) for sample in samples]
        )
        return losses

    def _quality_loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> Tensor:
        """Cross-entropy of ``quality`` at the best peaks of each sample with how near their places are to an object."""
        criterion, total = self.criterion, raw["quality"].new_zeros((), dtype=torch.float32)
        scores = heatmap_nms(raw["heatmap"].detach().float().sigmoid())
        for sample, score, box, quality in zip(samples, scores, raw["box"].detach(), raw["quality"], strict=True):
            true = sample.gt_instances_3d
            _, labels, cells = self._best_peaks(score, criterion.quality_peaks)
            places = self._places(cells, box.flatten(1)[:2, cells].t().float())
            true_places = true.bboxes_3d.tensor[:, :2].to(places)
            target = localisation_quality(
                places, labels, true_places, true.labels_3d.to(labels.device), criterion.quality_scale_m
            )
            logits = quality.flatten()[cells].float()
            total = total + F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        return total / (len(samples) * criterion.quality_peaks)

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
            raw: :meth:`forward`'s.
            samples: B; not read.
        """
        scores = heatmap_nms(raw["heatmap"].float().sigmoid())
        if self.outputs.quality:
            power = self.decoding.quality_power
            scores = scores.pow(1 - power) * raw["quality"].float().sigmoid().pow(power)
        at_centers = {name: raw[name].flatten(2) for name in ("box", *self.outputs.channels)}
        return [
            {"pred_instances_3d": self._decode(score, {name: value[b] for name, value in at_centers.items()})}
            for b, score in enumerate(scores)
        ]

    def _best_peaks(self, scores: Tensor, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Score, label and flat cell of the best ``number`` places of one sample's peaks (K, Y, X), best first."""
        rows, columns = self.grid.shape
        best, index = scores.flatten().topk(min(number, scores.numel()))
        return best, index // (rows * columns), index % (rows * columns)

    def _places(self, cells: Tensor, offsets: Tensor) -> Tensor:
        """(D, 2) metres of centres at flat cells (D,) with offsets (D, 2) in cells."""
        columns = self.grid.shape[1]
        return self.grid.metres_from_cells(torch.stack([cells % columns, cells // columns], -1) + 0.5 + offsets)

    def _decode(self, scores: Tensor, at_centers: dict[str, Tensor]) -> InstanceData:
        """Boxes of one sample from its peaks (K, Y, X) and its outputs at flat cells (channels, Y * X)."""
        best, label, cell = self._best_peaks(scores, 4 * self.decoding.max_num)
        kept = best > self.decoding.score_threshold
        best, label, cell = best[kept], label[kept], cell[kept]
        at_cells = {name: value[:, cell].t() for name, value in at_centers.items()}
        code = box_codes(at_cells, self.outputs, self.decoding.velocity)
        xy = self._places(cell, code[:, :2])
        size = code[:, 3:6].clamp(-5, 5)
        code = torch.cat([xy, size[:, :2], code[:, 2:3], size[:, 2:], code[:, 6:]], dim=1)
        keep = circle_nms(xy, label, self.nms_radii[label])[: self.decoding.max_num]
        tensor = bottom_centred(decode_boxes(code))[keep]
        scores = tempered(best[keep], self.decoding.temperature)
        return InstanceData(bboxes_3d=lidar_boxes(tensor), scores_3d=scores, labels_3d=label[keep])
