"""What each detected object looks like: an embedding sampled from B_t, for trackers (Wojke et al. 2017, section 2.4).

A tracker compares embeddings of different frames, but in training B of the frame before is there without gradient, on
the encoder's grid and before temporal fusion and the BEV neck (``bev.history``). So there are two branches: the object
branch f on B_t, which predicts, and a memory branch g on the history, which only trains. InfoNCE (van den Oord et al.
2018) pulls f of an object now towards g of the same object in the frame before and towards g of it now; what agrees
with g at both times agrees with itself across time.
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
from bevstack.models.heads.base import BEVHead, resample_bev
from bevstack.models.layers.conv import ConvNormReLU
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVFeatures

# Where an object is sampled, in lengths and widths of its box from its centre: the centre itself, then a ring.
_PLACES = ((0.0, 0.0), (0.35, 0.0), (-0.35, 0.0), (0.0, 0.35), (0.0, -0.35), (0.5, 0.5), (0.5, -0.5), (-0.5, 0.5),
           (-0.5, -0.5))  # fmt: skip


def sampled_places(boxes: Tensor) -> Tensor:
    """(G, 9) boxes to (G, P, 2) metres: the centre, then points on the footprint."""
    offsets = boxes.new_tensor(_PLACES) * boxes[:, None, 3:5]
    return turned(offsets, boxes[:, 6]) + boxes[:, None, :2]


@MODELS.register_module()
class AppearanceHead(BEVHead):
    """Embeddings of unit length, such that the same object in two frames is near and two objects are apart.

    Args:
        in_channels, grid: see :class:`BEVHead`.
        embedding_channels: E.
        channels: width of the features that are sampled.
        history_channels: C of ``bev.history`` (of the encoder); None trains without the frame before, from two
            differently disturbed samplings alone.
        temperature: of the contrast.
        jitter_m, jitter_yaw: standard deviation by which true boxes are displaced in training, as detected ones are.
        requires: name of the head whose boxes are described.
    """

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid | Mapping,
        embedding_channels: int = 64,
        channels: int = 64,
        history_channels: int | None = None,
        temperature: float = 0.1,
        jitter_m: float = 0.4,
        jitter_yaw: float = 0.15,
        requires: Sequence[str] = ("detection",),
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(in_channels, grid, init_cfg)
        self.requires = tuple(requires)
        self.history_frames = 0 if history_channels is None else 1
        self.history_grid = self.grid
        self.temperature, self.jitter_m, self.jitter_yaw = temperature, jitter_m, jitter_yaw

        def branch(width: int) -> nn.ModuleDict:
            mlp = nn.Sequential(
                nn.Linear(2 * channels, 2 * channels), nn.ReLU(), nn.Linear(2 * channels, embedding_channels)
            )
            return nn.ModuleDict({"field": ConvNormReLU(width, channels), "mlp": mlp})

        self.object = branch(in_channels)
        self.memory = None if history_channels is None else branch(history_channels)

    def forward(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """What is sampled.

        Returns:
            ``field`` (B, C', Y, X) of B_t on the head's grid; with a history also ``history`` (B, M, C, Y', X') of this
            frame and, where there is one, of the frame before (M is 1 or 2), both in the current BEV frame, and
            ``history_valid`` (B, M), 0 where a sample has no such frame.
        """
        raw = {"field": self.object["field"](self.resampled(bev))}
        if self.memory is not None:
            now = bev.encoded.features.unsqueeze(1)
            self.history_grid = bev.encoded.grid
            frames, valid = [now], [now.new_ones(now.shape[:2]).float()]
            if bev.history is not None:
                frames.append(bev.history.features[:, :1].to(now.dtype))
                valid.append(bev.history.valid[:, :1].float())
            raw["history"], raw["history_valid"] = torch.cat(frames, dim=1), torch.cat(valid, dim=1)
        return raw

    def embed(self, branch: nn.ModuleDict, field: Tensor, places: Tensor) -> Tensor:
        """Embeddings of objects of one sample.

        Args:
            branch: of the object or of the memory. field: (C', Y, X) on the head's grid. places: (G, P, 2) metres.

        Returns:
            (G, E) float32 of unit length.
        """
        sampled = sample_bev(field.unsqueeze(0), self.grid, places.unsqueeze(0))[0]
        described = torch.cat([sampled[..., 0], sampled[..., 1:].mean(-1)], dim=0).t()
        return F.normalize(branch["mlp"](described).float(), dim=-1)

    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """Contrast among the true objects of each sample, per object of all ranks.

        Returns:
            ``loss_views``: two disturbed samplings of B_t; with a history also ``loss_now`` and ``loss_before``: B_t
            against the memory branch on this frame and on the one before (objects known in both frames alone).

        Raises:
            InputError: with a history, the samples do not say where their objects were.
        """
        device = raw["field"].device
        memory = None if self.memory is None else self._memory_fields(raw["history"])
        names = ("views",) if memory is None else ("views", "now", "before")
        sums = {name: raw["field"].float().sum() * 0 for name in names}
        number = 0
        for index, sample in enumerate(samples):
            instances = sample.gt_instances_3d
            boxes = instances.bboxes_3d.tensor.to(device).float()
            kept = self.grid.contains(boxes[:, :2]) & (instances.labels_3d.to(device) >= 0)
            boxes = boxes[kept]
            number += len(boxes)
            field = raw["field"][index]
            views = [self.embed(self.object, field, sampled_places(self._jittered(boxes))) for _ in range(2)]
            sums["views"] = sums["views"] + self.contrast(*views)
            if memory is None:
                continue
            places, known = self._past_places(instances, kept, boxes, raw, index)
            for frame, name in enumerate(("now", "before")[: places.shape[0]]):
                rows = known[frame].nonzero().squeeze(1)
                looked = self.embed(self.memory, memory[index, frame], places[frame, rows])
                sums[name] = sums[name] + self.contrast(views[0][rows], looked)
        normaliser = mean_across_ranks(float(number), device).clamp_min(1.0)
        return {f"loss_{name}": value / normaliser for name, value in sums.items()}

    def contrast(self, first: Tensor, second: Tensor) -> Tensor:
        """InfoNCE both ways between two descriptions (G, E) of the same G objects, summed over them: a scalar."""
        logits = first @ second.t() / self.temperature
        own = torch.arange(len(logits), device=logits.device)
        ways = [F.cross_entropy(way, own, reduction="sum") for way in (logits, logits.t())] if len(own) else []
        return sum(ways, logits.sum() * 0) / 2

    def _jittered(self, boxes: Tensor) -> Tensor:
        """Boxes as a detector would give them; as they are in evaluation."""
        if not self.training:
            return boxes
        noise = torch.randn_like(boxes[:, :3]) * boxes.new_tensor([self.jitter_m, self.jitter_m, self.jitter_yaw])
        return torch.cat([boxes[:, :2] + noise[:, :2], boxes[:, 2:6], boxes[:, 6:7] + noise[:, 2:]], dim=1)

    def _memory_fields(self, history: Tensor) -> Tensor:
        """(B, M, C, Y', X') on the encoder's grid to (B, M, C', Y, X) on the head's."""
        fields = resample_bev(BEVFeatures(history.flatten(0, 1), self.history_grid), self.grid)
        return self.memory["field"](fields).unflatten(0, history.shape[:2])

    def _past_places(
        self, instances: InstanceData, kept: Tensor, boxes: Tensor, raw: dict[str, Tensor], index: int
    ) -> tuple[Tensor, Tensor]:
        """Where a sample's objects are sampled in each frame of the history, and whether they were there.

        Returns:
            (M, G, P, 2) metres in the current BEV frame, (M, G) bool.
        """
        frames = raw["history"].shape[1]
        if "past_centers" not in instances or instances.past_centers.shape[1] < frames:
            reason = f"not there for {frames} frames: add LoadPastCenters(num_frames=2) to the pipeline"
            raise InputError("train pipeline", "gt_instances_3d.past_centers", reason)
        centers = instances.past_centers.to(boxes)[kept, :frames].transpose(0, 1)  # (M, G, 2)
        moved = centers.nan_to_num(0.0) - boxes[:, :2]
        places = sampled_places(boxes) + moved.unsqueeze(2)
        inside = self.grid.contains(places[:, :, 0])
        return places, inside & centers.isfinite().all(-1) & (raw["history_valid"][index] > 0).unsqueeze(1)

    @torch.no_grad()
    def predict(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> list[dict[str, object]]:
        """``pred_instances_3d`` of each sample as it is there, with ``embeddings`` (n, E) float32."""
        results = []
        for field, sample in zip(raw["field"], samples, strict=True):
            instances = sample.pred_instances_3d.new()
            boxes = instances.bboxes_3d.tensor.to(field.device).float()
            instances.embeddings = self.embed(self.object, field, sampled_places(boxes))
            results.append({"pred_instances_3d": instances})
        return results
