"""SlowFast networks (Feichtenhofer et al. 2019, arXiv 1812.03982) on a camera's sweeps, with ResNet paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.models.layers.time_convolution import TimeConvolution
from bevstack.registry import MODELS


def slow_frames(num_frames: int, alpha: int) -> list[int]:
    """Which of ``num_frames`` frames the slow path takes: every ``alpha``-th, counted back from the last one."""
    return list(range((num_frames - 1) % alpha, num_frames, alpha))


def part_of(channels: int, ratio: float) -> int:
    """``ratio * channels``, where that is a whole number of at least 1.

    Raises:
        ValueError: it is not.
    """
    part = round(channels * ratio)
    if part < 1 or abs(part - channels * ratio) > 1e-6:
        raise ValueError(f"beta: {ratio} of {channels} channels is no whole number")
    return part


def check_frames(images: Tensor, num_sweeps: int) -> None:
    """Raise ValueError unless ``images`` are (B, num_sweeps + 1, 3, H, W)."""
    if images.dim() != 5 or images.shape[1] != num_sweeps + 1:
        raise ValueError(f"expected (B, {num_sweeps + 1}, 3, H, W): sweeps and the keyframe; got {tuple(images.shape)}")


class LateralConnection(TimeConvolution):
    """Fast path to slow path by a time-strided convolution (section 3.3, "time-strided convolution").

    A kernel of ``kernel`` frames and one pixel, stride ``alpha``, whose outputs are centred on the slow path's frames.
    Beyond the clip's ends there is nothing (zeros): the last output looks at the keyframe and what came before it.

    Args:
        in_channels: of the fast path.
        out_channels: the paper's are twice ``in_channels``.
        alpha: frames of the fast path per frame of the slow one.
        kernel: frames, odd.
    """

    def __init__(self, in_channels: int, out_channels: int, alpha: int, kernel: int = 5) -> None:
        super().__init__(in_channels, out_channels, (kernel, 1, 1), stride=(alpha, 1, 1), bias=False)

    def forward(self, fast: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, out_channels, T_slow, h, w)."""
        reach, first = self.kernel_size[0] // 2, (fast.shape[2] - 1) % self.stride[0]
        return super().forward(F.pad(fast, (0, 0, 0, 0, reach, reach))[:, :, first:])


def _norm_relu(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.BatchNorm3d(channels), nn.ReLU(inplace=True))


