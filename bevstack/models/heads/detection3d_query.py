"""DETR-style 3D detection on B_t: learned queries, a deformable decoder, one-to-one matching, no suppression."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from bevstack.geometry import BEVGrid
from bevstack.geometry.box_code import BOX_CODE_SIZE, bottom_centred, decode_boxes, encode_boxes
from bevstack.geometry.transforms import full_precision
from bevstack.losses.functional import masked_l1_loss, mean_across_ranks, sigmoid_focal_loss
from bevstack.losses.matching import BoxL1Cost, FocalClassCost, HungarianMatcher, MatchCost
from bevstack.models.heads.base import BEVHead
from bevstack.models.layers.detr_decoder import DecoderSize, DETRDecoderLayer, inverse_sigmoid
from bevstack.models.layers.initialization import init_bias
from bevstack.models.layers.settings import Settings
from bevstack.ops.linear import Linear
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVFeatures
from bevstack.structures.boxes import lidar_boxes

UNKNOWN_TARGETS = ("value", "row")
LOWEST_THRESHOLD = 0.01
_ROUNDING_M = 1e-6


@dataclass(frozen=True)
class BoxCriterion(Settings):
    """What object queries are trained by: the losses' weights and the costs of matching queries to boxes.

    Args:
        class_weight, box_weight: weights of focal and L1 loss.
        code_weights: weights of the ten box values in the L1 loss.
        class_cost, box_cost: weights of focal and L1 cost in the matching; L1 runs on the first eight values.
        unknown_targets: what a target value that is not finite (an unknown velocity) takes out of the box loss: that
            ``value`` alone, or, as in the reference's head, the whole ``row``. A set of single key frames, where no
            velocity is known, teaches nothing but classes by ``row``; the reference's dataset writes 0 instead.

    Raises:
        ValueError: not ten code weights, or another word for unknown targets.
    """

    class_weight: float = 2.0
    box_weight: float = 0.25
    code_weights: Sequence[float] = (1, 1, 1, 1, 1, 1, 1, 1, 0.2, 0.2)
    class_cost: float = 2.0
    box_cost: float = 0.25
    unknown_targets: str = "value"

    def __post_init__(self) -> None:
        if len(self.code_weights) != BOX_CODE_SIZE:
            raise ValueError(f"code_weights: {len(self.code_weights)} values, a box code has {BOX_CODE_SIZE}")
        if self.unknown_targets not in UNKNOWN_TARGETS:
            raise ValueError(f"unknown_targets: {self.unknown_targets!r} is none of {', '.join(UNKNOWN_TARGETS)}")


@dataclass(frozen=True)
class BoxDecoding(Settings):
    """How boxes are read from the queries' answers.

    Args:
        max_num: most boxes a sample.
        score_threshold: boxes that score less are left out (:meth:`QueryDetectionHead.decode`); None keeps all.
        post_center_range_m: (x, y, z low, x, y, z high) of box centres that are kept; None keeps all.

    Raises:
        ValueError: a range that has not six values.
    """

    max_num: int = 300
    score_threshold: float | None = None
    post_center_range_m: Sequence[float] | None = (-61.2, -61.2, -10.0, 61.2, 61.2, 10.0)

    def __post_init__(self) -> None:
        if self.post_center_range_m is not None and len(self.post_center_range_m) != 6:
            raise ValueError(f"post_center_range_m: {len(self.post_center_range_m)} values, a range has 6")

    def require_whole(self, grid: BEVGrid) -> None:
        """Refuse a range that ends within the volume of a grid: boxes would be learned and then dropped.

        Raises:
            ValueError: names the axis and both ranges.
        """
        if self.post_center_range_m is None:
            return
        limits = [float(value) for value in self.post_center_range_m]
        volume = (grid.x_range_m, grid.y_range_m, grid.z_range_m)
        for axis, (low, high), lowest, highest in zip("xyz", volume, limits[:3], limits[3:], strict=True):
            if low < lowest - _ROUNDING_M or high > highest + _ROUNDING_M:
                reason = f"{axis} ends at ({lowest:g}, {highest:g}) m, the head's grid at ({low:g}, {high:g}) m"
                advice = "boxes beyond would be dropped; widen it, or set it to None"
                raise ValueError(f"decoding.post_center_range_m: {reason}: {advice}")


@MODELS.register_module()
class QueryDetectionHead(BEVHead):
    """BEVFormer's detection head (docs/reference.md 4.6, 4.8, Bottom and centre).

    The reference's GIoU term has weight 0 and does not exist here. Weights of the reference regress (w, l) and another
    yaw: see :mod:`bevstack.geometry.box_code` and docs/reference.md 4.7.

    Args:
        in_channels: C of B_t.
        grid: the volume that queries may live in: its ranges are the reference's ``pc_range``. It need not be the
            volume of B_t, whose own grid comes with it; its shape plays no part.
        classes: names of the K classes, in the order of the labels.
        channels: width of the queries, ``in_channels`` unless told.
        num_queries: Q.
        decoder: its size, a :class:`DecoderSize` or its values.
        criterion: a :class:`BoxCriterion` or its values.
        decoding: a :class:`BoxDecoding` or its values.
        prior_probability: class probability that an untrained head predicts.

    Raises:
        ValueError: an argument does not fit another; the grid reaches further than boxes are kept.
    """

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid | Mapping,
        classes: Sequence[str],
        channels: int | None = None,
        num_queries: int = 900,
        decoder: DecoderSize | Mapping | None = None,
        criterion: BoxCriterion | Mapping | None = None,
        decoding: BoxDecoding | Mapping | None = None,
        prior_probability: float = 0.01,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(in_channels, grid, init_cfg)
        channels, size = channels or in_channels, DecoderSize.build(decoder, "decoder")
        self.classes, self.prior_probability = tuple(classes), prior_probability
        self.criterion = BoxCriterion.build(criterion, "criterion")
        self.decoding = BoxDecoding.build(decoding, "decoding")
        self.decoding.require_whole(self.grid)
        code_weights = torch.tensor(self.criterion.code_weights, dtype=torch.float32)
        self.register_buffer("code_weights", code_weights, persistent=False)
        costs: list[MatchCost] = [FocalClassCost(self.criterion.class_cost), BoxL1Cost(self.criterion.box_cost)]
        self.matcher = HungarianMatcher(costs)

        self.query_positions = nn.Embedding(num_queries, channels)
        self.query_contents = nn.Embedding(num_queries, channels)
        self.reference_points = Linear(channels, 3)
        self.layers = nn.ModuleList(DETRDecoderLayer(channels, size, in_channels) for _ in range(size.num_layers))
        self.cls_branches = nn.ModuleList(_cls_branch(channels, len(self.classes)) for _ in range(size.num_layers))
        self.reg_branches = nn.ModuleList(_reg_branch(channels) for _ in range(size.num_layers))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The head's own starting values; its layers draw theirs when they are built."""
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)
        bias = -math.log((1 - self.prior_probability) / self.prior_probability)
        for branch in self.cls_branches:
            init_bias(list(branch.children())[-1], bias)

    def forward(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """Look for boxes in B_t.

        Returns:
            ``logits`` (D, B, Q, K) and ``boxes`` (D, B, Q, 10), codes of :mod:`bevstack.geometry.box_code` in metres
            of the BEV frame, of each of the D decoder layers, float32.
        """
        tokens = bev.features.flatten(2).transpose(1, 2)
        positions = self.query_positions.weight.unsqueeze(0).expand(len(tokens), -1, -1)
        queries = self.query_contents.weight.unsqueeze(0).expand(len(tokens), -1, -1)
        references = _in_full_precision(self.reference_points, positions).sigmoid()
        all_logits, all_boxes = [], []
        for layer, cls_branch, reg_branch in zip(self.layers, self.cls_branches, self.reg_branches, strict=True):
            where = self._fractions_of(bev.grid, references[..., :2])
            queries = layer(queries, positions, where, tokens, (bev.grid.shape,))
            update = _in_full_precision(reg_branch, queries)
            centres = (update[..., [0, 1, 4]] + inverse_sigmoid(references)).sigmoid()
            all_logits.append(cls_branch(queries).float())
            all_boxes.append(self._box_code(centres, update))
            references = centres.detach()
        return {"logits": torch.stack(all_logits), "boxes": torch.stack(all_boxes)}

    def _fractions_of(self, grid: BEVGrid, references: Tensor) -> Tensor:
        """Fractions (..., 2) of this head's volume as fractions of another grid."""
        if grid.x_range_m == self.grid.x_range_m and grid.y_range_m == self.grid.y_range_m:
            return references
        low = references.new_tensor([self.grid.x_range_m[0], self.grid.y_range_m[0]])
        return grid.normalized_from_metres(references * references.new_tensor(self.grid.size_m) + low)

    def _box_code(self, centres: Tensor, update: Tensor) -> Tensor:
        """Centres (..., 3) as fractions of the volume and what the branch said of the rest, as a code in metres."""
        ranges = centres.new_tensor([self.grid.x_range_m, self.grid.y_range_m, self.grid.z_range_m])
        centres = centres * (ranges[:, 1] - ranges[:, 0]) + ranges[:, 0]
        return torch.cat([centres[..., :2], update[..., 2:4], centres[..., 2:], update[..., 5:]], dim=-1)

    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """Focal and L1 loss of every decoder layer against ``gt_instances_3d``.

        Args:
            raw: :meth:`forward`'s, ``logits`` (D, B, Q, K) and ``boxes`` (D, B, Q, 10).
            samples: B, with ``gt_instances_3d``: LiDAR boxes (G, 9), velocity NaN where unknown, and labels (G,).

        Returns:
            Scalars: ``loss_cls`` and ``loss_bbox`` of the last layer, ``d<i>.loss_cls`` and ``d<i>.loss_bbox`` of the
            others; ``unknown_target_values``, the count of matched target values that were left out, and
            ``objects_beyond_grid``, which no query can reach.
        """
        boxes = [sample.gt_instances_3d.bboxes_3d.tensor for sample in samples]
        return self.loss_of_boxes(raw, boxes, [sample.gt_instances_3d.labels_3d for sample in samples])

    def loss_of_boxes(
        self, raw: dict[str, Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """:meth:`loss` on plain tensors: a sample's boxes (G, 9), velocity NaN where unknown, and labels (G,).

        Raises:
            ValueError: a label is not one of the head's classes.
        """
        logits, codes = raw["logits"], raw["boxes"]
        device = logits.device
        boxes = [box.to(device, torch.float32).reshape(-1, 9) for box in boxes]
        labels = [label.to(device, torch.long) for label in labels]
        matched = self.match(raw, boxes, labels)

        # Every query's target; the extra last row is the background that unmatched queries (index -1) point at.
        first = torch.tensor([0, *(len(label) for label in labels)][:-1], device=device).cumsum(0)
        index = torch.where(matched >= 0, matched + first[:, None, None], -1).transpose(0, 1)
        target_labels = torch.cat([*labels, labels[0].new_full((1,), -1)])[index]
        target_codes = torch.cat([encode_boxes(torch.cat(boxes)), codes.new_zeros(1, BOX_CODE_SIZE)])[index]
        is_matched, known = (index >= 0).unsqueeze(-1), target_codes.isfinite()
        known = known if self.criterion.unknown_targets == "value" else known.all(-1, keepdim=True).expand_as(known)
        used = is_matched & known

        number = sum(min(len(label), logits.shape[2]) for label in labels)
        count = mean_across_ranks(number, device).clamp_min(1)
        focal = sigmoid_focal_loss(logits, target_labels).sum((1, 2, 3))
        distance = (masked_l1_loss(codes, target_codes, used) * self.code_weights).sum((1, 2, 3))
        unknown = (is_matched & ~used)[-1].sum().float()
        losses = {"unknown_target_values": unknown, "objects_beyond_grid": self.objects_beyond_grid(boxes)}
        last = len(logits) - 1
        for layer in range(len(logits)):
            prefix = "" if layer == last else f"d{layer}."
            losses[f"{prefix}loss_cls"] = self.criterion.class_weight * focal[layer] / count
            losses[f"{prefix}loss_bbox"] = self.criterion.box_weight * distance[layer] / count
        return losses

    def match(self, raw: dict[str, Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Tensor:
        """(B, D, Q) index of the box that each query of each layer stands for, -1 for none.

        Raises:
            ValueError: a label is not one of the head's classes.
        """
        every_label = torch.cat(list(labels))
        if every_label.numel():
            low, high = torch.stack(every_label.aminmax()).tolist()
            if low < 0 or high >= len(self.classes):
                raise ValueError(f"labels from {low} to {high} do not fit {len(self.classes)} classes")
        predictions = [{"logits": raw["logits"][:, b], "boxes": raw["boxes"][:, b]} for b in range(len(boxes))]
        targets = [{"labels": label, "boxes": encode_boxes(box)} for label, box in zip(labels, boxes, strict=True)]
        return self.matcher(predictions, targets)

    @torch.no_grad()
    def predict(
        self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]
    ) -> list[dict[str, InstanceData]]:
        """Boxes of the last decoder layer, best first.

        Args:
            raw: :meth:`forward`'s, ``logits`` (D, B, Q, K) and ``boxes`` (D, B, Q, 10).
            samples: B; only counted.

        Returns:
            ``pred_instances_3d`` per sample: ``bboxes_3d`` (R, 9) LiDAR boxes, ``scores_3d`` (R,), ``labels_3d`` (R,).
        """
        results = []
        for logits, codes, _ in zip(raw["logits"][-1], raw["boxes"][-1], samples, strict=True):
            boxes, scores, labels = self.decode(logits, codes)
            instances = InstanceData(bboxes_3d=lidar_boxes(boxes), scores_3d=scores, labels_3d=labels)
            results.append({"pred_instances_3d": instances})
        return results

    def decode(self, logits: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of query and class of one sample, best first (a query may give several classes).

        Where no score passes ``score_threshold`` it is lowered by tenths (times 0.9) until one does; below 0.01 all
        pass.

        Args:
            logits: (Q, K).
            codes: (Q, 10).

        Returns:
            LiDAR boxes (R, 9) (:mod:`bevstack.geometry.boxes3d`), scores (R,) and labels (R,); R <= max_num. The range
            is that of their centres of gravity.
        """
        scores, index = logits.float().sigmoid().flatten().topk(min(self.decoding.max_num, logits.numel()))
        labels = index % logits.shape[-1]
        boxes = decode_boxes(codes.float()[index.div(logits.shape[-1], rounding_mode="floor")])
        keep = torch.ones_like(scores, dtype=torch.bool)
        if self.decoding.post_center_range_m is not None:
            limits = boxes.new_tensor(self.decoding.post_center_range_m)
            keep = (boxes[:, :3] >= limits[:3]).all(-1) & (boxes[:, :3] <= limits[3:]).all(-1)
        if self.decoding.score_threshold is not None:
            keep = keep & _passing(scores, self.decoding.score_threshold)
        return bottom_centred(boxes[keep]), scores[keep], labels[keep]


def _passing(scores: Tensor, threshold: float) -> Tensor:
    """(R,) bool: which scores (R,) pass; the threshold falls until one does."""
    passing = scores > threshold
    while not passing.any():
        threshold *= 0.9
        if threshold < LOWEST_THRESHOLD:
            return torch.ones_like(passing)
        passing = scores >= threshold
    return passing


def _in_full_precision(module: nn.Module, tokens: Tensor) -> Tensor:
    """(..., C) to (..., C'), under autocast, too: a place in bfloat16 is good to half a metre only."""
    with full_precision(tokens):
        return module(tokens.to(next(module.parameters()).dtype)).float()


def _cls_branch(channels: int, num_classes: int) -> nn.Sequential:
    hidden = [m for _ in range(2) for m in (Linear(channels, channels), nn.LayerNorm(channels), nn.ReLU())]
    return nn.Sequential(*hidden, Linear(channels, num_classes))


def _reg_branch(channels: int) -> nn.Sequential:
    hidden = [m for _ in range(2) for m in (Linear(channels, channels), nn.ReLU())]
    return nn.Sequential(*hidden, Linear(channels, BOX_CODE_SIZE))
