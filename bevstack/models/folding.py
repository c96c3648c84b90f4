"""Normalisation, activation and sums joined with the convolution before them, for a model that is only asked.

What follows what is not guessed from the order in which modules are registered, but seen in one forward pass: a
normalisation is folded where its input is the very tensor that a convolution returned, untouched in between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from mmdet.models.backbones.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

from bevstack.interop.deform_conv import ModulatedDeformConv2dPack
from bevstack.models.layers.conv import ConvNormReLU, ResidualBlock
from bevstack.models.layers.time_convolution import TimeConvolution
from bevstack.ops.frozen_convolution import FrozenConvolution
from bevstack.ops.linear import Linear
from bevstack.ops.packed_layers import FUSED_ACTIVATIONS, PackedConvolution, PackedLinear, can_be_packed

_OTHER_CONVOLUTIONS = (TimeConvolution, ModulatedDeformConv2dPack)


def adjoining(
    part: nn.Module, run: Callable[[], object], first: Callable[[nn.Module], bool], then: Callable[[nn.Module], bool]
) -> list[tuple[str, str]]:
    """Names of pairs of modules of which the second takes just what the first returned, as one forward pass shows.

    Modules that are called more than once, stand in several places or have hooks are in no pair; nor is one whose
    result two others take.

    Args:
        part: the modules.
        run: calls ``part``, without gradient.
        first, then: which modules may be the first and the second of a pair.
    """
    names: dict[nn.Module, list[str]] = {}
    for name, module in part.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    calls: Counter[nn.Module] = Counter()
    made: list[tuple[Tensor, int, nn.Module]] = []
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def before(module: nn.Module, arguments: tuple) -> None:
        calls[module] += 1
        if then(module) and len(arguments) == 1:
            # a tensor that was written to since, as by ``out += identity``, has another version
            pairs.extend((m, module) for t, version, m in made if t is arguments[0] and t._version == version)

    def after(module: nn.Module, _: tuple, result: object) -> None:
        if first(module) and isinstance(result, Tensor):
            made.append((result, result._version, module))

    watched = [module for module in names if (first(module) or then(module)) and not _hooked(module)]
    hooks = [module.register_forward_pre_hook(before) for module in watched]
    hooks += [module.register_forward_hook(after) for module in watched]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    taken = Counter(maker for maker, _ in pairs)
    once = [pair for pair in pairs if taken[pair[0]] == 1 and all(calls[m] == 1 and len(names[m]) == 1 for m in pair)]
    return [(names[one][0], names[other][0]) for one, other in once]


def fold_norms(part: nn.Module, run: Callable[[], object]) -> int:
    """Fold each BatchNorm that :func:`adjoining` finds behind a convolution into its weights; returns how many.

    Changes ``part``, but no tensor of it: the folded weights are new ones, without gradient.
    """
    pairs = adjoining(part, run, _folds, lambda module: isinstance(module, _BatchNorm))
    folded = [fold_norm(part.get_submodule(one), part, other) for one, other in pairs]
    return sum(folded)


def fold_norm(convolution: Any, parent: nn.Module, norm_name: str) -> bool:
    """Put the BatchNorm ``parent.<norm_name>`` into the weights of ``convolution``; False where it keeps no statistics.

    An activation that timm keeps inside its BatchNorm stays where it was.
    """
    norm: Any = parent.get_submodule(norm_name)
    if norm.running_mean is None or norm.running_var is None:
        return False
    with torch.no_grad():
        weight, bias = fuse_conv_bn_weights(
            convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
    convolution.weight = nn.Parameter(weight.detach(), requires_grad=False)
    convolution.bias = nn.Parameter(bias.detach(), requires_grad=False)
    rest = [getattr(norm, kept) for kept in ("drop", "act") if hasattr(norm, kept)]
    parent.set_submodule(norm_name, nn.Sequential(*rest) if rest else nn.Identity())
    return True


def pack_convolutions(part: nn.Module, run: Callable[[], object]) -> int:
    """Put :class:`PackedConvolution` in the place of convolutions, with the activations behind them; returns how many.

    Args:
        part: changed in place.
        run: calls it.
    """
    packed = {id(m.convolution) for m in part.modules() if isinstance(m, PackedConvolution)}
    found = {name: m for name, m in part.named_modules() if name and can_be_packed(m) and not _hooked(m)}
    names = [name for name, module in found.items() if id(module) not in packed]
    pairs = dict(adjoining(part, run, can_be_packed, lambda module: type(module) in FUSED_ACTIVATIONS[1:]))
    for name in names:
        activation = part.get_submodule(pairs[name]) if name in pairs else None
        convolution: Any = part.get_submodule(name)
        part.set_submodule(name, PackedConvolution(convolution, activation))
        if name in pairs:
            part.set_submodule(pairs[name], nn.Identity())
    return len(names)


def pack_linear_layers(model: nn.Module) -> int:
    """Put :class:`PackedLinear` in the place of every ``nn.Linear``, in place; returns how many."""
    everything = model.named_modules(remove_duplicate=False)
    names = [name for name, module in everything if type(module) in (nn.Linear, Linear) and name]
    linears: list[Any] = [model.get_submodule(name) for name in names]
    packed = {id(linear): PackedLinear(linear) for linear in linears}
    for name in names:
        model.set_submodule(name, packed[id(model.get_submodule(name))])
    return len(packed)


class FusedResidual(nn.Module):
    """A residual block whose ReLUs and sum are part of its convolutions.

    Args:
        before: (B, C, Y, X) to what the last convolution takes.
        last: the last convolution, with the ReLU that follows the sum; it takes what is summed in beside its input.
        shortcut: (B, C, Y, X) to what is summed in; None for the block's input.
    """

    def __init__(self, before: nn.Module, last: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.before, self.last, self.shortcut = before, last, shortcut

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, Y, X) to (B, C', Y / s, X / s); not negative."""
        added = features if self.shortcut is None else self.shortcut(features)
        return self.last(self.before(features), added)


