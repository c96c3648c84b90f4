"""Commands of docs/ (quick start, training, a folder of images, pictures) and README's program, run on the tiny set."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bevstack.engine.export_description import usual_rig
from bevstack.visualization.files import write_png
from tests.integration.conftest import FRAMES, IMAGE_SIZE, REPOSITORY, Tiny, call
from tests.page_blocks import blocks_of

KITTI = """P2: 700 0 600 35 0 700 180 0 0 0 1 0
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 -0.08 1 0 0 -0.27
"""


def commands_of(page: str, start: str = "", end: str = "") -> list[list[str]]:
    """The page's lines that call Python on a tool, split, without comments; between two headings where named."""
    text = (REPOSITORY / "docs" / page).read_text()
    text = text.partition(f"\n{start}\n")[2] if start else text
    text = text.partition(f"\n{end}\n")[0] if end else text
    text = text.replace("$(cat work_dirs/demo/last_checkpoint)", "CHECKPOINT")
    return [shlex.split(line, comments=True) for line in re.findall(r"^python (tools/.*)$", text, re.MULTILINE)]


def newest(trained: Tiny) -> str:
    """The checkpoint that the tiny training ended with."""
    return (trained.work_dir / "last_checkpoint").read_text()


@pytest.fixture
def user(trained: Tiny, tmp_path) -> Path:
    """A folder in which what the pages name is there: a run, a dataset, one moment's images, a clip's."""
    (tmp_path / "work_dirs").mkdir()
    for name in ("demo", "a", "b"):
        (tmp_path / "work_dirs" / name).symlink_to(trained.work_dir)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "nuscenes").symlink_to(trained.root)
    (tmp_path / "DATASET").mkdir()
    (tmp_path / "DATASET" / "annotation").symlink_to(trained.root / "v1.0-mini")
    (tmp_path / "calib.txt").write_text(KITTI)
    return tmp_path


def test_a_folder_of_images(trained, user, capsys):
    # Expected: what the page says is written; in the clip's last moment other boxes than without its poses.
    commands = commands_of("inference.md", "## From a folder, by one command", "## What goes in")
    assert [Path(command[0]).stem for command in commands] == ["infer"] * 3 + ["convert_calibration", "infer"] + [
        "convert_calibration"
    ] * 2
    scene = json.loads((trained.root / "v1.0-mini" / "scene.json").read_text())[0]["name"]
    for command in commands[3:]:
        call([{"scene-0061": scene}.get(word, word) for word in command], user)
        if "nuscenes" in command:
            for name in ("rig.json", "poses.json"):
                shutil.copy(user / "mine" / name, user)
    results = sorted((user / "out").glob("*.json"))
    assert len(results) == len(list((user / "out").glob("*.png"))) == FRAMES
    assert json.loads((user / "mine" / "rig.json").read_text())["cameras"][0]["name"] == "P2", "the last one written"
    moments = json.loads((user / "poses.json").read_text())["moments"]
    (user / "images").mkdir()
    for n, moment in enumerate(moments):
        for camera, image in moment.pop("images").items():
            (user / "clip" / camera).mkdir(parents=True, exist_ok=True)
            shutil.copy(trained.root / image, user / "clip" / camera / f"{n}.jpg")
            shutil.copy(trained.root / image, user / "images" / f"{camera}.jpg")
        moment.pop("name")
    (user / "poses.json").write_text(json.dumps({"moments": moments}))
    for command in commands[:2]:
        shutil.rmtree(user / "out")
        call([*command, "--min-score", "0"], user)
    assert sorted(path.name for path in (user / "out").iterdir())[-1].endswith(".mp4")
    assert len(list((user / "out").glob("*.json"))) == FRAMES
    (user / "incoming").mkdir()
    images = {path.stem: str(path) for path in (user / "images").glob("*.jpg")}
    (user / "incoming" / "now.json").write_text(json.dumps({"images": images}))
    call([{"30": "0.1"}.get(word, word) for word in commands[2]], user)
    assert (user / "out" / "now.json").is_file() and (user / "out" / "now.png").is_file()
    capsys.readouterr()


