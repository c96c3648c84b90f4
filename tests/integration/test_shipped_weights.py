"""Weights under a name, in every tool that takes a checkpoint or a config, on the tiny set."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import bevstack.weights
from bevstack.engine import arguments
from bevstack.engine.checkpoint import read_checkpoint
from bevstack.engine.config import load_config
from bevstack.engine.model_card import model_card
from bevstack.engine.models import load_model
from bevstack.engine.visualize import build_dataset, predicted_samples
from bevstack.errors import InputError
from bevstack.weights.header import read_header
from tests.integration.conftest import FRAMES, REPOSITORY, VAL_SCENES, Tiny, call, printed_by, run
from tests.integration.pages import Page
from tests.page_blocks import blocks_of
from tests.processes import run_captured

PAGE = REPOSITORY / "docs" / "weights.md"


@pytest.fixture(scope="module")
def shelf(trained: Tiny, tmp_path_factory) -> Path:
    """The tiny model, packed as the demo's weights are."""
    folder = tmp_path_factory.mktemp("weights")
    out = ("--out", folder / "demo.safetensors", "--half")
    printed_by("tools/pack_weights.py", trained.work_dir / "epoch_2.pth", trained.config, *out)
    return folder


@pytest.fixture
def shipped(shelf, monkeypatch) -> Path:
    """The same, under the demo's name."""
    monkeypatch.setattr(bevstack.weights, "FOLDER", shelf)
    return shelf / "demo.safetensors"


def test_what_the_file_says(shipped, trained):
    # Expected: the tiny set's arguments, six cameras in their order, the frozen backbone left to its package.
    header = read_header(shipped)
    world = {"train_scenes": 2, "val_scenes": 1, "seed": 5, "frames": 3, "image_size": "128x72"}
    assert world.items() <= dict(header.recipe).items() and "--image-size" in bevstack.weights.recipe("demo")
    assert [camera["name"] for camera in header.rig["cameras"]] == list(header.cameras) and len(header.cameras) == 6
    assert list(header.packaged) == ["backbone"] and header.command == "python tools/train.py configs/demo.py"
    assert shipped.stat().st_size < 2_000_000 < (trained.work_dir / "epoch_2.pth").stat().st_size
    weights = read_checkpoint(shipped)["state_dict"]
    assert not any(name.startswith("backbone.") for name in weights) and len(weights) > 50


def test_scores_are_those_of_the_checkpoint(shipped, trained, tmp_path):
    # Expected: the checkpoint's scores, within what half precision moves.
    ways = ([trained.config, trained.work_dir / "epoch_2.pth"], ["demo"], [trained.config, "demo"], [shipped])
    scores = []
    for number, given in enumerate(ways):
        printed_by("tools/test.py", *given, "--out", tmp_path / str(number))
        scores.append(json.loads((tmp_path / str(number) / "metrics.json").read_text()))
    for other in scores[1:]:
        for name in ("mAP", "NDS", "iou/drivable_area", "iou/vehicle"):
            assert other[name] == pytest.approx(scores[0][name], abs=2e-2), name
    assert scores[1]["iou/drivable_area"] == scores[2]["iou/drivable_area"] == scores[3]["iou/drivable_area"]
    assert (tmp_path / "1" / "demo.py").is_file(), "the config that came with the weights, to be read"


def test_results_of_a_name_go_to_a_folder_of_their_own(shipped, monkeypatch, tmp_path):
    monkeypatch.setattr("bevstack.engine.test.SHIPPED_OUT", tmp_path / "shipped")
    printed_by("tools/test.py", "demo")
    assert (tmp_path / "shipped" / "demo" / "metrics.json").is_file()
    assert [path.name for path in shipped.parent.iterdir()] == ["demo.safetensors"], "nothing is written beside them"


def test_pictures(shipped, tmp_path):
    printed_by("tools/visualize.py", "demo", "--out", tmp_path, "--format", "both", "--score-thr", "0.05")
    assert len(list(tmp_path.glob("*/*.png"))) == VAL_SCENES * FRAMES
    assert len(list(tmp_path.glob("*.gif"))) == len(list(tmp_path.glob("*.mp4"))) == VAL_SCENES
    printed_by("tools/browse_data.py", "demo", "--out", tmp_path / "browse", "--max-samples", "1")
    assert len(list((tmp_path / "browse").glob("*.png"))) == 1


