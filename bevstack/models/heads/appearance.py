"""What each detected object looks like: an embedding sampled from B_t, for trackers (Wojke et al. 2017, section 2.4).

A tracker compares embeddings of different frames, but in training B of the frame before is there without gradient, on
the encoder's grid and before temporal fusion and the BEV neck (``bev.history``). So there are two branches: the object
branch f on B_t, which predicts, and a history branch g on what the encoder made, which only trains. InfoNCE (van den
Oord et al. 2018) pulls f of an object now towards g of the same object in the frame before and towards g of it now;
what agrees with g at both times agrees with itself across time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid, sample_bev
from bevstack.geometry.boxes3d import turned
from bevstack.losses.functional import mean_across_ranks
from bevstack.models.heads.base import BoxHead, LabelledBoxes, detected_boxes
from bevstack.models.layers.conv import ConvNormReLU
from bevstack.ops.linear import Linear
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVFeatures

# Where an object is sampled, in lengths and widths of its box from its centre: the centre itself, then a ring.
_SAMPLING_POINTS = ((0.0, 0.0), (0.35, 0.0), (-0.35, 0.0), (0.0, 0.35), (0.0, -0.35), (0.5, 0.5), (0.5, -0.5),
                    (-0.5, 0.5), (-0.5, -0.5))  # fmt: skip


def sampling_points(boxes: Tensor) -> Tensor:
    """(G, 9) boxes to (G, P, 2) metres: the centre, then points on the footprint."""
    offsets = boxes.new_tensor(_SAMPLING_POINTS) * boxes[:, None, 3:5]
    return turned(offsets, boxes[:, 6]) + boxes[:, None, :2]


@MODELS.register_module()
class AppearanceHead(BoxHead):
    """Embeddings of unit length, such that the same object in two frames is near and two objects are apart.

    Args:
        in_channels, grid, detection: see :class:`BoxHead`.
        embedding_channels: E.
        channels: C', width of the features that are sampled.
        use_history: train with the frame before, too; else from two differently disturbed samplings of B_t alone.
        history_channels: C of the encoder; the model fills it in where a config leaves it out.
        temperature: of the contrast.
        jitter_m, jitter_yaw: standard deviation by which true boxes are displaced in training, as detected ones are.

    Raises:
        ValueError: a history of unknown width is to be used.
    """

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid | Mapping,
        embedding_channels: int = 64,
        channels: int = 64,
        use_history: bool = True,
        history_channels: int | None = None,
        temperature: float = 0.1,
        jitter_m: float = 0.4,
        jitter_yaw: float = 0.15,
        detection: str = "detection",
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(in_channels, grid, detection, init_cfg)
        self.history_frames = int(use_history)
        self.temperature, self.jitter_m, self.jitter_yaw = temperature, jitter_m, jitter_yaw

        def branch(width: int) -> nn.ModuleDict:
            mlp = nn.Sequential(
                Linear(2 * channels, 2 * channels), nn.ReLU(), Linear(2 * channels, embedding_channels)
            )
            return nn.ModuleDict({"field": ConvNormReLU(width, channels), "mlp": mlp})

        self.object_branch = branch(in_channels)
        self.history_branch: nn.ModuleDict | None = None
        if use_history:
            if history_channels is None:
                raise ValueError("history_channels: not given; they are the encoder's, or set use_history=False")
            self.history_branch = branch(history_channels)

    def encode(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """What is sampled, all on the head's grid.

        Returns:
            ``field`` (B, C', Y, X) of B_t; with a history also ``history`` (B, 2, C, Y, X), what the encoder made of
            this frame and of the one before, which only train, and ``history_valid`` (B, 2), 0 where there is none.
        """
        encoded = {"field": self.object_branch["field"](self.resampled(bev))}
        if self.history_branch is not None:
            frames = self.recent_frames(bev)
            encoded["history"], encoded["history_valid"] = frames.features, frames.valid.float()
        return encoded

    def describe(self, encoded: dict[str, Tensor], boxes: Sequence[LabelledBoxes]) -> list[dict[str, Tensor]]:
        """``embeddings`` (n, E) float32 of unit length of each sample's n boxes."""
        pairs = zip(encoded["field"], boxes, strict=True)
        return [
            {"embeddings": self.embed(self.object_branch, field, sampling_points(one.boxes))} for field, one in pairs
        ]

    def embed(self, branch: nn.ModuleDict, field: Tensor, points: Tensor) -> Tensor:
        """Embeddings of objects of one sample.

        Args:
            branch: of the object or of the history.
            field: (C', Y, X) on the head's grid.
            points: (G, P, 2) metres, each object's, the first its centre.

        Returns:
            (G, E) float32 of unit length.
        """
        sampled = sample_bev(field.unsqueeze(0), self.grid, points.unsqueeze(0))[0]
        described = torch.cat([sampled[..., 0], sampled[..., 1:].mean(-1)], dim=0).t()
        return F.normalize(branch["mlp"](described).float(), dim=-1)

    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """Contrast among the true objects of each sample, per object of all ranks.

        Args:
            raw: :meth:`encode`'s, ``field`` (B, C', Y, X), with a history also ``history`` and ``history_valid``.
            samples: B, with ``gt_instances_3d``; with a history with its ``past_centers``.

        Returns:
            Scalars. ``loss_views``: two disturbed samplings of B_t; with a history also ``loss_now`` and
            ``loss_before``: B_t against the history branch on this frame and on the one before (objects known in both
            frames alone).

        Raises:
            InputError: with a history, the samples do not say where their objects were.
        """
        device, history_branch, past = raw["field"].device, self.history_branch, None
        if history_branch is not None:
            past = history_branch["field"](raw["history"].flatten(0, 1)).unflatten(0, raw["history"].shape[:2])
        names = ("views",) if past is None else ("views", "now", "before")
        sums = {name: raw["field"].float().sum() * 0 for name in names}
        number = 0
        for index, sample in enumerate(samples):
            instances = sample.gt_instances_3d
            boxes = instances.bboxes_3d.tensor.to(device).float()
            kept = self.grid.contains(boxes[:, :2]) & (instances.labels_3d.to(device) >= 0)
            boxes = boxes[kept]
            number += len(boxes)
            views = [self._view(raw["field"][index], boxes) for _ in range(2)]
            sums["views"] = sums["views"] + self.contrast(*views)
            if past is None or history_branch is None:
                continue
            points, known = self._points_in_time(instances, kept, boxes, raw["history_valid"][index])
            for frame, name in enumerate(("now", "before")):
                rows = known[frame].nonzero().squeeze(1)
                seen = self.embed(history_branch, past[index, frame], points[frame, rows])
                sums[name] = sums[name] + self.contrast(views[0][rows], seen)
        normaliser = mean_across_ranks(float(number), device).clamp_min(1.0)
        return {f"loss_{name}": value / normaliser for name, value in sums.items()}

    def contrast(self, first: Tensor, second: Tensor) -> Tensor:
        """InfoNCE both ways between two descriptions (G, E) of the same G objects, summed over them: a scalar."""
        logits = first @ second.t() / self.temperature
        own = torch.arange(len(logits), device=logits.device)
        ways = [F.cross_entropy(way, own, reduction="sum") for way in (logits, logits.t())] if len(own) else []
        return sum(ways, logits.sum() * 0) / 2

    def _view(self, field: Tensor, boxes: Tensor) -> Tensor:
        """(G, E) of true boxes, in training displaced as a detector's are."""
        if self.training:
            noise = torch.randn_like(boxes[:, :3]) * boxes.new_tensor([self.jitter_m, self.jitter_m, self.jitter_yaw])
            boxes = torch.cat([boxes[:, :2] + noise[:, :2], boxes[:, 2:6], boxes[:, 6:7] + noise[:, 2:]], dim=1)
        return self.embed(self.object_branch, field, sampling_points(boxes))

    def _points_in_time(
        self, instances: InstanceData, kept: Tensor, boxes: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Where a sample's objects are sampled in this frame and in the one before, and whether they were there.

        Args:
            instances: the truth; kept: (G',) bool, which of it counts.
            boxes: (G, 9) of those.
            valid: (2,), 0 where there is no such frame.

        Returns:
            (2, G, P, 2) metres in the current BEV frame, (2, G) bool.
        """
        frames = len(valid)
        if "past_centers" not in instances or instances.past_centers.shape[1] < frames:
            reason = f"not there for {frames} frames: add LoadPastCenters(num_frames={frames}) to the pipeline"
            raise InputError("train pipeline", "gt_instances_3d.past_centers", reason)
        centers = instances.past_centers.to(boxes)[kept, :frames].transpose(0, 1)  # (2, G, 2)
        moved = centers.nan_to_num(0.0) - boxes[:, :2]
        points = sampling_points(boxes) + moved.unsqueeze(2)
        inside = self.grid.contains(points[:, :, 0])
        return points, inside & centers.isfinite().all(-1) & (valid > 0).unsqueeze(1)

    @torch.no_grad()
    def predict(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> list[dict[str, object]]:
        """``pred_instances_3d`` of each sample as it is there, with ``embeddings`` (n, E) float32."""
        results = []
        described = self.describe(raw, detected_boxes(samples, raw["field"].device))
        for sample, one in zip(samples, described, strict=True):
            instances = sample.pred_instances_3d.new()
            instances.embeddings = one["embeddings"]
            results.append({"pred_instances_3d": instances})
        return results
