"""Weights of other projects, recognised by their names and put under the names of a model here.

Recognised: a published BEVFormer; a detector of mmdet or FCOS3D (``backbone.`` or ``img_backbone.``, with its neck); a
bare ImageNet backbone of torchvision, caffe (as OpenMMLab ships it) or timm.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bevstack.errors import InputError
from bevstack.interop.reference_keys import is_published, our_weights, unknown_names

_DETECTORS = (("img_backbone.", "img_neck."), ("backbone.", "neck."))
# What a backbone here may have and a file may lack: counters that nothing reads, and the offsets of deformable
# convolutions, which start at zero where an ImageNet backbone is loaded into them.
_MAY_LACK = re.compile(r".*(\.num_batches_tracked|\.conv_offset\.(weight|bias))")
_CLASSIFIER = re.compile(r"(fc|head|classifier)\..*")
_SHOWN = 3
CURRENT_BOXES = "mmdet3d-1.x"


def native_weights(state: Mapping[str, Tensor], model: nn.Module, file: str | os.PathLike) -> Mapping[str, Tensor]:
    """The weights of a file under the model's names.

    Args:
        state: name to tensor of any shape, as read from the file.
        model: that is to receive them; untouched.
        file: named in messages.

    Returns:
        ``state`` itself where it is not recognised as foreign (also where the model is no perception model).

    Raises:
        InputError: a foreign file that does not fit: one line says which keys or shapes.
    """
    own = model.state_dict()
    if is_published(state):
        unknown = unknown_names(state)
        if unknown:
            raise InputError(file, "state_dict", _listed("keys that no published BEVFormer has", unknown))
        return our_weights(state, head_name(model))
    native = any(name.startswith(("encoder.", "heads.")) for name in state)
    if native or not any(name.startswith("backbone.") for name in own):
        return state
    return backbone_weights(state, own, file)


def head_name(model: nn.Module) -> str:
    """Name of the head that published detection weights belong to; "detection" where the model has none."""
    heads = getattr(model, "heads", {})
    names = [name for name, head in heads.items() if hasattr(head, "query_positions")]
    return names[0] if names else "detection"


def backbone_weights(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], file: str | os.PathLike
) -> dict[str, Tensor]:
    """Backbone (and neck, where all of it fits) of a detector's or an ImageNet classifier's weights.

    Args:
        state: the file's: name to tensor of any shape.
        own: the model's ``state_dict``.
        file: named in messages.

    Raises:
        InputError: the backbone's names or shapes do not fit; says which.
    """
    prefix, neck = next((p for p in _DETECTORS if any(name.startswith(p[0]) for name in state)), ("", None))
    found: dict[str, Tensor] = {}
    used, missing, misshapen = set(), [], []
    for name, tensor in own.items():
        if not name.startswith("backbone."):
            continue
        source = _source_name(name.removeprefix("backbone."), prefix, state)
        if source is None:
            if not _MAY_LACK.fullmatch(name):
                missing.append(name)
        elif state[source].shape != tensor.shape:
            misshapen.append(f"{source} {tuple(state[source].shape)} for {tuple(tensor.shape)}")
            used.add(source)
        else:
            found[name] = state[source]
            used.add(source)
    is_timm = any(name.startswith("backbone.body.") for name in own)  # has only the stages that are asked for
    spare = [
        name
        for name in state
        if name not in used and name.startswith(prefix) and not is_timm and not (not prefix and _CLASSIFIER.match(name))
    ]
    problems = [
        _listed("keys missing for the backbone", missing),
        _listed("keys that the backbone does not have", spare),
        _listed("shapes that do not fit", misshapen),
    ]
    if any(problems):
        raise InputError(file, "state_dict", "; ".join(text for text in problems if text))
    if neck is not None:
        wanted = {name: neck + name.removeprefix("neck.") for name in own if name.startswith("neck.")}
        if all(source in state and state[source].shape == own[name].shape for name, source in wanted.items()):
            found.update({name: state[source] for name, source in wanted.items()})
    return found


def _source_name(name: str, prefix: str, state: Mapping[str, Tensor]) -> str | None:
    """Under which name the file holds a backbone tensor; timm's feature extractors write ``stages_0`` for a stage."""
    bare = name.removeprefix("body.")
    for candidate in (name, bare, re.sub(r"^(\w+?)_(\d+)\.", r"\1.\2.", bare)):
        if prefix + candidate in state:
            return prefix + candidate
    return None


def check_complete(weights: Mapping[str, Tensor], own: Mapping[str, Tensor], file: str | os.PathLike) -> None:
    """Every key of the model is there, none beside, with equal shapes.

    Args:
        weights: name to tensor of any shape.
        own: the model's ``state_dict``.
        file: named in messages.

    Raises:
        InputError: says which keys or shapes do not fit.
    """
    problems = [
        _listed("missing keys", [name for name in own if name not in weights]),
        _listed("keys that the model does not have", [name for name in weights if name not in own]),
        _listed(
            "shapes that do not fit",
            [
                f"{name} {tuple(tensor.shape)} for {tuple(own[name].shape)}"
                for name, tensor in weights.items()
                if name in own and own[name].shape != tensor.shape
            ],
        ),
    ]
    if any(problems):
        raise InputError(file, "state_dict", "; ".join(text for text in problems if text))


def check_box_convention(
    model: nn.Module, metadata: Mapping[str, Any], file: str | os.PathLike, state: Mapping[str, Tensor] | None = None
) -> None:
    """Refuse weights whose boxes were turned already for a head that would turn them again, and published ones for a
    head that would not turn them.

    Args:
        model: that is to receive them.
        metadata: what the file says about itself (``box_convention`` and ``kind``).
        file: named in messages.
        state: its weights, of any shape, whose names tell a published model.

    Raises:
        InputError: says what to change.
    """
    conventions = {getattr(head, "box_convention", CURRENT_BOXES) for head in getattr(model, "heads", {}).values()}
    if metadata.get("box_convention") == CURRENT_BOXES and conventions - {CURRENT_BOXES}:
        reason = "its boxes are in today's convention: set compat.old_boxes=False in the config"
        raise InputError(file, "box_convention", reason)
    published = metadata.get("kind") == "bevformer" and metadata.get("box_convention") != CURRENT_BOXES
    head = getattr(model, "heads", {})[head_name(model)] if head_name(model) in getattr(model, "heads", {}) else None
    if (published or is_published(state or {})) and hasattr(head, "query_positions"):
        if getattr(head, "box_convention", CURRENT_BOXES) == CURRENT_BOXES:
            reason = f"published weights speak mmdet3d 0.17's boxes, heads.{head_name(model)} today's: set"
            reason += " compat=bevformer_v1 (all that they were trained with), or turn them first: "
            reason += "tools/convert_checkpoint.py bevformer FILE OUT --boxes current"
            raise InputError(file, "box_convention", reason)


def _listed(what: str, names: Sequence[str]) -> str:
    """"" for no names, else their number and the first few."""
    if not names:
        return ""
    return f"{len(names)} {what}: {', '.join(names[:_SHOWN])}{', ...' * (len(names) > _SHOWN)}"
