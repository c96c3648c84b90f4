"""Oriented poses from above: heatmaps of six keypoints, grouped around centres (CenterNet, Zhou et al. 2019, sec. 4.2).

Bottom-up heatmaps say precisely where keypoints are, but not whose; vectors from each centre say whose, but roughly.
A keypoint is where its centre's vector points, moved to the heatmap's peak there, if there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn

from bevstack.geometry import BEVGrid
from bevstack.geometry.keypoints import NUM_KEYPOINTS, box_poses, fit_poses, pose_keypoints
from bevstack.losses.dense import heatmap_focal_loss
from bevstack.losses.functional import mean_across_ranks
from bevstack.models.heads.base import BEVHead
from bevstack.models.layers.conv import ConvNormReLU
from bevstack.models.layers.heatmaps import (
    EMPTY_CELL_LOGIT,
    HeatmapCriterion,
    PeakDecoding,
    PositiveCells,
    circle_nms,
    gaussian_heatmap,
    heatmap_nms,
    nms_radii,
    positive_cells,
)
from bevstack.models.layers.initialization import init_bias
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVFeatures

_AROUND = NUM_KEYPOINTS - 1  # the keypoints that are not the centre


class KeypointTargets(NamedTuple):
    """What one sample's G objects ask of the head; keypoints in the order of ``KEYPOINT_NAMES``.

    Args:
        heatmap: (K, Y, X) of the centres; keypoint_heatmap: (5, Y, X) of the others, whatever their class.
        inside: (G, 6) bool, False for keypoints off the grid, which have no place.
        positives: the cells of maps (6, Y, X) that learn the keypoints' places; its points are g * 6 + kind, its
            offsets go from the cell's centre to the keypoint (x, y) in cells.
        vectors: (G, 5, 2) from the centre to the others, in metres; learned where the centre's place is.
    """

    heatmap: Tensor
    keypoint_heatmap: Tensor
    inside: Tensor
    positives: PositiveCells
    vectors: Tensor


@dataclass(frozen=True)
class PoseCriterion(HeatmapCriterion):
    """What poses are trained by; see also :class:`HeatmapCriterion`, whose sigma and reach hold for all keypoints.

    Args:
        keypoint_heatmap_weight, offset_weight, vector_weight: of the losses beside the centres'.
    """

    keypoint_heatmap_weight: float = 1.0
    offset_weight: float = 0.25
    vector_weight: float = 0.25


@dataclass(frozen=True)
class PoseDecoding(PeakDecoding):
    """How poses are read from the heatmaps; see also :class:`PeakDecoding`.

    Args:
        max_peaks: of each type of keypoint, for all objects of a sample.
        keypoint_threshold: peaks below pull no keypoint.
        snap_radius_m: a keypoint moves to a peak at most this far away, and at most half as far as its centre is.
    """

    max_peaks: int = 300
    keypoint_threshold: float = 0.1
    snap_radius_m: float = 1.0


@MODELS.register_module()
class KeypointHead(BEVHead):
    """Centre, four ground corners and front point of every object on the head's own grid, and the pose they make.

    Args:
        in_channels, grid: see :class:`BEVHead`.
        classes: names of the K classes, in the order of the labels.
        channels: width of the convolutions.
        criterion: a :class:`PoseCriterion` or its values.
        decoding: a :class:`PoseDecoding` or its values.
    """

    class_layers = ("branches.heatmap.1",)

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid | Mapping,
        classes: Sequence[str],
        channels: int = 64,
        criterion: PoseCriterion | Mapping | None = None,
        decoding: PoseDecoding | Mapping | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(in_channels, grid, init_cfg)
        self.classes = tuple(classes)
        self.criterion = PoseCriterion.build(criterion, "criterion")
        self.decoding = PoseDecoding.build(decoding, "decoding")
        self.register_buffer("nms_radii", nms_radii(self.decoding.nms_radius_m, self.classes), persistent=False)
        self.shared = ConvNormReLU(in_channels, channels)
        widths = {
            "heatmap": len(self.classes),
            "keypoint_heatmap": _AROUND,
            "offset": 2 * NUM_KEYPOINTS,
            "vectors": 2 * _AROUND,
        }
        branches = {
            name: nn.Sequential(ConvNormReLU(channels, channels), nn.Conv2d(channels, width, 1))
            for name, width in widths.items()
        }
        for name in ("heatmap", "keypoint_heatmap"):
            init_bias(branches[name][-1], EMPTY_CELL_LOGIT)
        self.branches = nn.ModuleDict(branches)

    def forward(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """On the head's grid: ``heatmap`` (B, K, Y, X) and ``keypoint_heatmap`` (B, 5, Y, X) logits, ``offset``
        (B, 12, Y, X) in cells and ``vectors`` (B, 10, Y, X) in metres, both with x before y of each keypoint."""
        features = self.shared(self.resampled(bev))
        return {name: branch(features) for name, branch in self.branches.items()}

    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """Four losses per true object of all ranks, scalars.

        ``loss_heatmap`` of the centre and ``loss_keypoint_heatmap``, the mean of the five others (focal);
        ``loss_offset``, the centre's and the mean of the others' (L1 in cells), and ``loss_vector``, the mean of the
        others (L1 in metres), both by the cells' shares. A whole pose stands where its centre is, so the centre weighs
        as much as the others together. Keypoints off the grid have no place; ``objects_beyond_grid`` counts the objects
        whose centre is, and which ask nothing.

        Args:
            raw: :meth:`forward`'s, ``heatmap`` (B, K, Y, X), ``keypoint_heatmap`` (B, 5, Y, X), ``offset``
                (B, 12, Y, X) and ``vectors`` (B, 10, Y, X).
            samples: B, with ``gt_instances_3d``.
        """
        device = raw["heatmap"].device
        targets = [self.targets(sample.gt_instances_3d, device) for sample in samples]
        number = mean_across_ranks(float(sum(len(t.vectors) for t in targets)), device).clamp_min(1.0)
        centers = heatmap_focal_loss(raw["heatmap"], torch.stack([t.heatmap for t in targets])).sum()
        others = torch.stack([t.keypoint_heatmap for t in targets])
        others = heatmap_focal_loss(raw["keypoint_heatmap"], others).sum() / _AROUND
        offset, vector = centers.new_zeros(()), centers.new_zeros(())
        flat_offsets, flat_vectors = raw["offset"].float().flatten(2), raw["vectors"].float().flatten(2)
        for target, offsets, vectors in zip(targets, flat_offsets, flat_vectors, strict=True):
            positives = target.positives
            is_center = positives.points % NUM_KEYPOINTS == 0
            error = (_offsets_at(offsets, positives.cells) - positives.offsets).abs().sum(-1) * positives.shares
            offset = offset + error[is_center].sum() + error[~is_center].sum() / _AROUND
            true_vectors = target.vectors[positives.points[is_center] // NUM_KEYPOINTS]
            error = (_vectors_at(vectors, positives.cells[is_center]) - true_vectors).abs().sum((1, 2))
            vector = vector + (error * positives.shares[is_center]).sum() / _AROUND
        return {
            "loss_heatmap": self.criterion.heatmap_weight * centers / number,
            "loss_keypoint_heatmap": self.criterion.keypoint_heatmap_weight * others / number,
            "loss_offset": self.criterion.offset_weight * offset / number,
            "loss_vector": self.criterion.vector_weight * vector / number,
            "objects_beyond_grid": self.objects_beyond_grid(
                [sample.gt_instances_3d.bboxes_3d.tensor.to(device) for sample in samples]
            ),
        }

    def targets(self, instances: InstanceData, device: torch.device | str) -> KeypointTargets:
        """What true boxes ask of the head.

        Args:
            instances: ``bboxes_3d`` (LiDAR boxes) and ``labels_3d``; boxes whose centre is off the grid ask nothing.
            device: where the targets are wanted.
        """
        boxes = instances.bboxes_3d.tensor.to(device).float()
        chosen = self.grid.contains(boxes[:, :2])
        boxes, labels = boxes[chosen], instances.labels_3d.to(device)[chosen]
        rows, columns = self.grid.shape
        keypoints = pose_keypoints(box_poses(boxes))  # (G, 6, 2)
        inside = self.grid.contains(keypoints)
        places = self.grid.cells_from_metres(keypoints)
        corner = places.floor().long()
        footprint = (boxes[:, 3] * boxes[:, 4]).clamp_min(1e-4).sqrt() / boxes.new_tensor(self.grid.cell_m).mean()
        sigma = (footprint / 6.0).clamp_min(self.criterion.min_sigma_cells)
        around = inside[:, 1:]
        kinds = torch.arange(NUM_KEYPOINTS, device=device).expand(len(boxes), -1)
        maps = (NUM_KEYPOINTS, rows, columns)
        positives = positive_cells(places[inside], kinds[inside], maps, self.criterion.reach_cells)
        points = inside.flatten().nonzero().squeeze(1)[positives.points]
        return KeypointTargets(
            heatmap=gaussian_heatmap(corner[:, 0], sigma, labels, (len(self.classes), rows, columns)),
            keypoint_heatmap=gaussian_heatmap(
                corner[:, 1:][around],
                sigma.unsqueeze(1).expand_as(around)[around],
                kinds[:, :_AROUND][around],
                (_AROUND, rows, columns),
            ),
            inside=inside,
            positives=positives._replace(points=points),
            vectors=keypoints[:, 1:] - keypoints[:, :1],
        )

    @torch.no_grad()
    def predict(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> list[dict[str, object]]:
        """``pred_keypoints`` per sample, best first.

        InstanceData with ``keypoints`` (n, 6, 2) metres of the BEV frame, in the order of ``KEYPOINT_NAMES``;
        ``keypoint_scores`` (n, 6): the heatmap's probability where the keypoint lies, 0 off the grid; ``scores`` (n,)
        of the centres; ``labels`` (n,); ``poses`` (n, 5): x, y, length, width, yaw.
        """
        raw = {name: value.float() for name, value in raw.items()}
        centers, others = raw["heatmap"].sigmoid(), raw["keypoint_heatmap"].sigmoid()
        parts = zip(
            heatmap_nms(centers), others, heatmap_nms(others), raw["offset"].flatten(2), raw["vectors"].flatten(2),
            strict=True,
        )  # fmt: skip
        return [{"pred_keypoints": self._decode(*sample)} for sample in parts]

    def _decode(
        self, centers: Tensor, others: Tensor, peaks: Tensor, offsets: Tensor, vectors: Tensor
    ) -> InstanceData:
        """One sample's poses from its peaks of centres, probabilities and peaks of the others, offsets and vectors."""
        number = self.grid.num_cells
        scores, index = centers.flatten().topk(min(4 * self.decoding.max_num, centers.numel()))
        kept = scores > self.decoding.score_threshold
        scores, index = scores[kept], index[kept]
        labels, cells = index // number, index % number
        places = self._places(cells, offsets[:2].t()[cells])
        keep = circle_nms(places, labels, self.nms_radii[labels])[: self.decoding.max_num]
        scores, labels, cells, places = scores[keep], labels[keep], cells[keep], places[keep]

        vectors = _vectors_at(vectors, cells)
        around = places.unsqueeze(1) + vectors
        around_scores = self._probability_at(others, around)
        peak_scores, peak_cells = peaks.flatten(1).topk(min(self.decoding.max_peaks, number))  # (5, P)
        by_kind = offsets[2:].unflatten(0, (_AROUND, 2)).gather(2, peak_cells.unsqueeze(1).expand(-1, 2, -1))
        peak_places = self._places(peak_cells, by_kind.transpose(1, 2))
        distance = (around.transpose(0, 1).unsqueeze(2) - peak_places.unsqueeze(1)).norm(dim=-1)  # (5, n, P)
        distance = distance.masked_fill(peak_scores.unsqueeze(1) <= self.decoding.keypoint_threshold, torch.inf)
        nearest, which = (part.t() for part in distance.min(-1))  # (n, 5)
        snaps = nearest <= (0.5 * vectors.norm(dim=-1)).clamp_max(self.decoding.snap_radius_m)
        kinds = torch.arange(_AROUND, device=which.device)
        around = torch.where(snaps.unsqueeze(-1), peak_places[kinds, which], around)
        around_scores = torch.where(snaps, peak_scores[kinds, which], around_scores)

        keypoints = torch.cat([places.unsqueeze(1), around], dim=1)
        return InstanceData(
            keypoints=keypoints,
            keypoint_scores=torch.cat([scores.unsqueeze(1), around_scores], dim=1),
            scores=scores,
            labels=labels,
            poses=fit_poses(keypoints),
        )

    def _places(self, cells: Tensor, offsets: Tensor) -> Tensor:
        """Flat cells (...) and offsets from their centres (..., 2) in cells -> (..., 2) metres."""
        columns = self.grid.shape[1]
        return self.grid.metres_from_cells(torch.stack([cells % columns, cells // columns], dim=-1) + 0.5 + offsets)

    def _probability_at(self, others: Tensor, points: Tensor) -> Tensor:
        """Heatmap probabilities (5, Y, X) in the cells of points (n, 5, 2) metres: (n, 5), 0 off the grid."""
        inside = self.grid.contains(points)
        cell = self.grid.cells_from_metres(points).floor().long()
        flat = torch.where(inside, cell[..., 1] * self.grid.shape[1] + cell[..., 0], torch.zeros_like(cell[..., 0]))
        return others.flatten(1).t().gather(0, flat) * inside


def _offsets_at(offsets: Tensor, cells: Tensor) -> Tensor:
    """(12, Y * X) offsets in flat cells (R,) of maps (6, Y, X): (R, 2)."""
    return offsets.unflatten(0, (NUM_KEYPOINTS, 2)).transpose(1, 2).flatten(0, 1)[cells]


def _vectors_at(vectors: Tensor, cells: Tensor) -> Tensor:
    """(10, Y * X) vectors in centre cells (G,): (G, 5, 2)."""
    return vectors[:, cells].t().unflatten(1, (_AROUND, 2))
