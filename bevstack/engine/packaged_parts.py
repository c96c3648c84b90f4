"""Parts of a model whose weights another package carries: left out of files of weights, and put back when read.

A frozen ImageNet backbone (``pretrained="packaged"``) is the same in every model that starts from it. What tells that
the installed package still carries the same weights is their norm.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from bevstack.errors import InputError

PACKAGED = "packaged"
_TOLERANCE = 1e-5


def packaged_names(cfg: Mapping) -> list[str]:
    """Parts of a config's model that start from weights of a package: ``backbone``, mostly."""
    parts = (cfg.get("model") or {}).items()
    return [name for name, part in parts if isinstance(part, dict) and part.get("pretrained") == PACKAGED]


def unchanged_parts(cfg: Config, model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Which packaged parts training left as they were, each with the norm of its weights.

    Args:
        cfg: of the model.
        model: as built, with the weights of the package.
        weights: after training, by the model's names, of any shape.
    """
    own, unchanged = model.state_dict(), {}
    for name in packaged_names(cfg):
        keys = [key for key in own if key.startswith(f"{name}.")]
        if keys and all(key in weights and torch.equal(own[key], weights[key]) for key in keys):
            unchanged[name] = norm_of(own, name)
    return unchanged


def norm_of(weights: Mapping[str, Tensor], part: str) -> float:
    """Euclidean norm of all that a part holds, of any shape, floating point alone."""
    own = [value for name, value in weights.items() if name.startswith(f"{part}.") and value.is_floating_point()]
    return float(torch.stack([value.double().square().sum() for value in own]).sum().sqrt()) if own else 0.0


def with_packaged_parts(
    weights: Mapping[str, Tensor], meta: Mapping[str, Any], model: nn.Module, file: str | os.PathLike, strict: bool
) -> dict[str, Tensor]:
    """The weights of a file with those that another package carries, taken from the model.

    Args:
        weights: by name, of any shape, of a file.
        meta: what the file says of itself; ``packaged``: norm by part.
        model: as built, with the weights of the package.
        file: named in messages.
        strict: whether a part that the model has otherwise is an error; else it is left as the model has it.

    Raises:
        InputError: the model's part is not the one that the file was trained with.
    """
    found, own = dict(weights), model.state_dict()
    for part, norm in (meta.get(PACKAGED) or {}).items():
        inside = {name: value for name, value in own.items() if name.startswith(f"{part}.")}
        if inside and abs(norm_of(inside, part) - norm) <= _TOLERANCE * norm:
            found = {**inside, **found}
        elif strict:
            reason = f"is not the model's: it needs model.{part}.pretrained='{PACKAGED}', and the package of training"
            raise InputError(file, f"{PACKAGED}.{part}", reason)
    return found
