"""A backbone in the form in which it is trained: the same answers and gradients, with fewer passes over memory.

Published detectors train ResNets whose BatchNorms keep the statistics of ImageNet (``norm_eval``). There the norm, the
residual's sum and the ReLU can be part of the convolution (:mod:`bevstack.ops.normed_convolution`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.modules.batchnorm import _BatchNorm

from bevstack.models.folding import FusedResidual
from bevstack.ops.normed_convolution import NormedConvolution


class TrainingForm:
    """What a backbone computes, by blocks that are joined around the backbone's own layers.

    The layers (convolutions, norms) are the backbone's modules themselves: what is loaded, trained, frozen or moved
    there is seen by the next call. Only the containers around them are others. It is no module: it has no place in a
    model's parameters, its state dict or its copies, and is built where it is first asked.
    """

    def __init__(self) -> None:
        self._built_for: nn.Module | None = None
        self._form: nn.Module | None = None

    def __call__(self, backbone: nn.Module, images: Tensor) -> Sequence[Tensor]:
        """The backbone's answer to (B, 3, H, W) images.

        The backbone itself is called where nothing in it can be joined, where one of its modules has hooks (someone
        watches it, or keeps its parameters elsewhere until they are used), and while a graph is traced.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or _watched(backbone):
            return backbone(images)
        if self._built_for is not backbone:
            self._built_for, self._form = backbone, _joined(backbone)
        return backbone(images) if self._form is None else self._form(images)

    def __deepcopy__(self, memo: dict) -> TrainingForm:
        return TrainingForm()

    def __getstate__(self) -> dict:
        return {"_built_for": None, "_form": None}


def _watched(backbone: nn.Module) -> bool:
    for module in backbone.modules():
        hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
        if any(hooks) or isinstance(module, FullyShardedDataParallel):
            return True
    return False


def _joined(backbone: nn.Module) -> nn.Module | None:
    """Containers like the backbone's with joined blocks in them, around the same layers; None where none is known."""
    leaves = [module for module in backbone.modules() if not list(module.children())]
    tensors = [*backbone.parameters(), *backbone.buffers()]
    form = copy.deepcopy(backbone, {id(one): one for one in (*leaves, *tensors)})
    return form if _join(form) else None


def _join(module: nn.Module) -> int:
    """Put joined blocks in the place of mmdet's residual blocks and of a ResNet's first layer; returns how many."""
    joined = 0
    if isinstance(module, ResNet) and not module.deep_stem and NormedConvolution.takes(module.conv1, module.norm1):
        module.conv1, name = NormedConvolution(module.conv1, module.norm1, relu=True), module.norm1_name
        module.set_submodule(name, nn.Identity())
        module.relu = nn.Identity()
        joined += 1
    for name, child in list(module.named_children()):
        if type(child) in (BasicBlock, Bottleneck) and not child.with_cp and not getattr(child, "with_plugins", False):
            module.set_submodule(name, _block(child))
            joined += 1
        else:
            joined += _join(child)
    return joined


def _block(block: Any) -> nn.Module:
    """An mmdet residual block, whose last convolution takes in the sum, where it can."""
    numbers = (1, 2) if isinstance(block, BasicBlock) else (1, 2, 3)
    pairs = [(getattr(block, f"conv{number}"), getattr(block, f"norm{number}")) for number in numbers]
    if not NormedConvolution.takes(*pairs[-1]):
        return block
    before = [step for pair in pairs[:-1] for step in _steps(*pair)]
    shortcut: Any = block.downsample
    if shortcut is not None:
        layers = list(shortcut)
        ends = [(one, two) for one, two in pairwise(layers) if isinstance(two, _BatchNorm)]
        if ends and ends[-1][1] is layers[-1] and NormedConvolution.takes(*ends[-1]):
            shortcut = nn.Sequential(*layers[:-2], NormedConvolution(*ends[-1], relu=False))
    return FusedResidual(nn.Sequential(*before), NormedConvolution(*pairs[-1], relu=True), shortcut)


def _steps(convolution: nn.Module, norm: nn.Module) -> list[nn.Module]:
    """Convolution, norm and ReLU: as one layer, or one after the other where the convolution is of another kind."""
    if NormedConvolution.takes(convolution, norm):
        return [NormedConvolution(convolution, norm, relu=True)]
    return [convolution, norm, nn.ReLU()]
