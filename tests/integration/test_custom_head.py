"""``docs/custom_head.md`` does what it says: its files are taken out of the page, installed, and its commands run."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bevstack.engine import test as test_tool
from bevstack.engine import train as train_tool
from bevstack.engine import visualize as visualize_tool
from bevstack.errors import run_tool
from bevstack.registry import METRICS, MODELS
from tests.integration.conftest import FRAMES, REPOSITORY, VAL_SCENES, Tiny, made_once

PAGE = (REPOSITORY / "docs" / "custom_head.md").read_text()
FILES = dict(re.findall(r"^`([\w./]+)`[^\n`]*\n\n```\w+\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))
COMMANDS = [shlex.split(line) for line in re.findall(r"^python (tools/.*)$", PAGE, re.MULTILINE)]
MISTAKES = re.findall(r"^\| ([^|]+?) \| (`[^|]+) \|$", PAGE, re.MULTILINE)
TOOLS = {"tools/train.py": train_tool, "tools/test.py": test_tool, "tools/visualize.py": visualize_tool}


def install(tiny: Tiny) -> None:
    """Write the page's files and install its package into a folder of its own."""
    package = tiny.folder / "crowd"
    package.mkdir()
    for name, content in FILES.items():
        target = tiny.folder / name
        target.write_text(content)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", str(tiny.folder / "installed"), str(package)],
        check=True,
        timeout=600,
    )


@pytest.fixture
def crowd(tiny, monkeypatch):
    """The page's package, installed and importable as long as the test runs, and its configuration."""
    made_once(tiny.folder, "crowd", lambda: install(tiny))
    monkeypatch.syspath_prepend(str(tiny.folder / "installed"))
    forget()
    yield tiny.config.with_name("demo_crowd.py")
    forget()


def forget() -> None:
    """As if the package had never been imported in this process."""
    sys.modules.pop("crowd_density", None)
    MODELS.module_dict.pop("CrowdDensityHead", None)
    METRICS.module_dict.pop("CrowdCountMetric", None)


def run(tool: str, arguments: list[str]) -> int:
    """The tool's exit code."""
    with pytest.raises(SystemExit) as left:
        run_tool(lambda: TOOLS[tool].main(arguments))
    return left.value.code


def test_the_page_is_complete():
    assert set(FILES) == {"crowd/pyproject.toml", "crowd/crowd_density.py", "configs/demo_crowd.py"}
    assert [command[0] for command in COMMANDS] == list(TOOLS)
    head = FILES["crowd/crowd_density.py"].split("class CrowdDensityHead")[1].split("@METRICS")[0]
    assert len([line for line in head.splitlines() if line.strip()]) <= 35, "about 30 lines for a head"


def remember_pictures(monkeypatch, pictures: list[np.ndarray]) -> None:
    """Keep what the head paints."""
    head = MODELS.get("CrowdDensityHead")
    paint = head.paint

    def remembered(self, sample) -> np.ndarray:
        pictures.append(paint(self, sample))
        return pictures[-1]

    monkeypatch.setattr(head, "paint", remembered)


