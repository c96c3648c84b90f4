"""The processes of a run: how many a launcher has started, and how those without a GPU join."""

from __future__ import annotations

import datetime
import gc
import os

import torch

from bevstack.errors import InputError


def process_count(launcher: str) -> int:
    """Number of processes that a launcher has started, known before they are joined."""
    names = {"pytorch": "WORLD_SIZE", "slurm": "SLURM_NTASKS"}
    return int(os.environ.get(names[launcher], "1")) if launcher in names else 1


def join_gloo(launcher: str, timeout: datetime.timedelta) -> None:
    """Join a group of CPU processes; mmengine's own way asks for a GPU."""
    if launcher == "slurm":
        for name, source in (("RANK", "PROCID"), ("LOCAL_RANK", "LOCALID"), ("WORLD_SIZE", "NTASKS")):
            os.environ[name] = os.environ[f"SLURM_{source}"]
        os.environ.setdefault("MASTER_PORT", "29500")
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        reason = f"{', '.join(missing)} not in the environment; start with: torchrun --nproc-per-node 2 ..."
        raise InputError("--launcher", launcher, reason)
    torch.distributed.init_process_group("gloo", timeout=timeout)


def leave_group() -> None:
    """Leave the group of processes together, if there is one: a process that ends inside it is aborted by its threads.

    What still holds the group (the wrapped model, in the circles of a runner that is done) is let go first.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        gc.collect()
        torch.distributed.destroy_process_group()
