"""M01 to M20, M33 to M50: tables, index files, CAN bus and maps that are wrong, through the tools, by the contract.

What each case breaks and which file and field the line names are the cases of tests/datasets (written there by hand);
here the whole contract of docs/reliability.md is held: one line on stderr, exit code 2, no traceback, nothing new on
disk, ten seconds.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tables import LOCATION, START_US, VERSION, build_root, edit_table, write_json
from test_bad_tables import CASES, put
from test_nuscenes_index import DAMAGE

from tests.reliability.contract import call_tool, refused, write_config

# line of docs/reliability.md -> cases of tests/datasets/test_bad_tables.py
TABLES = {
    "M01": ["missing folder"],
    "M02": ["missing table"],
    "M03": ["empty table", "no record"],
    "M04": ["truncated"],
    "M05": ["wrong top level", "record of another type"],
    "M06": ["no token"],
    "M07": ["duplicate token"],
    "M08": ["dangling sample"],
    "M09": ["dangling calibration"],
    "M10": ["dangling pose"],
    "M11": ["samples in a loop", "samples across scenes"],
    "M12": ["wrong first sample", "wrong last sample"],
    "M13": ["zero quaternion", "long quaternion"],
    "M14": ["rotation matrix"],
    "M15": ["NaN", "infinite"],
    "M16": ["flat box"],
    "M17": ["no intrinsics", "bad intrinsics"],
    "M18": ["time stands still"],
    "M19": ["seconds", "all in seconds", "all in nanoseconds"],
    "M20": ["unknown category"],
    "M48": ["CAN bus without a key", "CAN bus of another type"],
}
# line -> cases of tests/datasets/test_nuscenes_index.py
INDEX = {
    "M33": ["a pickle"],
    "M34": ["other version"],
    "M36": ["missing camera"],
    "M37": ["extra camera"],
    "M38": ["not finite"],
    "M39": ["not rigid"],
    "M40": ["path out of the root", "absolute path"],
    "M41": ["truncated array", "truncated header"],
    "M42": ["another dtype"],
}


def lines(cases: dict[str, list[str]]) -> list:
    return [pytest.param(case, id=f"{line} {case}") for line, names in cases.items() for case in names]


@pytest.fixture(scope="module")
def valid_root(tmp_path_factory) -> Path:
    return build_root(tmp_path_factory.mktemp("valid") / "root", can_bus=True)


@pytest.fixture(scope="module")
def indexed_root(valid_root, tmp_path_factory) -> Path:
    root = Path(shutil.copytree(valid_root, tmp_path_factory.mktemp("indexed") / "root"))
    assert call_tool("create_data", "nuscenes", "--root", root, "--version", VERSION) == 0
    return root


@pytest.fixture
def root(valid_root, tmp_path) -> Path:
    return Path(shutil.copytree(valid_root, tmp_path / "root"))


def create(root: Path) -> tuple:
    return "create_data", "nuscenes", "--root", root, "--version", VERSION


@pytest.mark.parametrize("case", lines(TABLES))
def test_tables(root, capfd, case) -> None:
    breaks, file, field, reason = CASES[case]
    breaks(root)
    line = refused(capfd, root, *create(root))
    assert file in line[0] and field in line[1] and reason in line[2], line


@pytest.mark.parametrize("case", lines(INDEX))
def test_index_files(indexed_root, tmp_path, capfd, case) -> None:
    root = Path(shutil.copytree(indexed_root, tmp_path / "root"))
    breaks, file, reason = DAMAGE[case]
    breaks(root)
    config = write_config(tmp_path / "config.py", root, VERSION)
    line = refused(capfd, tmp_path, "visualize", "--ground-truth", config, "--out", tmp_path / "out")
    assert Path(line[0]).name == file and reason in line[2], line
    assert not (root / "exploded").exists()


def test_m35_an_index_of_other_tables(indexed_root, tmp_path, capfd) -> None:
    """The tables have changed since: found by their hash, though size and time may be the same."""
    root = Path(shutil.copytree(indexed_root, tmp_path / "root"))
    put("sample_annotation", 0, num_lidar_pts=8)(root)  # 9 before: as many bytes
    config = write_config(tmp_path / "config.py", root, VERSION)
    file, field, reason = refused(capfd, tmp_path, "visualize", "--ground-truth", config, "--out", tmp_path / "out")
    assert Path(file).name == "sample_annotation.json" and field == "sha256" and "has changed" in reason


def warnings_of(capfd, root: Path) -> list[str]:
    """The warnings of a root that is indexed nevertheless, but for what is merely implausible in so small a one."""
    capfd.readouterr()
    assert call_tool(*create(root)) == 0
    return [line for line in capfd.readouterr().err.splitlines() if "can_bus" in line]


def can_bus(root: Path, scene: str = "scene-0001") -> Path:
    return root / "can_bus" / f"{scene}_pose.json"


def test_m43_a_blacklisted_scene_goes_by_its_ego_poses(root, capfd) -> None:
    """The devkit's list has scene 161; exactly one warning, and zero where the bus would have told something."""
    edit_table(root, "scene", lambda scenes: [{**scenes[0], "name": "scene-0161"}, *scenes[1:]])
    edit_table(root, "scene", lambda scenes: write_json(
        root / VERSION / "splits.json", {"tiny_train": ["scene-0161"], "tiny_val": ["scene-0003"]}
    ))  # fmt: skip
    can_bus(root).rename(can_bus(root, "scene-0161"))
    (warning,) = warnings_of(capfd, root)
    assert "2 of 2 scenes lack CAN-bus messages" in warning and "scene-0161" in warning


