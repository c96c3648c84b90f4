"""The BEVFormer encoder: image features of N cameras and the previous BEV in, B_t out (BEVFormer, section 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.models.bev.spatial_cross_attention import SpatialCrossAttention
from bevstack.models.bev.temporal_self_attention import TemporalContext, TemporalSelfAttention
from bevstack.models.bev.visibility import PlanCache, VisibilityPlan
from bevstack.models.layers.feed_forward import FeedForward
from bevstack.models.layers.initialization import SamplingStart
from bevstack.models.layers.positional_encoding import LearnedPositionalEncoding
from bevstack.registry import MODELS
from bevstack.structures import AlignedHistory, BEVFeatures, CameraRig, EgoMotion, Frame


class BEVFormerLayer(nn.Module):
    """Temporal self-attention, spatial cross-attention and a feed-forward network, each followed by LayerNorm.

    Source: docs/reference.md 4.5, Layer.

    Args:
        channels, num_heads, num_levels, num_points, num_heights, dropout, start: as in :class:`BEVFormerEncoder`.
        temporal_points: samples per head of the temporal attention; 0 leaves it out (a static model).
        feed_forward_channels: hidden width.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        num_levels: int,
        num_points: int,
        num_heights: int,
        temporal_points: int,
        feed_forward_channels: int,
        dropout: float,
        start: SamplingStart | None = None,
    ) -> None:
        super().__init__()
        self.temporal: TemporalSelfAttention | None = None
        self.temporal_norm: nn.LayerNorm | None = None
        if temporal_points:
            self.temporal = TemporalSelfAttention(channels, num_heads, temporal_points, dropout, start)
            self.temporal_norm = nn.LayerNorm(channels)
        self.spatial = SpatialCrossAttention(channels, num_heads, num_levels, num_points, num_heights, dropout, start)
        self.spatial_norm = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels, feed_forward_channels, dropout)
        self.feed_forward_norm = nn.LayerNorm(channels)

    def forward(
        self,
        query: Tensor,
        image_tokens: Tensor,
        shapes: Sequence[tuple[int, int]],
        plan: VisibilityPlan,
        context: TemporalContext,
        bev_shape: tuple[int, int],
    ) -> Tensor:
        """(B, Q, C) to (B, Q, C); arguments as in the two attentions."""
        if self.temporal is not None and self.temporal_norm is not None:
            query = self.temporal_norm(query + self.temporal(query, context, bev_shape))
        query = self.spatial_norm(query + self.spatial(query, image_tokens, shapes, plan))
        return self.feed_forward_norm(query + self.feed_forward(query))


