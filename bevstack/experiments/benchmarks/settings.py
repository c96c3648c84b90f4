"""What a suite is asked for, from the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Choices of ``tools/benchmark.py --suite``.

    Args:
        against: ``usual``, ``onnxruntime`` or ``openvino``: what the whole model is timed against.
        sizes: names of :data:`bevstack.experiments.benchmarks.inputs.SIZES`; () for the suite's own.
        quick: a look at whether everything runs, not a measurement.
        frames: of the suites that run a stream.
        dtype: of the suites that run in one format only: "float32", "bfloat16" or "auto".
        file: an exported file (``tools/export.py``) that the suite ``latency`` runs in the model's place.
    """

    against: str = "usual"
    sizes: tuple[str, ...] = ()
    quick: bool = False
    frames: int = 2000
    dtype: str = "auto"
    file: Path | None = None