class SlowFastBottleneck(nn.Module):
    """Residual bottleneck of table 1: T x 1 x 1, 1 x 3 x 3, 1 x 1 x 1; time is never strided.

    Args:
        in_channels: of the input.
        width: of the two inner convolutions; the output has ``EXPANSION`` times as many channels.
        temporal: T, frames of the first kernel; 1 looks at one frame.
        stride: of rows and columns.
    """

    EXPANSION = 4

    def __init__(self, in_channels: int, width: int, temporal: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = width * self.EXPANSION
        steps = (1, stride, stride)
        self.body = nn.Sequential(
            TimeConvolution(in_channels, width, (temporal, 1, 1), padding=(temporal // 2, 0, 0), bias=False),
            _norm_relu(width),
            TimeConvolution(width, width, (1, 3, 3), steps, (0, 1, 1), bias=False),
            _norm_relu(width),
            TimeConvolution(width, out_channels, 1, bias=False),
            nn.BatchNorm3d(out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            convolution = TimeConvolution(in_channels, out_channels, 1, steps, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm3d(out_channels))

    def forward(self, frames: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, 4 * width, T, h / stride, w / stride)."""
        return F.relu(self.shortcut(frames) + self.body(frames))


class SlowFastStem(nn.Sequential):
    """7 x 7 convolution of stride 2 over ``temporal`` frames, then max pooling of stride 2: stride 4 in all."""

    def __init__(self, width: int, temporal: int) -> None:
        convolution = TimeConvolution(3, width, (temporal, 7, 7), (1, 2, 2), (temporal // 2, 3, 3), bias=False)
        super().__init__(convolution, _norm_relu(width), nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))


@MODELS.register_module()
class SlowFast(BaseModule):
    """SlowFast with ResNet paths: a wide path on few frames, a thin one on all, joined from fast to slow.

    After the stem and after every stage a :class:`LateralConnection` condenses the fast path to the slow path's frames
    and is concatenated to it. A level is that concatenation at the keyframe: ``width`` x 4 x 2^l channels of the slow
    path and ``2 * beta`` times as many of the fast one. The defaults are those of the paper's ResNet-50, but for alpha.

    Args:
        num_sweeps: S older images of each camera; the keyframe is one more.
        alpha: frames of the fast path per frame of the slow one; 6 for 12 Hz sweeps and 2 Hz keyframes.
        beta: channels of the fast path per channel of the slow one.
        width: of the slow path's stem and first stage; small ones (8, 16) train on a CPU.
        layers: blocks of each stage.
        slow_temporal: frames of each stage's temporal kernels in the slow path.
        fast_temporal: likewise in the fast path.
        stem_temporal: frames of the stems' kernels, slow and fast.
        out_indices: stages whose levels are returned; 0 has stride 4. Stages after the last one are not built.
        norm_eval: keep BatchNorm in evaluation mode while training.

    Attributes:
        channels, strides: of the returned levels.

    Raises:
        ValueError: ``beta`` leaves no whole number of channels; in use: not S + 1 frames.
    """

    def __init__(
        self,
        num_sweeps: int = 6,
        alpha: int = 6,
        beta: float = 1 / 8,
        width: int = 64,
        layers: Sequence[int] = (3, 4, 6, 3),
        slow_temporal: Sequence[int] = (1, 1, 3, 3),
        fast_temporal: Sequence[int] = (3, 3, 3, 3),
        stem_temporal: tuple[int, int] = (1, 5),
        out_indices: Sequence[int] = (1, 2, 3),
        norm_eval: bool = False,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.num_sweeps, self.alpha, self.norm_eval = num_sweeps, alpha, norm_eval
        self.out_indices = tuple(out_indices)
        thin = part_of(width, beta)
        self.slow_stem, self.fast_stem = SlowFastStem(width, stem_temporal[0]), SlowFastStem(thin, stem_temporal[1])
        self.slow_stages, self.fast_stages, self.laterals = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self.laterals.append(self._lateral(thin))
        slow_channels, fast_channels, channels = width, thin, []
        for stage in range(max(self.out_indices) + 1):
            slow_width, fast_width, stride = width * 2**stage, thin * 2**stage, 1 if stage == 0 else 2
            joined = slow_channels + 2 * fast_channels
            self.slow_stages.append(self._stage(joined, slow_width, layers[stage], slow_temporal[stage], stride))
            self.fast_stages.append(self._stage(fast_channels, fast_width, layers[stage], fast_temporal[stage], stride))
            slow_channels, fast_channels = (SlowFastBottleneck.EXPANSION * w for w in (slow_width, fast_width))
            self.laterals.append(self._lateral(fast_channels))
            channels.append(slow_channels + 2 * fast_channels)
        self.channels: tuple[int, ...] = tuple(channels[i] for i in self.out_indices)
        self.strides: tuple[int, ...] = tuple(4 * 2**i for i in self.out_indices)
        for module in self.modules():
            if isinstance(module, TimeConvolution):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _lateral(self, channels: int) -> nn.Sequential:
        return nn.Sequential(LateralConnection(channels, 2 * channels, self.alpha), _norm_relu(2 * channels))

    @staticmethod
    def _stage(in_channels: int, width: int, blocks: int, temporal: int, stride: int) -> nn.Sequential:
        first = SlowFastBottleneck(in_channels, width, temporal, stride)
        channels = width * SlowFastBottleneck.EXPANSION
        return nn.Sequential(first, *(SlowFastBottleneck(channels, width, temporal) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, S + 1, 3, H, W), oldest first, keyframe last, to the levels' (B, C_l, H / s_l, W / s_l)."""
        check_frames(images, self.num_sweeps)
        frames = images.transpose(1, 2)
        slow = self.slow_stem(frames[:, :, slow_frames(frames.shape[2], self.alpha)])
        fast = self.fast_stem(frames)
        slow = torch.cat([slow, self.laterals[0](fast)], dim=1)
        levels = []
        for slow_stage, fast_stage, lateral in zip(self.slow_stages, self.fast_stages, self.laterals[1:], strict=True):
            slow, fast = slow_stage(slow), fast_stage(fast)
            slow = torch.cat([slow, lateral(fast)], dim=1)
            levels.append(slow[:, :, -1])
        return [levels[i] for i in self.out_indices]

    def train(self, mode: bool = True) -> SlowFast:
        """As usual, but BatchNorm stays in evaluation mode under ``norm_eval``."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm3d):
                    module.eval()
        return self
