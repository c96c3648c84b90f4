"""Everything that is wrong with a root at once: each fault that a test makes is counted, and nothing else is found."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from tables import VERSION, build_root, edit_table, write_json
from test_bad_tables import CASES

from bevstack.datasets.nuscenes.data_check import check_data, single_faults
from bevstack.errors import InputError


@pytest.fixture(scope="module")
def valid_root(tmp_path_factory) -> Path:
    return build_root(tmp_path_factory.mktemp("valid") / "root", maps=True, can_bus=True)


@pytest.fixture
def root(valid_root, tmp_path) -> Path:
    return Path(shutil.copytree(valid_root, tmp_path / "root"))


def edit(root: Path, table: str, rows, **fields) -> None:
    edit_table(root, table, lambda records: [{**r, **fields} if n in rows else r for n, r in enumerate(records)])


def found(root: Path, **options) -> list[tuple[str, str, int]]:
    """(file, field, how many) of every kind of fault."""
    faults = check_data(root, VERSION, **options).faults
    return sorted((Path(f.first.file).name, f.first.field.rpartition(".")[2], f.count) for f in faults)


def test_a_valid_root_has_no_fault(root) -> None:
    before = sorted(root.rglob("*"))
    report = check_data(root, VERSION, decode=True)
    assert report.faults == () and {finding.what for finding in report.plausible} >= {"ego speed", "field of view"}
    assert sorted(root.rglob("*")) == before, "nothing is written into the root"


def test_faults_of_tables_are_counted(root) -> None:
    edit(root, "sample_annotation", (0, 3, 5), size=[1, 0, 1])
    edit(root, "ego_pose", range(10), rotation=[2, 0, 0, 0])
    edit(root, "sample", (1, 2), token="s0k0")
    (root / VERSION / "category.json").unlink()
    assert found(root) == [
        ("category.json", "file", 1),
        ("ego_pose.json", "rotation", 10),
        ("sample.json", "token", 1),
        ("sample_annotation.json", "size", 3),
    ]


def test_faults_of_links_are_counted(root) -> None:
    edit(root, "sample_data", (2, 4), ego_pose_token="x")
    edit(root, "sample_annotation", (0, 1, 2), instance_token="y")
    counts = found(root)
    assert ("sample_data.json", "ego_pose_token", 2) in counts
    assert ("sample_annotation.json", "instance_token", 3) in counts


def test_faults_of_files_are_counted(root) -> None:
    for name in ("s0k0", "s0k1", "s1k2"):
        (root / "samples/CAM_BACK" / f"{name}.jpg").unlink()
    (root / "samples/CAM_FRONT/s0k2.jpg").write_bytes(b"")
    cv2.imwrite(str(root / "samples/CAM_FRONT/s0k3.jpg"), np.zeros((9, 64, 3), np.uint8))
    for name in ("s0k0", "s0k1"):
        (root / "samples/LIDAR_TOP" / f"{name}.pcd.bin").write_bytes(b"\0" * 81)
    write_json(root / "can_bus" / "scene-0001_pose.json", {})
    write_json(root / "maps/expansion/singapore-onenorth.json", {"version": "1.0"})
    write_json(root / VERSION / "splits.json", {"a": ["nobody"]})
    assert sorted(found(root)) == [
        ("s0k0.jpg", "image", 3),
        ("s0k0.pcd.bin", "points", 2),
        ("s0k2.jpg", "image", 1),
        ("s0k3.jpg", "size", 1),
        ("scene-0001_pose.json", "content", 1),
        ("singapore-onenorth.json", "version", 1),
        ("splits.json", "a", 1),
    ]


def test_pixels_are_looked_at_when_asked(root) -> None:
    path = root / "samples/CAM_FRONT/s0k3.jpg"
    path.write_bytes(path.read_bytes()[:-30])
    assert found(root) == []
    assert found(root, decode=True) == [("s0k3.jpg", "image", 1)]


@pytest.mark.parametrize("case", [name for name, entry in CASES.items() if entry[1].endswith(".json")])
def test_whatever_an_index_refuses_is_a_fault(root, case) -> None:
    """Expected: the cases of test_bad_tables.py, each the file that is named there."""
    breaks, file, field, _ = CASES[case]
    breaks(root)
    faults = check_data(root, VERSION).faults
    assert any(file in fault.first.file for fault in faults), [str(fault.first) for fault in faults]


def test_parts_that_are_right_alone_have_one_fault_together() -> None:
    def at_most_two(part) -> None:
        if len(part) > 2:
            raise InputError("a.json", "content", "too many")

    assert len(list(single_faults([1, 2, 3], at_most_two))) == 1
    assert list(single_faults([1, 2], at_most_two)) == []


def test_the_tool(root, monkeypatch, capsys) -> None:
    edit(root, "sample_annotation", (0, 3), size=[1, 0, 1])
    tool = Path(__file__).parents[2] / "tools" / "check_data.py"
    for arguments, code, said in (([root], 1, "2 faults of 1 kinds"), ([root, "--version", "v2"], 2, "no such folder")):
        monkeypatch.setattr(sys, "argv", [str(tool), *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(tool), run_name="__main__")
        out = capsys.readouterr()
        assert end.value.code == code and said in out.out + out.err
