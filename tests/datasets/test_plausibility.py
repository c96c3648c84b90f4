"""What cannot be right is doubted by name: each slip of a converter, made in the tiny root, and nothing else.

The tiny root itself is plausible in every respect; a case changes it as the slip would.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tables import LOCATION, VERSION, build_root, edit_table, quaternion, write_json, write_map

from bevstack.datasets.nuscenes.create_data import create_nuscenes
from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.nuscenes.index_writer import write_index
from bevstack.datasets.nuscenes.sample_rows import IndexChoices
from bevstack.datasets.plausibility import findings
from bevstack.datasets.wrappers import RepeatDataset
from bevstack.errors import InputError


@pytest.fixture(scope="module")
def valid_root(tmp_path_factory) -> Path:
    return build_root(tmp_path_factory.mktemp("valid") / "root")


@pytest.fixture
def root(valid_root, tmp_path) -> Path:
    return Path(shutil.copytree(valid_root, tmp_path / "root"))


def found(root: Path) -> dict[str, tuple[str, str]]:
    """What is measured -> (found, doubt)."""
    findings = write_index(root, VERSION, maps=False, progress=lambda text: None)["findings"]
    return {finding.what: (finding.found, finding.doubt) for finding in findings}


def edit(table: str, change: Callable[[dict], dict]) -> Callable[[Path], object]:
    return lambda root: edit_table(root, table, lambda records: [change(record) for record in records])


def moved(record: dict, by: list[float]) -> dict:
    return {**record, "translation": [a + b for a, b in zip(record["translation"], by, strict=True)]}


def of_camera(change: Callable[[dict], dict]) -> Callable[[Path], object]:
    return edit("calibrated_sensor", lambda record: change(record) if record["camera_intrinsic"] else record)


def of_lidar(change: Callable[[dict], dict]) -> Callable[[Path], object]:
    return edit("calibrated_sensor", lambda record: record if record["camera_intrinsic"] else change(record))


def far_after_two_samples(root: Path) -> None:
    """GPS: ego and boxes 20 km on from sample 2 of each scene."""
    edit("ego_pose", lambda pose: moved(pose, [20_000.0 * (pose["token"][4] in "23"), 0, 0]))(root)
    edit("sample_annotation", lambda box: moved(box, [20_000.0 * (box["token"][3] in "23"), 0, 0]))(root)


def clock(factor: float) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for table in ("sample", "sample_data", "ego_pose"):
            edit(table, lambda r: {**r, "timestamp": 1.6e15 + factor * (r["timestamp"] - 1.6e15)})(root)

    return change


def boxes_in_the_ego_frame(root: Path) -> None:
    """The ego is far from the global frame's origin, boxes are near it."""
    edit("sample_annotation", lambda box: moved(box, [-box["translation"][0], -box["translation"][1], 0]))(root)


TRANSPOSED = [[40.0, 0.0, 0.0], [0.0, 40.0, 0.0], [32.0, 18.0, 1.0]]
LARGER_IMAGE = [[1000.0, 0.0, 800.0], [0.0, 1000.0, 450.0], [0.0, 0.0, 1.0]]
ON_ITS_SIDE = [math.cos(math.pi / 4), math.sin(math.pi / 4), 0.0, 0.0]  # a quarter turn about x

