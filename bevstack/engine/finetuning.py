"""Weights of one model as the start of another with other classes, rig or extent: what fits is taken, the rest is new.

Rows that belong to a class go to the same class by its name, wherever it stands and whatever stands beside it; classes
that the file does not know, layers of other shapes and heads whose labels mean something else start new.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bevstack.engine.label_checks import head_classes, object_heads
from bevstack.engine.stored_config import CONFIG_KEY, TEXT_KEY, literal_config


@dataclass
class Fitted:
    """What of a file a model starts from.

    Args:
        weights: by the model's names, of the model's shapes.
        mapped: by head: names of the classes whose rows are taken, where the classes differ.
        new: names of the model's weights that start new.
        left: names of the file's weights that the model has no place for.
        renewed: heads whose labels mean something else, so that all of them starts new.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    mapped: dict[str, list[str]] = field(default_factory=dict)
    new: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    renewed: list[str] = field(default_factory=list)

    def line(self) -> str:
        """What was taken and what was not, in one line."""
        said = [f"{len(self.weights)} weights taken"]
        said += [f"{head}: rows of {', '.join(names) or 'no class'}" for head, names in self.mapped.items()]
        said += [f"{head}: other classes" for head in self.renewed]
        said += [f"new: {_by_layer(self.new)}"] if self.new else []
        said += [f"left out: {_by_layer(self.left)}"] if self.left else []
        return "; ".join(said)


def fitted_weights(weights: Mapping[str, Tensor], model: nn.Module, meta: Mapping[str, Any]) -> Fitted:
    """What of a file's weights a model can start from.

    Args:
        weights: by the model's names, of any shape, of another training.
        model: as built, with its own start of everything.
        meta: what the file says of itself: its config, for the classes of its heads, and the classes of its data.
    """
    own, fitted = model.state_dict(), Fitted()
    trained = _trained_classes(meta)
    labelled = {name for name, _ in object_heads(model)}
    for name, head in _heads(model):
        mine, theirs = head_classes(head), trained.get(name, ())
        if not mine or not theirs or mine == theirs:
            continue
        layers = [f"{name}.{layer}" for layer in getattr(head, "class_layers", ())]
        if layers:
            fitted.mapped[name] = [one for one in mine if one in theirs]
            for key in (key for key in own if key.rpartition(".")[0] in layers and key in weights):
                rows = _rows_by_name(weights[key], theirs, own[key], mine)
                if rows is not None:
                    fitted.weights[key] = rows
        elif name in labelled:
            fitted.renewed.append(name)
    for key, value in weights.items():
        if key.startswith(tuple(f"{name}." for name in fitted.renewed)) or key.startswith("balancing."):
            continue
        if key not in own:
            fitted.left.append(key)
        elif key not in fitted.weights and value.shape == own[key].shape:
            fitted.weights[key] = value
    fitted.new = [key for key in own if key not in fitted.weights]
    return fitted


def _heads(model: nn.Module) -> list[tuple[str, nn.Module]]:
    groups = ("heads", "image_heads")
    return [(f"{group}.{name}", head) for group in groups for name, head in (getattr(model, group, None) or {}).items()]


def _trained_classes(meta: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Classes of each head of the file's own config, by its place; empty where the file does not say them."""
    told: Any = meta.get(CONFIG_KEY) or meta.get(TEXT_KEY)
    try:
        if isinstance(told, str):
            told = json.loads(told) if meta.get(CONFIG_KEY) else literal_config(told)
        groups = {group: told["model"].get(group) or {} for group in ("heads", "image_heads")}
        found = {f"{group}.{name}": head.get("classes") for group in groups for name, head in groups[group].items()}
        return {name: tuple(map(str, classes)) for name, classes in found.items() if classes}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _rows_by_name(value: Tensor, theirs: tuple[str, ...], own: Tensor, mine: tuple[str, ...]) -> Tensor | None:
    """A layer's weight with the rows of the classes that both know taken from the file; None where it cannot be.

    Args:
        value: (K' m, ...) of the file, m rows a class.
        theirs: the K' classes of the file.
        own: (K m, ...) of the model, kept where a class is new.
        mine: the K classes of the model.
    """
    each, rest = divmod(len(own), len(mine))
    if rest or len(value) != each * len(theirs) or value.shape[1:] != own.shape[1:]:
        return None
    rows, source = own.clone().unflatten(0, (len(mine), each)), value.unflatten(0, (len(theirs), each))
    for place, name in enumerate(mine):
        if name in theirs:
            rows[place] = source[theirs.index(name)].to(rows)
    return rows.flatten(0, 1)


def _by_layer(keys: list[str]) -> str:
    """Weights counted by what they belong to: three names deep within a head, two elsewhere."""
    depth = {key: 3 if key.startswith(("heads.", "image_heads.")) else 2 for key in keys}
    counts = Counter(".".join(key.split(".")[: depth[key]]) for key in keys)
    return ", ".join(f"{name} ({number})" for name, number in counts.items())
