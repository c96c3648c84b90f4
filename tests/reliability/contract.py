"""The one contract of malformed input (docs/reliability.md), and a tiny root, a config and a checkpoint to break.

A tool runs as from the command line, in this process: ``tools/NAME.py`` with its own ``sys.argv``. What it must do is
written by hand from RELIABILITY.md: exactly one line ``error: FILE: FIELD: reason`` on stderr, exit code 2, no
traceback, nothing new on disk, all within ten seconds.
"""

from __future__ import annotations

import os
import re
import runpy
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from tests.engine.front_door import CLASSES, small_config

ROOT = Path(__file__).resolve().parents[2]
LONGEST_S = 10.0
_LINE = re.compile(r"error: (?P<file>[^:]+): (?P<field>.+?): (?P<reason>.+)")


def call_tool(name: str, *arguments: Any) -> int:
    """Run a tool as ``python tools/NAME.py ARGUMENTS`` would; returns its exit code."""
    before = sys.argv
    sys.argv = [str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)]
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    finally:
        sys.argv = before
    raise AssertionError("a tool ends with sys.exit")


def files_below(folder: Path) -> list[str]:
    """Everything below a folder, by name."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(capfd: pytest.CaptureFixture, folder: Path, name: str, *arguments: Any) -> tuple[str, str, str]:
    """Run a tool on malformed input and hold it to the contract; returns FILE, FIELD and reason of its line.

    Args:
        capfd: of pytest, file descriptors: what C libraries print counts, too.
        folder: nothing may be new below it.
        name, arguments: of :func:`call_tool`.
    """
    before, started = files_below(folder), time.monotonic()
    capfd.readouterr()
    code = call_tool(name, *arguments)
    seconds, err = time.monotonic() - started, capfd.readouterr().err
    assert code == 2, f"exit code {code}: {err}"
    assert "Traceback" not in err
    lines = err.splitlines()
    assert len(lines) == 1, err
    found = _LINE.fullmatch(lines[0])
    assert found, lines[0]
    assert sorted(set(files_below(folder)) - set(before)) == [], "something was left behind"
    assert files_below(folder) == before, "something is gone"
    assert seconds < LONGEST_S
    return found["file"], found["field"], found["reason"]


def write_config(path: Path, root: Path, version: str, changes: Callable[[Config], None] | None = None) -> Path:
    """A config of the small model of :mod:`tests.engine.front_door` on a root in nuScenes' format, all in one file.

    Args:
        path: of the config to write.
        root, version: of the data; its splits are ``tiny_train`` and ``tiny_val``.
        changes: what to do to the config before it is written.
    """
    cfg = small_config()
    dataset: dict[str, Any] = dict(cfg.test_dataloader.dataset)
    dataset |= {"data_root": str(root), "version": version, "split": "tiny_val", "test_mode": True}
    dataset |= {"cameras": ["CAM_FRONT", "CAM_FRONT_LEFT", "CAM_FRONT_RIGHT"], "classes": CLASSES}
    loader = {"batch_size": 1, "num_workers": 0, "collate_fn": {"type": "pseudo_collate"}}
    cfg.model.heads.pop("map")  # the tiny root may have no map
    cfg.test_dataloader = {**loader, "dataset": dataset, "sampler": {"type": "SceneShardedSampler"}}
    cfg.test_dataloader["batch_sampler"] = {"type": "SceneBatchSampler"}
    cfg.test_cfg = {"type": "StreamingTestLoop"}
    cfg.test_evaluator = {"type": "CenterDistanceMetric"}
    train = {**dataset, "split": "tiny_train", "test_mode": False}
    cfg.train_dataloader = {**loader, "dataset": train, "sampler": {"type": "StreamingSampler", "batch_size": 1}}
    cfg.train_cfg = {"type": "StreamingTrainLoop", "max_epochs": 1}
    cfg.optim_wrapper = {"type": "AutocastOptimWrapper", "dtype": "float32", "optimizer": {"type": "AdamW", "lr": 1e-3}}
    cfg.log_level = "WARNING"
    if changes is not None:
        changes(cfg)
    path.write_text("".join(f"{key} = {value!r}\n" for key, value in _plain(cfg._cfg_dict.to_dict()).items()))
    return path


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items()}
    return type(node)(map(_plain, node)) if isinstance(node, list | tuple) else node


def below(folder: Path, names: Sequence[str]) -> list[Path]:
    """Paths below a folder."""
    return [folder / os.fspath(name) for name in names]
