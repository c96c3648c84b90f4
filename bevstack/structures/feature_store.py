"""A file of what a frozen backbone makes of samples: written by training, read by the loader's processes.

One place a sample, found by its number, so that nothing is ever moved and nobody waits: data first, then the entry that
says that they are there. A header that the first write fills says what the levels look like.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_HEADER_BYTES = 4096
_ENTRY = np.dtype([("identity", "<u8"), ("checksum", "<u8")])


class FeatureStore:
    """Feature maps of up to as many samples as fit into a number of bytes; those that fit are never dropped.

    Each sample has L levels of N images, (N, C_l, h_l, w_l), the same in every sample. They come back bit for bit as
    they were, in the same number format and the same order in memory. A sample that was written under another identity,
    or only in part by a process that was killed, is not there.

    A store can be handed to other processes of this machine while the one that opened it lives.

    Args:
        samples: how many there may be.
        max_bytes: of the file: samples whose number lies beyond it are not kept.
        file: goes on with what it holds, where it is there; None for a nameless one in ``folder`` that goes when the
            process ends, however it ends.
        folder: of a nameless file.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(
        self, samples: int, max_bytes: int, file: str | os.PathLike | None = None, folder: str | os.PathLike = "."
    ) -> None:
        self.samples, self.max_bytes = samples, max_bytes
        self.file = None if file is None else Path(file)
        if self.file is None:
            self._descriptor, name = tempfile.mkstemp(suffix=".features", dir=folder)
            os.unlink(name)
        else:
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o644)
        self._levels: list[dict] | None = None

    def __getstate__(self) -> dict:
        """How another process opens the same file: by name, or through this process where it has none."""
        path = self.file or Path(f"/proc/{os.getpid()}/fd/{self._descriptor}")
        return {**self.__dict__, "_descriptor": None, "_path": path}

    def __setstate__(self, state: dict) -> None:
        path = state.pop("_path")
        self.__dict__.update(state, _descriptor=os.open(path, os.O_RDWR))

    @property
    def levels(self) -> list[dict] | None:
        """``shape`` (N, C, h, w), ``dtype`` and ``channels_last`` of each level; None before the first write."""
        if self._levels is None:
            header = os.pread(self._descriptor, _HEADER_BYTES, 0).rstrip(b"\0")
            try:
                self._levels = json.loads(header) if header else None
            except ValueError:  # half a header, which another process is writing
                return None
        return self._levels

    @property
    def sample_bytes(self) -> int:
        """Bytes of one sample; 0 before the first write."""
        return sum(_level_bytes(level) for level in self.levels or ())

    @property
    def capacity(self) -> int:
        """How many samples are kept at most: those with a smaller number. 0 before the first write."""
        room = self.max_bytes - self._first_byte
        return min(self.samples, max(room, 0) // self.sample_bytes) if self.sample_bytes else 0

    @property
    def _first_byte(self) -> int:
        return _HEADER_BYTES + -(-self.samples * _ENTRY.itemsize // _HEADER_BYTES) * _HEADER_BYTES

    def write(self, number: int, identity: int, features: Sequence[Tensor]) -> bool:
        """Keep a sample's levels.

        Args:
            number: of the sample.
            identity: of what was computed, 1 to 2^64 - 1 (:meth:`read` must be asked for the same).
            features: L tensors (N, C_l, h_l, w_l) on the CPU.

        Returns:
            Whether there is room for it.

        Raises:
            OSError: the disk is full.
            ValueError: the levels are others than those of the first sample.
        """
        levels = [_described(level) for level in features]
        if self.levels is None:
            os.pwrite(self._descriptor, json.dumps(levels).encode(), 0)
        if self.levels != levels:
            raise ValueError(f"features of {levels}; those that are kept have {self.levels}")
        if number >= self.capacity:
            return False
        data = b"".join(_in_memory(level).view(torch.uint8).numpy().tobytes() for level in features)
        os.pwrite(self._descriptor, b"\0" * _ENTRY.itemsize, _HEADER_BYTES + number * _ENTRY.itemsize)
        _write_all(self._descriptor, data, self._first_byte + number * self.sample_bytes)
        entry = np.array((identity, zlib.crc32(data)), dtype=_ENTRY)
        os.pwrite(self._descriptor, entry.tobytes(), _HEADER_BYTES + number * _ENTRY.itemsize)
        return True

    def read(self, number: int, identity: int) -> Tensor | None:
        """(bytes,) uint8 of a sample's levels (:meth:`split`); None where they are not there, or damaged."""
        if number >= self.capacity:
            return None
        entry = os.pread(self._descriptor, _ENTRY.itemsize, _HEADER_BYTES + number * _ENTRY.itemsize)
        if len(entry) < _ENTRY.itemsize:
            return None
        written, checksum = np.frombuffer(entry, dtype=_ENTRY)[0].item()
        if written != identity:
            return None
        data = os.pread(self._descriptor, self.sample_bytes, self._first_byte + number * self.sample_bytes)
        if len(data) < self.sample_bytes or zlib.crc32(data) != checksum:
            return None
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)

    def split(self, data: Sequence[Tensor]) -> list[Tensor]:
        """B samples as :meth:`read` gives them to the L levels (B, N, C_l, h_l, w_l), as they were in memory."""
        result, start = [], 0
        for level in self.levels or ():
            stop = start + _level_bytes(level)
            images, channels, height, width = level["shape"]
            stored = torch.stack([sample[start:stop] for sample in data]).view(getattr(torch, level["dtype"]))
            if level["channels_last"]:
                shaped = stored.view(len(data), images, height, width, channels).permute(0, 1, 4, 2, 3)
            else:
                shaped = stored.view(len(data), images, channels, height, width)
            result.append(shaped)
            start = stop
        return result


def _in_memory(level: Tensor) -> Tensor:
    """The values (N, C, h, w) as one vector in the order in which they are stored."""
    return (level.permute(0, 2, 3, 1) if _is_channels_last(level) else level).contiguous().flatten()


def _is_channels_last(level: Tensor) -> bool:
    return level.is_contiguous(memory_format=torch.channels_last) and not level.is_contiguous()


def _described(level: Tensor) -> dict:
    dtype = str(level.dtype).removeprefix("torch.")
    return {"shape": list(level.shape), "dtype": dtype, "channels_last": _is_channels_last(level)}


def _level_bytes(level: dict) -> int:
    return int(np.prod(level["shape"])) * getattr(torch, level["dtype"]).itemsize


def _write_all(descriptor: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(descriptor, view, start)
        view, start = view[count:], start + count
