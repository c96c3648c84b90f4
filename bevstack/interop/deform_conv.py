"""mmcv's DCNv2 layer without compiled mmcv: the same module under the same registry name and state-dict keys."""

from __future__ import annotations

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from bevstack.interop.standins import compiled_mmcv_present
from bevstack.ops.modulated_deform_conv import modulated_deform_conv

LAYER_NAME = "DCNv2"


class ModulatedDeformConv2dPack(nn.Module):
    """A drop-in for ``nn.Conv2d`` that predicts its own offsets and mask (Zhu et al. 2019).

    ``conv_offset`` gives 3 values per deform group and tap; the first two thirds are offsets, the last third is the
    mask before its sigmoid (docs/reference.md 4.8, DCNv2). State-dict keys are mmcv's: ``weight``, ``bias``,
    ``conv_offset.weight``, ``conv_offset.bias``.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as of ``nn.Conv2d``.
        deform_groups: groups of input channels that share offsets and mask.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        deform_groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__()
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else (kernel_size[0], kernel_size[1])
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.deform_groups = groups, deform_groups
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *kernel))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.conv_offset = nn.Conv2d(
            in_channels, deform_groups * 3 * kernel[0] * kernel[1], kernel, stride, padding, dilation
        )
        self.init_weights()

    def init_weights(self) -> None:
        """Uniform weights as mmcv draws them; zero ``conv_offset``, so that every tap starts at its place, halved."""
        bound = (self.in_channels * self.kernel_size[0] * self.kernel_size[1]) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        nn.init.zeros_(self.conv_offset.weight)
        if self.conv_offset.bias is not None:
            nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        values = self.conv_offset(x)
        offset, mask = values.split([values.shape[1] // 3 * 2, values.shape[1] // 3], dim=1)
        return modulated_deform_conv(
            x,
            offset,
            mask.sigmoid(),
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.deform_groups,
        )


def register_deform_conv() -> bool:
    """Put this module in the place of mmcv's uncompiled ``DCNv2``; leave a compiled one alone.

    Returns:
        Whether ``DCNv2`` is now the one of this package.
    """
    if compiled_mmcv_present():
        return False
    # only here: mmcv registers its own first, without force, and must have done so before ours takes the name
    import mmcv.ops  # noqa: F401

    MODELS.register_module(name=LAYER_NAME, module=ModulatedDeformConv2dPack, force=True)
    return True
