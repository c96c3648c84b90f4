"""Memory for large results that is used again, once nothing holds what lay in it before."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes: a cache line, and the widest vector
_PATIENCE = 64  # requests that a free buffer is passed over before it is given back to the system


class ReusedBuffers:
    """Gives out tensors whose memory was given out before, but never while anything still looks at it.

    A large tensor that is allocated anew costs a page fault for every 4 KiB that are written to it (glibc maps and
    unmaps it each time). Here memory comes back when the last tensor, view, array or autograd graph that holds it is
    gone, and serves the next request of the same size. Nobody has to give anything back, and what was handed out keeps
    its content for as long as it is kept. Free buffers of sizes that nobody asks for any more are let go.

    Copies of it, and those of other processes, begin empty.
    """

    def __init__(self) -> None:
        self._requests = 0
        self._free: deque[tuple[int, np.ndarray]] = deque()  # (number of the request before it came back, its bytes)

    def __deepcopy__(self, memo: dict) -> ReusedBuffers:
        return type(self)()

    def __reduce__(self) -> tuple:
        return type(self), ()

    def empty(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of any shape on the CPU whose content is arbitrary, as that of ``torch.empty``.

        It is contiguous, starts on a cache line, and cannot be resized.
        """
        count = math.prod(shape) * dtype.itemsize
        if count == 0:
            return torch.empty(tuple(shape), dtype=dtype)
        self._requests += 1
        buffer = self._take(count)
        start = -buffer.ctypes.data % _ALIGNMENT
        handed_out = buffer[start : start + count]
        # The tensor's storage holds the array `handed_out`, so that this dies with the last view of that storage.
        weakref.finalize(handed_out, self._come_back, buffer).atexit = False
        return torch.from_numpy(handed_out).view(dtype).view(tuple(shape))

    def _take(self, count: int) -> np.ndarray:
        """A buffer for ``count`` bytes that nobody uses."""
        size = count + _ALIGNMENT
        # Buffers may come back at any moment and from any thread: each is taken out, which one thread alone can do,
        # before it is looked at.
        for _ in range(len(self._free)):
            try:
                request, buffer = self._free.popleft()
            except IndexError:
                break
            if len(buffer) == size:
                return buffer
            if self._requests - request <= _PATIENCE:
                self._free.append((request, buffer))
        return np.empty(size, dtype=np.uint8)

    def _come_back(self, buffer: np.ndarray) -> None:
        self._free.append((self._requests, buffer))
