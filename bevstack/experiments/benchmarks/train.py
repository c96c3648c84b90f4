"""Suite ``train``: one training step of encoder and decoder, of a whole BEVFormer tiny on three frames, of the demo.

A step is forward, losses, backward, clipping and AdamW. Ours is the config's optimizer; the usual way has the same one
as torch builds it where nothing else is asked for, in several passes over the weights in place of one.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from bevstack.experiments.benchmarks.encoder import DTYPES
from bevstack.experiments.benchmarks.inputs import (
    CHANNELS,
    DEMO_IMAGE_PX,
    SIZES,
    demo_model,
    features_of,
    frame_of,
    memory_of,
    samples_for,
    tiny_model,
)
from bevstack.experiments.benchmarks.measuring import Row, Stopwatch, difference
from bevstack.experiments.benchmarks.model import IMAGE_PX, PADDED_PX
from bevstack.experiments.benchmarks.settings import Settings
from bevstack.experiments.usual_formulation import UsualEncoder
from bevstack.experiments.usual_model import UsualDetectionHead, UsualPerception
from bevstack.models import BEVPerception
from bevstack.models.bev import WarpAlignment
from bevstack.models.heads import QueryDetectionHead
from bevstack.models.history import HistoryFrames
from bevstack.models.layers.attention import MultiHeadSelfAttention
from bevstack.precision import Precision
from bevstack.structures import AlignedHistory, BEVDataSample, BEVFeatures, BEVMemory, Clip, Frame

Losses = Callable[[], dict[str, Tensor]]


def run(watch: Stopwatch, settings: Settings) -> list[Row]:
    """Rows of encoder and decoder, of the whole model, and of the demo in the format its config takes."""
    name = "encoder + decoder, tiny: training step"
    rows = [compared(watch, f"{name}, {dtype}", encoder_and_decoder_steps(dtype)) for dtype in DTYPES]
    rows += [whole_tiny(watch, dtype) for dtype in DTYPES]
    model, cfg = demo_model()
    step = demo_step(model, cfg, 4)
    name = f"demo: training step, batch 4, {step.precision.name}"
    return [*rows, watch.row(name, {"ours": step}, "")]


class TrainingStep:
    """One training step as a function without arguments: losses, backward, clipping, AdamW.

    Args:
        module: in training mode, whose parameters are trained.
        losses: what is added up and followed back.
        cfg: with the ``optim_wrapper`` to train by.
        dtype: instead of the config's.
        usual: whether the optimizer is the usual one.
    """

    def __init__(
        self, module: nn.Module, losses: Losses, cfg: Config, dtype: str | None = None, usual: bool = False
    ) -> None:
        wrapper = copy.deepcopy(cfg["optim_wrapper"])
        if usual:
            wrapper["optimizer"].pop("fused", None)
        wrapper.pop("paramwise_cfg", None)  # costs nothing, and mmengine tells of every parameter
        if dtype is not None:
            wrapper["dtype"] = dtype
        self.module, self.losses = module.train(), losses
        self.wrapper = build_optim_wrapper(self.module, wrapper)

    @property
    def precision(self) -> Precision:
        """The format that the step computes in."""
        return self.wrapper.precision

    def forward(self) -> Tensor:
        """The sum of the losses, a scalar."""
        with self.wrapper.optim_context(self.module):
            return torch.stack([value for name, value in self.losses().items() if "loss" in name]).sum()

    def __call__(self) -> float:
        """Run it; the loss."""
        loss = self.forward()
        self.wrapper.update_params(loss)
        return loss.item()


class EncoderAndHead(nn.Module):
    """An encoder and a detection head, ours or the usual, on image features that are given.

    Args:
        encoder, head: with one interface either way.
    """

    def __init__(self, encoder: nn.Module, head: QueryDetectionHead | UsualDetectionHead) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def losses(
        self, features: Sequence[Tensor], frame: Frame, history: AlignedHistory, samples: Sequence[BEVDataSample]
    ) -> dict[str, Tensor]:
        """Scalars by name, of levels (B, N, C, h, w) that gradients are wanted for, as a neck would."""
        levels = [level.detach().requires_grad_() for level in features]
        bev: BEVFeatures = self.encoder(levels, frame, history)
        return self.head.loss(self.head(bev), samples)


def encoder_and_decoder_steps(dtype: str) -> dict[str, TrainingStep]:
    """Tiny's encoder and decoder, ``usual`` and ``ours`` with the same weights, on image features that are given."""
    model, cfg = tiny_model()
    memory = memory_of(model.encoder.grid, CHANNELS)
    frame, samples = frame_of(IMAGE_PX, PADDED_PX), samples_for(model)
    history = WarpAlignment()(memory.moved(frame.motion), frame.motion)
    without_dropout(model)
    ours = EncoderAndHead(model.encoder, model.heads["detection"])
    usual = EncoderAndHead(UsualEncoder(model.encoder), UsualDetectionHead(model.heads["detection"]))
    steps = {}
    for key, module in (("usual", usual), ("ours", ours)):
        losses = partial(module.losses, features_of(SIZES["tiny"]), frame, history, samples)
        steps[key] = TrainingStep(module, losses, cfg, dtype, usual=module is usual)
    return steps


def whole_tiny(watch: Stopwatch, dtype: str) -> Row:
    """The row of a whole tiny's training step: two frames of history, which leave a memory, and the keyframe."""
    model, cfg = tiny_model()
    without_dropout(model)
    usual = UsualPerception(model)
    clip = Clip(tuple(frame_of(IMAGE_PX, PADDED_PX, seed=seed) for seed in range(3)))
    samples = samples_for(model)
    ways = {
        "usual": TrainingStep(usual, partial(usual.losses, clip, samples), cfg, dtype, usual=True),
        "ours": TrainingStep(model, partial(called, model, clip, samples, "loss"), cfg, dtype),
    }
    if dtype == "float32":
        cheaper = copy.deepcopy(model)
        cheaper.history = HistoryFrames(dtype="bfloat16")
        losses = partial(called, cheaper, clip, samples, "loss")
        ways["ours, history in bfloat16"] = TrainingStep(cheaper, losses, cfg, dtype)
    return compared(watch, f"whole tiny: training step of 3 frames, {dtype}", ways)


def demo_step(model: BEVPerception, cfg: Config, batch: int, dtype: str | None = None) -> TrainingStep:
    """The demo's training step on made-up frames that go on from a memory."""
    frame, samples = frame_of(DEMO_IMAGE_PX, DEMO_IMAGE_PX, batch), samples_for(model, batch)
    grid, frames = model.encoder.grid, model.memory_frames
    memory: BEVMemory | None = memory_of(grid, model.encoder.channels, batch, frames) if frames else None

    def losses() -> dict[str, Tensor]:
        return called(model, Clip((frame,), memory), samples, "stream_loss")[0]

    return TrainingStep(model, losses, cfg, dtype)


def called(model: nn.Module, *inputs: Any) -> Any:
    """What a model answers, losses as scalars by name where these are asked for."""
    return model(*inputs)


def without_dropout(module: nn.Module) -> None:
    """Switch dropout off, so that both ways compute the same losses; it costs both the same."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        elif isinstance(part, MultiHeadSelfAttention | nn.MultiheadAttention):
            part.dropout = 0.0


def compared(watch: Stopwatch, name: str, ways: dict[str, TrainingStep]) -> Row:
    """The row of two ways of one step; how far their losses are apart before the first step."""
    with torch.no_grad():
        expected = ways["usual"].forward()
        apart = {key: difference(way.forward(), expected) for key, way in ways.items() if key != "usual"}
    return watch.row(name, ways, "usual", apart)