def fuse_blocks(model: nn.Module) -> int:
    """Put fused blocks in the place of those whose ``forward`` is known, in place; returns how many.

    These are :class:`ConvNormReLU` and :class:`ResidualBlock` of this package, mmdet's residual blocks (whose one ReLU
    serves several convolutions, which watching a forward pass cannot take apart) and :class:`FrozenConvolution`.
    """
    fused = 0
    for name, child in list(model.named_children()):
        block = _fused(child)
        if block is None:
            fused += fuse_blocks(child)
        else:
            model.set_submodule(name, block)
            fused += 1
    return fused


def _fused(module: Any) -> nn.Module | None:
    """The fused form of a block; None where there is none."""
    kind = type(module)
    if kind is FrozenConvolution and can_be_packed(module.convolution):
        return PackedConvolution(module.convolution, module.activation)
    if kind is ConvNormReLU:
        return _convolution_norm(module[0], module, "1", nn.ReLU())
    if kind is ResidualBlock:
        return _fused_residual_block(module)
    if kind in (BasicBlock, Bottleneck) and not getattr(module, "with_plugins", False):
        return _fused_mmdet_block(module)
    return None


def _convolution_norm(convolution: Any, parent: nn.Module, norm_name: str, activation: nn.Module | None):
    """Convolution (or several, of which the last counts), norm and activation as one module; None where not possible.

    Nothing is changed where it gives None.
    """
    last: Any = convolution[-1] if type(convolution) is nn.Sequential else convolution
    norm = getattr(parent, norm_name)
    folds = isinstance(norm, _BatchNorm) and norm.running_mean is not None and not hasattr(norm, "act")
    if not folds or not _folds(last):
        return None
    fold_norm(last, parent, norm_name)
    if not can_be_packed(last):
        return nn.Sequential(convolution, *([] if activation is None else [activation]))
    packed = PackedConvolution(last, activation)
    return packed if last is convolution else nn.Sequential(*_packed(convolution[:-1]), packed)


def _packed(layers: nn.Sequential) -> list[nn.Module]:
    """Convolutions one after another, with the norms and ReLUs between them inside; other layers as they are."""
    for number in range(1, len(layers)):
        if isinstance(layers[number], _BatchNorm) and _folds(layers[number - 1]):
            fold_norm(layers[number - 1], layers, str(number))
    packed: list[nn.Module] = []
    for layer in layers:
        before = packed[-1] if packed else None
        if type(layer) is nn.ReLU and isinstance(before, PackedConvolution) and type(before.activation) is nn.Identity:
            packed[-1] = PackedConvolution(before.convolution, layer)
        elif type(layer) is not nn.Identity:
            convolution: Any = layer
            packed.append(PackedConvolution(convolution) if can_be_packed(convolution) else layer)
    return packed


def _fused_residual_block(block: Any) -> nn.Module | None:
    *before, _ = range(len(block.body) - 1)  # an inverted bottleneck stands alone
    first: Any = _convolution_norm(block.body[0][0], block.body[0], "1", nn.ReLU()) if before else nn.Identity()
    last: Any = _convolution_norm(block.body[-2], block.body, str(len(block.body) - 1), nn.ReLU())
    shortcut: nn.Module | None = None
    if not isinstance(block.shortcut, nn.Identity):
        shortcut = _convolution_norm(block.shortcut[0], block.shortcut, "1", None)
    if first is None or last is None:
        return None
    if isinstance(last, nn.Sequential):
        first, last = nn.Sequential(first, *list(last)[:-1]), last[-1]
    return FusedResidual(first, last, shortcut)


def _fused_mmdet_block(block: Any) -> nn.Module | None:
    numbers = (1, 2) if isinstance(block, BasicBlock) else (1, 2, 3)
    convolutions = [getattr(block, f"conv{number}") for number in numbers]
    norms = [getattr(block, f"norm{number}_name") for number in numbers]
    known = all(_folds(one) for one in convolutions) and can_be_packed(convolutions[-1])
    if not known or not all(type(getattr(block, norm)) is nn.BatchNorm2d for norm in norms):
        return None
    steps: list[Any] = [
        _convolution_norm(one, block, norm, nn.ReLU(inplace=True))
        for one, norm in zip(convolutions, norms, strict=True)
    ]
    if any(step is None for step in steps):
        return None
    shortcut: Any = block.downsample
    if shortcut is not None and type(shortcut) is nn.Sequential and len(shortcut) >= 2:
        joined = _convolution_norm(shortcut[-2], shortcut, str(len(shortcut) - 1), None)
        shortcut = shortcut if joined is None else nn.Sequential(*list(shortcut)[:-2], joined)
    return FusedResidual(nn.Sequential(*steps[:-1]), steps[-1], shortcut)


def _hooked(module: nn.Module) -> bool:
    """Whether someone watches the module, as timm does for the features of some models."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _folds(module: nn.Module) -> bool:
    """Whether a BatchNorm behind it can be folded into its weights."""
    return can_be_packed(module) or isinstance(module, _OTHER_CONVOLUTIONS)