# slip -> change, the measure that doubts it, words of the doubt
SLIPS = {
    "boxes in the ego frame": (boxes_in_the_ego_frame, "boxes within 51.2 m", "in the global frame"),
    "cameras without optical axes": (
        of_camera(lambda r: {**r, "rotation": quaternion(0.0)}), "cameras' axes above the horizon", "looks at the sky",
    ),
    "cameras that look the other way": (
        of_camera(lambda r: {**r, "rotation": [0.0, 0.0, 0.0, 1.0]}), "of these, centre in an image", "x right, y down",
    ),
    "no points counted": (
        edit("sample_annotation", lambda r: {**r, "num_lidar_pts": 0}), "boxes with points", "neither learned nor sco",
    ),
    "no links": (
        edit("sample_annotation", lambda r: {**r, "prev": "", "next": ""}), "known velocities", "needs prev or next",
    ),
    "boxes float": (
        edit("sample_annotation", lambda r: moved(r, [0, 0, 5.0])), "their feet above the ground", "boxes float",
    ),
    "ego jumps": (far_after_two_samples, "ego speed", "jumps 20002 m in scene-0001 at sample s0k2, and 1 times more"),
    "ego jumps, so velocities": (far_after_two_samples, "ego speed", "velocities of boxes across a jump are taken for"),
    "boxes jump without the ego": (
        edit("sample_annotation", lambda box: moved(box, [40.0 * (box["token"][3] in "23"), 0, 0])),
        "the fastest box", "links lead to another object",
    ),
    "ego turns over": (
        edit("ego_pose", lambda r: {**r, "rotation": [0.0, 1.0, 0.0, 0.0]} if "s0k2" in r["token"] else r),
        "ego turn", "turns over at sample s0k2",
    ),
    "key frames of 3 s": (clock(6.0), "time between samples", "without the dataset's max_gap_seconds; times are"),
    "samples of 10 ms": (clock(0.02), "time between samples", "are the times in microseconds?"),
    "images of another moment": (
        edit("sample_data", lambda r: {**r, "timestamp": r["timestamp"] + 3_000_000 * ("s0k1CAM" in r["token"])}),
        "images off their sample", "sample s0k1 and its image",
    ),
    "BEV frame on its side": (
        of_lidar(lambda r: {**r, "rotation": ON_ITS_SIDE}), "BEV's z axis off the vertical", "needs z up",
    ),
    "transposed intrinsics": (
        of_camera(lambda r: {**r, "camera_intrinsic": TRANSPOSED}), "principal point", "transposed?",
    ),
    "intrinsics of another image size": (
        of_camera(lambda r: {**r, "camera_intrinsic": LARGER_IMAGE}), "principal point", "of another image size?",
    ),
    "focal length in another unit": (
        of_camera(lambda r: {**r, "camera_intrinsic": [[0.04, 0, 32], [0, 0.04, 18], [0, 0, 1]]}),
        "field of view", "is its focal length in pixels?",
    ),
    "pixels that are no squares": (
        of_camera(lambda r: {**r, "camera_intrinsic": [[40.0, 0, 32], [0, 80.0, 18], [0, 0, 1]]}),
        "field of view", "focal lengths 40 and 80",
    ),
    "one calibration for two cameras": (
        lambda root: edit_table(root, "sample_data", lambda records: [
            {**r, "calibrated_sensor_token": "copy"} if "CAM_BACK_LEFT" in r["token"] else r for r in records
        ]) and edit_table(root, "calibrated_sensor", lambda records: [
            *records, {**records[0], "token": "copy", "sensor_token": "senCAM_BACK_LEFT"},
        ]),
        "directions that a camera sees", "CAM_BACK_LEFT and CAM_FRONT stand at one place",
    ),
    "one file for all cameras": (
        edit("sample_data", lambda r: {**r, "filename": "samples/CAM_FRONT/s0k0.jpg"} if "CAM" in r["token"] else r),
        "image files", "7 samples show one file for several cameras, the first is s0k0",
    ),
    "a scene in two splits": (
        lambda root: write_json(root / VERSION / "splits.json", {"train": ["scene-0001"], "val": ["scene-0001"]}),
        "scenes in train and val", "scene-0001 is learned from and scored on",
    ),
}  # fmt: skip


def test_the_tiny_root_is_plausible(root):
    # Expected by hand: 16 boxes of which 12 have points; the car of scene-0001 is the fastest (3 m per 0.5 s), the ego
    # drives 2 m per 0.5 s along the BEV's +y, scene-0003 turns by 10 degrees per 0.5 s.
    measures = found(root)
    assert [what for what, (_, doubt) in measures.items() if doubt] == []
    assert measures["boxes with points"][0].startswith("12 of 16")
    assert measures["the fastest box"][0] == "6.0 m/s at sample s0k0"
    assert measures["ego speed"][0] == "4.0 m/s (median), 4.0 at most"
    assert measures["ego turn"][0].endswith("20.0 at most")
    assert measures["the way ahead in the BEV frame"][0] == "(+0.00, +2.00) m a sample"
    assert measures["field of view"][0] == f"{2 * math.degrees(math.atan(32 / 40)):.0f} to 77 degrees"


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_is_doubted_by_name(root, slip):
    change, what, doubt = SLIPS[slip]
    change(root)
    measures = found(root)
    assert doubt in measures[what][1], measures


def test_single_key_frames_know_no_velocity_and_that_is_no_doubt(root):
    for table, field in (
        ("sample", "next"),
        ("sample", "prev"),
        ("sample_annotation", "prev"),
        ("sample_annotation", "next"),
    ):
        edit(table, lambda record, field=field: {**record, field: ""})(root)
    kept = ("s0k0", "s1k0")
    edit_table(root, "sample", lambda records: [r for r in records if r["token"] in kept])
    for table in ("sample_data", "sample_annotation"):
        edit_table(root, table, lambda records: [r for r in records if r["sample_token"] in kept])
    edit("scene", lambda scene: {**scene, "last_sample_token": scene["first_sample_token"]})(root)
    measures = found(root)
    assert measures["known velocities"] == ("0 of 4 (0 %); single key frames know none", "")
    assert "ego speed" not in measures and "time between samples" not in measures


