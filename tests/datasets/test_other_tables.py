"""Tables as other sets have them: what is not read may be wrong or absent, other words for "none" are understood."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from nuscenes.eval.detection.utils import category_to_detection_name
from nuscenes.utils.color_map import get_colormap
from tables import START_US, VERSION, build_root, edit_table, write_json

from bevstack.datasets.nuscenes.create_data import create_nuscenes
from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.nuscenes.index import NuScenesIndex
from bevstack.datasets.nuscenes.sample_rows import IndexChoices
from bevstack.datasets.nuscenes.tables import NuScenesTables
from bevstack.datasets.nuscenes.taxonomy import DETECTION_CLASSES, detection_class, scored_category
from bevstack.errors import InputError


@pytest.fixture(scope="module")
def valid_root(tmp_path_factory) -> Path:
    return build_root(tmp_path_factory.mktemp("valid") / "root")


@pytest.fixture
def root(valid_root, tmp_path) -> Path:
    return Path(shutil.copytree(valid_root, tmp_path / "root"))


def edit(table: str, change: Callable[[dict], dict]):
    return lambda root: edit_table(root, table, lambda records: [change(record) for record in records])


def lidarseg(root: Path) -> None:
    for task in ("lidarseg", "panoptic"):
        write_json(root / VERSION / f"{task}.json", [{"token": "l0", "filename": f"{task}/gone.bin"}])


def no_logs(root: Path) -> None:
    (root / VERSION / "log.json").unlink()
    edit("scene", lambda scene: {**scene, "log_token": ""})(root)


def unlinked(record: dict) -> dict:
    return {name: None if value == "" else value for name, value in record.items()}


def without_size(record: dict) -> dict:
    return {k: v for k, v in record.items() if "LIDAR" not in record["token"] or k not in ("height", "width")}


# What the devkit or other readers refuse, though nothing of it is read.
READ_AS_BEFORE = {
    "no map masks": lambda root: shutil.rmtree(root / "maps"),
    "no map table": lambda root: (root / VERSION / "map.json").unlink(),
    "empty map table": lambda root: write_json(root / VERSION / "map.json", []),
    "no logs": no_logs,
    "no attribute of some box": edit("sample_annotation", lambda box: {**box, "visibility_token": ""}),
    "no visibility table": lambda root: (root / VERSION / "visibility.json").unlink(),
    "visibility as a number": edit("visibility", lambda level: {**level, "level": 3}),
    "lidarseg without its files": lidarseg,
    "null for no link": edit("sample_annotation", unlinked),
    "null for no sample": edit("sample", unlinked),
    "null for no sweep": edit("sample_data", unlinked),
    "null for the size of lidar data": edit(
        "sample_data", lambda d: {**d, "height": None, "width": None} if "LIDAR" in d["token"] else d
    ),
    "no size of lidar data": edit("sample_data", without_size),
    "times with fractions": edit("sample", lambda sample: {**sample, "timestamp": sample["timestamp"] + 0.75}),
}


@pytest.mark.parametrize("case", READ_AS_BEFORE)
def test_what_is_not_read_stops_nothing(root, case):
    READ_AS_BEFORE[case](root)
    summary = create_nuscenes(root, VERSION, maps=False)
    # Expected: the tiny root's own counts; and the scoring reads the same tables.
    assert (summary["samples"], summary["boxes"]) == (7, 16)
    assert len(NuScenesTables(root, VERSION).sample) == 7


def test_a_clock_from_0_is_a_clock(root):
    # A simulator's: the same differences, so the same velocities: the car of scene-0001 runs at 3 m per 0.5 s.
    for table in ("sample", "sample_data", "ego_pose"):
        edit(table, lambda record: {**record, "timestamp": record["timestamp"] - START_US})(root)
    create_nuscenes(root, VERSION, maps=False)
    index = NuScenesIndex.open(root, VERSION)
    np.testing.assert_allclose(index.boxes(1).velocity[0], [6.0, 0, 0])


@pytest.mark.parametrize("value", [None, -1])
def test_points_that_nobody_counted_are_seen(root, value):
    # Lyft has -1. nuScenes' own pedestrian has 0 and 0, and is not learned; here it is.
    edit("sample_annotation", lambda box: {**box, "num_lidar_pts": value})(root)
    with pytest.warns(UserWarning, match="16 boxes whose lidar points were not counted"):
        create_all(root)
    assert len(NuScenesBEVDataset(root, VERSION, "all").clip(0).objects.boxes) == 2  # car and pedestrian
    counts = {(box["num_lidar_pts"], box["num_radar_pts"]) for box in NuScenesTables(root, VERSION).sample_annotation}
    assert counts == {(1, 0)}


def test_the_first_of_several_attributes_counts(root):
    edit("sample_annotation", lambda box: {**box, "attribute_tokens": ["att1", "att0"]})(root)
    with pytest.warns(UserWarning, match="16 boxes with several attributes, of which the first one counts"):
        create_all(root)
    assert set(NuScenesBEVDataset(root, VERSION, "all").truth("s0k0").attribute_names) == {"vehicle.parked"}


def create_all(root: Path, **choices) -> dict:
    """Index without the tool's own collecting of warnings."""
    from bevstack.datasets.nuscenes.index_writer import write_index

    return write_index(root, VERSION, maps=False, choices=IndexChoices(**choices), progress=lambda text: None)


