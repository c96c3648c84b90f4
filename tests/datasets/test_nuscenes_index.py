"""The index: values against the devkit and by hand, what a damaged index says, that workers share it."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from pyquaternion import Quaternion
from tables import CAMERAS, LOCATION, START_US, VERSION, build_root, edit_table, write_json

from bevstack.datasets.nuscenes.create_data import create_nuscenes
from bevstack.datasets.nuscenes.index import NuScenesIndex
from bevstack.datasets.nuscenes.split_names import scenes_of
from bevstack.errors import InputError
from bevstack.structures.rigid_arrays import rigid_inverse


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Path:
    root = build_root(tmp_path_factory.mktemp("indexed") / "root", can_bus=True)
    create_nuscenes(root, VERSION)
    return root


@pytest.fixture(scope="module")
def index(indexed) -> NuScenesIndex:
    return NuScenesIndex.open(indexed, VERSION)


@pytest.fixture(scope="module")
def nusc(indexed):
    from nuscenes.nuscenes import NuScenes

    return NuScenes(VERSION, str(indexed), verbose=False)


@pytest.fixture
def copy(indexed, tmp_path) -> Path:
    return Path(shutil.copytree(indexed, tmp_path / "root"))


def folder(root: Path) -> Path:
    return root / "bevstack-index" / VERSION


def test_splits_are_the_devkits_and_the_versions_own(index):
    # scene-0001 is in the official train split, scene-0003 in val; splits.json names the tiny ones.
    assert {"train", "val", "tiny_train", "tiny_val", "all"} <= set(index.splits)
    assert "mini_val" not in index.splits  # none of its scenes is here
    assert index.samples("tiny_train").tolist() == index.samples("train").tolist() == [0, 1, 2, 3]
    assert index.samples("tiny_val").tolist() == index.samples("val").tolist() == [4, 5, 6]
    assert index.samples("all").tolist() == list(range(7))
    for absent in ("training", "training[:1]", "val[:0]", "val[1:]"):
        with pytest.raises(InputError, match="tiny_train"):
            index.samples(absent)


def test_the_first_scenes_of_a_split():
    # Expected: by hand; a split of that very name comes first.
    splits = {"val": ["a", "b", "c"], "odd[:1]": ["x", "y"], "odd": ["z"]}
    assert scenes_of(splits, "val[:2]") == ["a", "b"] and scenes_of(splits, "val[:9]") == ["a", "b", "c"]
    assert scenes_of(splits, "odd[:1]") == ["x", "y"] and scenes_of(splits, "all[:1]") is None


def test_samples_in_order(index):
    assert [index.token(row) for row in range(7)] == ["s0k0", "s0k1", "s0k2", "s0k3", "s1k0", "s1k1", "s1k2"]
    assert index.arrays["sample_prev"].tolist() == [-1, 0, 1, 2, -1, 4, 5]
    assert index.arrays["sample_next"].tolist() == [1, 2, 3, -1, 5, 6, -1]
    assert [index.scene(row)["name"] for row in range(7)] == ["scene-0001"] * 4 + ["scene-0003"] * 3
    assert index.arrays["sample_timestamp_us"][2] == START_US + 1_000_000
    assert index.scene(0)["location"] == LOCATION and index.scene(0)["log"] == "n000"


def test_sensors_are_the_devkits(index, nusc, indexed):
    def check(data, path, time_us, ego_from_sensor, global_from_ego):
        calibration = nusc.get("calibrated_sensor", data["calibrated_sensor_token"])
        pose = nusc.get("ego_pose", data["ego_pose_token"])
        for found, source in ((ego_from_sensor, calibration), (global_from_ego, pose)):
            expected = Quaternion(source["rotation"]).transformation_matrix
            expected[:3, 3] = source["translation"]
            np.testing.assert_allclose(found, expected, atol=1e-12)
        assert Path(path) == Path(nusc.get_sample_data_path(data["token"])) and time_us == data["timestamp"]
        return calibration

    arrays = index.arrays
    assert tuple(index.cameras) == CAMERAS
    for row in range(7):
        sample = nusc.get("sample", index.token(row))
        for n, camera in enumerate(CAMERAS):
            data = nusc.get("sample_data", sample["data"][camera])
            place = index.image_paths(row)[n], arrays["camera_timestamp_us"][row, n]
            calibration = check(data, *place, index.ego_from_camera(row)[n], arrays["global_from_camera_ego"][row, n])
            assert arrays["camera_size_px"][row, n].tolist() == [data["height"], data["width"]]
            np.testing.assert_array_equal(index.pixels_from_camera(row)[n], calibration["camera_intrinsic"])
        lidar = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        place = indexed / arrays["lidar_path"][row].decode(), arrays["sample_timestamp_us"][row]
        ego_from_lidar = arrays["ego_from_sensor"][arrays["lidar_calibration"][row]]
        check(lidar, *place, ego_from_lidar, arrays["global_from_lidar_ego"][row])


def test_boxes_are_the_devkits(index, nusc):
    for row in range(7):
        boxes, sample = index.boxes(row), nusc.get("sample", index.token(row))
        assert len(boxes.center) == len(sample["anns"])
        for i, token in enumerate(sample["anns"]):
            box, record = nusc.get_box(token), nusc.get("sample_annotation", token)
            np.testing.assert_array_equal(boxes.center[i], box.center)
            np.testing.assert_array_equal(boxes.wlh[i], box.wlh)
            np.testing.assert_allclose(boxes.quaternion[i], box.orientation.elements)
            np.testing.assert_allclose(boxes.velocity[i], nusc.box_velocity(token))  # NaN where it is NaN
            assert index.categories[boxes.category[i]]["name"] == box.name
            names = [nusc.get("attribute", a)["name"] for a in record["attribute_tokens"]] or [""]
            assert [*index.attributes, ""][boxes.attribute[i]] == names[0]
            assert index.arrays["instance_token"][boxes.instance[i]].decode() == record["instance_token"]
            assert (boxes.visibility[i], boxes.num_lidar_pts[i]) == (4, record["num_lidar_pts"])


def test_velocity_across_a_long_pause_is_unknown(copy, nusc):
    # The devkit gives no velocity over more than 1.5 s a step: with 2 s steps neither end knows it.
    def stretch(records):
        for record in records:
            if record["token"].startswith("s0"):
                record["timestamp"] = START_US + (record["timestamp"] - START_US) * 4

    edit_table(copy, "sample", stretch)
    create_nuscenes(copy, VERSION)
    boxes = NuScenesIndex.open(copy, VERSION).boxes(0)
    assert np.isnan(boxes.velocity).all()


def test_detection_names(index):
    found = {c["name"]: c["detection_name"] for c in index.categories}
    assert found == {
        "vehicle.car": "car",
        "human.pedestrian.adult": "pedestrian",
        "movable_object.barrier": "barrier",
        "animal": "",
    }


def test_can_bus_takes_the_message_before_the_sample(index):
    # Message m comes at 0.1 m - 0.05 s and carries m; samples are at 0, 0.5, 1.0, 1.5 s: messages 0, 5, 10, 15.
    assert index.can_bus_raw[:4, 7].tolist() == [0, 5, 10, 15]
    assert index.can_bus_valid.tolist() == [True] * 4 + [False] * 3
    assert np.isnan(index.can_bus_raw[4:, 7:]).all()
    np.testing.assert_array_equal(index.can_bus_raw[:4, :3], [[100 + 2 * k, 200, 0] for k in range(4)])
    assert np.degrees(index.ego(6).yaw) == pytest.approx(20.0)


def test_can_bus_starting_late_unsorted_empty_or_of_a_blacklisted_scene(copy):
    path = copy / "can_bus" / "scene-0001_pose.json"
    messages = [m for m in json.loads(path.read_text()) if m["utime"] > START_US]
    write_json(path, messages[::-1])
    with pytest.warns(UserWarning, match="2 of 2 scenes lack CAN-bus messages"):
        from bevstack.datasets.nuscenes.index_writer import write_index

        write_index(copy, VERSION, progress=lambda text: None)
    index = NuScenesIndex.open(copy, VERSION)
    # No message before the first sample: none is borrowed from its future.
    assert index.can_bus_valid.tolist() == [False, True, True, True, False, False, False]
    assert index.can_bus_raw[1:4, 7].tolist() == [5, 10, 15]
    write_json(path, [])
    with pytest.warns(UserWarning, match="ego motion comes from the ego poses"):
        write_index(copy, VERSION, progress=lambda text: None)
    edit_table(copy, "scene", lambda records: records[0].update(name="scene-0161"))
    write_json(copy / VERSION / "splits.json", {})
    shutil.copy(path, copy / "can_bus" / "scene-0161_pose.json")
    with pytest.warns(UserWarning, match="scene-0161"):
        write_index(copy, VERSION, progress=lambda text: None)
    assert not NuScenesIndex.open(copy, VERSION).can_bus_valid.any()


def test_tables_without_annotations(copy):
    for table in ("sample_annotation", "instance"):
        edit_table(copy, table, lambda records: [])
    summary = create_nuscenes(copy, VERSION)
    index = NuScenesIndex.open(copy, VERSION)
    assert summary["boxes"] == 0 and len(index.boxes(3).center) == 0


def test_another_rig_and_another_folder(copy, tmp_path):
    def only_two(records):
        return [r for r in records if r["calibrated_sensor_token"][3:] in ("CAM_BACK", "CAM_FRONT", "LIDAR_TOP")]

    edit_table(copy, "sample_data", only_two)
    before = sorted(folder(copy).iterdir())
    create_nuscenes(copy, VERSION, tmp_path / "elsewhere")
    index = NuScenesIndex.open(copy, VERSION, tmp_path / "elsewhere")
    assert index.cameras == ["CAM_FRONT", "CAM_BACK"]  # the order of sensor.json
    assert index.camera_from_bev(0).shape == (2, 4, 4)
    assert sorted(folder(copy).iterdir()) == before


def test_indexing_again_replaces_the_index(copy):
    (folder(copy) / "leftover").write_text("x")
    create_nuscenes(copy, VERSION)
    assert not (folder(copy) / "leftover").exists()
    assert [p.name for p in folder(copy).parent.iterdir()] == [VERSION]


def test_failure_while_writing_keeps_the_old_index(copy, monkeypatch):
    from bevstack.datasets.nuscenes import index_writer

    before = {p.name: p.stat().st_mtime_ns for p in folder(copy).iterdir()}

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index_writer.np, "save", full)
    with pytest.raises(InputError, match="No space left"):
        create_nuscenes(copy, VERSION)
    assert {p.name: p.stat().st_mtime_ns for p in folder(copy).iterdir()} == before
    assert [p.name for p in folder(copy).parent.iterdir()] == [VERSION]


def test_pickling_sends_the_place_only(index):
    data = pickle.dumps(index)
    assert len(data) < 1000
    again = pickle.loads(data)
    assert isinstance(again.arrays["global_from_bev"], np.memmap) and again.token(3) == "s0k3"


def test_same_tables_of_another_time_still_fit_and_changed_ones_do_not(copy):
    path = copy / VERSION / "sample_annotation.json"
    os.utime(path, ns=(1, 1))
    assert len(NuScenesIndex.open(copy, VERSION)) == 7
    path.write_text(path.read_text().replace('"num_lidar_pts": 9', '"num_lidar_pts": 8'))
    with pytest.raises(InputError, match="sample_annotation.json: sha256: has changed"):
        NuScenesIndex.open(copy, VERSION)


def test_index_without_its_tables_opens(copy):
    shutil.rmtree(copy / VERSION)
    assert len(NuScenesIndex.open(copy, VERSION)) == 7


def edit_array(name: str, edit):
    def breaks(root: Path) -> None:
        path = folder(root) / f"{name}.npy"
        array = np.load(path)
        changed = edit(array)
        np.save(path, array if changed is None else changed)

    return breaks


def edit_header(edit):
    def breaks(root: Path) -> None:
        path = folder(root) / "index.json"
        header = json.loads(path.read_text())
        edit(header)
        path.write_text(json.dumps(header))

    return breaks


def pickled(root: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(root / "exploded"),)

    (folder(root) / "box_center.npy").write_bytes(pickle.dumps(Bomb()))


def put(value, *where):
    return lambda array: array.__setitem__(where, value)


DAMAGE = {
    "a pickle": (pickled, "box_center.npy", "cannot be read"),
    "other version": (edit_header(lambda h: h.update(schema_version=99)), "index.json", "this program reads 3"),
    "no index.json": (lambda r: (folder(r) / "index.json").unlink(), "index.json", "create_data.py nuscenes"),
    "another schema": (edit_header(lambda h: h.update(schema="x")), "index.json", "is not bevstack"),
    "truncated header": (lambda r: (folder(r) / "index.json").write_text('{"schema'), "index.json", "is no index"),
    "missing array": (lambda r: (folder(r) / "box_wlh.npy").unlink(), "box_wlh.npy", "not found"),
    "truncated array": (
        lambda r: (folder(r) / "box_wlh.npy").write_bytes((folder(r) / "box_wlh.npy").read_bytes()[:-8]),
        "box_wlh.npy", "cannot be read",
    ),
    "missing camera": (edit_header(lambda h: h["cameras"].pop()), "camera_path.npy", "must be (7, 5)"),
    "extra camera": (edit_header(lambda h: h["cameras"].append("CAM_X")), "camera_path.npy", "must be (7, 7)"),
    "not finite": (edit_array("global_from_bev", put(np.nan, 2, 0, 3)), "global_from_bev.npy", "no rigid transform"),
    "not rigid": (edit_array("ego_from_sensor", put(2.0, 1, 0, 0)), "ego_from_sensor.npy", "no rigid transform"),
    "infinite intrinsics": (edit_array("intrinsics", put(np.inf, 0, 0, 0)), "intrinsics.npy", "not finite"),
    "path out of the root": (edit_array("camera_path", put(b"../../x.jpg", 0, 0)), "camera_path.npy", "out of the"),
    "absolute path": (edit_array("camera_path", put(b"/etc/x.jpg", 0, 0)), "camera_path.npy", "out of the root"),
    "row out of range": (edit_array("sample_prev", put(70, 0)), "sample_prev.npy", "point outside"),
    "boxes not divided": (edit_array("box_offset", put(90, 1)), "box_offset.npy", "divide the boxes"),
    "another dtype": (edit_array("box_wlh", lambda a: a.astype(np.float32)), "box_wlh.npy", "index.json says"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_index(copy, case):
    breaks, file, reason = DAMAGE[case]
    breaks(copy)
    with pytest.raises(InputError) as caught:
        NuScenesIndex.open(copy, VERSION)
    assert Path(caught.value.file).name == file and reason in caught.value.reason, str(caught.value)
    assert not (copy / "exploded").exists()


def test_rigid_inverse():
    matrix = Quaternion(axis=[1, 2, 3], angle=0.7).transformation_matrix
    matrix[:3, 3] = [1e3, -2e3, 5]
    np.testing.assert_allclose(rigid_inverse(matrix) @ matrix, np.eye(4), atol=1e-12)