def test_it_trains_is_scored_and_drawn(crowd, tmp_path, monkeypatch):
    pictures = []
    for tool, *arguments in COMMANDS:
        checkpoint = ""
        if tool != "tools/train.py":
            checkpoint = json.loads((tmp_path / "train_summary.json").read_text())["checkpoint"]
        if tool == "tools/visualize.py":
            remember_pictures(monkeypatch, pictures)
        places = {"configs/demo_crowd.py": str(crowd), "CHECKPOINT": checkpoint}
        given = [places.get(part, part.replace("work_dirs/demo_crowd", str(tmp_path))) for part in arguments]
        if tool == "tools/train.py":
            given += ["--cfg-options", "train_cfg.max_epochs=1"]
        assert run(tool, given) == 0

    logs = [json.loads(line) for path in tmp_path.glob("*/vis_data/scalars.json") for line in open(path)]
    assert logs[0]["crowd.loss_density"] != 0 and np.isfinite([log["crowd.loss_density"] for log in logs]).all()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["crowd/count_error"] >= 0 and "NDS" in metrics and "iou/vehicle" in metrics

    # Each picture shows the head's own panel: much of the colour that fills most of what the head painted.
    files = sorted((tmp_path / "vis").glob("*/*.png"))
    assert len(files) == len(pictures) == VAL_SCENES * FRAMES
    for file, picture in zip(files, pictures, strict=True):
        colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
        drawn = np.asarray(Image.open(file).convert("RGB"))
        same = (np.abs(drawn.astype(int) - colors[counts.argmax()]).sum(-1) < 6).sum()
        panel = (0.2 * min(drawn.shape[:2])) ** 2  # in pixels, at the least
        assert same > 0.5 * panel * counts.max() / counts.sum()


def lacking_predict(monkeypatch) -> None:
    import crowd_density

    from bevstack.models.heads import BEVHead

    whole = crowd_density.CrowdDensityHead
    methods = {name: vars(whole)[name] for name in ("__init__", "forward", "loss")}
    lacking = type("CrowdDensityHead", (BEVHead,), {**methods, "__init__": lambda self, in_channels, grid, label: None})
    monkeypatch.setitem(MODELS.module_dict, "CrowdDensityHead", lacking)


def requiring_mapp(monkeypatch) -> None:
    import crowd_density

    monkeypatch.setattr(crowd_density.CrowdDensityHead, "requires", ("mapp",))


HOW: dict[str, list[str] | Callable] = {  # the page's mistakes: options of the command line, or a change of the code
    '`type="CrowdDensityHed"`': ["model.heads.crowd.type=CrowdDensityHed"],
    "`lable=label`": ["model.heads.crowd.lable=8"],
    '`imports=["crowd_densty"]`': ["custom_imports.imports=['crowd_densty']"],
    "no method `predict`": lacking_predict,
    "`in_channels=96`": ["model.heads.crowd.in_channels=96"],
    '`requires = ("mapp",)`': requiring_mapp,
    "a grid with `x_range` for `x_range_m`": ["model.heads.crowd.grid.x_range=(-50,50)"],
    "a map head on another grid than its raster": ["model.heads.map.grid.shape=(20,20)"],
}


def test_every_mistake_of_the_page_is_made_here():
    assert {mistake for mistake, _ in MISTAKES} == set(HOW)


@pytest.mark.parametrize(("mistake", "said"), MISTAKES, ids=[mistake for mistake, _ in MISTAKES])
def test_mistakes_give_one_line(crowd, tmp_path, monkeypatch, capfd, mistake, said):
    # Expected: the page's line, "..." standing for anything; on stderr, alone; exit code 2.
    how = HOW[mistake]
    options = how if isinstance(how, list) else []
    if not options:
        from bevstack.engine.config import load_config

        load_config(crowd)
        how(monkeypatch)
    arguments = [str(crowd), "--work-dir", str(tmp_path), "--cfg-options", "default_hooks.logger.interval=1", *options]
    assert run("tools/train.py", arguments) == 2
    pattern = ".*".join(re.escape(part) for part in re.findall(r"`([^`]*)`", said)).replace("CONFIG", ".*demo_crowd.py")
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and re.match("error: " + pattern, lines[0]), lines
    assert not list(tmp_path.glob("*.pth")) and not (tmp_path / ".train.lock").exists()


def test_the_tools_run_with_the_package_on_the_python_path(crowd, tmp_path):
    # A real process, as a user starts it, finds the package and says in one line what is wrong with the config.
    done = subprocess.run(
        [sys.executable, "tools/train.py", str(crowd), "--cfg-options", "model.heads.crowd.type=CrowdDensityHed"],
        cwd=REPOSITORY,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path(crowd).parents[1] / "installed")},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2 and "did you mean 'CrowdDensityHead'?" in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
