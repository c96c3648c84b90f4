"""Records of tensors that have the batch first: moved to a device, and cut into samples, as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record", bound="Batched")


@dataclass(frozen=True)
class Batched:
    """Base of frozen dataclasses whose tensors, and the records in them, share their first dimension B.

    Everything that is neither a tensor nor a record (sizes, grids, names) belongs to the whole batch and stays.
    """

    def to(self: Record, device: torch.device | str) -> Record:
        """A copy whose tensors live on ``device``."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def select(self: Record, rows: Tensor) -> Record:
        """The samples (B',) of the given rows, int64 on the record's device; a row may come more than once."""
        return self._mapped(lambda tensor: tensor.index_select(0, rows))

    def _mapped(self: Record, change: Callable[[Tensor], Tensor]) -> Record:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {name: _changed(value, change) for name, value in values.items()}
        return replace(self, **changed)


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, Batched):
        return value._mapped(change)
    if isinstance(value, tuple) and any(isinstance(entry, Tensor | Batched) for entry in value):
        return tuple(_changed(entry, change) for entry in value)
    return value