def test_images_of_ones_own(shipped, trained, tmp_path):
    # Expected: the rig of the header is a rig.json; one moment's images give one result.
    (tmp_path / "rig.json").write_text(json.dumps(read_header(shipped).rig))
    sample = json.loads((trained.root / "v1.0-mini" / "sample.json").read_text())[0]["token"]
    for row in json.loads((trained.root / "v1.0-mini" / "sample_data.json").read_text()):
        if row["sample_token"] == sample and row["filename"].startswith("samples/CAM"):
            name = Path(row["filename"]).parts[1]
            (tmp_path / "images").mkdir(exist_ok=True)
            shutil.copy(trained.root / row["filename"], tmp_path / "images" / f"{name}.jpg")
    places = ("--images", tmp_path / "images", "--calibration", tmp_path / "rig.json", "--out", tmp_path / "out")
    printed_by("tools/infer.py", "demo", *places)
    assert len(list((tmp_path / "out").glob("*.json"))) == len(list((tmp_path / "out").glob("*.png"))) == 1
    with Image.open(next((tmp_path / "out").glob("*.png"))) as picture:
        assert np.asarray(picture).std() > 10


def test_the_way_of_the_readme(shipped, tmp_path, monkeypatch):
    # Expected: what the text below the block says lies where; three frames a scene, as the tiny model learned.
    pytest.importorskip("onnxruntime")
    block = next(block for block in blocks_of(REPOSITORY / "README.md") if "tools/infer.py demo" in block.text)
    commands = [command[1:] for command in block.commands() if command[0] == "python"]
    assert [Path(command[0]).stem for command in commands] == [
        "create_synthetic", "create_data", "visualize", "convert_calibration", "infer", "export"
    ]  # fmt: skip
    for command in commands:
        call([{"252x448": "72x128"}.get(word, word) for word in command], tmp_path)
    assert len(list(tmp_path.glob("vis/*/*.png"))) == len(list(tmp_path.glob("out/*.json"))) == FRAMES
    assert len(list(tmp_path.glob("out/*.png"))) == FRAMES and len(list(tmp_path.glob("vis/*.gif"))) == 1
    assert (tmp_path / "clip.html").stat().st_size > 10_000
    classes, page = load_model("demo").classes, Page("export.md")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    for name in ("examples/make_clip.py", "examples/run_exported.py"):
        done = run_captured([sys.executable, "-c", page.files[name]], 120, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith(str(list(classes)))


def test_other_tools(shipped, tmp_path):
    printed, _ = printed_by("tools/benchmark.py", "demo", "--repeats", "1")
    assert "demo: inference" in printed
    work = ("--work-dir", tmp_path / "robust", "--suite", "time", "--metric", "iou/drivable_area")
    printed, _ = printed_by("tools/robustness.py", "demo", *work)
    assert (tmp_path / "robust" / "robustness.json").is_file()


def test_exported(shipped, tmp_path):
    pytest.importorskip("onnxruntime")
    size = ("--image-size", "72x128", "--frames", "2")
    printed, _ = printed_by("tools/export.py", "demo", "--out", tmp_path / "demo.onnx", *size)
    assert "demo.onnx" in printed and (tmp_path / "demo.onnx").stat().st_size > 1_000_000


def test_finetuning_to_other_classes(shipped, trained, tmp_path, capsys):
    # Expected: one line says what is taken; the queries start as the file's, and pedestrians' four rows (of a class at
    # cells twice as fine) as those of the ninth class there. The rate is too small to change anything.
    cfg = load_config(trained.config)
    mine = tuple(reversed(cfg.model.heads.detection.classes))[1:]
    cfg.model.heads.detection.classes = mine
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset.classes = mine
    cfg.train_cfg.max_epochs = 1
    cfg.optim_wrapper.optimizer.lr = 1e-12
    cfg.custom_hooks = []
    path = tmp_path / "mine.py"
    cfg.dump(path)
    for number, options in enumerate((["--finetune", "demo"], ["--cfg-options", "load_from=demo"])):
        work = tmp_path / str(number)
        assert run("tools/train.py", [path, "--work-dir", work, *options]) == 0
        printed = capsys.readouterr()
        assert f"heads.detection: rows of {', '.join(mine)}" in printed.out + printed.err
        weights = read_checkpoint(work / "epoch_1.pth")["state_dict"]
        source = read_checkpoint(shipped)["state_dict"]
        place = "heads.detection.heatmap.1.weight"
        torch.testing.assert_close(weights[place][:4], source[place][32:36].float(), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(weights["encoder.queries.weight"], source["encoder.queries.weight"].float())


def test_what_is_missing_is_one_line(shipped, tmp_path):
    from bevstack.engine.test import main

    for given, said in (
        (["full"], "full: weights: do not come with this version"),
        (["configs/demo.py"], "configs/demo.py: CHECKPOINT: absent: CONFIG alone is enough where it is demo or full"),
        (["configs/demo.py", "full"], "full: weights: do not come"),
    ):
        with pytest.raises(InputError, match=said):
            main(given)


def test_scenes_that_it_has_not_seen(shipped, tmp_path):
    # Expected: the world of the header (128 x 72 pixels, three frames a scene) by another seed than its 5.
    root = tmp_path / "fresh"
    counts = ("--train-scenes", "0", "--val-scenes", "1", "--workers", "1")
    printed, _ = printed_by("tools/create_synthetic.py", "--like", "demo", "--root", root, *counts, "--seed", "5")
    assert "scenes of seed 6; demo was trained on seed 5" in printed
    told = json.loads((root / "synthetic.json").read_text())
    assert (told["seed"], told["image_size"], told["frames"]) == (6, [128, 72], 3)
    printed_by("tools/create_data.py", "nuscenes", "--root", root, "--version", "v1.0-mini")
    options = [f"{part}.data_root={root}" for part in ("test_dataloader.dataset", "test_evaluator.0")]
    printed_by("tools/test.py", "demo", "--intervals", "--out", tmp_path / "out", "--cfg-options", *options)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    intervals = json.loads((tmp_path / "out" / "metrics_intervals.json").read_text())
    assert {"mAP", "AP/car", "iou/drivable_area"} <= set(intervals) <= set(metrics)
    low, high = intervals["iou/drivable_area"]
    assert low - 1e-6 <= metrics["iou/drivable_area"] <= high + 1e-6, "one scene: every draw is that scene"


def test_temperatures(shipped, trained, tmp_path):
    # Expected: a temperature for each of the three heads, stored in the header; boxes stay where they are, in order,
    # and their scores are the old ones by that temperature; a map at one half is the same.
    out = tmp_path / "calibrated.safetensors"
    every = "model.heads.detection.decoding={'score_threshold': 0.0}"  # after six steps no box is likely
    printed, _ = printed_by("tools/calibrate.py", "demo", "--out", out, "--samples", "6", "--cfg-options", every)
    found = read_header(out).calibration
    assert list(found) == ["detection", "map", "vehicle"] and "map" in printed
    assert all(numbers["temperature"] > 0 and numbers["before"] >= 0 for numbers in found.values())
    cfg = load_config(str(out))
    assert cfg.model.heads.map.temperature == found["map"]["temperature"] != 1
    assert cfg.model.heads.detection.decoding.temperature == found["detection"]["temperature"]
    one, other = (predictions_of(file) for file in (shipped, out))
    boxes, moved = one.pred_instances_3d, other.pred_instances_3d
    assert len(boxes) > 3 and torch.equal(boxes.bboxes_3d.tensor, moved.bboxes_3d.tensor)
    expected = torch.sigmoid(boxes.scores_3d.logit(1e-6) / found["detection"]["temperature"])
    torch.testing.assert_close(moved.scores_3d, expected)
    assert torch.equal(one.pred_rasters["map"].layers > 0.5, other.pred_rasters["map"].layers > 0.5)
    scores = []
    for number, file in enumerate((shipped, out)):
        printed_by("tools/test.py", file, "--out", tmp_path / str(number))
        scores.append(json.loads((tmp_path / str(number) / "metrics.json").read_text()))
    for name in ("mAP", "AP/car", "iou/drivable_area"):
        assert scores[1][name] == pytest.approx(scores[0][name], abs=1e-6), name


def predictions_of(file):
    """The first test sample as the model of a file answers it."""
    cfg = load_config(str(file))
    cfg.merge_from_dict({"model.heads.detection.decoding.score_threshold": 0.0})
    return next(predicted_samples(cfg, build_dataset(cfg, None), [0], load_model(file, cfg, "cpu")))


def test_the_pages_code_runs(shipped):
    # Expected: docs/weights.md's block, and the one of a model card, as they stand.
    for text in (PAGE.read_text(), model_card("demo")):
        (code,) = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        found: dict = {}
        exec(compile(code, str(PAGE), "exec"), found)
        assert found["predictor"].model.heads.keys() == {"detection", "map", "vehicle"}
    assert bevstack.weights.recipe("demo")[:2] == ["--train-scenes", "2"]


@pytest.mark.parametrize("page", [PAGE, REPOSITORY / "docs" / "training.md"], ids=lambda page: page.stem)
def test_the_pages_commands_are_understood(page):
    # Expected: each tool's own parser takes the words of its commands (other tests here run them).
    parsers = {
        name: getattr(arguments, f"{prefix}_parser")()
        for name, prefix in (
            ("train", "train"),
            ("test", "test"),
            ("pack_weights", "pack"),
            ("calibrate", "calibrate"),
            ("model_card", "model_card"),
        )
    }
    text = page.read_text().replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^python (tools/.*)$", text, re.MULTILINE)]
    known = [command for command in commands if Path(command[0]).stem in parsers]
    assert known
    for tool, *words in known:
        parsers[Path(tool).stem].parse_args(words)
