"""Which part of a model spends what, forward and backward: seconds, multiply-adds, or any other number that grows.

A meter is read whenever the work passes from one part to the next. Forward that is where a part's module is entered
and left. Backward it is where the gradient of a part's output is ready: what follows, until the next part's output has
its gradient, is that part's. Losses of heads come before their heads; what lies between is told of ``losses``.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from bevstack.models import BEVPerception

LOSSES, OTHER = "losses", "everything else"


class PartTrace:
    """Adds up what a meter says, by part and direction.

    Args:
        model: whose parts are told apart.
        read: the meter, a number that only grows.

    Attributes:
        forward, backward: by part, what the meter went on.
    """

    def __init__(self, model: BEVPerception, read: Callable[[], float]) -> None:
        self.model, self.read = model, read
        self.forward: dict[str, float] = defaultdict(float)
        self.backward: dict[str, float] = defaultdict(float)
        self._stack: list[str] = []
        self._tally: dict[str, float] = self.forward
        self._now, self._last = OTHER, 0.0

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Hooks on the parts, for as long as the context lasts."""
        handles = []
        for name, module in parts_of(self.model).items():
            handles.append(module.register_forward_pre_hook(self._enter(name)))
            handles.append(module.register_forward_hook(self._leave(name)))
        self._tally, self._now, self._last = self.forward, OTHER, self.read()
        try:
            yield
            self._pass_to(OTHER)
        finally:
            for handle in handles:
                handle.remove()

    def begin_backward(self) -> None:
        """To be called between forward and backward."""
        self._pass_to(LOSSES)
        self._tally = self.backward

    def begin_update(self) -> None:
        """To be called between backward and the optimizer's step, which is told of everything else, forward."""
        self._pass_to(OTHER)
        self._tally = self.forward

    def _pass_to(self, part: str) -> None:
        now = self.read()
        self._tally[self._now] += now - self._last
        self._last, self._now = now, part

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple) -> None:
            self._stack.append(self._now)
            self._pass_to(name)

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            self._pass_to(self._stack.pop())
            for tensor in tensors_in(output):
                if tensor.requires_grad:
                    tensor.register_hook(lambda gradient: self._pass_to(name))

        return hook


def parts_of(model: BEVPerception) -> dict[str, nn.Module]:
    """The parts that a step runs one after another, heads by name."""
    names = ("backbone", "neck", "encoder", "temporal_fusion", "bev_neck")
    parts = {name: part for name in names if (part := getattr(model, name)) is not None}
    parts |= {f"heads.{name}": head for name, head in model.heads.items()}
    return parts | {f"image_heads.{name}": head for name, head in model.image_heads.items()}


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in records, mappings and sequences, of any shape (...)."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from tensors_in(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from tensors_in(entry)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))
