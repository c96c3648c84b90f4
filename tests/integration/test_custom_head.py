"""``docs/custom_head.md`` does what it says: its files are taken out of the page, installed, and its commands run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bevstack.registry import MODELS
from tests.integration.conftest import FRAMES, REPOSITORY, VAL_SCENES, made_once
from tests.integration.pages import (
    TOOLS,
    Page,
    assert_nothing_is_left,
    assert_one_line,
    follow,
    forget,
    logs_of,
    most_frequent,
    run,
)
from tests.processes import run_captured

PAGE = Page("custom_head.md")
CODE = "crowd/crowd_density.py"


@pytest.fixture
def crowd(tiny, monkeypatch):
    """The page's package, installed and importable as long as the test runs, and its configuration."""
    made_once(tiny.folder, "crowd", lambda: PAGE.install(tiny.folder, "crowd"))
    monkeypatch.syspath_prepend(str(tiny.folder / "installed"))
    forget("crowd_density")
    yield tiny.config.with_name("demo_crowd.py")
    forget("crowd_density")


def test_the_page_is_complete():
    configs = {"configs/demo_crowd.py", "configs/demo_crowd_direct.py"}
    assert set(PAGE.files) == {"crowd/pyproject.toml", CODE} | configs
    assert [command[0] for command in PAGE.commands] == list(TOOLS)
    assert PAGE.lines_of(CODE) <= 65, "about 60 lines for target, head, loss, metric and picture"


def remember_pictures(monkeypatch, pictures: list[np.ndarray]) -> None:
    """Keep what the painter paints."""
    import crowd_density

    paint = crowd_density.CrowdDensityPainter.paint

    def remembered(self, sample, window) -> np.ndarray:
        pictures.append(paint(self, sample, window))
        return pictures[-1]

    monkeypatch.setattr(crowd_density.CrowdDensityPainter, "paint", remembered)


def test_it_trains_is_scored_and_drawn(crowd, tmp_path, monkeypatch):
    pictures = []
    remember_pictures(monkeypatch, pictures)
    follow(PAGE, tmp_path, crowd)

    logs = logs_of(tmp_path)
    assert logs[0]["crowd.loss_density"] != 0 and np.isfinite([log["crowd.loss_density"] for log in logs]).all()
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["crowd/count_error"] >= 0 and "NDS" in metrics and "iou/vehicle" in metrics

    # Each picture shows the painter's own panel: much of the colour that fills most of what it painted.
    files = sorted((tmp_path / "vis").glob("*/*.png"))
    assert len(files) == len(pictures) == VAL_SCENES * FRAMES
    for file, picture in zip(files, pictures, strict=True):
        color, part = most_frequent(picture)
        drawn = np.asarray(Image.open(file).convert("RGB"))
        same = (np.abs(drawn.astype(int) - color).sum(-1) < 6).sum()
        panel = (0.2 * min(drawn.shape[:2])) ** 2  # in pixels, at the least
        assert same > 0.5 * panel * part


def test_the_target_counts(crowd):
    # Expected: by hand. Two of the three pedestrians stand in the cell of column 2, row 3 (x 2 to 3 m, y 3 to 4 m), the
    # third one outside; a car stands there, too.
    from bevstack.engine.config import load_config

    load_config(crowd)
    import crowd_density

    grid = dict(shape=(6, 4), x_range_m=(0, 4), y_range_m=(0, 6))
    boxes = np.zeros((4, 9), np.float32)
    boxes[:, :2] = [(2.5, 3.5), (2.1, 3.9), (-0.5, 3.5), (2.5, 3.5)]
    results = dict(boxes=boxes, labels=np.array([1, 1, 1, 0]), classes=("car", "pedestrian"), rasters={})
    raster = crowd_density.CountObjects(grid, "pedestrian").transform(results)["rasters"]["crowd"]
    expected = np.zeros((1, 6, 4))
    expected[0, 3, 2] = 2
    assert np.array_equal(raster.layers, expected) and raster.classes == ("pedestrian",)


