"""Faults of the machine, made for real: a full disk, a read-only folder, a killed data worker, memory that grows.

What must hold is RELIABILITY.md's, R5, R6, R10 and R11.
"""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bevstack.engine.checkpoint import read_checkpoint
from tests.engine.toy import exit_code_of


@pytest.fixture
def mounted(tmp_path) -> Iterator[Callable[[str], Path]]:
    """A small file system in memory, mounted with given options; only root may mount."""
    place = tmp_path / "small"
    place.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no right to mount ({done.stderr.strip()}); test_checkpoint.py limits files instead")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True)


def message(work_dir: Path) -> str:
    return json.loads(Path(f"{work_dir}-message.json").read_text())


def test_r5_the_disk_is_full(mounted, tmp_path, run_process) -> None:
    """Checkpoints of about 60 kB, eight of them, in 256 kB: one line and code 2; every file that has its name is whole.

    The message lies beside the full disk (``exit_code_of``).
    """
    place = mounted("size=256k")
    code = run_process(exit_code_of, str(place), default_hooks__checkpoint__interval=1, model__channels=32)
    assert code == 2
    assert "No space left on device" in message(place) and "\n" not in message(place)
    whole = sorted(place.glob("iter_*.pth"))
    assert whole, "the first ones fit"
    for path in whole:
        read_checkpoint(path)


def test_r6_the_work_directory_is_read_only(mounted, run_process) -> None:
    """Said before anything is built, also to root, whom permissions do not stop."""
    place = mounted("ro,size=1m")
    assert run_process(exit_code_of, str(place)) == 2
    assert message(place) == f"{place}: --work-dir: cannot be written: Read-only file system"


@pytest.mark.parametrize("streaming", [False, True])
def test_r10_a_data_worker_dies(tmp_path, run_process, streaming) -> None:
    """Killed at sample 6: exit code 1 within 30 s, worker and samples named.

    In order, 6 and 7 are the fourth batch, worker 1's; its first, 2 and 3, may not have arrived yet. In streams, slots
    0 and 1 take scenes 0 and 1, so that 6 comes third, beside 2: worker 0's, after 0 and 4.
    """
    started = time.monotonic()
    changes = {"train_dataloader__num_workers": 2, "train_dataloader__dataset__die_at": 6, "streaming": streaming}
    if not streaming:
        changes["train_dataloader__sampler__shuffle"] = False
    code = run_process(exit_code_of, str(tmp_path), **changes)
    assert code == 1 and time.monotonic() - started < 30
    worker, before, last = (0, "0, 4", "2, 6") if streaming else (1, "2, 3", "6, 7")
    assert re.match(rf"data worker {worker} died, asked for samples ({before}, )?{last}\D", message(tmp_path))
    assert "--resume" in message(tmp_path)


def memory_by_epoch(work_dir: str) -> None:
    """Twelve epochs; what the process holds after each goes to ``memory.json``, in bytes."""
    import os

    from mmengine.hooks import Hook

    from tests.engine.toy import train_toy

    sizes = []

    class Measure(Hook):
        def after_train_epoch(self, runner) -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))

    train_toy(
        work_dir,
        train_cfg__max_epochs=12,
        train_dataloader__dataset__length=64,
        extra_hooks=[Measure()],
        default_hooks__checkpoint__interval=1000,
    )
    (Path(work_dir) / "memory.json").write_text(json.dumps(sizes))


@pytest.mark.slow
def test_r11_ten_epochs_without_growth(tmp_path, run_process) -> None:
    """From the second epoch on, when all that is made once is there, to the twelfth: under 5 %."""
    assert run_process(memory_by_epoch, str(tmp_path)) == 0
    sizes = json.loads((tmp_path / "memory.json").read_text())
    assert len(sizes) == 12 and sizes[-1] < 1.05 * sizes[1], sizes


def test_r11_workers_share_the_index(tmp_path) -> None:
    """What is sent to a worker is where the index lies, not what it holds: no more bytes for a larger one."""
    import sys

    sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
    from tables import VERSION, build_root

    from bevstack.datasets.nuscenes.index import NuScenesIndex
    from bevstack.datasets.nuscenes.index_writer import write_index

    sent = []
    for name, counts in (("small", (4, 3)), ("large", (40, 30))):
        root = build_root(tmp_path / name, sample_counts=counts)
        write_index(root, VERSION, progress=lambda text: None)
        sent.append(len(pickle.dumps(NuScenesIndex.open(root, VERSION))))
    assert sent[0] == sent[1] < 1000
