"""A trained model in the form in which it is only asked: the same answers, with fewer passes over memory."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bevstack.models.backbones.base import PROBE_SIZE, probe_images
from bevstack.models.folding import fold_norms, fuse_blocks, pack_convolutions, pack_linear_layers
from bevstack.ops.packed_layers import PackedConvolution

TOLERANCE = 1e-2
"""Of the largest value of a feature map: how far the form's may be from the model's before it is given up.

Rounding is far below it, also where a network divides by small numbers (linear attention); a wrong norm is far above.
"""

Model = TypeVar("Model", bound=nn.Module)


def inference_form(model: Model) -> Model:
    """A copy of a model for inference: norms folded, activations and sums inside the convolutions, channels
    last, weights in the order and number format that the CPU's kernels want.

    The copy shares every tensor with the model but the folded weights; the model itself is left as it is. Its weights
    are those of now: what is loaded or trained afterwards is seen by a new form only. It has other names in its state
    dict and is neither trained nor saved. Backbone and neck, on which most of the time goes, are changed by what one
    forward pass on a small picture shows, and kept as they are, with a warning, where the result is another.

    Args:
        model: a :class:`bevstack.models.BEVPerception`, or another module, whose known blocks are then fused.

    Returns:
        The form, in evaluation mode.
    """
    form: Any = _sharing_copy(model).eval()
    fuse_blocks(form)
    backbone = getattr(form, "backbone", None)
    if isinstance(backbone, nn.Module) and isinstance(getattr(model, "backbone", None), nn.Module):
        original: Any = _sharing_copy(model).eval()
        images = probe_images(original.backbone, getattr(original.backbone, "image_size", None) or PROBE_SIZE)
        form.backbone, features = _fused_part(backbone, original.backbone, images)
        if isinstance(getattr(form, "neck", None), nn.Module):
            form.neck, _ = _fused_part(form.neck, original.neck, features)
    if hasattr(form, "frozen"):
        form.frozen = ()  # names of modules that may be gone; all of them are in evaluation mode
    pack_linear_layers(form)
    for module in form.modules():
        module.training = False  # those that are new, too
        if isinstance(module, PackedConvolution):
            module.unpack()  # packed for the small picture
    return form


def _fused_part(
    part: nn.Module, original: nn.Module, inputs: Tensor | Sequence[Tensor]
) -> tuple[nn.Module, Sequence[Tensor]]:
    """The part with its norms folded and its convolutions packed, and what the original makes of the inputs."""
    with torch.no_grad(), torch.autocast(_device_type(original), enabled=False):
        expected = original(inputs)
        fold_norms(part, lambda: part(inputs))
        packed = _sharing_copy(part)
        pack_convolutions(packed, lambda: packed(inputs))
        for candidate in (packed, part):
            if _same(candidate(inputs), expected):
                return candidate, expected
    reason = "gives other features when its norms are folded; it is left as it is"
    warnings.warn(f"{type(original).__name__}: {reason}", stacklevel=3)
    return original, expected


def _same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return all(
        bool((one - other).abs().max() <= TOLERANCE * other.abs().max())
        for one, other in zip(found, expected, strict=True)
    )


def _device_type(module: nn.Module) -> str:
    return next(module.parameters()).device.type


def _sharing_copy(model: Model) -> Model:
    """A copy of the modules around the same tensors."""
    kept: list[object] = [*chain(model.parameters(), model.buffers())]
    kept += [module.config for module in model.modules() if hasattr(module, "config")]
    return copy.deepcopy(model, {id(value): value for value in kept})
