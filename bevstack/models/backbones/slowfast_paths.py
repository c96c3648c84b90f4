"""What stands between the two paths of a SlowFast x Swin network, and its fast paths.

Swin's stages are timm's (Liu et al. 2021, arXiv 2103.14030). Tokens are (B * T, h, w, C), as Swin keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.models.backbones.slowfast import slow_frames
from bevstack.models.layers.time_convolution import TimeConvolution

if TYPE_CHECKING:
    from timm.models.swin_transformer import SwinTransformer


def swin_stages(
    embed_dim: int, depths: Sequence[int], num_heads: Sequence[int], window_size: int, drop_path_rate: float = 0.0
) -> SwinTransformer:
    """timm's Swin without its classifier: ``patch_embed`` and ``layers``, for images of any multiple of 4 pixels."""
    from timm.models.swin_transformer import SwinTransformer

    swin = SwinTransformer(
        embed_dim=embed_dim,
        depths=tuple(depths),
        num_heads=tuple(num_heads),
        window_size=window_size,
        drop_path_rate=drop_path_rate,
        num_classes=0,
        always_partition=True,
        strict_img_size=False,
    )
    del swin.norm, swin.head
    return swin


def frames_of(tokens: Tensor, batch: int) -> Tensor:
    """(B * T, h, w, C) tokens as (B, C, T, h, w)."""
    return tokens.unflatten(0, (batch, -1)).permute(0, 4, 1, 2, 3)


def tokens_of(frames: Tensor) -> Tensor:
    """(B, C, T, h, w) as (B * T, h, w, C) tokens."""
    return frames.permute(0, 2, 3, 4, 1).flatten(0, 1)


def start_small(layer: nn.Linear, from_column: int = 0, factor: float = 0.1) -> None:
    """Scale the weights of a new branch's last layer and clear its bias, so that what it joins is hardly disturbed.

    Without this a trained slow path loses in its first hundred steps with the fast one what it knew.
    """
    with torch.no_grad():
        layer.weight[:, from_column:] *= factor
        layer.bias.zero_()


class TemporalConvolution(nn.Module):
    """Residual convolution over time: LayerNorm, 3 x 1 x 1 to ``hidden`` channels, GELU, 1 x 1 x 1 back.

    It starts small (:func:`start_small`).

    Args:
        channels: C.
        hidden: channels between the two.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.over_time = TimeConvolution(channels, hidden, (3, 1, 1), padding=(1, 0, 0))
        self.back = nn.Linear(hidden, channels)
        start_small(self.back)

    def forward(self, tokens: Tensor, batch: int) -> Tensor:
        """(B * T, h, w, C) to the same; ``batch`` is B."""
        mixed = tokens_of(self.over_time(frames_of(self.norm(tokens), batch)))
        return tokens + self.back(F.gelu(mixed))


class ThinSwinPath(nn.Module):
    """Fast path of the parallel fusion: a Swin of ``beta`` times the channels, convolved over time after each stage.

    Args:
        embed_dim: channels of the first stage.
        depths, num_heads, window_size: of the stages.

    Attributes:
        channels: per stage.
    """

    def __init__(self, embed_dim: int, depths: Sequence[int], num_heads: Sequence[int], window_size: int) -> None:
        super().__init__()
        self.swin = swin_stages(embed_dim, depths, num_heads, window_size)
        self.channels = tuple(embed_dim * 2**stage for stage in range(len(depths)))
        self.temporal = nn.ModuleList(TemporalConvolution(width, width) for width in self.channels)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, T, 3, H, W) to each stage's (B, C_l, T, H / s_l, W / s_l)."""
        batch, levels = len(images), []
        tokens = self.swin.patch_embed(images.flatten(0, 1))
        for stage, temporal in zip(self.swin.layers, self.temporal, strict=True):
            tokens = temporal(stage(tokens), batch)
            levels.append(frames_of(tokens, batch))
        return levels