def test_watching_a_training(trained, user, capsys):
    # Expected: pictures of the samples, the report of a dry run, curves of both runs.
    shutil.rmtree(user / "work_dirs", ignore_errors=True)
    for name in ("a", "b"):
        shutil.copytree(trained.work_dir, user / "work_dirs" / name, ignore=shutil.ignore_patterns("*.pth"))
    for command in commands_of("training.md"):
        call([str(trained.config) if word == "CONFIG" else word for word in command], user)
        printed = capsys.readouterr().out
        if "--dry-run" in command:
            assert "samples/s" in printed and "nothing is kept" in printed
        if "--list" in command:
            assert "detection.loss_heatmap" in printed.split()
    pictures = [*(user / "browse").glob("*.png"), user / "curves.png"]
    assert len(pictures) > 4 and (user / "loss.svg").read_text().count("<path") > 5
    for path in pictures:
        with Image.open(path) as picture:
            assert np.asarray(picture).std() > 5


def test_the_quick_start(trained, user):
    # Expected: the page of the clip, a JSON and a picture a moment, an exported file, as the page says.
    shutil.rmtree(user / "data")
    (user / "data").mkdir()
    (user / "data" / "nuscenes-synthetic").symlink_to(trained.root)
    height, width = IMAGE_SIZE
    places = {"configs/demo.py": str(trained.config), "450x800": f"{height}x{width}", "CHECKPOINT": newest(trained)}
    commands = commands_of("quick_start.md", end="## Real nuScenes")
    assert [Path(command[0]).stem for command in commands] == ["visualize", "convert_calibration", "infer", "export"]
    for command in commands:
        call([places.get(word, word) for word in command], user)
    assert (user / "clip.html").stat().st_size > 10_000 and (user / "demo.onnx").exists()
    assert len(list((user / "out").glob("*.json"))) == len(list((user / "out").glob("*.png"))) == FRAMES


def test_looking_at_a_model(trained, user, capsys):
    # Expected: what the page says is written, each file as what its name says; a comparison of a test with itself finds
    # no difference; without Rerun its line is passed over.
    checkpoint = json.loads((trained.work_dir / "train_summary.json").read_text())["checkpoint"]
    scene = json.loads((trained.root / "v1.0-mini" / "scene.json").read_text())[-1]["name"]
    places = {"configs/demo.py": str(trained.config), "CHECKPOINT": checkpoint, "scene-2101": scene}
    commands = commands_of("visualization.md")
    assert [Path(command[0]).stem for command in commands] == ["visualize"] * 7 + ["test", "compare_runs"]
    for command in commands:
        if "--rerun" in command and find_spec("rerun") is None:
            continue
        if "tools/compare_runs.py" in command:
            shutil.copytree(user / "results", user / "other_results")
        capsys.readouterr()
        call([places.get(word, word) for word in command], user)
    printed = capsys.readouterr().out
    assert "+0.000" in printed and "better" not in printed and "worse" not in printed
    for folder in ("vis", "vis/truth"):
        assert len(list((user / folder).glob(f"{scene}/*.png"))) == FRAMES
        assert (user / folder / f"{scene}.gif").stat().st_size > 1000
    assert (user / "vis" / f"{scene}.mp4").stat().st_size > 1000
    for page in ("clip.html", "results/report/report.html", "results/report/worst.html"):
        assert (user / page).read_text().startswith("<!DOCTYPE html>")
    if find_spec("rerun") is not None:
        assert (user / "clip.rrd").read_bytes()[:3] == b"RRF"


def test_the_program_of_the_readme(trained, user, monkeypatch):
    # Expected: it runs as it stands, with a camera left out, and gives what its last lines say.
    program = next(block for block in blocks_of(REPOSITORY / "README.md") if "Predictor(" in block.text)
    rig = usual_rig(6, IMAGE_SIZE)
    given = dict(
        pixels_from_camera=np.asarray(rig.pixels_from_camera),
        ego_from_camera=np.linalg.inv(rig.camera_from_bev),
        ego_from_bev=np.eye(4),
        names=list(rig.names),
        images=[None, *np.random.default_rng(0).integers(0, 256, (5, *IMAGE_SIZE, 3), dtype=np.uint8)],
        global_from_bev_previous=np.eye(4),
        global_from_bev=np.eye(4),
    )
    monkeypatch.chdir(user)
    exec(compile(program.text, program.place, "exec"), given)
    assert {"boxes", "rasters"} <= set(given["prediction"].as_dict()) and given["memory"] is not None
    write_png(user / "picture.png", given["picture"])
    assert np.asarray(given["picture"]).std() > 5