def test_a_set_without_boxes_is_no_doubt(root):
    for table in ("sample_annotation", "instance"):
        write_json(root / VERSION / f"{table}.json", [])
    measures = found(root)
    assert "format_only" in measures["boxes"][0] and not any(doubt for _, doubt in measures.values())


def test_the_tool_warns_and_strict_refuses(root, capsys):
    SLIPS["no links"][0](root)
    create_nuscenes(root, VERSION, maps=False)
    said = capsys.readouterr()
    assert "warning: known velocities: 0 of 16 (0 %); who moves and who stands is not learned; a velocity " in said.err
    assert "BEV's z axis off the vertical" in said.out and "tools/visualize.py --ground-truth" in said.out
    shutil.rmtree(root / "bevstack-index")
    with pytest.raises(InputError, match=r"known velocities: 0 of 16 \(0 %\); who moves") as caught:
        create_nuscenes(root, VERSION, maps=False, choices=IndexChoices(strict=True))
    assert "\n" not in str(caught.value) and not (root / "bevstack-index").exists()


@pytest.mark.parametrize(("by_m", "on_it"), [(0.0, "4 of 7 (57 %)"), (100_000.0, "0 of 7 (0 %)")])
def test_a_map_of_another_place_is_doubted(root, by_m, on_it):
    # Expected by hand: scene-0001's four samples stand on the tiny map's road (y 190 to 210), scene-0003's at y 250.
    write_map(root)
    path = root / "maps" / "expansion" / f"{LOCATION}.json"
    content = json.loads(path.read_text())
    content["node"] = [{**node, "x": node["x"] + by_m} for node in content["node"]]
    write_json(path, content)
    options = {"maps": True, "progress": lambda text: None}
    measures = {f.what: (f.found, f.doubt) for f in write_index(root, VERSION, **options)["findings"]}
    found, doubt = measures["samples on the map's drivable area"]
    assert found == on_it and ("of another place" in doubt) == (by_m > 0)
    if doubt:
        shutil.rmtree(root / "bevstack-index")
        with pytest.raises(InputError, match="samples on the map's drivable area: 0 of 7"):
            write_index(root, VERSION, choices=IndexChoices(strict=True), **options)
        assert not (root / "bevstack-index").exists()


def test_what_a_jump_would_teach_is_unknown(root):
    # Expected by hand: of the car's and the others' 15 known velocities those of samples 1 and 2 of scene-0001 (car,
    # pedestrian, animal) and of sample 1 and 2 of scene-0003 (car: neighbours 0 to 2 and 1) reach across.
    far_after_two_samples(root)
    measures = found(root)
    assert measures["known velocities"] == ("7 of 16 (44 %)", "")
    assert measures["the fastest box"] == ("6.0 m/s at sample s0k0", "")


def test_any_dataset_is_asked_the_same(root):
    # The general measures of an index and of its dataset agree: there is one place that judges.
    write_index(root, VERSION, maps=False, progress=lambda text: None)
    by_index = found(root)
    dataset = NuScenesBEVDataset(root, VERSION, "all", num_frames=3)
    asked = {finding.what: (finding.found, finding.doubt) for finding in findings(dataset)}
    own = {"boxes with points", "boxes within 51.2 m", "of these, centre in an image", "known velocities"}  # of 12
    assert own < set(asked) < set(by_index) and len(asked) == 13
    assert {what: by_index[what] for what in set(asked) - own} == {what: asked[what] for what in set(asked) - own}
    assert asked["boxes with points"] == ("8 of 12 (67 %)", "")  # without the animal, which is no class
    few = {finding.what: finding.found for finding in findings(dataset, [0, 1, 1])}
    assert few["image files"] == "12 of 12 named" and few["time between samples"].startswith("0.5 s (median)")
    repeated = RepeatDataset(dataset, times=2)
    assert {finding.what: (finding.found, finding.doubt) for finding in findings(repeated)} == asked


def test_findings_are_finite_where_a_camera_is_blind(root):
    # A camera right in a box's middle divides by a depth of 0.
    edit("sample_annotation", lambda box: {**box, "translation": [101.5, 200.0, 1.5]})(root)
    with np.errstate(all="raise"):
        assert not any("nan" in value or "inf" in value for value, _ in found(root).values())
