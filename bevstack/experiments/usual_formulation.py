"""BEVFormer's encoder the usual way, as published code computes it: the baseline of every comparison of speed.

A restatement in the shapes and order of operations of the published modules: a mask of (N, B, Q, Z), lists of visible
queries found anew in every layer, queries padded to the longest list, projections of padded pairs, mmcv's sampling
level by level, results added back camera by camera, the pair (previous, current) stacked and projected in every layer.
It takes its weights from a :class:`bevstack.models.bev.BEVFormerEncoder` and gives the same B_t; where the published
code is wrong for more than one sample (docs/reference.md 4.1 D, E) it is right, at the same cost. None of our layers
runs in it, so that it stays what it is while they get faster.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from bevstack.geometry.transforms import full_precision
from bevstack.models.bev import BEVFormerEncoder
from bevstack.models.bev.encoder import BEVFormerLayer
from bevstack.models.bev.spatial_cross_attention import SpatialCrossAttention
from bevstack.models.bev.temporal_self_attention import TemporalSelfAttention
from bevstack.structures import AlignedHistory, BEVFeatures, CameraRig, Frame


def usual_sampling(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Multi-scale deformable attention by mmcv's own function for CPUs: ``grid_sample`` level by level.

    Computed in float32 at least, as the published code does under mixed precision, too.

    Args:
        value: (M, sum of H_l * W_l, h, c).
        shapes: (H_l, W_l) of the L levels.
        locations: (M, Q, h, L, P, 2) fractions (x, y) of the maps.
        weights: (M, Q, h, L, P), which sum to one over levels and points.

    Returns:
        (M, Q, h * c).
    """
    # only here: its package takes four seconds to import, and nothing but this baseline needs it
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    dtype = torch.promote_types(value.dtype, torch.float32)
    with full_precision(value):
        return multi_scale_deformable_attn_pytorch(value.to(dtype), shapes, locations.to(dtype), weights.to(dtype))


def plain_copy(module: nn.Module) -> nn.Module:
    """A copy of layers one after another, its linear layers torch's own, run one by one, whatever ours are."""
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*(plain_copy(layer) for layer in module))
    if not isinstance(module, nn.Linear):
        return copy.deepcopy(module)
    plain = nn.Linear(module.in_features, module.out_features, module.bias is not None)
    plain.load_state_dict(module.state_dict())
    return plain


