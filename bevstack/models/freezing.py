"""Parts of a model that training leaves exactly as they are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import nn


def freeze(model: nn.Module, names: Iterable[str]) -> tuple[str, ...]:
    """Take the gradients from submodules and put them into evaluation mode.

    Without gradient no optimizer moves a parameter, not even by weight decay; in evaluation mode no statistics move and
    nothing is dropped out. The mode must be set again after every ``train()``: :func:`keep_evaluating`.

    Args:
        model: changed in place.
        names: of submodules, as ``backbone`` or ``heads.detection``.

    Returns:
        The names.

    Raises:
        ValueError: no submodule has such a name (the nearest is given).
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known, key=len), n=1)
            parts = ", ".join(sorted({".".join(part.split(".")[: 1 + part.startswith("heads.")]) for part in known}))
            hint = f"did you mean '{near[0]}'?" if near else f"there are {parts}"
            raise ValueError(f"frozen: the model has no part '{name}'; {hint}")
        model.get_submodule(name).requires_grad_(False)
    keep_evaluating(model, names)
    return names


def keep_evaluating(model: nn.Module, names: Iterable[str]) -> None:
    """Evaluation mode for the named submodules; everything else stays in the mode it is in."""
    for name in names:
        model.get_submodule(name).eval()
