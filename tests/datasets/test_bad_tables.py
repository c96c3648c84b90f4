"""Tables that are wrong: each gives one line that names file and field, and nothing is written.

The tables start from the tiny valid root; every case breaks one thing, and says itself which.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tables import START_US, VERSION, build_root, edit_table, write_json

from bevstack.datasets.nuscenes.create_data import create_nuscenes
from bevstack.errors import InputError


@pytest.fixture(scope="module")
def valid_root(tmp_path_factory) -> Path:
    return build_root(tmp_path_factory.mktemp("valid") / "root")


@pytest.fixture
def root(valid_root, tmp_path) -> Path:
    return Path(shutil.copytree(valid_root, tmp_path / "root"))


def put(table: str, row: int, **fields):
    """Break fields of one record; None deletes a field."""

    def breaks(root: Path) -> None:
        def edit(records: list[dict]) -> None:
            for field, value in fields.items():
                if value is None:
                    del records[row][field]
                else:
                    records[row][field] = value

        edit_table(root, table, edit)

    return breaks


def write(table: str, text: str):
    return lambda root: (root / VERSION / f"{table}.json").write_text(text)


def cut(table: str):
    def breaks(root: Path) -> None:
        path = root / VERSION / f"{table}.json"
        path.write_text(path.read_text()[:-40])

    return breaks


def clock(change):
    """All times by another clock."""

    def breaks(root: Path) -> None:
        for table in ("sample", "sample_data", "ego_pose"):
            edit_table(root, table, lambda rows: [{**row, "timestamp": change(row["timestamp"])} for row in rows])

    return breaks


def loop(root: Path) -> None:
    put("sample", 3, next="s0k1")(root)


def nan(root: Path) -> None:
    path = root / VERSION / "ego_pose.json"
    path.write_text(path.read_text().replace("200.0", "NaN", 1))


MAP = "maps/expansion/singapore-onenorth.json"
QUATERNION_3X3 = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]
CASES = {
    "missing folder": (lambda r: shutil.rmtree(r / VERSION), VERSION, "--version", "no such folder"),
    "missing table": (lambda r: (r / VERSION / "ego_pose.json").unlink(), "ego_pose.json", "file", "not found"),
    "empty table": (write("scene", ""), "scene.json", "file", "is empty"),
    "no record": (write("sample", "[]"), "sample.json", "content", "holds no record"),
    "truncated": (cut("sample_data"), "sample_data.json", "line", "truncated"),
    "wrong top level": (write("scene", "{}"), "scene.json", "content", "must be a list"),
    "record of another type": (write("scene", "[3]"), "scene.json", "[0]", "must be a record"),
    "no token": (put("sample", 1, token=None), "sample.json", "[1].token", "is missing"),
    "duplicate token": (put("sample", 1, token="s0k0"), "sample.json", "[1].token", "stands twice"),
    "missing field": (put("scene", 0, name=None), "scene.json", "scene0.name", "is missing"),
    "text for a number": (put("sample_data", 0, height="900"), "sample_data.json", "height", "must be a number"),
    "dangling sample": (put("sample_data", 2, sample_token="x"), "sample_data.json", "sample_token", "no token"),
    "dangling calibration": (
        put("sample_data", 2, calibrated_sensor_token="x"), "sample_data.json", "calibrated_sensor_token", "no token",
    ),
    "dangling pose": (put("sample_data", 2, ego_pose_token="x"), "sample_data.json", "ego_pose_token", "no token"),
    "dangling instance": (
        put("sample_annotation", 0, instance_token="x"), "sample_annotation.json", "instance_token", "no token",
    ),
    "dangling attribute": (
        put("sample_annotation", 0, attribute_tokens=["x"]), "sample_annotation.json", "attribute_tokens", "no token",
    ),
    "samples in a loop": (loop, "sample.json", "s0k1.prev/next", "loop"),
    "samples across scenes": (put("sample", 3, next="s1k1"), "sample.json", "s1k1.scene_token", "another scene"),
    "prev is not next's inverse": (put("sample", 2, prev="s0k0"), "sample.json", "s0k2.prev", "whose next it is"),
    "wrong first sample": (put("scene", 0, first_sample_token="s0k1"), "scene.json", "first_sample_token", "predecess"),
    "wrong last sample": (put("scene", 0, last_sample_token="s0k1"), "scene.json", "last_sample_token", "ends at s0k3"),
    "unreachable sample": (put("sample", 1, next=""), "scene.json", "last_sample_token", "ends at s0k1"),
    "zero quaternion": (put("ego_pose", 0, rotation=[0, 0, 0, 0]), "ego_pose.json", "rotation", "unit quaternion"),
    "long quaternion": (put("ego_pose", 0, rotation=[2, 0, 0, 0]), "ego_pose.json", "rotation", "unit quaternion"),
    "rotation matrix": (
        put("calibrated_sensor", 0, rotation=QUATERNION_3X3), "calibrated_sensor.json", "rotation", "4 numbers",
    ),
    "NaN": (nan, "ego_pose.json", "content", "NaN"),
    "infinite": (put("ego_pose", 0, translation=[1e400, 0, 0]), "ego_pose.json", "content", "Infinity"),
    "flat box": (put("sample_annotation", 0, size=[1, 0, 1]), "sample_annotation.json", "size", "positive"),
    "no intrinsics": (put("calibrated_sensor", 0, camera_intrinsic=[]), "calibrated_sensor.json", "intrinsic", "empty"),
    "bad intrinsics": (
        put("calibrated_sensor", 0, camera_intrinsic=[[1, 2]]), "calibrated_sensor.json", "intrinsic", "3 x 3",
    ),
    "time stands still": (
        put("sample", 1, timestamp=1_600_000_000_000_000), "sample.json", "s0k1.timestamp", "not later",
    ),
    "seconds": (put("sample", 0, timestamp=1_600_000_000), "sample.json", "timestamp", "microseconds"),
    "all in seconds": (clock(lambda t: t / 1e6), "sample.json", "timestamp", "0.5 microseconds apart"),
    "all in milliseconds": (clock(lambda t: t / 1e3), "sample.json", "timestamp", "500 microseconds apart"),
    "all in nanoseconds": (clock(lambda t: t * 1e3), "sample.json", "timestamp", "microseconds"),
    "nanoseconds from 0": (clock(lambda t: (t - START_US) * 1e3), "sample.json", "timestamp", "5e+08 microseconds"),
    "image without a size": (put("sample_data", 0, height=0), "sample_data.json", "height", "size in pixels"),
    "scene by an ambiguous name": (
        lambda r: (
            edit_table(r, "scene", lambda scenes: [{**scene, "name": "drive"} for scene in scenes]),
            write_json(r / VERSION / "splits.json", {"train": ["drive"]}),
        ),
        "splits.json", "train", "drive is the name of 2 scenes: give their tokens, as scene0",
    ),
    "unknown category": (put("category", 0, name="vehicle.caar"), "category.json", "name", "did you mean vehicle.car"),
    "boxes of two instances": (put("sample_annotation", 0, next="a1k1"), "sample_annotation.json", "next", "another"),
    "missing image": (lambda r: (r / "samples/CAM_BACK/s0k1.jpg").unlink(), "s0k1.jpg", "image", "missing"),
    "folder for an image": (
        lambda r: ((r / "samples/CAM_BACK/s0k1.jpg").unlink(), (r / "samples/CAM_BACK/s0k1.jpg").mkdir()),
        "s0k1.jpg", "image", "missing or no file",
    ),
    "image out of the root": (put("sample_data", 0, filename="../x.jpg"), "sample_data.json", "filename", "out of the"),
    "missing camera": (put("sample_data", 0, is_key_frame=False), "sample_data.json", "sample s0k0", "CAM_FRONT"),
    "split of unknown scene": (
        lambda r: write_json(r / VERSION / "splits.json", {"a": ["scene-9999"]}), "splits.json", "a", "no scene of",
    ),
    "splits as a list": (lambda r: write_json(r / VERSION / "splits.json", []), "splits.json", "content", "object"),
    "CAN bus without a key": (
        lambda r: write_json(r / "can_bus" / "scene-0001_pose.json", [{"utime": 1}]), "_pose.json", "accel", "missing",
    ),
    "CAN bus of another type": (
        lambda r: write_json(r / "can_bus" / "scene-0001_pose.json", {}), "_pose.json", "content", "list of messages",
    ),
    "CAN bus of nested lists": (
        lambda r: bus(r, accel=[1, [2, 3], 4]), "_pose.json", "[0]", "3 finite numbers each",
    ),
    "CAN bus of text": (lambda r: bus(r, vel=["1", "2", "3"]), "_pose.json", "[0]", "3 finite numbers each"),
    "CAN bus beyond all numbers": (lambda r: bus(r, vel=[10**400, 0, 0]), "_pose.json", "[0]", "3 finite numbers each"),
    "CAN bus without end": (lambda r: bus(r, utime=10**40), "_pose.json", "[0].utime", "microseconds"),
    "outdated map": (
        lambda r: write_json(r / MAP, {"version": "1.0"}), "onenorth", "version", "1.3",
    ),
    "incomplete map": (
        lambda r: write_json(r / MAP, {"version": "1.3"}), "onenorth", "node", "list is missing",
    ),
}  # fmt: skip


def bus(root: Path, **fields: object) -> None:
    """One message of scene-0001, of which some fields are other ones."""
    message = {"utime": 1, "accel": [0, 0, 0], "rotation_rate": [0, 0, 0], "vel": [0, 0, 0]}
    write_json(root / "can_bus" / "scene-0001_pose.json", [{**message, **fields}])


@pytest.mark.parametrize("case", CASES)
def test_one_line_names_file_and_field(root, case):
    breaks, file, field, reason = CASES[case]
    breaks(root)
    before = sorted(root.rglob("*"))
    with pytest.raises(InputError) as caught:
        create_nuscenes(root, VERSION)
    assert file in caught.value.file, str(caught.value)
    assert field in caught.value.field, str(caught.value)
    assert reason in caught.value.reason, str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(root.rglob("*")) == before


def test_tool_prints_one_line_and_exits_with_2(root):
    put("sample", 1, token="s0k0")(root)
    tool = Path(__file__).parents[2] / "tools" / "create_data.py"
    command = [sys.executable, str(tool), "nuscenes", "--root", str(root), "--version", VERSION]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {root / VERSION / 'sample.json'}: [1].token: s0k0 stands twice in the table"
    ]


def test_valid_tables_pass(root):
    assert create_nuscenes(root, VERSION)["samples"] == 7


def test_a_read_only_root_is_left_alone(root):
    root.chmod(0o555)
    try:
        with pytest.raises(InputError, match="cannot be written"):
            create_nuscenes(root, VERSION)
    finally:
        root.chmod(0o755)
    assert not (root / "bevstack-index").exists()
