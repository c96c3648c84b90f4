"""``tools/infer_dataset.py``: all scenes of a set, each with its own memory, none lost and none twice.

Expected: the submission that ``tools/test.py`` writes of the same checkpoint and samples, byte for byte. What blocks a
worker so that it can be killed in the middle of a scene is a named pipe in an image's place.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bevstack.engine import fleet
from bevstack.engine.checkpoint import checkpoint_of
from bevstack.engine.fleet import JSON_FILE, TABLE_FILE
from bevstack.errors import InputError
from tests.integration.conftest import FRAMES, REPOSITORY, TRAIN_SCENES, printed_by

SLOW_IMAGE_SCENE = 1  # its number; scene 0 is done before
VERSION = "v1.0-mini"


def ask(trained, out: Path, *options: object, root: Path | None = None) -> int:
    places = [str(trained.work_dir), str(root or trained.root), "--out", str(out)]
    return fleet.main([*places, *map(str, options)])


@pytest.fixture(scope="module")
def alone(trained, tmp_path_factory) -> Path:
    """What this process alone predicts of the training scenes."""
    pytest.importorskip("pyarrow", reason="pip install 'bevstack[parquet]'")
    out = tmp_path_factory.mktemp("alone")
    assert ask(trained, out, "--workers", 0, "--split", "train") == 0
    return out


def test_results_are_those_of_the_test(trained, tmp_path) -> None:
    """The config's own split: nuScenes' JSON byte for byte, and the table's rows are its boxes."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'bevstack[parquet]'")
    assert ask(trained, tmp_path / "fleet", "--workers", 0) == 0
    checkpoint = checkpoint_of(trained.work_dir)
    printed_by("tools/test.py", trained.config, checkpoint, "--out", tmp_path / "test")
    found, expected = (tmp_path / name / JSON_FILE for name in ("fleet", "test"))
    assert found.read_bytes() == expected.read_bytes()
    boxes = [box for sample in json.loads(found.read_text())["results"].values() for box in sample]
    table = parquet.read_table(tmp_path / "fleet" / TABLE_FILE).to_pylist()
    assert len(table) == len(boxes)
    for row, box in zip(table, boxes, strict=True):
        assert [row["moment"], row["class"]] == [box["sample_token"], box["detection_name"]]
        assert [row["x_m"], row["y_m"], row["z_m"]] == box["translation"]
        assert [row["width_m"], row["length_m"], row["height_m"]] == box["size"]
        assert row["score"] == pytest.approx(box["detection_score"]) and row["frame"] == "global"


def test_scenes_that_are_done_are_left_alone(trained, alone, tmp_path, capsys) -> None:
    """One scene's file is gone, one is cut off: these are predicted, the others' files stay as they are."""
    out = Path(shutil.copytree(alone, tmp_path / "out"))
    first, second = sorted((out / "scenes").iterdir())
    first.unlink()
    before = second.stat().st_mtime_ns
    assert ask(trained, out, "--workers", 0, "--split", "train") == 0
    assert "resuming: 1 of 2 scenes are there" in capsys.readouterr().out
    assert second.stat().st_mtime_ns == before
    second.write_text(second.read_text()[:-20])
    assert ask(trained, out, "--workers", 0, "--split", "train") == 0
    assert (out / JSON_FILE).read_bytes() == (alone / JSON_FILE).read_bytes()


def test_mistakes_are_one_line(trained, alone, tmp_path, monkeypatch) -> None:
    cases = {
        "another job (min_score differ)": (alone, ("--workers", 0, "--split", "train", "--min-score", 0.5)),
        "'nowhere' is none of": (tmp_path / "a", ("--workers", 0, "--split", "nowhere")),
        "must not be negative": (tmp_path / "b", ("--workers", -1)),
        "is no score": (tmp_path / "c", ("--min-score", 2)),
    }  # fmt: skip
    for reason, (out, options) in cases.items():
        with pytest.raises(InputError) as error:
            ask(trained, out, *options)
        assert reason in error.value.reason and "\n" not in str(error.value)
    real = fleet.find_spec
    monkeypatch.setattr(fleet, "find_spec", lambda name: None if name == "ray" else real(name))
    with pytest.raises(InputError, match=r"--workers: needs Ray: pip install 'bevstack\[fleet\]'"):
        ask(trained, tmp_path / "d")
    assert not (tmp_path / "d").exists()


# --- workers of Ray, killed -----------------------------------------------------------------------------------------


@pytest.fixture
def blocked(trained, tmp_path) -> Iterator[tuple[Path, Path, bytes]]:
    """A copy of the set in which an image of the second scene's second sample is a pipe; the pipe, and the image."""
    root = Path(shutil.copytree(trained.root, tmp_path / "root"))
    samples = json.loads((root / VERSION / "sample.json").read_text())
    data = json.loads((root / VERSION / "sample_data.json").read_text())
    scenes = {scene["name"]: scene["token"] for scene in json.loads((root / VERSION / "scene.json").read_text())}
    split = json.loads((root / VERSION / "splits.json").read_text())["train"]
    of_scene = sorted(
        (sample for sample in samples if sample["scene_token"] == scenes[split[SLOW_IMAGE_SCENE]]),
        key=lambda sample: sample["timestamp"],
    )
    name = next(
        entry["filename"]
        for entry in data
        if entry["sample_token"] == of_scene[1]["token"] and "CAM_FRONT/" in entry["filename"] and entry["is_key_frame"]
    )
    image = (root / name).read_bytes()
    (root / name).unlink()
    os.mkfifo(root / name)
    yield root, root / name, image