class LightConvolutionBlock(nn.Module):
    """Convolution over time and one over space that takes each channel by itself, joined by a 1 x 1 x 1 one.

    Args:
        in_channels, out_channels: equal ones with stride 1 make a residual block.
        stride: of rows and columns.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.residual = stride == 1 and in_channels == out_channels
        self.over_time = TimeConvolution(in_channels, out_channels, (3, 1, 1), padding=(1, 0, 0), bias=False)
        self.over_space = TimeConvolution(
            out_channels, out_channels, (1, 3, 3), (1, stride, stride), (0, 1, 1), groups=out_channels, bias=False
        )
        self.mixed = TimeConvolution(out_channels, out_channels, 1, bias=False)
        self.norm_in, self.norm_out = nn.GroupNorm(1, out_channels), nn.GroupNorm(1, out_channels)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, C, T, h, w) to (B, out_channels, T, h / stride, w / stride)."""
        mixed = self.mixed(self.over_space(F.gelu(self.norm_in(self.over_time(frames)))))
        mixed = F.gelu(self.norm_out(mixed))
        return frames + mixed if self.residual else mixed


class LightConvolutionPath(nn.Module):
    """Fast path of the serial fusion: a light CNN that convolves over time in every block.

    Args:
        width: channels of the first stage; each next one has twice as many at half the resolution.
        depths: blocks of each stage.

    Attributes:
        channels: per stage.
    """

    def __init__(self, width: int, depths: Sequence[int]) -> None:
        super().__init__()
        self.channels = tuple(width * 2**stage for stage in range(len(depths)))
        self.stem = TimeConvolution(3, width, (1, 7, 7), stride=(1, 4, 4), padding=(0, 3, 3))
        self.stages = nn.ModuleList()
        for stage, depth in enumerate(depths):
            in_channels, stride = (width, 1) if stage == 0 else (self.channels[stage - 1], 2)
            blocks = [LightConvolutionBlock(in_channels, self.channels[stage], stride)]
            blocks += [LightConvolutionBlock(self.channels[stage], self.channels[stage]) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, T, 3, H, W) to each stage's (B, C_l, T, H / s_l, W / s_l)."""
        frames, levels = self.stem(images.transpose(1, 2)), []
        for stage in self.stages:
            frames = stage(frames)
            levels.append(frames)
        return levels


class PathJoin(nn.Module):
    """Joins the slow path's tokens with what comes from the fast path.

    ``concat``: a linear layer on both, which starts as the slow path plus a small projection of the fast one.
    ``weights``: a learned weighting of the slow path and a projection of the fast one, channel by channel, that starts
    at one half.

    Args:
        channels: C of the slow path.
        lateral_channels: of the lateral connection.
        join: ``concat`` or ``weights``.
    """

    def __init__(self, channels: int, lateral_channels: int, join: str) -> None:
        super().__init__()
        self.join, self.norm = join, nn.LayerNorm(lateral_channels)
        if join == "concat":
            self.both = nn.Linear(channels + lateral_channels, channels)
            with torch.no_grad():
                self.both.weight[:, :channels] = torch.eye(channels)
            start_small(self.both, from_column=channels)
        else:
            self.project = nn.Linear(lateral_channels, channels)
            self.weights = nn.Parameter(torch.zeros(2, channels))

    def forward(self, slow: Tensor, lateral: Tensor) -> Tensor:
        """(M, h, w, C) and (M, h, w, lateral_channels) to (M, h, w, C)."""
        lateral = self.norm(lateral)
        if self.join == "concat":
            return self.both(torch.cat([slow, lateral], dim=-1))
        slow_share, fast_share = self.weights.softmax(dim=0)
        return slow_share * slow + fast_share * self.project(lateral)


class FrameExchange(nn.Module):
    """Slow path to fast path: each fast frame gets the newest slow frame that is not later (the first, if none is).

    Args:
        channels: C of both paths.
        hidden: channels that are exchanged.
        alpha: frames of the fast path per frame of the slow one.
    """

    def __init__(self, channels: int, hidden: int, alpha: int) -> None:
        super().__init__()
        self.alpha = alpha
        self.project = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.Linear(hidden, channels))

    def forward(self, fast: Tensor, slow: Tensor, batch: int) -> Tensor:
        """Tokens (B * T, h', w', C) and (B * T_slow, h, w, C) to (B * T, h', w', C)."""
        slow_tokens = self.project(slow).permute(0, 3, 1, 2)
        slow_tokens = F.adaptive_avg_pool2d(slow_tokens, (fast.shape[1], fast.shape[2]))
        slow_tokens = slow_tokens.permute(0, 2, 3, 1).unflatten(0, (batch, -1))
        num_frames = len(fast) // batch
        first = slow_frames(num_frames, self.alpha)[0]
        newest = [max(t - first, 0) // self.alpha for t in range(num_frames)]
        return fast + slow_tokens[:, newest].flatten(0, 1)
