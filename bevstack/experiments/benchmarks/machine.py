"""On what, and how, something was timed: processor, threads, allocator, versions, commit."""

from __future__ import annotations

import os
import platform
import re
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bevstack.engine.source_commit import commit

REPOSITORY = Path(__file__).resolve().parents[3]
ALLOCATORS = ("default", "raised", "kept")
_RAISED = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_tile", "amx_bf16", "amx_int8")
_PEERS = ("numpy", "opencv-python", "mmcv-lite", "mmcv", "onnxruntime", "openvino", "numba", "triton")


def restart_for(allocator: str | None, threads: int | None) -> None:
    """Start this process anew where glibc's allocator or the threads of its libraries have to be set before it starts.

    Returns where the environment is as asked for already. The same command line runs in the same process number.

    Args:
        allocator: ``default``: no thresholds in the environment; ``raised``: both thresholds at 4 GiB; ``kept``: as
            ``default``, and :func:`bevstack.engine.cpu_memory.keep_freed_memory` is called, as the entry points do;
            None: as the environment is.
        threads: of OpenMP, MKL and numba; None: as the environment is.
    """
    wanted = dict(os.environ)
    if allocator is not None:
        for name in (*_RAISED, "MALLOC_MMAP_MAX_", "MALLOC_TOP_PAD_"):
            wanted.pop(name, None)
        wanted |= _RAISED if allocator == "raised" else {}
    if threads is not None:
        wanted |= dict.fromkeys(_THREADS, str(threads))
    if wanted != dict(os.environ):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)  # noqa: S606 - this very command line


def allocator_of_environment() -> str:
    """``raised`` where the environment sets one of glibc's thresholds, else ``default``."""
    return "raised" if any(name in os.environ for name in _RAISED) else "default"


def description(allocator: str | None) -> dict[str, Any]:
    """What a reader has to know to compare numbers with those of another machine, as plain data."""
    return {
        "processor": processor_name(),
        "features": cpu_features(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "allocator": allocator or allocator_of_environment(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "packages": {name: version for name in _PEERS if (version := _version(name))},
        "commit": commit(digits=12),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def cpu_features() -> list[str]:
    """Those of the processor's instruction sets that decide what matrix products cost; [] where nobody tells."""
    flags = re.search(r"^flags\s*:(.*)$", _proc_cpuinfo(), re.MULTILINE)
    there = set(flags[1].split()) if flags else set()
    return [name for name in _FEATURES if name in there]


def processor_name() -> str:
    """The CPU's, as the system tells it."""
    name = re.search(r"^model name\s*:\s*(.*)$", _proc_cpuinfo(), re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()


def _proc_cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
