"""Convolution blocks shared by necks and heads, with the kind of convolution as one argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from bevstack.models.layers.initialization import init_bias
from bevstack.models.layers.settings import Settings

CONV_KINDS = ("plain", "depthwise_separable", "inverted_bottleneck", "grouped")


@dataclass(frozen=True)
class ConvType(Settings):
    """Which convolution a block is made of; see docs/attention_and_convolution.md for what each costs.

    Args:
        kind: ``plain``; ``depthwise_separable``: k x k in each channel, then 1 x 1 across channels (Howard et al.
            2017, section 3.1); ``inverted_bottleneck``: k x k in each channel, BatchNorm, then a perceptron of two
            1 x 1 convolutions with a wider layer of ReLUs between them (Sandler et al. 2018; the order, in which no
            k x k works at the larger width, is that of Liu et al. 2022, section 2.4); ``grouped``: k x k inside each of
            G groups of channels (Krizhevsky et al. 2012).
        groups: G, of ``grouped`` alone; must divide the channels on both sides.
        expansion: of ``inverted_bottleneck`` alone: the inner layer's width over that of the input.

    Raises:
        ValueError: an unknown kind, or groups or an expansion that are not positive.
    """

    kind: str = "plain"
    groups: int = 4
    expansion: int = 2

    def __post_init__(self) -> None:
        if self.kind not in CONV_KINDS:
            raise ValueError(f"conv: {self.kind!r} is none of {', '.join(CONV_KINDS)}")
        if self.groups < 1:
            raise ValueError(f"conv: groups is {self.groups}, must be 1 or more")
        if self.expansion < 1:
            raise ValueError(f"conv: expansion is {self.expansion}, must be 1 or more")

    @classmethod
    def build(cls, value: ConvType | Mapping | str | None, name: str = "conv") -> ConvType:
        """From a config: a kind's name, or ``dict(kind="grouped", groups=8)``; see :meth:`Settings.build`."""
        return cls(value) if isinstance(value, str) else super().build(value, name)


def convolution(
    in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, conv: ConvType | Mapping | str = "plain"
) -> nn.Module:
    """A k x k convolution without bias, or what takes its place, (B, C, Y, X) to (B, C', Y / s, X / s).

    A 1 x 1 convolution is plain in every kind: it is the part that mixes channels. Groups are not shuffled: what lies
    in different groups meets in the 1 x 1 convolutions (shortcuts, laterals, classifiers) of the block's user.

    Raises:
        ValueError: the groups do not divide the channels.
    """
    conv = ConvType.build(conv)
    if conv.kind == "plain" or kernel_size == 1:
        return nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    if conv.kind == "grouped":
        if in_channels % conv.groups or out_channels % conv.groups:
            raise ValueError(f"conv: {in_channels} to {out_channels} channels do not split into {conv.groups} groups")
        padding = kernel_size // 2
        return nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=conv.groups, bias=False)
    padding = kernel_size // 2
    depthwise = nn.Conv2d(in_channels, in_channels, kernel_size, stride, padding, groups=in_channels, bias=False)
    if conv.kind == "depthwise_separable":
        return nn.Sequential(depthwise, nn.Conv2d(in_channels, out_channels, 1, bias=False))
    inner = conv.expansion * in_channels
    return nn.Sequential(
        depthwise,
        nn.BatchNorm2d(in_channels),
        nn.Conv2d(in_channels, inner, 1, bias=False),
        nn.ReLU(inplace=True),
        nn.Conv2d(inner, out_channels, 1, bias=False),
    )


class ConvNormReLU(nn.Sequential):
    """k x k convolution (same size for stride 1), BatchNorm, ReLU; ``conv`` is the kind (:class:`ConvType`)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        conv: ConvType | Mapping | str = "plain",
    ) -> None:
        super().__init__(
            convolution(in_channels, out_channels, kernel_size, stride, conv),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut (He et al. 2016, basic block); (B, C, Y, X) to (B, C', Y / s, X / s).

    ``conv`` is the kind of the two (:class:`ConvType`); an inverted bottleneck has two layers itself and stands for
    both. The shortcut is the identity or a plain 1 x 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, conv: ConvType | Mapping | str = "plain"
    ) -> None:
        super().__init__()
        conv = ConvType.build(conv)
        if conv.kind == "inverted_bottleneck":
            convolutions = [convolution(in_channels, out_channels, 3, stride, conv)]
        else:
            first = ConvNormReLU(in_channels, out_channels, 3, stride, conv)
            convolutions = [first, convolution(out_channels, out_channels, conv=conv)]
        self.body = nn.Sequential(*convolutions, nn.BatchNorm2d(out_channels))
        same = in_channels == out_channels and stride == 1
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, Y, X) to (B, C', Y / s, X / s), rounded up; not negative."""
        return F.relu(self.body(features) + self.shortcut(features))


class SubcellConvolution(nn.Conv2d):
    """A 1 x 1 convolution that says something of each of the s x s finer cells of a cell, and something common to all.

    (B, C, Y, X) to (B, K, s Y, s X): what one set of K x C weights says of the cells, resampled bilinearly, plus what
    each finer cell's own weights add to it (Shi et al. 2016, sub-pixel convolution), which is nothing at first. A class
    of few objects moves the common weights with every one of them, a finer cell's own only with those that lie in it.

    Weights of a sub-pixel convolution alone (this layer's ``weight`` and ``bias``) may be loaded: the common ones are
    then zero.

    Args:
        in_channels: C.
        values: K.
        upscale: s.

    Raises:
        ValueError: s is not 2 or more: then there is nothing to tell apart.
    """

    def __init__(self, in_channels: int, values: int, upscale: int) -> None:
        if upscale < 2:
            raise ValueError(f"upscale is {upscale}: weights common to finer cells need 2 or more of them on a side")
        super().__init__(in_channels, values * upscale**2, 1)
        self.upscale = upscale
        self.common = nn.Conv2d(in_channels, values, 1)
        nn.init.zeros_(self.weight)
        init_bias(self, 0.0)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, Y, X) to (B, K, s Y, s X)."""
        common = F.interpolate(self.common(features), scale_factor=self.upscale, mode="bilinear", align_corners=False)
        return common + F.pixel_shuffle(super().forward(features), self.upscale)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if f"{prefix}weight" in state_dict and f"{prefix}common.weight" not in state_dict:
            for parameter in self.common.parameters():
                nn.init.zeros_(parameter)


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of each place: (B, C, Y, X) to the same shape."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, Y, X) to (B, C, Y, X), each place's C values with mean 0 and variance 1 before scale and shift."""
        return super().forward(features.movedim(1, -1)).movedim(-1, 1)
