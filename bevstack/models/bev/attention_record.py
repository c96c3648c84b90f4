"""What a model looks at: the inputs of its last attention and its B_t, kept while it is asked, for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bevstack.errors import InputError
from bevstack.models.bev.spatial_cross_attention import SpatialCrossAttention
from bevstack.models.bev.temporal_self_attention import TemporalContext, TemporalSelfAttention
from bevstack.ops.linear import full_precision_linear
from bevstack.structures import BEVFeatures, Frame
from bevstack.structures.attention import AttendedPlaces


class AttentionRecord:
    """Listens to a model; after each step it knows B_t as the heads read it, and where attention looked.

    Attributes:
        bev: B_t (B, C, Y, X) of the last step. grid: the encoder's.

    Args:
        model: a :class:`bevstack.models.BEVPerception`, or a form of it (:mod:`bevstack.models.inference_form`). It
            answers as before; hooks are on it until :meth:`close`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.bev: BEVFeatures | None = None
        self._frame: Frame | None = None
        self._spatial: tuple[SpatialCrossAttention, tuple] | None = None
        self._temporal: tuple[TemporalSelfAttention, tuple] | None = None
        encoder: Any = model.encoder
        last = getattr(model, "bev_neck", None) or getattr(model, "temporal_fusion", None) or encoder
        self._hooks = [last.register_forward_hook(self._keep_bev), encoder.register_forward_pre_hook(self._keep_frame)]
        self.grid = encoder.grid
        layer: Any = encoder.layers[-1] if len(getattr(encoder, "layers", ())) else None
        if isinstance(getattr(layer, "spatial", None), SpatialCrossAttention):
            self._hooks.append(layer.spatial.register_forward_pre_hook(self._keep_spatial))
        if isinstance(getattr(layer, "temporal", None), TemporalSelfAttention):
            self._hooks.append(layer.temporal.register_forward_pre_hook(self._keep_temporal))

    def close(self) -> None:
        """Leave the model as it was."""
        for hook in self._hooks:
            hook.remove()

    @torch.no_grad()
    def places(self, row: int, metres: Sequence[Sequence[float]]) -> AttendedPlaces:
        """Where attention looked in the last step for the cells that some points lie in.

        Args:
            row: of the sample in the batch.
            metres: K points (x, y) of its BEV frame; those outside the grid are moved to its rim.

        Raises:
            InputError: the model has no spatial cross-attention.
        """
        if self._spatial is None or self._frame is None:
            reason = "has no deformable attention over cameras to draw; it needs a BEVFormerEncoder"
            raise InputError("model", "encoder", reason)
        points = torch.as_tensor(metres, dtype=torch.float32).reshape(-1, 2)
        y_cells, x_cells = self.grid.shape
        column, line = self.grid.cells_from_metres(points).floor().long().unbind(-1)
        cells = line.clamp(0, y_cells - 1) * x_cells + column.clamp(0, x_cells - 1)
        cameras, rays, weights = self._image_places(row, cells)
        past = self._past_places(row, cells)
        centers = self.grid.cell_centers().flatten(0, 1)[cells]
        return AttendedPlaces(centers, cameras, rays, weights, *past)

    def _image_places(self, row: int, cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Cameras (K, S), rays (K, S, P, 2) and weights (K, S, P) of cells (K,)."""
        assert self._spatial is not None and self._frame is not None  # noqa: S101 - the caller has asked
        module, (query, _, shapes, plan) = self._spatial
        heads, levels, points = module.num_heads, module.num_levels, module.num_points
        offsets, logits = full_precision_linear(
            query[row : row + 1, cells], module.sampling_offsets, module.attention_weights
        )
        sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32)
        shifts = offsets.float().cpu().unflatten(-1, (heads, levels, points, 2))[0] / sizes[:, None]
        anchor = torch.arange(points) % plan.references.shape[3]
        references = plan.references[row, cells].float().cpu()[:, :, None, None, anchor]  # (K, S, 1, 1, P, 2)
        rig = self._frame.rig
        height, width = rig.padded_size_px
        pixels = (references + shifts[:, None]).flatten(2, 4) * torch.tensor([width, height], dtype=torch.float32)
        slots = plan.slots[row, cells].cpu()
        cameras = torch.where(slots >= 0, slots - row * rig.num_cameras, -1)
        inverse = torch.linalg.inv(rig.pixels_from_camera[row].double().cpu())[cameras.clamp_min(0)]  # (K, S, 3, 3)
        rays = torch.einsum("ksij,kspj->kspi", inverse, nn.functional.pad(pixels.double(), (0, 1), value=1.0))[..., :2]
        spread = logits.float().cpu().unflatten(-1, (heads, levels * points)).softmax(-1)[0].flatten(1) / heads
        slot_weights = torch.where(slots >= 0, plan.weights[row, cells].float().cpu(), 0.0)
        return cameras, rays.float(), slot_weights.unsqueeze(-1) * spread.unsqueeze(1)

    def _past_places(self, row: int, cells: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Places (K, 2, P', 2) in metres and weights (K, 2, P') of cells (K,); None without history."""
        if self._temporal is None:
            return None, None
        module, (query, context, _) = self._temporal
        if context.previous is None or (context.valid is not None and not bool(context.valid[row])):
            return None, None
        heads, points = module.num_heads, module.num_points
        asked = query[row, cells] + _row_of(context.position, row)[cells]
        both = torch.cat([context.previous[row, cells].to(asked.dtype), asked], dim=-1)
        offsets, logits = full_precision_linear(both.unsqueeze(0), module.sampling_offsets, module.attention_weights)
        shifts = offsets.float().cpu().unflatten(-1, (heads, 2, points, 2))[0].transpose(1, 2).flatten(2, 3)
        metres = shifts * torch.tensor(self.grid.cell_m, dtype=torch.float32)
        weights = logits.float().cpu().unflatten(-1, (heads, 2, points)).softmax(-1)[0].transpose(1, 2).flatten(2)
        centers = self.grid.cell_centers().flatten(0, 1)[cells]
        return centers[:, None, None] + metres, weights / (2 * heads)

    def _keep_bev(self, module: nn.Module, inputs: tuple, bev: BEVFeatures) -> None:
        self.bev = BEVFeatures(bev.features.detach().float().cpu(), bev.grid)

    def _keep_frame(self, module: nn.Module, inputs: tuple) -> None:
        self._frame, self._spatial, self._temporal = inputs[1], None, None

    def _keep_spatial(self, module: SpatialCrossAttention, inputs: tuple) -> None:
        self._spatial = module, inputs

    def _keep_temporal(self, module: TemporalSelfAttention, inputs: tuple[Tensor, TemporalContext, Any]) -> None:
        self._temporal = module, inputs


def _row_of(values: Tensor, row: int) -> Tensor:
    """(Q, C) of (B, Q, C) or (1, Q, C)."""
    return values[row if len(values) > 1 else 0]
