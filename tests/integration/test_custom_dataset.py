"""``docs/custom_dataset.md``, first half: its yard in nuScenes format is made, indexed, learned, scored, drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from PIL import Image

from bevstack.registry import MODELS
from tests.integration.conftest import made_once, printed_by
from tests.integration.pages import Page, assert_nothing_is_left, assert_one_line, follow, logs_of, run

PAGE = Page("custom_dataset.md", end="# A format of your own")
CLASSES = ("forklift", "container", "person")
FRAMES = 4


def make_yard(folder: Path) -> None:
    """The page's first two commands."""
    PAGE.write(folder)
    made, indexed = PAGE.text.split("python yard/")[1].splitlines()[0].split(), PAGE.commands[0]
    printed_by(folder / "yard" / made[0], folder / made[1])
    out, err = printed_by(*(str(folder / part) if part == "data/yard" else part for part in indexed))
    # Three cameras of two sizes; its categories are named as not nuScenes'.
    assert "2 scenes, 8 samples, 96 boxes" in out and "maps: none" in out
    assert "categories beyond nuScenes'" in err and "forklift" in err


@pytest.fixture
def yard(tiny) -> Path:
    """The page's configuration, beside the tiny demo's; its root is made."""
    made_once(tiny.folder, "yard", lambda: make_yard(tiny.folder))
    config = tiny.config.with_name("yard.py")
    config.write_text(PAGE.files["configs/yard.py"].replace("data/yard", str(tiny.folder / "data" / "yard")))
    return config


def test_the_rig_is_read(yard):
    # Expected: what the script writes: cameras in the order of the sensor table, their sizes, AHEAD looking along +y.
    from bevstack.datasets.nuscenes.index import NuScenesIndex

    index = NuScenesIndex.open(yard.parents[1] / "data" / "yard", "v1.0-yard")
    assert index.cameras == ["AHEAD", "LEFT", "RIGHT"]
    assert index.arrays["camera_size_px"][0].tolist() == [[96, 160], [72, 128], [72, 128]]
    ahead = np.linalg.inv(index.camera_from_bev(0)[0])[:3, 2]
    left = np.linalg.inv(index.camera_from_bev(0)[1])[:3, 2]
    assert ahead == pytest.approx([0, 1, 0], abs=1e-9) and left[0] == pytest.approx(-np.sin(np.radians(70)))


def test_it_trains_is_scored_and_drawn(yard, tmp_path):
    follow(PAGE, tmp_path, yard)
    logs = logs_of(tmp_path)
    assert len(logs) == FRAMES and np.isfinite([log["loss"] for log in logs]).all()
    assert logs[0]["detection.loss_heatmap"] > 0 and logs[0]["obstacles.loss_cell"] > 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    expected = {"mAP", "mATE", "mAVE", "mIoU/obstacles", "iou/big", "iou/people"}
    assert expected | {f"AP/{name}" for name in CLASSES} <= set(metrics)
    # Expected counts: the boxes of yard-2 within the page's ranges, from the table.
    table = json.loads((yard.parents[1] / "data/yard/v1.0-yard/sample_annotation.json").read_text())
    limits = dict(zip(CLASSES, (40.0, 40.0, 25.0), strict=True))
    instance = json.loads((yard.parents[1] / "data/yard/v1.0-yard/instance.json").read_text())
    name_of = {record["token"]: record["category_token"] for record in instance}
    for name in CLASSES:
        boxes = [
            box
            for box in table
            if box["instance_token"].startswith("yard-2") and name_of[box["instance_token"]] == name
        ]
        moved = [np.subtract(box["translation"][:2], (int(box["sample_token"][-1]), 0)) for box in boxes]
        assert metrics[f"gt/{name}"] == sum(np.hypot(*place) < limits[name] for place in moved), name
    pictures = sorted((tmp_path / "vis").glob("yard-2/*.png"))
    assert len(pictures) == FRAMES
    assert np.asarray(Image.open(pictures[0]).convert("RGB")).std() > 10


PIPELINE = "train_dataloader.dataset.pipeline"
# The page's mistakes: the tool, and options of its command line or a change of a table.
HOW: dict[str, tuple[str, list[str]]] = {
    "no index": ("tools/train.py", ["train_dataloader.dataset.index_root=data"]),
    "`num_cameras` left at 6": ("tools/train.py", ["model.encoder.num_cameras=6"]),
    '`"forklif"` among the classes': ("tools/train.py", ["train_dataloader.dataset.classes=forklif,container,person"]),
    '`split="trian"`': ("tools/train.py", ["train_dataloader.dataset.split=trian"]),
    "`NuScenesDetectionMetric` on these classes": ("tools/test.py", []),
    "`LoadBEVMap` without a map": ("tools/train.py", [f"{PIPELINE}.2.type=LoadBEVMap"]),
}


def untrained(config: Path, folder: Path) -> str:
    """A checkpoint of the config's model as it is built."""
    from bevstack.engine.config import load_config

    init_default_scope("bevstack")
    model = MODELS.build(load_config(config).model)
    torch.save({"state_dict": model.state_dict(), "meta": {}}, folder / "untrained.pth")
    return str(folder / "untrained.pth")


def test_every_mistake_of_the_page_is_made_here():
    assert {mistake for mistake, _ in PAGE.mistakes} == set(HOW)


@pytest.mark.parametrize(("mistake", "said"), PAGE.mistakes, ids=[mistake for mistake, _ in PAGE.mistakes])
def test_mistakes_give_one_line(yard, tmp_path, capfd, mistake, said):
    # Expected: the page's line on stderr, alone; exit code 2; nothing left behind.
    tool, options = HOW[mistake]
    root, text, config = yard.parents[1] / "data" / "yard", yard.read_text(), yard
    changes = {
        "`LoadBEVMap` without a map": ('''        type="RasteriseBoxes",
        grid=head_grid,
        name="obstacles",
        layers=dict(big=("forklift", "container"), people=("person",)),
        mark_centers=True,  # a person may be smaller than a cell, and cover no cell's centre
''', '''        type="LoadBEVMap", grid=head_grid
'''),
        "`NuScenesDetectionMetric` on these classes": (
            'type="CenterDistanceMetric", max_distance_m=dict(forklift=40.0, container=40.0, person=25.0)',
            'type="NuScenesDetectionMetric", data_root=data_root, version=version, split="val", classes=classes',
        ),
    }  # fmt: skip
    if mistake in changes:
        assert changes[mistake][0] in text
        config, options = yard.with_name("mistaken_yard.py"), []
        config.write_text(text.replace(*changes[mistake]))
    arguments = [str(config), *([untrained(config, tmp_path)] if tool == "tools/test.py" else [])]
    arguments += ["--work-dir", str(tmp_path / "run"), "--cfg-options", "default_hooks.logger.interval=1", *options]
    assert run(tool, arguments) == 2
    assert_one_line(capfd.readouterr().err, said.replace("ROOT", str(root)), config.name)
    assert_nothing_is_left(tmp_path / "run")
