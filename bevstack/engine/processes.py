"""The processes of a run: how many a launcher has started, and how those without a GPU join."""

from __future__ import annotations

import datetime
import gc
import os
import shutil
import subprocess  # noqa: S404 - Slurm's own command, which names the nodes of a job
import time
import uuid
from typing import Any

import torch
from torch.distributed import PrefixStore, Store

from bevstack.errors import InputError


def process_count(launcher: str) -> int:
    """Number of processes that a launcher has started, known before they are joined."""
    names = {"pytorch": "WORLD_SIZE", "slurm": "SLURM_NTASKS"}
    return int(os.environ.get(names[launcher], "1")) if launcher in names else 1


def join_gloo(launcher: str, timeout: datetime.timedelta) -> None:
    """Join a group of CPU processes; mmengine's own way asks for a GPU.

    Under Slurm the processes meet at the job's first node, at a port that follows from the job's number, unless
    ``MASTER_ADDR`` and ``MASTER_PORT`` say otherwise.

    Raises:
        InputError: the launcher has not set what the processes need to know of each other.
    """
    if launcher == "slurm":
        os.environ |= _slurm_places()
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        reason = f"{', '.join(missing)} not in the environment; start with: torchrun --nproc-per-node 2 ..."
        raise InputError("--launcher", launcher, reason)
    torch.distributed.init_process_group("gloo", timeout=timeout, **meeting_place(timeout))


def meeting_place(timeout: datetime.timedelta) -> dict[str, Any]:
    """Where the processes of this start meet: ``store``, ``rank`` and ``world_size`` of ``init_process_group``.

    torchrun that starts dead processes again (``--max-restarts``) keeps its store, and with it the addresses of the
    processes before, which a process that is earlier than the others would take for theirs and find nobody there
    (https://github.com/pytorch/pytorch/issues/135712, still so in torch 2.13). The number of restarts is no name for
    a start: each node counts its own. So the processes agree on one first.

    Raises:
        torch.distributed.DistStoreError: the first process was not there in time.
        TimeoutError: another one was not.
    """
    store, rank, world_size = next(torch.distributed.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        store = PrefixStore(name_of_this_start(store, rank, world_size, timeout), store)
    return {"store": store, "rank": rank, "world_size": world_size}


def name_of_this_start(store: Store, rank: int, world_size: int, timeout: datetime.timedelta) -> str:
    """A name that the processes of one start agree on, in a store that still has whatever earlier starts left there.

    Each but the first asks with a number that nobody had before; the first answers whoever asks, also those that are
    no more, until all of this start have said that they know.

    Args:
        store: that all of them see; none of an earlier start still writes to it.
        rank: of this process; world_size: how many there are.
        timeout: for all of it.

    Raises:
        torch.distributed.DistStoreError: a process but the first: there was no answer in time.
        TimeoutError: the first: somebody did not ask in time.
    """
    own = uuid.uuid4().hex
    if rank:
        store.set(f"start/asked/{rank}", own)
        name = store.get(f"start/answer/{own}").decode()
        store.set(f"start/known/{name}/{rank}", "")
        return name
    end = time.monotonic() + timeout.total_seconds()
    missing = set(range(1, world_size))
    while missing:
        for other in sorted(missing):
            if store.check([f"start/asked/{other}"]):
                store.set(f"start/answer/{store.get(f'start/asked/{other}').decode()}", own)
            if store.check([f"start/known/{own}/{other}"]):
                missing.remove(other)
        if missing and time.monotonic() > end:
            raise TimeoutError(f"ranks {sorted(missing)} did not come within {timeout}")
        time.sleep(0.01 if missing else 0)
    return own


def _slurm_places() -> dict[str, str]:
    """What torch's processes are told, from what Slurm tells its tasks."""
    names = {"RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID", "WORLD_SIZE": "SLURM_NTASKS"}
    missing = [name for name in names.values() if name not in os.environ]
    if missing:
        reason = f"{', '.join(missing)} not in the environment; start with: srun -n 2 python tools/train.py ..."
        raise InputError("--launcher", "slurm", reason)
    places = {name: os.environ[source] for name, source in names.items()}
    if "MASTER_PORT" not in os.environ:
        places["MASTER_PORT"] = str(29500 + int(os.environ.get("SLURM_JOB_ID", "0")) % 10000)
    if "MASTER_ADDR" not in os.environ:
        places["MASTER_ADDR"] = _first_node(os.environ.get("SLURM_NODELIST", ""))
    return places


def _first_node(nodes: str) -> str:
    """The first of a job's nodes, which Slurm writes in short (``node[3-7,9]``)."""
    if nodes and not set("[],") & set(nodes):
        return nodes
    command = shutil.which("scontrol")
    if not nodes or command is None:
        lacks = f"scontrol is not there to read SLURM_NODELIST {nodes}" if nodes else "there is no SLURM_NODELIST"
        raise InputError("--launcher", "slurm", f"{lacks}: set MASTER_ADDR")
    asked = [command, "show", "hostnames", nodes]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 - no shell; Slurm's own
    if done.returncode or not done.stdout.split():
        reason = f"scontrol cannot read SLURM_NODELIST {nodes}: {done.stderr.strip()}; set MASTER_ADDR"
        raise InputError("--launcher", "slurm", reason)
    return done.stdout.split()[0]


def leave_group() -> None:
    """Leave the group of processes together, if there is one: a process that ends inside it is aborted by its threads.

    What still holds the group (the wrapped model, in the circles of a runner that is done) is let go first.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        gc.collect()
        torch.distributed.destroy_process_group()