@pytest.mark.parametrize("form", ["absolute", "dot", "backslash"])
def test_files_below_the_root_by_other_names(root, form):
    change = {
        "absolute": lambda f: str(root / f),
        "dot": lambda f: f"./{f}",
        "backslash": lambda f: f.replace("/", "\\"),
    }
    edit("sample_data", lambda data: {**data, "filename": change[form](data["filename"])})(root)
    create_nuscenes(root, VERSION, maps=False)
    assert NuScenesIndex.open(root, VERSION).image_paths(0)[0] == str(root / "samples/CAM_FRONT/s0k0.jpg")


def test_an_absolute_name_outside_the_root_is_refused(root, tmp_path):
    edit("sample_data", lambda data: {**data, "filename": str(tmp_path / data["filename"])})(root)
    with pytest.raises(InputError, match="leads out of the root"):
        create_nuscenes(root, VERSION, maps=False)


def test_a_linked_root_is_the_root(root, tmp_path):
    os.symlink(root, tmp_path / "link")
    edit("sample_data", lambda data: {**data, "filename": str(root / data["filename"])})(root)
    assert create_nuscenes(tmp_path / "link", VERSION, maps=False)["samples"] == 7


@pytest.mark.parametrize("place", ["above", "below"])
def test_a_root_one_level_off_is_named(root, place):
    wrong = root / VERSION if place == "below" else root.parent
    with pytest.raises(InputError, match=f"is the root {root}\\?"):
        create_nuscenes(wrong, VERSION)


# --- classes --------------------------------------------------------------------------------------------------------


def test_the_class_of_a_category_is_the_devkits():
    for name in get_colormap():
        assert detection_class(name) == (category_to_detection_name(name) or "")
        assert scored_category(name) == name
    for name in DETECTION_CLASSES:  # beyond the devkit: a category called as a class is of that class, scored as it
        assert detection_class(name) == name == category_to_detection_name(scored_category(name))


def test_a_name_near_nuscenes_has_to_be_meant(root):
    edit_table(root, "category", lambda records: records[0].update(name="vehicle.cart"))
    with pytest.raises(InputError, match="did you mean vehicle.car[?] If not: --own-categories vehicle.cart"):
        create_all(root)
    with pytest.warns(UserWarning, match="for the config to name as classes: vehicle.cart"):
        create_all(root, own_categories=("vehicle.cart",))


def test_classes_gather_classes_and_categories(root):
    create_nuscenes(root, VERSION, maps=False)
    classes = {"living": ("pedestrian", "animal"), "thing": "movable_object.barrier"}
    dataset = NuScenesBEVDataset(root, VERSION, "all", classes=classes)
    # Of sample s0k1 by hand: car (none of these), pedestrian, barrier, animal.
    assert dataset.classes == ("living", "thing") and dataset.truth("s0k1").labels.tolist() == [0, 1, 0]
    expected = {"living": ["human.pedestrian.adult", "animal"], "thing": ["movable_object.barrier"]}
    assert dataset.metainfo["categories"] == expected
    for wrong, said in (
        ({"a": ("car",), "b": ("car", "truck")}, "'car' is in 'b' and in another class"),
        ({"a": ("carr",)}, "did you mean car"),
    ):
        with pytest.raises(InputError, match=said):
            NuScenesBEVDataset(root, VERSION, "all", classes=wrong)


def test_a_split_without_a_box_of_the_classes_is_said(root):
    edit_table(root, "category", lambda records: [{**c, "name": f"own{i}"} for i, c in enumerate(records)])
    create_all(root)
    with pytest.warns(UserWarning, match="split 'tiny_val' has no box of the classes; it has own0"):
        NuScenesBEVDataset(root, VERSION, "tiny_val")


def test_a_split_without_a_point_is_said_where_it_is_learned_from(root):
    # Boxes of no points are left out in training: nothing would be left. The test's truth keeps them.
    edit_table(root, "sample_annotation", lambda records: [{**b, "num_lidar_pts": 0} for b in records])
    create_nuscenes(root, VERSION, maps=False)
    with pytest.warns(UserWarning, match="split 'tiny_train': all boxes of the classes have 0 points, so none is lea"):
        NuScenesBEVDataset(root, VERSION, "tiny_train")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        NuScenesBEVDataset(root, VERSION, "tiny_train", use_valid_flag=False)
        NuScenesBEVDataset(root, VERSION, "tiny_train", test_mode=True)


# --- splits and scenes ----------------------------------------------------------------------------------------------


def test_own_splits_of_the_devkits_names_stand_alone(root):
    # scene-0003 is in the devkit's val: a splits.json that gives train alone leaves no val that shares scenes with it.
    write_json(root / VERSION / "splits.json", {"train": ["scene-0001", "scene-0003"]})
    create_nuscenes(root, VERSION, maps=False)
    assert sorted(NuScenesIndex.open(root, VERSION).splits) == ["all", "train"]


def test_two_scenes_of_one_name_are_told_apart(root):
    edit("scene", lambda scene: {**scene, "name": "drive"})(root)
    write_json(root / VERSION / "splits.json", {"train": ["scene0"], "later": ["scene1"]})
    with pytest.warns(UserWarning, match="several scenes are called drive"):
        create_all(root)
    index = NuScenesIndex.open(root, VERSION)
    assert index.samples("train").tolist() == [0, 1, 2, 3] and index.samples("later").tolist() == [4, 5, 6]
    assert [scene["name"] for scene in index.scenes] == ["drive.scene0", "drive.scene1"]
