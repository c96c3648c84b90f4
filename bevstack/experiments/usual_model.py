"""BEVFormer's detection decoder and the whole temporal model the usual way: what comes after, and around, the encoder.

Like :mod:`bevstack.experiments.usual_formulation` it takes its weights from our modules and gives the same answers: the
decoder projects B_t and multiplies out its attention in every layer, regresses in the decoder and once more in the
head, asks every layer's classes at inference, too; the backbone runs as the framework builds it, layout and
normalisation untouched. Losses are ours: the matching is the same work.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bevstack.experiments.usual_formulation import UsualEncoder, plain_copy, usual_sampling
from bevstack.geometry.transforms import full_precision
from bevstack.models.bev.memory import push_memory
from bevstack.models.heads.detection3d_query import QueryDetectionHead
from bevstack.models.layers.attention import DeformableCrossAttention
from bevstack.models.layers.detr_decoder import DETRDecoderLayer
from bevstack.models.perception import BEVPerception
from bevstack.structures import AlignedHistory, BEVDataSample, BEVFeatures, BEVMemory, Clip, Frame


def inverse_sigmoid(fraction: Tensor) -> Tensor:
    """Logits (...) of fractions (...), each side kept 1e-5 away from zero."""
    fraction = fraction.clamp(0, 1)
    return torch.log(fraction.clamp(min=1e-5) / (1 - fraction).clamp(min=1e-5))


class UsualCrossAttention(nn.Module):
    """Deformable attention of object queries into B_t, which is projected in every layer.

    Args:
        ours: whose weights are copied.
    """

    def __init__(self, ours: DeformableCrossAttention) -> None:
        super().__init__()
        channels, self.num_heads, self.num_points = ours.output_proj.in_features, ours.num_heads, ours.num_points
        self.sampling_offsets = nn.Linear(channels, self.num_heads * self.num_points * 2)
        self.attention_weights = nn.Linear(channels, self.num_heads * self.num_points)
        self.value_proj = nn.Linear(ours.value_proj.in_features, channels)
        self.output_proj = nn.Linear(channels, channels)
        self.load_state_dict(ours.state_dict())

    def forward(self, query: Tensor, tokens: Tensor, references: Tensor, shape: tuple[int, int]) -> Tensor:
        """Update of (B, Q, C) queries, which look into (B, Y * X, C) tokens around (B, Q, 1, 2) references."""
        batch, queries, _ = query.shape
        heads, points = self.num_heads, self.num_points
        value = self.value_proj(tokens).view(batch, tokens.shape[1], heads, -1)
        offsets = self.sampling_offsets(query).view(batch, queries, heads, 1, points, 2)
        weights = self.attention_weights(query).view(batch, queries, heads, points).softmax(-1)
        sizes = torch.tensor([[shape[1], shape[0]]], device=query.device)
        locations = references[:, :, None, :, None, :] + offsets / sizes[None, None, None, :, None, :]
        return self.output_proj(usual_sampling(value, [shape], locations, weights.unsqueeze(3)))


class UsualDecoderLayer(nn.Module):
    """torch's own multi-head attention, deformable attention, feed-forward, a norm after each.

    Args:
        ours: whose weights are copied; its heads must be split.
    """

    def __init__(self, ours: DETRDecoderLayer) -> None:
        super().__init__()
        attention = ours.self_attention
        channels = attention.output_proj.out_features
        self.attention = nn.MultiheadAttention(channels, attention.num_heads, attention.dropout)
        merged = {
            "in_proj_weight": torch.cat([attention.query_key_proj.weight, attention.value_proj.weight]),
            "in_proj_bias": torch.cat([attention.query_key_proj.bias, attention.value_proj.bias]),
            "out_proj.weight": attention.output_proj.weight,
            "out_proj.bias": attention.output_proj.bias,
        }
        self.attention.load_state_dict(merged)
        self.cross_attention = UsualCrossAttention(ours.cross_attention)
        self.feed_forward, self.norms = plain_copy(ours.feed_forward), copy.deepcopy(ours.norms)
        self.dropout = nn.Dropout(ours.dropout.p)

    def forward(
        self, query: Tensor, position: Tensor, tokens: Tensor, references: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        """(B, Q, C) to (B, Q, C); arguments as in :class:`UsualCrossAttention`, positions (B, Q, C)."""
        placed = (query + position).transpose(0, 1)
        update = self.attention(placed, placed, query.transpose(0, 1))[0].transpose(0, 1)
        query = self.norms[0](query + self.dropout(update))
        update = self.cross_attention(query + position, tokens, references, shape)
        query = self.norms[1](query + self.dropout(update))
        return self.norms[2](query + self.feed_forward(query))


class UsualDetectionHead(nn.Module):
    """The detection head (docs/reference.md 4.6, Refinement): a decoder that refines, then a head that asks again.

    Args:
        ours: whose weights are copied, and whose losses and boxes it answers with.

    Raises:
        ValueError: replicated heads, which the published code does not have.
    """

    def __init__(self, ours: QueryDetectionHead) -> None:
        super().__init__()
        layers = [cast(DETRDecoderLayer, layer) for layer in ours.layers]
        if any(layer.self_attention.value_proj.out_features != ours.in_channels for layer in layers):
            raise ValueError("the usual decoder splits its channels over the heads")
        self.grid, self.loss, self.predict = ours.grid, ours.loss, ours.predict
        self.query_embedding = nn.Parameter(torch.cat([ours.query_positions.weight, ours.query_contents.weight], 1))
        self.reference_points = plain_copy(ours.reference_points)
        self.layers = nn.ModuleList(UsualDecoderLayer(layer) for layer in layers)
        self.cls_branches = nn.ModuleList(plain_copy(branch) for branch in ours.cls_branches)
        self.reg_branches = nn.ModuleList(plain_copy(branch) for branch in ours.reg_branches)

    def forward(self, bev: BEVFeatures) -> dict[str, Tensor]:
        """``logits`` (D, B, Q, K) and ``boxes`` (D, B, Q, 10) of B_t, as :class:`QueryDetectionHead` gives them.

        Raises:
            ValueError: B_t does not cover the head's volume.
        """
        if (bev.grid.x_range_m, bev.grid.y_range_m) != (self.grid.x_range_m, self.grid.y_range_m):
            raise ValueError("the usual decoder reads B_t of its own volume")
        batch = len(bev.features)
        tokens = bev.features.flatten(2).transpose(1, 2)
        position, query = self.query_embedding.unsqueeze(0).expand(batch, -1, -1).chunk(2, dim=2)
        reference = self.reference_points(position).float().sigmoid()
        outputs, before = [], []
        for layer, branch in zip(self.layers, self.reg_branches, strict=True):
            query = layer(query, position, tokens, reference[..., :2].unsqueeze(2), bev.grid.shape)
            outputs.append(query)
            before.append(reference)
            update = branch(query).float()
            refined = torch.zeros_like(reference)
            refined[..., :2] = update[..., :2] + inverse_sigmoid(reference[..., :2])
            refined[..., 2:3] = update[..., 4:5] + inverse_sigmoid(reference[..., 2:3])
            reference = refined.sigmoid().detach()
        logits, boxes = [], []
        for level, (output, reference) in enumerate(zip(outputs, before, strict=True)):
            logits.append(self.cls_branches[level](output).float())
            boxes.append(self._box_code(self.reg_branches[level](output).float(), inverse_sigmoid(reference)))
        return {"logits": torch.stack(logits), "boxes": torch.stack(boxes)}

    def _box_code(self, update: Tensor, reference: Tensor) -> Tensor:
        """Codes (B, Q, 10) in metres of what a branch said (B, Q, 10) beside references (B, Q, 3) as logits."""
        with full_precision(update):
            centre = (update[..., [0, 1, 4]] + reference).sigmoid()
            ranges = centre.new_tensor([self.grid.x_range_m, self.grid.y_range_m, self.grid.z_range_m])
            centre = centre * (ranges[:, 1] - ranges[:, 0]) + ranges[:, 0]
        return torch.cat([centre[..., :2], update[..., 2:4], centre[..., 2:], update[..., 5:]], -1)


class UsualPerception(nn.Module):
    """A whole BEVFormer the usual way: images and memory to B_t, boxes and losses.

    Args:
        model: whose weights are copied: a temporal encoder and one :class:`QueryDetectionHead`. Take it as it is
            built, before anything is folded in it for speed.
    """

    def __init__(self, model: BEVPerception) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(model.backbone).to(memory_format=torch.contiguous_format)
        self.neck = copy.deepcopy(model.neck)
        self.alignment, self.bev_levels = copy.deepcopy(model.alignment), model.bev_levels
        self.encoder = UsualEncoder(model.encoder)
        self.head = UsualDetectionHead(next(iter(model.heads.values())))

    def image_features(self, images: Tensor) -> list[Tensor]:
        """Images (B, N, 3, H, W) to levels (B, N, C, h, w)."""
        features = self.backbone(images.flatten(0, 1).contiguous())
        features = features if self.neck is None else self.neck(features)
        return [level.unflatten(0, images.shape[:2]) for level in features][: self.bev_levels]

    def step(self, frame: Frame, memory: BEVMemory | None) -> tuple[dict[str, Tensor], BEVMemory | None]:
        """A frame (B, N, 3, H, W) and the memory before it to the head's raw outputs, and the memory after it."""
        bev, memory = self._encoded(self.image_features(frame.images), frame, memory)
        return self.head(bev), memory

    def losses(self, clip: Clip, samples: Sequence[BEVDataSample]) -> dict[str, Tensor]:
        """Losses, scalars by name, of a clip's last frame; the frames before it leave their memory alone.

        History goes through the backbone as one batch, in evaluation mode and without gradient
        (docs/reference.md 4.5, Training queue).
        """
        memory, training, past = clip.memory, self.training, clip.frames[:-1]
        if past:
            self.eval()
            with torch.no_grad():
                levels = self.image_features(torch.cat([frame.images for frame in past]))
                chunks = zip(*(level.chunk(len(past)) for level in levels), strict=True)
                for frame, features in zip(past, chunks, strict=True):
                    _, memory = self._encoded(list(features), frame, memory)
            self.train(training)
        raw, _ = self.step(clip.frames[-1], memory)
        return self.head.loss(raw, samples)

    def _encoded(
        self, features: list[Tensor], frame: Frame, memory: BEVMemory | None
    ) -> tuple[BEVFeatures, BEVMemory | None]:
        """B_t (B, C, Y, X) of a frame's levels (B, N, C, h, w), and the memory after it."""
        past = None if memory is None else memory.moved(frame.motion)
        history: AlignedHistory | None = None if past is None else self.alignment(past, frame.motion)
        bev = self.encoder(features, frame, history)
        return bev, push_memory(past, bev, 1)