def test_m44_no_folder_of_the_can_bus(root, capfd) -> None:
    """Nothing was promised: no warning, ego motion comes from the poses."""
    shutil.rmtree(root / "can_bus")
    assert warnings_of(capfd, root) == []


def test_m45_an_empty_list_of_messages(root, capfd) -> None:
    write_json(can_bus(root), [])
    (warning,) = warnings_of(capfd, root)
    assert "lack CAN-bus messages" in warning and "scene-0001" in warning


def test_m46_messages_out_of_order(root, capfd) -> None:
    """The same values as in order: sample k takes message 5 k, whose acceleration x is its number (tables.py)."""
    import numpy as np

    from bevstack.datasets.nuscenes.index import NuScenesIndex

    messages = json.loads(can_bus(root).read_text())
    write_json(can_bus(root), messages[::-1])
    warnings_of(capfd, root)
    index = NuScenesIndex.open(root, VERSION)
    assert index.can_bus_valid[:4].all()
    np.testing.assert_allclose(index.can_bus_raw[:4, 7], [0, 5, 10, 15])


def test_m47_the_first_message_after_the_keyframe(root, capfd) -> None:
    """Sample 0 has none, the others do; the reference would have taken another moment's."""
    from bevstack.datasets.nuscenes.index import NuScenesIndex

    messages = json.loads(can_bus(root).read_text())
    write_json(can_bus(root), [message for message in messages if message["utime"] > START_US])
    (warning,) = warnings_of(capfd, root)
    assert "scene-0001" in warning
    assert NuScenesIndex.open(root, VERSION).can_bus_valid[:4].tolist() == [False, True, True, True]


def map_config(root: Path, path: Path) -> Path:
    """A dataset that draws the map."""
    grid = dict(shape=(12, 10), x_range_m=(-15, 15), y_range_m=(-18, 18))

    def with_map(cfg) -> None:
        for part in ("train_dataloader", "test_dataloader"):
            cfg[part].dataset.pipeline.insert(1, dict(type="LoadBEVMap", grid=grid))

    return write_config(path, root, VERSION, with_map)


def test_m49_the_map_is_missing(indexed_root, tmp_path, capfd) -> None:
    config = map_config(indexed_root, tmp_path / "config.py")
    line = refused(capfd, tmp_path, "visualize", "--ground-truth", config, "--out", tmp_path / "out")
    assert LOCATION in " ".join(line) and "map" in line[2], line


def test_m50_the_map_of_another_city(root, tmp_path, capfd) -> None:
    """The logs say Boston, the file that is there is Singapore's: the city that is missing is named."""
    edit_table(root, "log", lambda logs: [{**log, "location": "boston-seaport"} for log in logs])
    assert call_tool(*create(root)) == 0
    config = map_config(root, tmp_path / "config.py")
    line = refused(capfd, tmp_path, "visualize", "--ground-truth", config, "--out", tmp_path / "out")
    assert "boston-seaport" in " ".join(line), line
