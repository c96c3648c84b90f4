"""Counted work of a function: multiply-adds, operators, new memory. Counts do not depend on what else a machine does.

Operators are those of ``aten`` that torch dispatches, views among them; new memory is that of outputs that share no
storage with an input. What a kernel takes for itself while it runs is not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

LARGE_BYTES = 2**20


@dataclass
class CountedWork:
    """What a function did.

    Args:
        multiply_adds: of convolutions and matrix products, forward and backward.
        operators: that were dispatched.
        allocated_bytes: of all new memory together; it is not all held at once.
        large_temporaries: how many new tensors are larger than a MiB.
    """

    multiply_adds: int = 0
    operators: int = 0
    allocated_bytes: int = 0
    large_temporaries: int = 0


class _Counter(TorchDispatchMode):
    """Adds what is dispatched to some counts. torch's own FlopCounterMode fails on modules without gradients."""

    def __init__(self, work: CountedWork) -> None:
        super().__init__()
        self.work = work

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.work.operators += 1
        self.work.multiply_adds += _products(func, args, kwargs, out)
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(out):
            if storage._cdata not in given:
                given.add(storage._cdata)
                self.work.allocated_bytes += storage.nbytes()
                self.work.large_temporaries += storage.nbytes() > LARGE_BYTES
        return out


def _storages(values: Any) -> list[torch.UntypedStorage]:
    """Those of all tensors in some values, but for weights that oneDNN keeps in a layout of its own."""
    tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor) and not leaf.is_mkldnn)
    return [tensor.untyped_storage() for tensor in tensors]


def _products(func: Any, args: tuple, kwargs: dict, out: Any) -> int:
    """Multiply-adds of an operator, by torch's own counter, and of oneDNN's convolutions, which that does not know."""
    if func._overloadpacket is torch.ops.aten.convolution_backward:
        return _of_convolution_backward(*args)
    known = flop_registry.get(func._overloadpacket)
    if known is not None:
        return known(*args, **kwargs, out_val=out) // 2
    if func.namespace == "mkldnn" and func.__name__.startswith("_convolution_pointwise"):
        weight = args[1 if func._overloadname == "default" else 2]  # another summand comes before it
        return out.numel() * math.prod(weight.shape[-3:])
    return 0


def _of_convolution_backward(upstream: Tensor, features: Tensor, weight: Tensor, *settings: Any) -> int:
    """Multiply-adds of a convolution's gradients: as many as forward for that of the features and that of the weight.

    torch's counter takes the weight's gradient of a grouped convolution for that of a full one.
    """
    _bias, _stride, _padding, _dilation, transposed, _output_padding, _groups, wanted = settings
    places = features if transposed else upstream
    return sum(wanted[:2]) * weight.numel() * len(places) * math.prod(places.shape[2:])


@contextmanager
def counting() -> Iterator[CountedWork]:
    """Counts that grow with all that runs inside, backward passes included."""
    work = CountedWork()
    with _Counter(work):
        yield work


def counted(run: Callable[[], object]) -> CountedWork:
    """What one call of a function without arguments does."""
    with counting() as work:
        run()
    return work