@MODELS.register_module()
class BEVFormerEncoder(BaseModule):
    """Image features and memory to B_t.

    Args:
        grid: the BEV grid (or its arguments), any shape.
        channels: C of image features, queries and B_t.
        num_cameras, num_levels: N and L of the image features.
        num_layers: encoder layers.
        num_heads: attention heads.
        num_points: spatial samples per head and level, a multiple of ``num_heights``.
        num_heights: points per pillar.
        temporal_points: temporal samples per head; 0 leaves temporal attention out.
        feed_forward_channels: hidden width of the layers' feed-forward networks.
        dropout: in attentions and feed-forward networks.
        motion_embedding: adds the ego motion to the queries (registry MODELS), or None.
        with_checkpoint: recompute each layer in the backward pass instead of storing it.
        embedding_std: of the initial queries, camera and level embeddings. The reference draws them with 1; where a
            small model is trained from nothing, less noise lets it see the image features sooner.
        start: where the attentions sample at initialisation, or the arguments of a :class:`SamplingStart`.
        num_slots: how many cameras may see one cell. Given, shapes depend on no values, as CUDA graphs and exports
            want it, and a rig that needs more is an error; None: as many as each rig needs.

    Attributes:
        history_frames: how many past frames it reads: the previous one, or none without temporal attention.
    """

    def __init__(
        self,
        grid: BEVGrid | Mapping,
        channels: int = 256,
        num_cameras: int = 6,
        num_levels: int = 4,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 8,
        num_heights: int = 4,
        temporal_points: int = 4,
        feed_forward_channels: int = 512,
        dropout: float = 0.1,
        motion_embedding: Mapping | None = None,
        with_checkpoint: bool = False,
        embedding_std: float = 1.0,
        start: SamplingStart | Mapping | None = None,
        num_slots: int | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_slots, self._plans = num_slots, PlanCache()
        self.grid, self.channels = BEVGrid.build(grid), channels
        self.num_cameras, self.num_levels, self.with_checkpoint = num_cameras, num_levels, with_checkpoint
        self.queries = nn.Embedding(self.grid.num_cells, channels)
        self.position = LearnedPositionalEncoding(channels // 2, *self.grid.shape)
        if not temporal_points:  # nothing reads it then, and training on several processes wants a gradient for all
            self.position.requires_grad_(False)
        self.camera_embedding = nn.Parameter(torch.randn(num_cameras, channels) * embedding_std)
        self.level_embedding = nn.Parameter(torch.randn(num_levels, channels) * embedding_std)
        nn.init.normal_(self.queries.weight, std=embedding_std)
        self.history_frames = 1 if temporal_points else 0
        self.motion_embedding = None if motion_embedding is None else MODELS.build(motion_embedding)
        self.layers = nn.ModuleList(
            BEVFormerLayer(
                channels,
                num_heads,
                num_levels,
                num_points,
                num_heights,
                temporal_points,
                feed_forward_channels,
                dropout,
                SamplingStart(**start) if isinstance(start, Mapping) else start,
            )
            for _ in range(num_layers)
        )
        self.register_buffer("pillars", self.grid.pillar_points(num_heights).flatten(0, 1), persistent=False)
        self.register_buffer("references", self.grid.reference_points(), persistent=False)

    def forward(
        self, image_features: Sequence[Tensor], frame: Frame, history: AlignedHistory | None
    ) -> BEVFeatures:
        """Build B_t of one frame.

        Args:
            image_features: L tensors (B, N, C, h, w).
            frame: its rig and motion (its images are not looked at).
            history: past frames in the current one, of which the previous is read; None: no sample has any.

        Returns:
            B_t (B, C, Y, X).

        Raises:
            InputError: cameras, levels or channels are not those the encoder was built for.
        """
        self._check(image_features)
        tokens, shapes = self.image_tokens(image_features)
        plan = self.visibility(frame.rig)
        query = self.initial_queries(frame.motion)
        bev = self.run_layers(query, tokens, shapes, plan, self.temporal_context(query, history))
        return BEVFeatures(bev.transpose(1, 2).unflatten(2, self.grid.shape), self.grid)

    def visibility(self, rig: CameraRig) -> VisibilityPlan:
        """Which cameras see which cell of the grid, and where."""
        return self._plans.plan(rig, self.pillars, self.num_slots)

    def initial_queries(self, motion: EgoMotion) -> Tensor:
        """(B, Q, C) learned queries, plus the motion embedding where there is one."""
        query = self.queries.weight.unsqueeze(0).expand(len(motion.has_previous), -1, -1)
        if self.motion_embedding is not None:
            query = query + self.motion_embedding(motion).unsqueeze(1)
        return query

    def image_tokens(self, image_features: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Flatten L levels (B, N, C, h, w) into (B * N, sum of h * w, C), with camera and level embeddings added.

        Source: docs/reference.md 4.5, Image tokens.
        """
        tokens = []
        for level, features in enumerate(image_features):
            embedding = self.camera_embedding.unsqueeze(1) + self.level_embedding[level]
            tokens.append(features.flatten(3).transpose(2, 3) + embedding)  # (B, N, h * w, C)
        return torch.cat(tokens, dim=2).flatten(0, 1), [(f.shape[-2], f.shape[-1]) for f in image_features]

    def temporal_context(self, query: Tensor, history: AlignedHistory | None) -> TemporalContext:
        """What temporal attention over (B, Q, C) queries looks at; without a history, no sample has any."""
        position = self.position().flatten(1).transpose(0, 1).unsqueeze(0)
        references = self.references[None, :, None].expand(query.shape[0], -1, 2, -1)
        if history is None:
            return TemporalContext(None, query, None, references, position)
        valid = history.valid[:, 0]
        if history.reference_shift is not None:
            references = references + torch.where(valid[:, None, None], history.reference_shift, 0.0).unsqueeze(1)
        asked = valid.device.type == "cpu" and not torch.compiler.is_compiling()  # elsewhere, asking means waiting
        some = None if asked and bool(valid.all()) else valid
        return TemporalContext(history.features[:, 0].flatten(2).transpose(1, 2), query, some, references, position)

    def run_layers(
        self,
        query: Tensor,
        image_tokens: Tensor,
        shapes: Sequence[tuple[int, int]],
        plan: VisibilityPlan,
        context: TemporalContext,
    ) -> Tensor:
        """(B, Q, C) queries through every layer."""
        for layer in self.layers:
            inputs = (query, image_tokens, shapes, plan, context, self.grid.shape)
            if self.with_checkpoint and torch.is_grad_enabled():
                query = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                query = layer(*inputs)
        return query

    def _check(self, image_features: Sequence[Tensor]) -> None:
        cameras, channels = image_features[0].shape[1:3]
        found = {"num_levels": len(image_features), "num_cameras": cameras, "channels": channels}
        for name, number in found.items():
            if number != getattr(self, name):
                given = ", ".join(f"{count} {key.split('_')[-1]}" for key, count in found.items())
                reason = f"built for {getattr(self, name)}, but the image features have {given}; set {name}={number}"
                raise InputError("model", f"encoder.{name}", reason)
