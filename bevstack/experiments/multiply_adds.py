"""How many multiply-adds a model needs for one frame, counted without computing anything (meta device)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from unittest import mock

import torch
from torch import Tensor, nn

from bevstack.models.bev import VisibilityPlan
from bevstack.models.layers.attention import MultiHeadSelfAttention
from bevstack.models.perception import BEVPerception
from bevstack.structures import BEVFeatures, BEVMemory, EgoMotion

SAMPLING = "deformable attention: bilinear samples"
DEFORMABLE_CONVOLUTION = "deformable convolutions"
SELF_ATTENTION = "self-attention of the object queries: products"


def count_multiply_adds(
    model: BEVPerception, padded_size_px: Sequence[int], cameras_per_cell: float = 1.0
) -> dict[str, float]:
    """Multiply-adds of one frame of one sample, by part.

    Convolutions and linear layers are counted as they run: outputs times inputs per output; normalisation, activation,
    interpolation, softmax and projection of points are left out, as such counts do. ``backbone``, ``neck``, ``encoder``
    and each ``heads.<name>`` hold these. Three parts stand for themselves, as many counters miss them: the kernels of
    deformable convolutions (their offset convolutions belong to the backbone; five multiply-adds for each bilinear
    sample are counted with the kernels), the sampling of deformable attention (five per channel of a sample), and the
    matrix products of the object queries' self-attention.

    Args:
        model: on the meta device.
        padded_size_px: (H, W) of the image tensor.
        cameras_per_cell: how many cameras see a cell on average; only the sampling depends on it.

    Returns:
        Part -> multiply-adds. Their sum is the full count.
    """
    counts: dict[str, float] = defaultdict(float)
    with torch.no_grad(), _counting(model, counts, cameras_per_cell):
        cameras = model.encoder.num_cameras
        sweeps = getattr(model.backbone, "num_sweeps", 0)
        images = torch.empty(1, sweeps + 1, cameras, 3, *padded_size_px, device="meta")
        levels = model.image_features(SimpleNamespace(images=images[:, -1], sweeps=images[:, :-1]))
        bev = _bev_of(model, levels)
        memory = _memory_of(bev, model.memory_frames)
        if model.temporal_fusion is not None:
            bev = model.temporal_fusion(bev, memory)
        if model.bev_neck is not None:
            bev = model.bev_neck(bev)
        bev = replace(bev, history=memory, image_features=tuple(levels))
        for head in model.heads.values():
            head(bev)
    return dict(counts)


def count_operators(module: nn.Module, *inputs: Tensor) -> float:
    """Multiply-adds of every convolution (1D to 3D, transposed) and matrix product that a forward pass runs.

    Counts operators instead of modules: attention's products and whatever a foreign backbone computes without a module
    of its own are in it. Deformable convolutions are not: their kernels are made of many operators here
    (:func:`count_multiply_adds` knows them).

    Args:
        module: on the meta device, or any other.
        inputs: of its forward, of any shape, on the same device.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), mock.patch("torch.autocast", lambda *_, **__: nullcontext()):
        with FlopCounterMode(display=False) as counter:
            module(*inputs)
    return counter.get_total_flops() / 2


def published_count(counts: dict[str, float]) -> float:
    """The sum as BEVFormer's 1303.5 G seems to have been made: what a hook on nn.Conv2d and nn.Linear sees."""
    left_out = (SAMPLING, DEFORMABLE_CONVOLUTION, SELF_ATTENTION)
    return sum(count for part, count in counts.items() if part not in left_out)


def _bev_of(model: BEVPerception, levels: list[Tensor]) -> BEVFeatures:
    """B_t of a frame without history; which cameras see what is left open."""
    encoder, grid = model.encoder, model.encoder.grid
    tokens, shapes = encoder.image_tokens(levels)
    motion = EgoMotion(
        torch.empty(1, 4, 4, device="meta"),
        torch.zeros(1, dtype=torch.bool, device="meta"),
        torch.empty(1, device="meta"),
        torch.empty(1, 18, device="meta"),
    )
    query = encoder.initial_queries(motion)
    heights = encoder.pillars.shape[1]
    plan = VisibilityPlan(
        torch.empty(1, grid.num_cells, 1, dtype=torch.long, device="meta"),
        torch.empty(1, grid.num_cells, 1, heights, 2, device="meta"),
        torch.empty(1, grid.num_cells, 1, device="meta"),
    )
    bev = encoder.run_layers(query, tokens, shapes, plan, encoder.temporal_context(query, motion, None))
    return BEVFeatures(bev.transpose(1, 2).unflatten(2, grid.shape), grid)


def _memory_of(bev: BEVFeatures, frames: int) -> BEVMemory:
    """A full memory of frames like this one."""
    features = bev.features.unsqueeze(1).expand(-1, frames, -1, -1, -1)
    return BEVMemory(
        features,
        torch.empty(1, frames, 4, 4, device="meta"),
        torch.empty(1, frames, dtype=torch.bool, device="meta"),
        seconds=torch.empty(1, frames, device="meta"),
    )


@contextmanager
def _counting(model: BEVPerception, counts: dict[str, float], cameras_per_cell: float) -> Iterator[None]:
    from bevstack.interop.deform_conv import ModulatedDeformConv2dPack
    from bevstack.models.bev import SpatialCrossAttention, TemporalSelfAttention
    from bevstack.models.layers.attention import DeformableCrossAttention

    def part_of(name: str) -> str:
        return ".".join(name.split(".")[: 2 if name.startswith("heads.") else 1])

    def hook(name: str):
        part = part_of(name)

        def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if isinstance(module, nn.Conv2d):
                counts[part] += output.numel() * module.weight[0].numel()
            elif isinstance(module, nn.Linear):
                counts[part] += output.numel() * module.in_features
            elif isinstance(module, ModulatedDeformConv2dPack):
                samples = output[:, 0].numel() * module.in_channels * module.weight[0, 0].numel()
                counts[DEFORMABLE_CONVOLUTION] += output.numel() * module.weight[0].numel() + 5 * samples
            elif isinstance(module, MultiHeadSelfAttention):
                queries, width = inputs[0].shape[1], module.value.out_features
                counts[SELF_ATTENTION] += 2 * len(inputs[0]) * queries * queries * width
            elif isinstance(module, SpatialCrossAttention):
                samples = output.numel() * module.num_levels * module.num_points
                counts[SAMPLING] += 5 * samples * cameras_per_cell
            elif isinstance(module, TemporalSelfAttention):
                counts[SAMPLING] += 5 * output.numel() * 2 * module.num_points
            elif isinstance(module, DeformableCrossAttention):
                counts[SAMPLING] += 5 * output.numel() * module.levels * module.points

        return count

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        with mock.patch("torch.autocast", lambda *_, **__: nullcontext()):  # refuses the meta device, even to be off
            yield
    finally:
        for handle in handles:
            handle.remove()
