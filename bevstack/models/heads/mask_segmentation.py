"""Mask classification on B_t: queries times cell embeddings give masks, instances of things and stuff alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.geometry import BEVGrid
from bevstack.geometry.transforms import full_precision
from bevstack.losses.dense import dice_loss
from bevstack.losses.functional import mean_across_ranks, sigmoid_focal_loss
from bevstack.losses.masks import mask_focal_loss, no_object_cross_entropy
from bevstack.losses.matching import (
    FocalClassCost,
    HungarianMatcher,
    MaskDiceCost,
    MaskFocalCost,
    MatchCost,
    SoftmaxClassCost,
)
from bevstack.models.heads.base import BEVHead
from bevstack.models.heads.mask_segmentation_decoding import MaskDecoding, instances_of, segments_of
from bevstack.models.heads.mask_segmentation_targets import MaskCriterion, sample_cells, target_panoptic
from bevstack.models.layers.conv import ConvNormReLU
from bevstack.models.layers.detr_decoder import inverse_sigmoid
from bevstack.models.layers.mask_decoder import FourierEncoding, MaskDecoderLayer, MaskDecoderSize
from bevstack.models.layers.settings import Settings
from bevstack.ops.linear import Linear
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVFeatures, PanopticMap

BLOB = 0.3
"""Weight of every frequency in an untrained mask."""
CELL_PRIOR, CLASS_PRIOR = 0.05, 0.01
"""Probability of a cell far from an untrained query's place, and of a class under ``focal``."""


@dataclass(frozen=True)
class PixelDecoderSize(Settings):
    """Size of what makes the embeddings of cells.

    Args:
        channels: E of the cell embeddings and width of the convolutions before them.
        num_convs: 3 x 3 convolutions on B_t.

    Raises:
        ValueError: no convolution.
    """

    channels: int = 64
    num_convs: int = 2

    def __post_init__(self) -> None:
        if self.num_convs < 1:
            raise ValueError(f"num_convs ({self.num_convs}): at least 1")