class UsualTemporalSelfAttention(nn.Module):
    """Temporal self-attention on the stacked pair (previous, current) (docs/reference.md 4.5, TSA).

    Args:
        ours: whose weights are copied.
    """

    def __init__(self, ours: TemporalSelfAttention) -> None:
        super().__init__()
        channels = ours.value_proj.in_features
        self.num_heads, self.num_points = ours.num_heads, ours.num_points
        self.sampling_offsets = nn.Linear(2 * channels, self.num_heads * 2 * self.num_points * 2)
        self.attention_weights = nn.Linear(2 * channels, self.num_heads * 2 * self.num_points)
        self.value_proj, self.output_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.dropout = nn.Dropout(ours.dropout.p)
        self.load_state_dict(ours.state_dict())

    def forward(
        self, query: Tensor, pair: Tensor | None, position: Tensor, references: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        """(B, Q, C) to (B, Q, C), the residual added.

        Args:
            query: (B, Q, C) of this layer.
            pair: (B * 2, Q, C), previous and current BEV of each sample one after another; None: the query twice.
            position: (1, Q, C), added to the query alone.
            references: (B * 2, Q, 1, 2) fractions (x, y) of the grid.
            shape: (Y, X).
        """
        batch, queries, channels = query.shape
        heads, points = self.num_heads, self.num_points
        if pair is None:
            pair = torch.stack([query, query], 1).reshape(2 * batch, queries, channels)
        both = torch.cat([pair.view(batch, 2, queries, channels)[:, 0], query + position], -1)
        value = self.value_proj(pair).reshape(2 * batch, queries, heads, -1)
        offsets = self.sampling_offsets(both).view(batch, queries, heads, 2, 1, points, 2)
        weights = self.attention_weights(both).view(batch, queries, heads, 2, points).softmax(-1)
        weights = weights.view(batch, queries, heads, 2, 1, points).permute(0, 3, 1, 2, 4, 5)
        weights = weights.reshape(2 * batch, queries, heads, 1, points).contiguous()
        offsets = offsets.permute(0, 3, 1, 2, 4, 5, 6).reshape(2 * batch, queries, heads, 1, points, 2)
        sizes = torch.tensor([[shape[1], shape[0]]], device=query.device)
        locations = references[:, :, None, :, None, :] + offsets / sizes[None, None, None, :, None, :]
        output = usual_sampling(value, [shape], locations, weights)
        output = output.permute(1, 2, 0).view(queries, channels, batch, 2).mean(-1).permute(2, 0, 1)
        return self.dropout(self.output_proj(output)) + query


class UsualSpatialCrossAttention(nn.Module):
    """Spatial cross-attention by lists of visible queries, camera by camera (docs/reference.md 4.5, SCA).

    Args:
        ours: whose weights are copied.
    """

    def __init__(self, ours: SpatialCrossAttention) -> None:
        super().__init__()
        channels = ours.value_proj.in_features
        self.num_heads, self.num_levels, self.num_points = ours.num_heads, ours.num_levels, ours.num_points
        samples = self.num_heads * self.num_levels * self.num_points
        self.sampling_offsets, self.attention_weights = nn.Linear(channels, samples * 2), nn.Linear(channels, samples)
        self.value_proj, self.output_proj = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.dropout = nn.Dropout(ours.dropout.p)
        self.load_state_dict(ours.state_dict())

    def forward(
        self, query: Tensor, tokens: Tensor, shapes: Sequence[tuple[int, int]], places: Tensor, mask: Tensor
    ) -> Tensor:
        """(B, Q, C) to (B, Q, C), the residual added.

        Args:
            query: (B, Q, C).
            tokens: (B * N, sum of h * w, C) of the cameras.
            shapes: (H_l, W_l) of the levels.
            places: (N, B, Q, Z, 2) fractions of the padded image.
            mask: (N, B, Q, Z) bool, which points of the pillars are seen.
        """
        cameras, batch, _, heights = mask.shape
        seen = [[mask[n, b].sum(-1).nonzero().squeeze(-1) for n in range(cameras)] for b in range(batch)]
        longest = max(len(index) for row in seen for index in row)
        padded = query.new_zeros(batch, cameras, longest, query.shape[-1])
        where = places.new_zeros(batch, cameras, longest, heights, 2)
        for b in range(batch):
            for n, index in enumerate(seen[b]):
                padded[b, n, : len(index)] = query[b, index]
                where[b, n, : len(index)] = places[n, b, index]
        answers = self._pairs(padded.flatten(0, 1), tokens, shapes, where.flatten(0, 1)).unflatten(0, (batch, cameras))
        slots = torch.zeros_like(query, dtype=answers.dtype)
        for b in range(batch):
            for n, index in enumerate(seen[b]):
                slots[b, index] += answers[b, n, : len(index)]
        count = (mask.sum(-1) > 0).permute(1, 2, 0).sum(-1).clamp(min=1.0)
        return self.dropout(self.output_proj(slots / count[..., None])) + query

    def _pairs(self, query: Tensor, tokens: Tensor, shapes: Sequence[tuple[int, int]], references: Tensor) -> Tensor:
        """(B * N, R, C) padded queries around references (B * N, R, Z, 2), each in its own camera: (B * N, R, C)."""
        number, queries, _ = query.shape
        heads, levels, points, heights = self.num_heads, self.num_levels, self.num_points, references.shape[2]
        value = self.value_proj(tokens).view(number, tokens.shape[1], heads, -1)
        offsets = self.sampling_offsets(query).view(number, queries, heads, levels, points, 2)
        weights = self.attention_weights(query).view(number, queries, heads, levels * points).softmax(-1)
        weights = weights.view(number, queries, heads, levels, points)
        sizes = torch.tensor([[w, h] for h, w in shapes], device=query.device)
        offsets = offsets / sizes[None, None, None, :, None, :]
        offsets = offsets.view(number, queries, heads, levels, points // heights, heights, 2)
        locations = references[:, :, None, None, None, :, :] + offsets
        return usual_sampling(value, shapes, locations.flatten(4, 5), weights)


class LayerInputs(NamedTuple):
    """What all layers of one frame are given; shapes as the attentions take them."""

    position: Tensor
    references: Tensor
    bev_shape: tuple[int, int]
    tokens: Tensor
    shapes: list[tuple[int, int]]
    places: Tensor
    mask: Tensor


class UsualLayer(nn.Module):
    """Temporal self-attention where there is one, spatial cross-attention, feed-forward, a norm after each.

    Args:
        ours: whose weights are copied.
    """

    def __init__(self, ours: BEVFormerLayer) -> None:
        super().__init__()
        self.temporal = None if ours.temporal is None else UsualTemporalSelfAttention(ours.temporal)
        self.temporal_norm = nn.Identity() if ours.temporal_norm is None else copy.deepcopy(ours.temporal_norm)
        self.spatial = UsualSpatialCrossAttention(ours.spatial)
        self.spatial_norm = copy.deepcopy(ours.spatial_norm)
        self.feed_forward = plain_copy(ours.feed_forward)
        self.feed_forward_norm = copy.deepcopy(ours.feed_forward_norm)

    def forward(self, query: Tensor, pair: Tensor | None, given: LayerInputs) -> Tensor:
        """(B, Q, C) to (B, Q, C).

        Args:
            query: (B, Q, C).
            pair: (B * 2, Q, C) as the temporal attention takes it.
            given: what all layers share.
        """
        if self.temporal is not None:
            query = self.temporal(query, pair, given.position, given.references, given.bev_shape)
            query = self.temporal_norm(query)
        query = self.spatial_norm(self.spatial(query, given.tokens, given.shapes, given.places, given.mask))
        return self.feed_forward_norm(query + self.feed_forward(query))


class UsualEncoder(nn.Module):
    """Image features and the previous BEV to B_t, in the usual formulation.

    Stands where a :class:`bevstack.models.bev.BEVFormerEncoder` stands: the same arguments, the same B_t.

    Args:
        ours: whose weights and sizes are copied.
    """

    def __init__(self, ours: BEVFormerEncoder) -> None:
        super().__init__()
        self.grid, self.channels, self.history_frames = ours.grid, ours.channels, ours.history_frames
        self.num_heights = ours.pillars.shape[1]
        self.queries, self.position = copy.deepcopy(ours.queries), copy.deepcopy(ours.position)
        self.camera_embedding = nn.Parameter(ours.camera_embedding.detach().clone())
        self.level_embedding = nn.Parameter(ours.level_embedding.detach().clone())
        self.motion_embedding = copy.deepcopy(ours.motion_embedding)
        self.layers = nn.ModuleList(UsualLayer(cast(BEVFormerLayer, layer)) for layer in ours.layers)

    def forward(
        self, image_features: Sequence[Tensor], frame: Frame, history: AlignedHistory | None
    ) -> BEVFeatures:
        """Build B_t (B, C, Y, X) of one frame.

        Args:
            image_features: L tensors (B, N, C, h, w).
            frame: its rig and motion.
            history: past frames in the current one; None: no sample has any.
        """
        batch = len(frame.motion.has_previous)
        query = self.queries.weight.unsqueeze(0).repeat(batch, 1, 1)
        if self.motion_embedding is not None:
            query = query + self.motion_embedding(frame.motion)[:, None]
        position = self.position().flatten(1).t().unsqueeze(0)
        tokens, shapes = self.image_tokens(image_features)
        places, mask = self.sampled_points(frame.rig, query.dtype)
        here = self.grid.reference_points(query.device, query.dtype).expand(batch, -1, -1)
        references, valid = torch.stack([here, here], 1), None
        pair = None
        if history is not None:
            valid = history.valid[:, 0]
            if history.reference_shift is not None:
                shift = torch.where(valid[:, None, None], history.reference_shift, 0.0)
                references = references + shift[:, :, None]
            previous = history.features[:, 0].flatten(2).transpose(1, 2).to(query.dtype)
            pair = torch.stack([previous, query], 1)
            valid = None if bool(valid.all()) else valid[:, None, None, None]
        references = references.flatten(0, 1).unsqueeze(2)
        given = LayerInputs(position, references, self.grid.shape, tokens, shapes, places, mask)
        for layer in self.layers:
            seen = pair if valid is None or pair is None else torch.where(valid, pair, query.unsqueeze(1))
            query = layer(query, None if seen is None else seen.flatten(0, 1), given)
        return BEVFeatures(query.transpose(1, 2).unflatten(2, self.grid.shape), self.grid)

    def image_tokens(self, image_features: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """(B * N, sum of h * w, C) tokens of L levels (B, N, C, h, w) with their embeddings, and the levels' sizes.

        Source: docs/reference.md 4.5, Image tokens.
        """
        flat = []
        for level, features in enumerate(image_features):
            tokens = features.flatten(3).permute(1, 0, 3, 2)
            tokens = tokens + self.camera_embedding[:, None, None, :].to(tokens.dtype)
            flat.append(tokens + self.level_embedding[None, None, level : level + 1, :].to(tokens.dtype))
        joined = torch.cat(flat, 2).permute(0, 2, 1, 3)  # (N, sum of h * w, B, C)
        shapes = [(features.shape[-2], features.shape[-1]) for features in image_features]
        return joined.permute(2, 0, 1, 3).flatten(0, 1), shapes

    def sampled_points(self, rig: CameraRig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Where the pillars' points fall: places (N, B, Q, Z, 2) and mask (N, B, Q, Z), by one matrix a point.

        Source: docs/reference.md 4.5, point_sampling, 4.1 N.
        """
        device = rig.camera_from_bev.device
        points = self.grid.pillar_points(self.num_heights, device, dtype).flatten(0, 1).transpose(0, 1)  # (Z, Q, 3)
        points = torch.cat([points, torch.ones_like(points[..., :1])], -1)
        heights, queries, _ = points.shape
        batch, cameras = rig.camera_from_bev.shape[:2]
        with full_precision(points):
            matrices = rig.pixels_from_bev.to(dtype).view(1, batch, cameras, 1, 4, 4)
            matrices = matrices.repeat(heights, 1, 1, queries, 1, 1)
            points = points.view(heights, 1, 1, queries, 4).repeat(1, batch, cameras, 1, 1).unsqueeze(-1)
            seen = torch.matmul(matrices, points).squeeze(-1)  # (Z, B, N, Q, 4)
            depth = seen[..., 2:3]
            mask = depth > 1e-5
            uv = seen[..., :2] / torch.maximum(depth, torch.ones_like(depth) * 1e-5)
            limit = rig.image_size_px.flip(-1)[None, :, :, None].to(dtype)
            mask = mask & (uv[..., 0:1] > 0) & (uv[..., 0:1] < limit[..., 0:1])
            mask = mask & (uv[..., 1:2] > 0) & (uv[..., 1:2] < limit[..., 1:2])
            height, width = rig.padded_size_px
            places = uv / uv.new_tensor([width, height])
        return places.permute(2, 1, 3, 0, 4), mask.permute(2, 1, 3, 0, 4).squeeze(-1)
