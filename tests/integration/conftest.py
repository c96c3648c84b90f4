"""A tiny synthetic set and a tiny demo configuration, made once a test session by the real command lines."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.processes import run_captured

REPOSITORY = Path(__file__).resolve().parents[2]
TRAIN_SCENES, VAL_SCENES, FRAMES = 2, 1, 3
IMAGE_SIZE = (72, 128)


@dataclass(frozen=True)
class Tiny:
    """Where the session's set, its configurations and its first training lie."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "nuscenes-tiny"

    @property
    def config(self) -> Path:
        return self.folder / "configs" / "demo.py"

    @property
    def work_dir(self) -> Path:
        return self.folder / "trained"


def run_command(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    """Run Python on the arguments as a user would, from the repository; the test fails with what it printed.

    A process imports for five seconds or more: it is for tests whose subject is the process itself.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = run_captured([sys.executable, *map(str, arguments)], 300, cwd=REPOSITORY, env=environment)
    printed = f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, f"{arguments} exited with {done.returncode}\n{printed}"
    return done


def run(script: str | Path, arguments: Sequence[str | Path]) -> int:
    """The exit code of a script, run in this process as its command line runs it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        patch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as left:
            return left.code or 0
    return 0


def call(command: list[str], folder: Path) -> None:
    """Run a command of a page in a folder, in this process; it must end well."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as left:
            runpy.run_path(str(REPOSITORY / command[0]), run_name="__main__")
    assert not left.value.code, command


def printed_by(script: str | Path, *arguments: str | Path) -> tuple[str, str]:
    """What a script prints on stdout and stderr, run in this process; it must end well."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run(script, arguments)
    assert code == 0, f"{script} {arguments} exited with {code}\n{out.getvalue()}\n{err.getvalue()}"
    return out.getvalue(), err.getvalue()


def shrunken(cfg: Any, root: Path) -> Any:
    """The demo's configuration on tiny images and coarse grids, the same every time: no budget of seconds."""
    seen: set[int] = set()

    def walk(node: Any) -> None:
        if id(node) in seen:
            return
        seen.add(id(node))
        if isinstance(node, dict):
            if "shape" in node and "x_range_m" in node:
                node["shape"] = tuple(number // 4 for number in node["shape"])
            if "data_root" in node:
                node["data_root"] = str(root)
            if node.get("type") == "ResizeCropFlipImages":
                node.pop("heights_px", None)
                node.update(scale=1.0, size=(64, 128))
            if "num_workers" in node:
                node.update(num_workers=0, persistent_workers=False)
            if "batch_size" in node and node["batch_size"] > 1:
                node["batch_size"] = 2
            if node.get("type") == "BudgetSchedule":
                node.pop("max_seconds", None)
            for value in node.values():
                walk(value)
        elif isinstance(node, list | tuple):
            for value in node:
                walk(value)

    for part in cfg:
        walk(cfg[part])
    cfg.custom_hooks = [hook for hook in cfg.custom_hooks if hook["type"] != "MaxSecondsHook"]
    cfg.default_hooks.logger.interval = 1
    cfg.train_cfg.max_epochs = 2
    cfg.optim_wrapper.dtype = cfg.test_cfg.dtype = "float32"
    return cfg


def make_root(tiny: Tiny) -> None:
    """The tiny set, by the tools; and the configuration."""
    from bevstack.engine.config import load_config

    size = f"{IMAGE_SIZE[1]}x{IMAGE_SIZE[0]}"
    scenes = ("--train-scenes", str(TRAIN_SCENES), "--val-scenes", str(VAL_SCENES), "--frames", str(FRAMES))
    options = ("--image-size", size, "--seed", "5", "--workers", "1")
    printed_by("tools/create_synthetic.py", "--root", tiny.root, *scenes, *options)
    printed_by("tools/create_data.py", "nuscenes", "--root", tiny.root, "--version", "v1.0-mini")
    cfg = shrunken(load_config(REPOSITORY / "configs" / "demo.py"), tiny.root)
    tiny.config.parent.mkdir()
    cfg.dump(tiny.config)


def train_once(tiny: Tiny) -> None:
    """The session's first training: two epochs, in this process."""
    from bevstack.engine.train import main

    assert main([str(tiny.config), "--work-dir", str(tiny.work_dir)]) == 0


def made_once(folder: Path, name: str, make: Callable[[], None]) -> None:
    """Call ``make`` in one of the session's processes; the others wait, and fail if it failed."""
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        done = folder / f"{name}.done"
        if not done.exists():
            done.write_text("failed")
            make()
            done.write_text("made")
        assert done.read_text() == "made", f"making {name} failed in another test or process of this session"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Tiny:
    """The tiny set and its configuration."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "integration"
    folder.mkdir(exist_ok=True)
    made_once(folder, "root", lambda: make_root(Tiny(folder)))
    return Tiny(folder)


@pytest.fixture(scope="session")
def trained(tiny) -> Tiny:
    """The same, with the tiny demo trained in ``work_dir``. Tests leave its files as they are."""
    made_once(tiny.folder, "trained", lambda: train_once(tiny))
    return tiny
