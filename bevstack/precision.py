"""Which number format to compute in: what the machine has, what is right on it, and what was asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from bevstack.bfloat16_check import USUAL_KINDS, faults, kinds_of

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Precision:
    """The format of matrix products on one kind of device, and why it was taken.

    Args:
        dtype: float32 (no autocast), bfloat16 or float16.
        device_type: "cpu" or "cuda".
        reason: a few words for the log.
    """

    dtype: torch.dtype
    device_type: str
    reason: str

    @property
    def name(self) -> str:
        """``float32``, ``bfloat16`` or ``float16``."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def needs_loss_scaling(self) -> bool:
        """Whether gradients underflow without a scaled loss (float16 only)."""
        return self.dtype == torch.float16

    def autocast(self) -> AbstractContextManager:
        """A context that computes in this format; without effect for float32."""
        if self.dtype == torch.float32:
            return torch.autocast(self.device_type, enabled=False)
        return torch.autocast(self.device_type, dtype=self.dtype)


def cpu_bfloat16_support() -> str:
    """The CPU's bfloat16 matrix instructions: "AMX", "AVX512-BF16" or "" where there are none."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return "AVX512-BF16"
    return ""


def default_device() -> torch.device:
    """The device a run uses: the current CUDA device where there is one, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def choose_precision(
    requested: str = "auto", device: torch.device | str | None = None, model: nn.Module | None = None
) -> Precision:
    """The format for a device.

    ``auto`` takes bfloat16 where the device multiplies matrices in it (CPU: AMX or AVX512-BF16), float16 on an older
    CUDA device, else float32. On a CPU bfloat16 has to prove itself first, on the kinds of layers that the model has
    (:mod:`bevstack.bfloat16_check`); where one is wrong, it is float32, and ``reason`` names the layer. A format asked
    for by name is taken as it is.

    Args:
        requested: one of "auto", "float32", "bfloat16", "float16".
        device: defaults to :func:`default_device`.
        model: that will compute in it; None for layers that most models have.

    Raises:
        ValueError: for another name, or float16 on a CPU.
    """
    device_type = torch.device(device or default_device()).type
    if requested not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {requested!r}")
    if requested == "float16" and device_type == "cpu":
        raise ValueError("float16 needs a GPU; on a CPU take bfloat16 or auto")
    if requested != "auto":
        return Precision(getattr(torch, requested), device_type, "as asked for")
    if device_type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision(torch.bfloat16, device_type, "the GPU has bfloat16")
        return Precision(torch.float16, device_type, "the GPU has no bfloat16; the loss is scaled")
    instructions = cpu_bfloat16_support()
    if instructions:
        checked, fault = faults(USUAL_KINDS if model is None else tuple(kinds_of(model)))
        if fault is not None:
            return Precision(torch.float32, device_type, f"bfloat16 is wrong on this CPU in {fault}")
        reason = f"the CPU has {instructions}, right in {checked} kinds of layers"
        return Precision(torch.bfloat16, device_type, reason)
    return Precision(torch.float32, device_type, "the CPU has neither AMX nor AVX512-BF16")
