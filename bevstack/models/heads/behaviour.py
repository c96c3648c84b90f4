"""Behaviour: what each agent is doing, read from B along the agent's track.

An agent's attribute (nuScenes: moving, stopped, parked, ...) is a matter of time more than of looks. B of the current
and of M - 1 past frames is looked up at two places in each: where the agent's track was, and where the agent stands
now. Whether the same thing was at the one or the other is what a sequence model tells apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.models.heads.base import BEVHead
from bevstack.models.heads.behaviour_tracks import (
    DETECTOR_LIKE,
    NUM_LOOKS,
    TrackJitter,
    extrapolated_tracks,
    in_box_axes,
    looked_at,
    sampled_history,
)
from bevstack.models.layers.track_sequence import TrackLSTM
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVFeatures
from bevstack.structures.behaviour import BEHAVIOURS, behaviours_of
from bevstack.structures.boxes import box_tensor

_NEAR_M, _FAR_M, _BRISK_MPS = 5.0, 50.0, 5.0  # lengths and a speed that become about 1 as numbers
_BOX_NUMBERS = 10  # log size (3), sine and cosine of yaw, centre (2), velocity along and across, whether it is known
_FRAME_NUMBERS = 3  # the track's displacement along and across the box, age


@MODELS.register_module()
class BehaviourHead(BEVHead):
    """Attributes of boxes: each class may have those of its group (:mod:`bevstack.structures.behaviour`), or none.

    Trains on true boxes and their true tracks (``gt_instances_3d.past_centers``, made by
    :class:`bevstack.datasets.transforms.LoadPastCenters`) with noise, and predicts on detected boxes, whose tracks are
    extrapolated backwards by the detected velocity.

    Args:
        in_channels, grid: see :class:`BEVHead`; the current B_t is looked up on ``grid``.
        classes: names of the labels, in order.
        history_channels: C' of the past B, which is the encoder's.
        num_frames: M, the current frame included.
        temporal: the model of the sequence: ``TrackLSTM``, ``TrackConvolution``, ``TrackTransformer`` (see
            :mod:`bevstack.models.layers.track_sequence`) or any registered one; it is given ``channels``.
        channels: width.
        jitter: a :class:`TrackJitter` or its arguments; None trains on the truth as it is.
        detection: name of the head whose boxes get attributes.
        on_truth: also predict on the true boxes and tracks, for the metric: ``pred_on_truth_3d``.

    Raises:
        ValueError: fewer than two frames, or no class that has attributes.
    """

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid | Mapping,
        classes: Sequence[str],
        history_channels: int,
        num_frames: int = 4,
        temporal: Mapping | None = None,
        channels: int = 64,
        jitter: TrackJitter | Mapping | None = DETECTOR_LIKE,
        detection: str = "detection",
        on_truth: bool = False,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(in_channels, grid, init_cfg)
        if num_frames < 2:
            raise ValueError(f"num_frames: {num_frames}: behaviour is read from a sequence, two frames at least")
        self.classes, self.requires, self.history_frames = tuple(classes), (detection,), num_frames - 1
        self.detection, self.on_truth = detection, on_truth
        self.history_grid = self.grid
        self.jitter = TrackJitter(**jitter) if isinstance(jitter, Mapping) else jitter
        possible = torch.tensor([[name in behaviours_of(c) for name in BEHAVIOURS] for c in self.classes])
        if not possible.any():
            raise ValueError(f"classes: none of {list(self.classes)} has attributes")
        self.register_buffer("possible", possible, persistent=False)

        self.current = nn.Conv2d(in_channels, channels, 1)
        self.box = nn.Sequential(nn.Linear(_BOX_NUMBERS, channels), nn.ReLU(), nn.Linear(channels, channels))
        self.appearance = nn.Linear(NUM_LOOKS * channels, channels)
        self.class_embedding = nn.Embedding(len(self.classes), channels)
        # In each frame: B at the track and at the present place, how alike today's it is there, the numbers above.
        token = 2 * NUM_LOOKS * (history_channels + 1) + _FRAME_NUMBERS
        self.token = nn.Sequential(nn.Linear(token, channels), nn.LayerNorm(channels), nn.ReLU())
        self.temporal = MODELS.build({"type": TrackLSTM, "channels": channels, **(temporal or {})})
        self.classifier = nn.Sequential(
            nn.Linear(2 * channels, channels), nn.ReLU(), nn.Linear(channels, len(BEHAVIOURS))
        )

    def forward(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """What the look-ups need, as tensors.

        Returns:
            ``current`` (B, channels, Y, X) on the head's grid; of the M frames, the current one first, all in the
            current BEV frame: ``history`` (B, M, C', Y', X'), zeros where there are fewer frames; ``valid`` (B, M), 1
            or 0; ``seconds`` (B, M) since each frame.

        Raises:
            ValueError: B_t comes without what the encoder made of it.
        """
        if bev.encoded is None:
            raise ValueError("BehaviourHead reads the history of B_t, and there is none")
        self.history_grid = bev.encoded.grid
        now = bev.encoded.features.unsqueeze(1)
        frames, batch = [now], now.shape[0]
        valid, seconds = [now.new_ones(batch, 1).float()], [now.new_zeros(batch, 1).float()]
        if bev.history is not None:
            past = bev.history
            timed = past.valid & past.seconds.isfinite()
            frames.append(past.features[:, : self.history_frames].to(now.dtype))
            valid.append(timed[:, : self.history_frames].float())
            seconds.append(torch.where(timed, past.seconds, 0.0)[:, : self.history_frames])
        missing = self.history_frames + 1 - sum(part.shape[1] for part in valid)
        if missing:
            frames.append(now.new_zeros(batch, missing, *now.shape[2:]))
            valid.append(valid[0].new_zeros(batch, missing))
            seconds.append(valid[0].new_zeros(batch, missing))
        return {
            "current": self.current(self.resampled(bev)),
            "history": torch.cat(frames, dim=1),
            "valid": torch.cat(valid, dim=1),
            "seconds": torch.cat(seconds, dim=1),
        }

    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """``loss_attribute``: cross-entropy among the attributes of the box's group, and ``accuracy``.

        Each sample's mean over its boxes with a known attribute, then the mean over the samples.

        Raises:
            InputError: the samples lack attributes or past centres.
        """
        count = raw["current"].shape[0]
        losses, right = [], []
        for b, sample in enumerate(samples):
            boxes, labels, tracks, targets = self._truth(sample, raw)
            known = targets >= 0
            if not known.any():
                continue
            boxes, labels, tracks, targets = boxes[known], labels[known], tracks[known], targets[known]
            if self.training and self.jitter is not None:
                true_tracks, boxes = tracks, self.jitter.boxes(boxes)
                tracks = self.jitter.tracks(true_tracks, boxes, raw["seconds"][b])
            logits = self.logits(raw, b, boxes, labels, tracks)
            losses.append(F.cross_entropy(logits, targets))
            right.append((logits.argmax(-1) == targets).float().mean().detach())
        if not losses:  # keeps every parameter in the graph, as distributed training wants it
            nothing = sum((parameter.sum() for parameter in self.parameters()), raw["current"].sum()).float() * 0
            return {"loss_attribute": nothing, "accuracy": nothing.detach()}
        return {"loss_attribute": torch.stack(losses).sum() / count, "accuracy": torch.stack(right).sum() / count}

    @torch.no_grad()
    def predict(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> list[dict[str, object]]:
        """``pred_instances_3d`` again, with ``attribute_names`` ("" for none) and ``attribute_scores`` (R,).

        With ``on_truth`` also ``pred_on_truth_3d``, the same two for each of ``gt_instances_3d``.
        """
        results = []
        for b, sample in enumerate(samples):
            instances = sample.pred_instances_3d.new()
            device = raw["current"].device
            boxes, labels = box_tensor(instances.bboxes_3d).to(device).float(), instances.labels_3d.to(device)
            tracks = extrapolated_tracks(boxes, raw["seconds"][b])
            names, scores = self.attributes(raw, b, boxes, labels, tracks)
            instances.attribute_names, instances.attribute_scores = names, scores
            fields = {"pred_instances_3d": instances}
            if self.on_truth and "gt_instances_3d" in sample:
                boxes, labels, tracks, _ = self._truth(sample, raw)
                names, scores = self.attributes(raw, b, boxes, labels, tracks)
                fields["pred_on_truth_3d"] = InstanceData(attribute_names=names, attribute_scores=scores)
            results.append(fields)
        return results

    def attributes(
        self, raw: dict[str, Tensor], b: int, boxes: Tensor, labels: Tensor, tracks: Tensor
    ) -> tuple[list[str], Tensor]:
        """The most probable attribute of each box, "" for none, and its probability, 0 for none; see :meth:`logits`."""
        able = (labels >= 0) & self.possible.any(1)[labels.clamp_min(0)]
        names, scores = [""] * len(labels), raw["seconds"].new_zeros(len(labels))
        if able.any():
            best, place = self.logits(raw, b, boxes[able], labels[able], tracks[able]).softmax(-1).max(-1)
            scores[able] = best
            for row, behaviour in zip(able.nonzero().flatten().tolist(), place.tolist(), strict=True):
                names[row] = BEHAVIOURS[behaviour]
        return names, scores

    def logits(self, raw: dict[str, Tensor], b: int, boxes: Tensor, labels: Tensor, tracks: Tensor) -> Tensor:
        """Read the attributes of boxes of sample ``b``.

        Args:
            raw: what :meth:`forward` returned.
            b: the sample.
            boxes: (G, 9), G > 0, in the current BEV frame; velocity NaN where unknown.
            labels: (G,), of classes that have attributes.
            tracks: (G, M, 2) metres in the current BEV frame, where each was in each frame; NaN where unknown.

        Returns:
            (G, 8) float32, -inf at the attributes that a class cannot have.
        """
        boxes, tracks = boxes.float(), tracks.float()
        here = boxes[:, None, :2].expand_as(tracks)
        places = torch.cat([looked_at(boxes, tracks), looked_at(boxes, here)], dim=2)  # (G, M, 2 P, 2)
        seen = sampled_history(raw["history"][b], self.history_grid, places)
        alike = F.cosine_similarity(seen, seen[:, :1], dim=-1)
        displacement = in_box_axes(boxes, (tracks - here).nan_to_num(nan=0.0)) / _NEAR_M
        ages = raw["seconds"][b].float()[None, :, None].expand(len(boxes), -1, 1)
        valid = raw["valid"][b].bool().unsqueeze(0) & tracks.isfinite().all(-1)
        valid = torch.cat([torch.ones_like(valid[:, :1]), valid[:, 1:]], dim=1)
        box = self._box_embedding(raw, b, boxes, labels)
        tokens = self.token(torch.cat([seen.flatten(2), alike, displacement, ages], dim=-1)) + box.unsqueeze(1)
        story = self.temporal(tokens, valid)
        logits = self.classifier(torch.cat([story, box], dim=-1)).float()
        return logits.masked_fill(~self.possible[labels], -torch.inf)

    def _box_embedding(self, raw: dict[str, Tensor], b: int, boxes: Tensor, labels: Tensor) -> Tensor:
        """(G, channels): size, place, velocity and class of boxes, and the current B_t under them."""
        known = boxes[:, 7:9].isfinite().all(-1, keepdim=True)
        velocity = torch.where(known, boxes[:, 7:9], 0.0)
        yaw = boxes[:, 6:7]
        numbers = torch.cat(
            [
                boxes[:, 3:6].clamp_min(1e-2).log(), yaw.sin(), yaw.cos(), boxes[:, :2] / _FAR_M,
                in_box_axes(boxes, velocity) / _BRISK_MPS, known.float(),
            ],
            dim=-1,
        )  # fmt: skip
        points = looked_at(boxes, boxes[:, None, :2])
        looks = sampled_history(raw["current"][b : b + 1], self.grid, points).flatten(1)
        return self.box(numbers) + self.class_embedding(labels) + self.appearance(looks)

    def _truth(self, sample: BEVDataSample, raw: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """True boxes (G, 9), labels (G,), tracks (G, M, 2) and index of the attribute in BEHAVIOURS (G,), -1 for none.

        Raises:
            InputError: attributes or past centres are not there; says what to change.
        """
        instances, device = sample.gt_instances_3d, raw["current"].device
        for field, remedy in (
            ("attribute_names", "the dataset must give attributes"),
            ("past_centers", f"add dict(type='LoadPastCenters', num_frames={self.history_frames + 1})"),
        ):
            if field not in instances:
                raise InputError("pipeline", f"gt_instances_3d.{field}", f"not there: {remedy}")
        tracks = instances.past_centers.to(device).float()[:, : self.history_frames + 1]
        if tracks.shape[1] < self.history_frames + 1:
            reason = f"{tracks.shape[1]} frames, the head reads {self.history_frames + 1}; set num_frames to it"
            raise InputError("pipeline", "LoadPastCenters.num_frames", reason)
        labels = instances.labels_3d.to(device).long()
        targets = [
            BEHAVIOURS.index(name) if label >= 0 and name in behaviours_of(self.classes[label]) else -1
            for name, label in zip(instances.attribute_names, labels.tolist(), strict=True)
        ]
        targets = torch.tensor(targets, dtype=torch.long, device=device)
        return box_tensor(instances.bboxes_3d).to(device).float(), labels, tracks, targets