def test_classes_imported_in_the_config(crowd, tmp_path):
    # Expected: the same losses in the first step as by custom_imports, but for the weight 0.5 of that config.
    losses = []
    for name, weight in (("demo_crowd.py", 0.5), ("demo_crowd_direct.py", 1.0)):
        out = tmp_path / name
        options = ["train_cfg.max_epochs=1", "train_dataloader.dataset.split=val"]
        arguments = [str(crowd.with_name(name)), "--work-dir", str(out), "--cfg-options", *options]
        assert run("tools/train.py", arguments) == 0
        losses.append(logs_of(out)[0]["crowd.loss_density"] / weight)
        forget("crowd_density")
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def lacking_predict(monkeypatch) -> None:
    import crowd_density

    from bevstack.models.heads import BEVHead

    whole = crowd_density.CrowdDensityHead
    methods = {name: vars(whole)[name] for name in ("forward", "loss")}
    lacking = type("CrowdDensityHead", (BEVHead,), {**methods, "__init__": lambda self, in_channels, grid, name: None})
    monkeypatch.setitem(MODELS.module_dict, "CrowdDensityHead", lacking)


def requiring_mapp(monkeypatch) -> None:
    import crowd_density

    monkeypatch.setattr(crowd_density.CrowdDensityHead, "requires", ("mapp",))


PIPELINE = "train_dataloader.dataset.pipeline.2"
# The page's mistakes: options of the command line, a change of the code, or a change of a config's text.
HOW: dict[str, list[str] | Callable | tuple[str, str, str]] = {
    '`type="CrowdDensityHed"`': ["model.heads.crowd.type=CrowdDensityHed"],
    '`type="CountObject"`': [f"{PIPELINE}.type=CountObject"],
    "`nane=name`": ["model.heads.crowd.nane=car"],
    '`imports=["crowd_densty"]`': ["custom_imports.imports=['crowd_densty']"],
    "`from crowd_density import CrowdDensityHed`": (
        "demo_crowd_direct.py",
        "CrowdCountMetric, CrowdDensityHead",
        "CrowdCountMetric, CrowdDensityHed as CrowdDensityHead",
    ),
    "`from crowd_densty import ...`": ("demo_crowd_direct.py", "from crowd_density", "from crowd_densty"),
    "no method `predict`": lacking_predict,
    "`in_channels=96`": ["model.heads.crowd.in_channels=96"],
    '`requires = ("mapp",)`': requiring_mapp,
    "a grid with `x_range` for `x_range_m`": ["model.heads.crowd.grid.x_range=(-50,50)"],
    "no `CountObjects` in the train pipeline": (
        "demo_crowd.py",
        'train_dataloader["dataset"]["pipeline"].insert(2, target)',
        "",
    ),
    "the head on another grid than its raster": ["model.heads.crowd.grid.shape=(20,20)"],
}


def test_every_mistake_of_the_page_is_made_here():
    assert {mistake for mistake, _ in PAGE.mistakes} == set(HOW)


@pytest.mark.parametrize(("mistake", "said"), PAGE.mistakes, ids=[mistake for mistake, _ in PAGE.mistakes])
def test_mistakes_give_one_line(crowd, tmp_path, monkeypatch, capfd, mistake, said):
    # Expected: the page's line on stderr, alone; exit code 2; nothing left behind.
    how, config, options = HOW[mistake], crowd, []
    if isinstance(how, list):
        options = how
    elif isinstance(how, tuple):
        text = crowd.with_name(how[0]).read_text()
        assert how[1] in text
        config = crowd.with_name(f"mistaken_{how[0]}")
        config.write_text(text.replace(how[1], how[2], 1))
    else:
        from bevstack.engine.config import load_config

        load_config(crowd)
        how(monkeypatch)
    arguments = [str(config), "--work-dir", str(tmp_path), "--cfg-options", "default_hooks.logger.interval=1", *options]
    assert run("tools/train.py", arguments) == 2
    assert_one_line(capfd.readouterr().err, said, config.name)
    assert_nothing_is_left(tmp_path)


def test_the_tools_run_with_the_package_on_the_python_path(crowd, tmp_path):
    # A real process, as a user starts it, finds the package and says in one line what is wrong with the config.
    command = [sys.executable, "tools/train.py", str(crowd), "--cfg-options"]
    path = os.pathsep.join([str(Path(crowd).parents[1] / "installed"), str(REPOSITORY)])
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": path}
    done = run_captured([*command, "model.heads.crowd.type=CrowdDensityHed"], 300, cwd=REPOSITORY, env=environment)
    assert done.returncode == 2 and "did you mean 'CrowdDensityHead'?" in done.stderr
    assert done.stderr.count("\n") == 1 and done.stdout == ""