@MODELS.register_module()
class MaskSegmentationHead(BEVHead):
    """Panoptic BEV segmentation as MaskFormer does it (Cheng et al. 2021), masked attention as in Mask2Former (2022).

    Q queries look at B_t; each answers with a class, or none, and an embedding whose product with the embedding of
    every cell is its mask. Beside what it looks like a cell's embedding has where it is (:class:`FourierEncoding`), and
    a query has a place, refined from layer to layer, around which its mask starts as a blob: without that, queries
    need very long to tell equal objects apart (Conditional DETR, Meng et al. 2021). Truth is ``gt_panoptic``.

    Args:
        in_channels, grid: see :class:`BEVHead`; masks lie on the head's grid, convolutions run on that of B_t.
        things, stuff: class names, as :class:`bevstack.datasets.transforms.MakePanopticMap` has them; K together.
        channels: C of the queries.
        num_queries: Q.
        pixel_decoder: a :class:`PixelDecoderSize` or its values.
        decoder: a :class:`MaskDecoderSize` or its values; its tokens are made of cells of the head's grid.
        criterion: a :class:`MaskCriterion` or its values.
        decoding: a :class:`MaskDecoding` or its values.

    Raises:
        ValueError: an argument does not fit another.
    """

    cell_codes: Tensor
    token_codes: Tensor

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid | Mapping,
        things: Sequence[str],
        stuff: Sequence[str],
        channels: int = 96,
        num_queries: int = 100,
        pixel_decoder: PixelDecoderSize | Mapping | None = None,
        decoder: MaskDecoderSize | Mapping | None = None,
        criterion: MaskCriterion | Mapping | None = None,
        decoding: MaskDecoding | Mapping | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(in_channels, grid, init_cfg)
        if set(things) & set(stuff):
            raise ValueError(f"{sorted(set(things) & set(stuff))} cannot be things and stuff")
        self.things, self.stuff = tuple(things), tuple(stuff)
        pixels, size = PixelDecoderSize.build(pixel_decoder, "pixel_decoder"), MaskDecoderSize.build(decoder, "decoder")
        self.criterion = MaskCriterion.build(criterion, "criterion")
        self.decoding = MaskDecoding.build(decoding, "decoding")
        self.masked_attention, self.mask_channels = size.masked_attention, pixels.channels
        softmax, count = self.criterion.classification == "softmax", len(self.things) + len(self.stuff)
        costs: list[MatchCost] = [(SoftmaxClassCost if softmax else FocalClassCost)(self.criterion.class_weight)]
        costs += [MaskFocalCost(self.criterion.focal_weight), MaskDiceCost(self.criterion.dice_weight)]
        self.matcher = HungarianMatcher(costs)

        widths = [in_channels] + [pixels.channels] * pixels.num_convs
        self.convs = nn.Sequential(*(ConvNormReLU(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)))
        self.cell_embedding = nn.Conv2d(pixels.channels, pixels.channels, 1)
        self.token_proj = Linear(pixels.channels, channels)
        self.encoding = FourierEncoding()
        codes = 4 * self.encoding.num_frequencies
        self.position = Linear(codes, channels)
        self.queries = nn.Parameter(torch.randn(num_queries, channels))
        self.reference_points = nn.Parameter(inverse_sigmoid(_spread_places(num_queries)))
        self.layers = nn.ModuleList(MaskDecoderLayer(channels, size) for _ in range(size.num_layers))
        self.reference_updates = nn.ModuleList(Linear(channels, 2) for _ in range(size.num_layers))
        self.norm = nn.LayerNorm(channels)
        self.classifier = Linear(channels, count + softmax)
        self.mask_embedding = nn.Sequential(
            Linear(channels, channels),
            nn.ReLU(),
            Linear(channels, pixels.channels + 2 * self.encoding.num_frequencies + 1),
        )
        rows, columns = (-(-length // size.token_stride) for length in self.grid.shape)
        self.token_shape = (rows, columns)
        places = self.encoding(self.grid.normalized_from_metres(self.grid.cell_centers())).permute(2, 0, 1)
        self.register_buffer("cell_codes", places.contiguous(), persistent=False)
        pooled = F.adaptive_avg_pool2d(places.unsqueeze(0), self.token_shape)[0]
        self.register_buffer("token_codes", pooled, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Starting values: masks are blobs around the queries' places, sigmoid classes have a small probability."""
        with torch.no_grad():
            output = cast(nn.Linear, self.mask_embedding[-1])
            output.weight.mul_(0.1)
            output.bias.zero_()
            output.bias[self.mask_channels : -1] = BLOB
            output.bias[-1] = -_odds(CELL_PRIOR)
            if self.criterion.classification == "focal":
                self.classifier.bias.fill_(-_odds(CLASS_PRIOR))
            for parameter in self.reference_updates.parameters():
                parameter.zero_()

    def forward(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """Ask every query for its class and mask.

        Returns:
            ``logits`` (B, D, Q, K + 1), "no object" last, or (B, D, Q, K) with sigmoids; ``mask_embeddings`` (B, D, Q,
            E + 4 F + 1) and ``cell_embeddings`` (B, E, Y, X) for :meth:`mask_logits`; all float32. With masked
            attention D counts one more: the answers that the queries give before they looked, the masks of the first
            layer's attention.
        """
        features = self.resampled(BEVFeatures(self.convs(bev.features), bev.grid))
        cells = self.cell_embedding(features).float()
        values = self.token_proj(F.adaptive_avg_pool2d(features, self.token_shape).flatten(2).transpose(1, 2))
        keys = values + self.position(self.token_codes.flatten(1).T)
        # Embeddings and codes are averaged, not masks: the product is linear, so that both are the same.
        pooled = F.adaptive_avg_pool2d(cells.detach(), self.token_shape) if self.masked_attention else None

        queries = self.queries.expand(len(cells), -1, -1)
        places = self.reference_points.sigmoid().expand(len(cells), -1, -1)
        answers = [self._answer(queries, places)] if self.masked_attention else []
        for layer, update in zip(self.layers, self.reference_updates, strict=True):
            seen = None
            if pooled is not None:
                seen = self._product(answers[-1][1].detach(), pooled, self.token_codes).flatten(2) > 0
            queries = layer(queries, self.position(self.encoding(places)), keys, values, seen)
            places = (inverse_sigmoid(places) + update(queries).float()).sigmoid()
            answers.append(self._answer(queries, places))
            places = places.detach()
        logits, embeddings = (torch.stack(parts, dim=1) for parts in zip(*answers, strict=True))
        return {"logits": logits, "mask_embeddings": embeddings, "cell_embeddings": cells}

    def _answer(self, queries: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, Q, K or K + 1) and mask embeddings (B, Q, E + 4 F + 1) of queries (B, Q, C)."""
        queries = self.norm(queries)
        answer = self.mask_embedding(queries).float()
        looks, weights, bias = answer.split([self.mask_channels, 2 * self.encoding.num_frequencies, 1], dim=-1)
        embedding = torch.cat([looks, self.encoding.spread(weights) * self.encoding(places), bias], dim=-1)
        return self.classifier(queries).float(), embedding

    def mask_logits(self, embeddings: Tensor, cells: Tensor) -> Tensor:
        """Masks of queries on the head's grid.

        Args:
            embeddings: (..., M, E + 4 F + 1) of ``mask_embeddings``.
            cells: (..., E, Y, X) of ``cell_embeddings``.

        Returns:
            (..., M, Y, X) float32 logits.
        """
        return self._product(embeddings, cells, self.cell_codes)

    def _product(self, embeddings: Tensor, cells: Tensor, codes: Tensor) -> Tensor:
        """Embeddings (..., M, E + 4 F + 1), cells' (..., E, Y, X) and codes (4 F, Y, X) to logits (..., M, Y, X)."""
        looks, where, bias = embeddings.split([self.mask_channels, len(codes), 1], dim=-1)
        with full_precision(cells):
            masks = looks.float() @ cells.float().flatten(-2) + where.float() @ codes.flatten(1) + bias.float()
        return masks.unflatten(-1, codes.shape[-2:])

    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """Losses of every decoder layer against ``gt_panoptic``.

        Args:
            raw: :meth:`forward`'s, ``logits`` (B, D, Q, K + 1), ``mask_embeddings`` (B, D, Q, E + 4 F + 1) and
                ``cell_embeddings`` (B, E, Y, X).
            samples: B, with ``gt_panoptic`` on the head's grid.

        Returns:
            Scalars: ``loss_class``, ``loss_focal`` and ``loss_dice`` of the last layer, ``d<i>.loss_class`` and so on
            of the others. Focal loss is the mean over a mask's cells; both it and Dice are means over matched segments.

        Raises:
            InputError: a sample has no ``gt_panoptic``, or one of other classes or on another grid.
        """
        maps = target_panoptic(samples, self.things, self.stuff, self.grid)
        maps = [panoptic.to(raw["logits"].device) for panoptic in maps]
        targets = [self.targets(panoptic) for panoptic in maps]
        matched = self.match(raw, targets)  # (B, D, Q)
        labels = [torch.cat([panoptic.labels, panoptic.labels.new_full((1,), -1)]) for panoptic in maps]
        target_labels = torch.stack([label[index] for label, index in zip(labels, matched, strict=True)])
        number = sum(min(len(panoptic), matched.shape[2]) for panoptic in maps)
        count = mean_across_ranks(number, matched.device).clamp_min(1)

        focal, dice = (raw["logits"].new_zeros(matched.shape[1]) for _ in range(2))
        for sample, target in enumerate(targets):
            layer, query = torch.nonzero(matched[sample] >= 0, as_tuple=True)
            predicted = self._masks_at(raw["mask_embeddings"][sample, layer, query], raw, sample, target["cells"])
            truth = target["masks"][matched[sample, layer, query]].to(predicted)
            focal = focal.index_add(0, layer, mask_focal_loss(predicted, truth, target["weights"]))
            dice = dice.index_add(0, layer, dice_loss(predicted, truth, target["weights"]))

        losses: dict[str, Tensor] = {}
        last = matched.shape[1] - 1
        for index in range(last + 1):
            prefix = "" if index == last else f"d{index}."
            class_loss = self._class_loss(raw["logits"][:, index], target_labels[:, index], count)
            losses[f"{prefix}loss_class"] = self.criterion.class_weight * class_loss
            losses[f"{prefix}loss_focal"] = self.criterion.focal_weight * focal[index] / count
            losses[f"{prefix}loss_dice"] = self.criterion.dice_weight * dice[index] / count
        return losses

    def _class_loss(self, logits: Tensor, labels: Tensor, count: Tensor) -> Tensor:
        """A scalar, of one layer's logits (B, Q, K or K + 1) and labels (B, Q), -1 for none."""
        if self.criterion.classification == "softmax":
            return no_object_cross_entropy(logits, labels, self.criterion.no_object_weight)
        return sigmoid_focal_loss(logits, labels).sum() / count

    def targets(self, panoptic: PanopticMap) -> dict[str, Tensor]:
        """What queries are compared with: ``labels`` (S,), and of P ``cells``, which also have ``weights`` (P,), the
        segments' ``masks`` (S, P) bool."""
        cells, weights = sample_cells(panoptic, self.criterion.sampled_cells)
        owners = panoptic.segments.flatten()[cells]
        masks = torch.arange(len(panoptic), device=cells.device)[:, None] == owners
        return {"labels": panoptic.labels, "masks": masks, "cells": cells, "weights": weights}

    def _masks_at(self, embeddings: Tensor, raw: dict[str, Tensor], sample: int, cells: Tensor) -> Tensor:
        """Logits (..., P) of some cells (P,) of a sample's masks, of embeddings (..., E + 4 F + 1)."""
        looks = raw["cell_embeddings"][sample].flatten(1)[:, None, cells]
        return self._product(embeddings, looks, self.cell_codes.flatten(1)[:, None, cells]).squeeze(-2)

    @torch.no_grad()
    def match(self, raw: dict[str, Tensor], targets: Sequence[dict[str, Tensor]]) -> Tensor:
        """(B, D, Q) number of the segment that each query of each layer stands for, -1 for none."""
        predictions = []
        for sample, target in enumerate(targets):
            masks = self._masks_at(raw["mask_embeddings"][sample], raw, sample, target["cells"])
            predictions.append({"logits": raw["logits"][sample], "masks": masks})
        return self.matcher(predictions, targets)

    @torch.no_grad()
    def predict(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> list[dict[str, object]]:
        """What the last layer says.

        Returns:
            a sample's ``pred_panoptic`` (:class:`bevstack.structures.PanopticMap`) and ``pred_masks``: the instances of
            things, best first, whose ``masks`` (n, Y, X) bool may overlap, with ``scores`` and ``labels``.
        """
        results, softmax, decoding = [], self.criterion.classification == "softmax", self.decoding
        for logits, embeddings, cells, _ in zip(
            raw["logits"][:, -1], raw["mask_embeddings"][:, -1], raw["cell_embeddings"], samples, strict=True
        ):
            masks = self.mask_logits(embeddings, cells).sigmoid()
            logits = logits.float()
            scores = logits.softmax(-1)[:, :-1] if softmax else logits.sigmoid()
            found, confidences, labels = instances_of(scores[:, : len(self.things)], masks, decoding.max_num)
            segments, answered = segments_of(
                scores, masks, len(self.things), decoding.object_threshold, decoding.overlap_threshold
            )
            panoptic = PanopticMap(segments, answered[:, 0], answered[:, 1], self.things, self.stuff, self.grid)
            instances = InstanceData(masks=found, scores=confidences, labels=labels)
            results.append({"pred_panoptic": panoptic, "pred_masks": instances})
        return results


def _odds(probability: float) -> float:
    """Logarithm of the odds against a probability in (0, 1)."""
    return math.log((1 - probability) / probability)


def _spread_places(count: int) -> Tensor:
    """(count, 2) fractions spread evenly over a square: the R2 sequence (Roberts 2018)."""
    plastic = 1.32471795724474602596
    steps = torch.arange(1, count + 1, dtype=torch.float64).unsqueeze(1)
    return (0.5 + steps * torch.tensor([1 / plastic, 1 / plastic**2], dtype=torch.float64)).frac().float()