def start(trained, root: Path, out: Path, workers: int) -> subprocess.Popen:
    command = [sys.executable, "tools/infer_dataset.py", str(trained.work_dir), str(root), "--out", str(out)]
    command += ["--workers", str(workers), "--split", "train", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, start_new_session=True, **pipes)


def waits_at(pipe: Path, process: subprocess.Popen, timeout_s: float = 240) -> int:
    """A descriptor of the pipe as soon as somebody reads from it: the worker then waits in the middle of its scene."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # no reader yet
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.1)
    raise AssertionError("no worker came to the image")


def ended(process: subprocess.Popen, timeout_s: float = 240) -> str:
    """What a process printed, once it has ended; it ends, whatever happens."""
    try:
        return process.communicate(timeout=timeout_s)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def worker_of(path: Path) -> int:
    return json.loads(path.read_text())["worker"]["pid"]


def put_back(pipe: Path, image: bytes) -> None:
    pipe.unlink()
    pipe.write_bytes(image)


@pytest.mark.slow
def test_a_killed_worker_loses_no_scene(trained, alone, blocked, tmp_path) -> None:
    """kill -9 of a Ray worker in the middle of the second scene: another one begins it anew, the first stays."""
    pytest.importorskip("ray", reason="pip install 'bevstack[fleet]'")
    root, pipe, image = blocked
    out = tmp_path / "out"
    process = start(trained, root, out, workers=1)
    descriptor = waits_at(pipe, process)
    (first,) = (out / "scenes").glob("000000-*.json")
    killed, written = worker_of(first), first.stat().st_mtime_ns
    assert killed != process.pid and "ray::" in Path(f"/proc/{killed}/cmdline").read_text()
    os.kill(killed, signal.SIGKILL)
    put_back(pipe, image)
    os.close(descriptor)
    printed = ended(process)
    assert process.returncode == 0, printed
    (second,) = (out / "scenes").glob("000001-*.json")
    assert worker_of(second) != killed and first.stat().st_mtime_ns == written
    samples = json.loads((out / JSON_FILE).read_text())["results"]
    assert len(samples) == TRAIN_SCENES * FRAMES
    assert (out / JSON_FILE).read_bytes() == (alone / JSON_FILE).read_bytes()
    assert "samples a second while predicting" in printed and "1 worker(s) of Ray" in printed


@pytest.mark.slow
def test_two_workers_give_what_one_process_gives(trained, alone, tmp_path) -> None:
    """Two processes, a scene each or one both; what is joined has the set's order (expected: this process alone)."""
    pytest.importorskip("ray", reason="pip install 'bevstack[fleet]'")
    process = start(trained, trained.root, tmp_path / "out", workers=2)
    printed = ended(process)
    assert process.returncode == 0, printed
    assert (tmp_path / "out" / JSON_FILE).read_bytes() == (alone / JSON_FILE).read_bytes()
    assert all(worker_of(path) != process.pid for path in (tmp_path / "out" / "scenes").iterdir())


@pytest.mark.slow
def test_what_a_worker_refuses_is_one_line(trained, blocked, tmp_path) -> None:
    """An image that is empty: the line names it, exit code 2; the scene before it stays for the next start."""
    pytest.importorskip("ray", reason="pip install 'bevstack[fleet]'")
    root, pipe, image = blocked
    put_back(pipe, b"")
    process = start(trained, root, tmp_path / "out", workers=1)
    printed = ended(process)
    assert process.returncode == 2 and f"error: {pipe}: image: the file is empty" in printed, printed
    assert "Traceback" not in printed and len(list((tmp_path / "out" / "scenes").glob("*.json"))) == 1
    put_back(pipe, image)
    assert ask(trained, tmp_path / "out", "--workers", 0, "--split", "train", root=root) == 0


@pytest.mark.slow
def test_a_killed_job_goes_on(trained, alone, blocked, tmp_path) -> None:
    """kill -9 of the whole job in the middle of the second scene, then started again."""
    root, pipe, image = blocked
    process = start(trained, root, tmp_path / "out", workers=0)
    descriptor = waits_at(pipe, process)
    os.killpg(process.pid, signal.SIGKILL)
    ended(process)
    os.close(descriptor)
    put_back(pipe, image)
    (first,) = (tmp_path / "out" / "scenes").glob("*.json")
    written = first.stat().st_mtime_ns
    assert ask(trained, tmp_path / "out", "--workers", 0, "--split", "train", root=root) == 0
    assert first.stat().st_mtime_ns == written
    assert (tmp_path / "out" / JSON_FILE).read_bytes() == (alone / JSON_FILE).read_bytes()
