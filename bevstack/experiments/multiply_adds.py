"""How many multiply-adds a model needs for one frame, counted without computing anything (meta device)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bevstack.interop.deform_conv import ModulatedDeformConv2dPack
from bevstack.models.bev import SpatialCrossAttention, TemporalSelfAttention
from bevstack.models.heads import BoxHead, LabelledBoxes
from bevstack.models.layers.attention import DeformableCrossAttention, MultiHeadSelfAttention
from bevstack.models.layers.feed_forward import FeedForward
from bevstack.models.perception import BEVPerception
from bevstack.structures import BEVMemory, CameraRig, EgoMotion, Frame

SAMPLING = "deformable attention: bilinear samples"
DEFORMABLE_CONVOLUTION = "deformable convolutions"
SELF_ATTENTION = "self-attention of the object queries: products"
BOXES = 100
"""Detected boxes that heads on boxes are counted for."""


def count_multiply_adds(
    model: BEVPerception, padded_size_px: Sequence[int], cameras_per_cell: float = 1.0
) -> dict[str, float]:
    """Multiply-adds of one step of one sample that has its whole history, and of the heads on it, by part.

    What is counted is :meth:`bevstack.models.BEVPerception.step` and each head's ``forward``, as they run; heads on
    boxes on ``BOXES`` of them. Convolutions and linear layers are counted by their outputs times inputs per output;
    normalisation, activation, interpolation, softmax and projection of points are left out, as such counts do.
    ``backbone``, ``neck``, ``encoder``, each ``heads.<name>`` and each ``image_heads.<name>`` that predicts hold these.
    Three parts stand for themselves, as many counters miss them: the kernels of deformable convolutions (their offset
    convolutions belong to the backbone; five multiply-adds for each bilinear sample are counted with the kernels), the
    sampling of deformable attention (five per channel of a sample), and the matrix products of the object queries'
    self-attention.

    Args:
        model: on the meta device.
        padded_size_px: (H, W) of the image tensor.
        cameras_per_cell: how many cameras see a cell on average; only the sampling depends on it.

    Returns:
        Part -> multiply-adds. Their sum is the full count.
    """
    counts: dict[str, float] = defaultdict(float)
    with torch.no_grad(), _counting(model, counts, cameras_per_cell):
        bev, _ = model.step(frame_of(model, padded_size_px), full_memory(model))
        for head in model.heads.values():
            head(bev, [some_boxes()]) if isinstance(head, BoxHead) else head(bev)
        for head in model.image_heads.values():
            if head.predicts:
                head(bev.image_features)
    return dict(counts)


def frame_of(model: BEVPerception, padded_size_px: Sequence[int]) -> Frame:
    """A frame of one sample for ``model``, shapes without values: on the meta device.

    Args:
        model: says how many cameras and sweeps it takes.
        padded_size_px: (H, W) of the image tensor.
    """
    height, width = padded_size_px
    cameras, sweeps = model.encoder.num_cameras, getattr(model.backbone, "num_sweeps", 0)
    with torch.device("meta"):
        rig = CameraRig(
            pixels_from_camera=torch.empty(1, cameras, 3, 3),
            camera_from_bev=torch.empty(1, cameras, 4, 4),
            image_size_px=torch.empty(1, cameras, 2, dtype=torch.long),
            padded_size_px=(height, width),
        )
        has_previous = torch.empty(1, dtype=torch.bool)
        motion = EgoMotion(torch.empty(1, 4, 4), has_previous, torch.empty(1), torch.empty(1, 18))
        images = torch.empty(1, cameras, 3, *padded_size_px)
        return Frame(images, rig, motion, torch.empty(1, sweeps, *images.shape[1:]) if sweeps else None)


def some_boxes() -> LabelledBoxes:
    """As many boxes of one sample as a full scene shows, on the meta device."""
    with torch.device("meta"):
        return LabelledBoxes(torch.empty(BOXES, 9), torch.empty(BOXES, dtype=torch.long))


def full_memory(model: BEVPerception) -> BEVMemory | None:
    """As many past frames of one sample as ``model`` reads, on the meta device; None where it reads none."""
    grid, frames = model.encoder.grid, model.memory_frames
    if frames == 0:
        return None
    with torch.device("meta"):
        features = torch.empty(1, frames, model.encoder.channels, *grid.shape)
        valid = torch.empty(1, frames, dtype=torch.bool)
        return BEVMemory(features, grid, torch.empty(1, frames, 4, 4), valid, torch.empty(1, frames))


def count_operators(module: nn.Module, *inputs: Tensor) -> float:
    """Multiply-adds of every convolution (1D to 3D, transposed) and matrix product that a forward pass runs.

    Counts operators instead of modules: attention's products and whatever a foreign backbone computes without a module
    of its own are in it. Deformable convolutions are not: their kernels are made of many operators here
    (:func:`count_multiply_adds` knows them).

    Args:
        module: on the meta device, or any other.
        inputs: of its forward, of any shape, on the same device.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() / 2


def published_count(counts: dict[str, float]) -> float:
    """The sum as BEVFormer's 1303.5 G seems to have been made: what a hook on nn.Conv2d and nn.Linear sees."""
    left_out = (SAMPLING, DEFORMABLE_CONVOLUTION, SELF_ATTENTION)
    return sum(count for part, count in counts.items() if part not in left_out)


@contextmanager
def _counting(model: BEVPerception, counts: dict[str, float], cameras_per_cell: float) -> Iterator[None]:
    def part_of(name: str) -> str:
        return ".".join(name.split(".")[: 2 if name.startswith(("heads.", "image_heads.")) else 1])

    def hook(name: str):
        part = part_of(name)

        def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if isinstance(module, nn.Conv1d | nn.Conv2d):
                counts[part] += output.numel() * module.weight[0].numel()
            elif isinstance(module, nn.Linear):
                counts[part] += output.numel() * module.in_features
            elif isinstance(module, nn.LSTMCell):
                counts[part] += len(inputs[0]) * (module.weight_ih.numel() + module.weight_hh.numel())
            elif isinstance(module, ModulatedDeformConv2dPack):
                samples = output[:, 0].numel() * module.in_channels * module.weight[0, 0].numel()
                counts[DEFORMABLE_CONVOLUTION] += output.numel() * module.weight[0].numel() + 5 * samples
            elif isinstance(module, MultiHeadSelfAttention):
                queries, width = inputs[0].shape[1], module.value_proj.out_features
                counts[SELF_ATTENTION] += 2 * len(inputs[0]) * queries * queries * width
            elif isinstance(module, FeedForward):  # its first layer is one product with the activation
                counts[part] += output[..., 0].numel() * cast("nn.Linear", module[0]).weight.numel()
            elif isinstance(module, SpatialCrossAttention):
                samples = output.numel() * module.num_levels * module.num_points
                counts[SAMPLING] += 5 * samples * cameras_per_cell
            elif isinstance(module, TemporalSelfAttention):
                counts[SAMPLING] += 5 * output.numel() * 2 * module.num_points
            elif isinstance(module, DeformableCrossAttention):
                counts[SAMPLING] += 5 * output.numel() * module.num_levels * module.num_points
            if isinstance(module, SpatialCrossAttention | TemporalSelfAttention | DeformableCrossAttention):
                weights = (module.sampling_offsets.weight, module.attention_weights.weight)  # one product
                counts[part] += output[..., 0].numel() * sum(weight.numel() for weight in weights)

        return count

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
