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
from bevstack.models.heads.base import BoxHead, LabelledBoxes, detected_boxes
from bevstack.models.heads.behaviour_tracks import (
    DETECTOR_LIKE,
    NUM_SAMPLING_POINTS,
    TrackJitter,
    extrapolated_tracks,
    in_box_axes,
    sampled_history,
    sampling_points,
)
from bevstack.models.layers.track_sequence import TrackLSTM
from bevstack.ops.linear import Linear
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVFeatures
from bevstack.structures.behaviour import BEHAVIOURS, behaviours_of
from bevstack.structures.boxes import box_tensor

_NEAR_M, _FAR_M, _BRISK_MPS = 5.0, 50.0, 5.0  # lengths and a speed that become about 1 as numbers
_BOX_NUMBERS = 10  # log size (3), sine and cosine of yaw, centre (2), velocity along and across, whether it is known
_FRAME_NUMBERS = 3  # the track's displacement along and across the box, age


@MODELS.register_module()
class BehaviourHead(BoxHead):
    """Attributes of boxes: each class may have those of its group (:mod:`bevstack.structures.behaviour`), or none.

    Trains on true boxes and their true tracks (``gt_instances_3d.past_centers``, made by
    :class:`bevstack.datasets.transforms.LoadPastCenters`) with noise, and predicts on detected boxes, whose tracks are
    extrapolated backwards by the detected velocity.

    Args:
        in_channels, grid, detection: see :class:`BoxHead`.
        classes: names of the labels, in order.
        history_channels: C' of the encoder; the model fills it in where a config leaves it out.
        num_frames: M, the current frame included.
        temporal: the model of the sequence: ``TrackLSTM``, ``TrackConvolution``, ``TrackTransformer`` (see
            :mod:`bevstack.models.layers.track_sequence`) or any registered one; it is given ``channels``.
        channels: width.
        jitter: a :class:`TrackJitter` or its arguments; None trains on the truth as it is.
        on_truth: also predict on the true boxes and tracks, for the metric: ``pred_on_truth_3d``.

    Raises:
        ValueError: fewer than two frames, or no class that has attributes.
    """

    class_layers = ("class_embedding",)

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
        super().__init__(in_channels, grid, detection, init_cfg)
        if num_frames < 2:
            raise ValueError(f"num_frames: {num_frames}: behaviour is read from a sequence, two frames at least")
        self.classes, self.on_truth = tuple(classes), on_truth
        self.num_frames, self.history_frames = num_frames, num_frames - 1
        self.jitter = None if jitter is None else TrackJitter.build(jitter, "jitter")
        possible = torch.tensor([[name in behaviours_of(c) for name in BEHAVIOURS] for c in self.classes])
        if not possible.any():
            raise ValueError(f"classes: none of {list(self.classes)} has attributes")
        self.register_buffer("possible", possible, persistent=False)

        self.current = nn.Conv2d(in_channels, channels, 1)
        self.box = nn.Sequential(Linear(_BOX_NUMBERS, channels), nn.ReLU(), Linear(channels, channels))
        self.appearance = Linear(NUM_SAMPLING_POINTS * channels, channels)
        self.class_embedding = nn.Embedding(len(self.classes), channels)
        # In each frame: B at the track and at the present place, how alike today's it is there, the numbers above.
        token = 2 * NUM_SAMPLING_POINTS * (history_channels + 1) + _FRAME_NUMBERS
        self.token = nn.Sequential(Linear(token, channels), nn.LayerNorm(channels), nn.ReLU())
        self.temporal = MODELS.build({"type": TrackLSTM, "channels": channels, **(temporal or {})})
        self.classifier = nn.Sequential(
            Linear(2 * channels, channels), nn.ReLU(), Linear(channels, len(BEHAVIOURS))
        )

    def encode(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """What boxes are looked up in, all on the head's grid in the current BEV frame.

        Returns:
            ``current`` (B, channels, Y, X) of B_t; of the M frames, the current one first: ``history``
            (B, M, C', Y, X), ``valid`` (B, M), 1 or 0, and ``seconds`` (B, M) since each frame, 0 where not valid. A
            frame of unknown age is not valid.

        Raises:
            ValueError: B_t comes without what the encoder made of it.
        """
        frames = self.recent_frames(bev)
        valid = frames.valid & frames.seconds.isfinite()
        return {
            "current": self.current(self.resampled(bev)),
            "history": frames.features,
            "valid": valid.float(),
            "seconds": torch.where(valid, frames.seconds, 0.0),
        }

    def loss(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """``loss_attribute``: cross-entropy among the attributes of the box's group, and ``accuracy``.

        Each sample's mean over its boxes with a known attribute, then the mean over the samples; scalars both.

        Args:
            raw: :meth:`encode`'s, ``current`` (B, channels, Y, X) and the M frames' ``history``, ``valid`` and
                ``seconds``.
            samples: B, with ``gt_instances_3d``, its attributes and past centres (n, M, 2) metres.

        Raises:
            InputError: the samples lack attributes or past centres.
        """
        count, known, wanted = raw["current"].shape[0], [], []
        for b, sample in enumerate(samples):
            boxes, labels, tracks, targets = self._truth(sample, raw)
            rows = targets >= 0
            boxes, labels, tracks, targets = boxes[rows], labels[rows], tracks[rows], targets[rows]
            if self.training and self.jitter is not None:
                boxes = self.jitter.boxes(boxes)
                tracks = self.jitter.tracks(tracks, boxes, raw["seconds"][b])
            known.append(LabelledBoxes(boxes, labels, tracks))
            wanted.append(targets)
        losses, right = [], []
        for answer, targets in zip(self.describe(raw, known), wanted, strict=True):
            if len(targets):
                losses.append(F.cross_entropy(answer["logits"], targets))
                right.append((answer["logits"].argmax(-1) == targets).float().mean().detach())
        if not losses:  # keeps every parameter in the graph, as distributed training wants it
            nothing = sum((parameter.sum() for parameter in self.parameters()), raw["current"].sum()).float() * 0
            return {"loss_attribute": nothing, "accuracy": nothing.detach()}
        return {"loss_attribute": torch.stack(losses).sum() / count, "accuracy": torch.stack(right).sum() / count}

    @torch.no_grad()
    def predict(self, raw: dict[str, Tensor], samples: Sequence[BEVDataSample]) -> list[dict[str, object]]:
        """``pred_instances_3d`` again, with ``attribute_names`` ("" for none) and ``attribute_scores`` (R,).

        With ``on_truth``, and where all samples have ``gt_instances_3d``, also ``pred_on_truth_3d``: the same two for
        each of these.
        """
        results = []
        described = self.describe(raw, detected_boxes(samples, raw["current"].device))
        for sample, one in zip(samples, described, strict=True):
            instances = sample.pred_instances_3d.new()
            instances.attribute_names, instances.attribute_scores = self.best_attributes(one["logits"])
            results.append({"pred_instances_3d": instances})
        if self.on_truth and all("gt_instances_3d" in sample for sample in samples):
            truth = self.describe(raw, [LabelledBoxes(*self._truth(sample, raw)[:3]) for sample in samples])
            for fields, one in zip(results, truth, strict=True):
                names, scores = self.best_attributes(one["logits"])
                fields["pred_on_truth_3d"] = InstanceData(attribute_names=names, attribute_scores=scores)
        return results

    @staticmethod
    def best_attributes(logits: Tensor) -> tuple[list[str], Tensor]:
        """Of (n, 8) logits the most probable attribute of each box, "" for none, and (n,) its probability, 0 for none.

        A box has none where all its logits are -inf.
        """
        able = logits.isfinite().any(-1)
        best, place = torch.where(able.unsqueeze(-1), logits, 0.0).softmax(-1).max(-1)
        pairs = zip(place.tolist(), able.tolist(), strict=True)
        return [BEHAVIOURS[index] if has else "" for index, has in pairs], torch.where(able, best, 0.0)

    def describe(self, encoded: dict[str, Tensor], boxes: Sequence[LabelledBoxes]) -> list[dict[str, Tensor]]:
        """``logits`` (n, 8) float32 of the attributes of each sample's n boxes, -inf at those a class cannot have.

        Tracks that nobody knows are extrapolated backwards by the boxes' velocities.
        """
        samples = [{name: value[b] for name, value in encoded.items()} for b in range(len(encoded["current"]))]
        return [{"logits": self._logits(sample, *one)} for sample, one in zip(samples, boxes, strict=True)]

    def _logits(self, encoded: dict[str, Tensor], boxes: Tensor, labels: Tensor, tracks: Tensor | None) -> Tensor:
        """(G, 8) of one sample's boxes (G, 9), labels (G,) and tracks (G, M, 2); ``encoded`` without batch."""
        boxes = boxes.float()
        tracks = extrapolated_tracks(boxes, encoded["seconds"]) if tracks is None else tracks.float()
        here = boxes[:, None, :2].expand_as(tracks)
        points = torch.cat([sampling_points(boxes, tracks), sampling_points(boxes, here)], dim=2)  # (G, M, 2 P, 2)
        seen = sampled_history(encoded["history"], self.grid, points)
        alike = F.cosine_similarity(seen, seen[:, :1], dim=-1)
        displacement = in_box_axes(boxes, (tracks - here).nan_to_num(nan=0.0)) / _NEAR_M
        ages = encoded["seconds"].float()[None, :, None].expand(len(boxes), -1, 1)
        valid = encoded["valid"].bool().unsqueeze(0) & tracks.isfinite().all(-1)
        valid = torch.cat([torch.ones_like(valid[:, :1]), valid[:, 1:]], dim=1)
        classes = labels.clamp_min(0)
        box = self._box_embedding(encoded["current"], boxes, classes)
        tokens = self.token(torch.cat([seen.flatten(2), alike, displacement, ages], dim=-1)) + box.unsqueeze(1)
        story = self.temporal(tokens, valid)
        logits = self.classifier(torch.cat([story, box], dim=-1)).float()
        possible = self.possible[classes] & (labels >= 0).unsqueeze(-1)
        return logits.masked_fill(~possible, -torch.inf)

    def _box_embedding(self, current: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
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
        points = sampling_points(boxes, boxes[:, None, :2])
        looks = sampled_history(current.unsqueeze(0), self.grid, points).flatten(1)
        return self.box(numbers) + self.class_embedding(classes) + self.appearance(looks)

    def _truth(self, sample: BEVDataSample, raw: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """True boxes (G, 9), labels (G,), tracks (G, M, 2) and index of the attribute in BEHAVIOURS (G,), -1 for none.

        Raises:
            InputError: attributes or past centres are not there; says what to change.
        """
        instances, device = sample.gt_instances_3d, raw["current"].device
        for field, remedy in (
            ("attribute_names", "the dataset must give attributes"),
            ("past_centers", f"add dict(type='LoadPastCenters', num_frames={self.num_frames})"),
        ):
            if field not in instances:
                raise InputError("pipeline", f"gt_instances_3d.{field}", f"not there: {remedy}")
        tracks = instances.past_centers.to(device).float()[:, : self.num_frames]
        if tracks.shape[1] < self.num_frames:
            reason = f"{tracks.shape[1]} frames, the head reads {self.num_frames}; set num_frames to it"
            raise InputError("pipeline", "LoadPastCenters.num_frames", reason)
        labels = instances.labels_3d.to(device).long()
        indices = [
            BEHAVIOURS.index(name) if label >= 0 and name in behaviours_of(self.classes[label]) else -1
            for name, label in zip(instances.attribute_names, labels.tolist(), strict=True)
        ]
        targets = torch.tensor(indices, dtype=torch.long, device=device)
        return box_tensor(instances.bboxes_3d).to(device).float(), labels, tracks, targets
