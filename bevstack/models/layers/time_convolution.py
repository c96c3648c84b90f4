"""Convolution over time and space, computed as one over space: torch's own is wrong in bfloat16 on a CPU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

Triple = int | tuple[int, int, int]


class TimeConvolution(nn.Conv3d):
    """The weights and results of ``nn.Conv3d``: the frames that the kernel spans are laid into the channels of one.

    Output frame t is a convolution over rows and columns of the k_T input frames that it sees, C k_T channels. That
    takes k_T times the input's memory and no more multiply-adds.

    torch 2.13's ``Conv3d`` (oneDNN) must not run in bfloat16 on a CPU. With AVX512-BF16 and no AMX its gradient of the
    weights is memory that nobody wrote where a clip of two frames or more has fewer than the kernel spans (3 x 1 x 1 on
    2 frames, 5 x 1 x 1 on 2 to 4): always with one thread, mostly with two. With AMX its gradient of 3 to 16 channels,
    1 x 7 x 7, stride 2, ends the process with a memory error.

    Args:
        in_channels, out_channels: C before and after.
        kernel_size, stride, padding: of frames, rows and columns, or one number for all; what is padded is zero.
        groups: of channels that see each other only.
        bias: add one number to each output channel.
    """

    padding: tuple[int, int, int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Triple,
        stride: Triple = 1,
        padding: Triple = 0,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=bias)

    def forward(self, frames: Tensor) -> Tensor:
        """(B, C, T, H, W) to (B, C', T', H', W'), whose lengths are those of ``nn.Conv3d``."""
        weight, before = self.weight.flatten(1, 2), self.padding[0]
        if self.kernel_size[0] > 1 or before:
            padded = F.pad(frames, (0, 0, 0, 0, before, before))
            seen = padded.unfold(2, self.kernel_size[0], self.stride[0]).movedim(-1, 2)  # (B, C, k_T, T', H, W)
        else:
            seen = frames[:, :, None, :: self.stride[0]]
        batch, steps = len(seen), seen.shape[3]
        if self.kernel_size[1:] == (1, 1) and self.padding[1:] == (0, 0):  # the frames may lie below each other
            seen = seen[..., :: self.stride[1], :: self.stride[2]]
            tall = F.conv2d(seen.flatten(1, 2).flatten(2, 3), weight, self.bias, groups=self.groups)
            return tall.unflatten(2, (steps, seen.shape[4]))
        flat = seen.permute(0, 3, 1, 2, 4, 5).flatten(2, 3).flatten(0, 1)  # (B T', C k_T, H, W)
        found = F.conv2d(flat, weight, self.bias, self.stride[1:], self.padding[1:], groups=self.groups)
        return found.unflatten(0, (batch, steps)).transpose(1, 2)
