"""The synthetic dataset as a whole: the unmodified devkit reads it, and what it says is true."""

from __future__ import annotations

import hashlib
import json
import runpy
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pyquaternion import Quaternion

from bevstack.errors import InputError
from bevstack.synthetic.generate import LOCATIONS, generate

VERSION = "v1.0-mini"
SIZE, FRAMES = (160, 90), 3
LAYERS = ["drivable_area", "ped_crossing", "walkway", "stop_line", "carpark_area", "road_divider", "lane_divider"]


def digest(root: Path) -> dict[str, str]:
    """SHA-256 of every file by its relative path."""
    return {
        str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dataset: one training scene, one validation scene, with sweeps."""
    root = tmp_path_factory.mktemp("synthetic") / "set"
    generate(root, 1, 1, seed=3, image_size=SIZE, sweeps=True, workers=1, frames=FRAMES, progress=False)
    return root


@pytest.fixture(scope="module")
def nusc(root: Path):  # noqa: ANN201
    """The devkit's own reader."""
    from nuscenes.nuscenes import NuScenes

    return NuScenes(VERSION, str(root), verbose=False)


def test_devkit_reads_every_table(nusc) -> None:  # noqa: ANN001
    # expected counts: 2 scenes x 3 keyframes, 7 sensors a keyframe, 12 Hz sweeps = 5 a camera between two keyframes
    assert len(nusc.table_names) == 13 and all(len(getattr(nusc, name)) for name in nusc.table_names)
    assert len(nusc.scene) == 2 and len(nusc.sample) == 6
    assert len(nusc.sample_data) == 2 * (FRAMES * 7 + (FRAMES - 1) * 5 * 6)
    for sample in nusc.sample:
        assert set(sample["data"]) == {
            "CAM_FRONT",
            "CAM_FRONT_RIGHT",
            "CAM_FRONT_LEFT",
            "CAM_BACK",
            "CAM_BACK_LEFT",
            "CAM_BACK_RIGHT",
            "LIDAR_TOP",
        }
        assert sample["anns"]


def test_chains_are_whole_and_in_time(nusc) -> None:  # noqa: ANN001
    # expected: prev and next are inverse, timestamps grow, a keyframe's cameras fire within 50 ms before its lidar
    for table in (nusc.sample, nusc.sample_data, nusc.sample_annotation):
        by_token = {row["token"]: row for row in table}
        assert len(by_token) == len(table)
        for row in table:
            if row["next"]:
                assert by_token[row["next"]]["prev"] == row["token"]
                assert by_token[row["next"]].get("timestamp", 1) > row.get("timestamp", 0)
    for row in nusc.sample_data:
        stamp = nusc.get("sample", row["sample_token"])["timestamp"]
        if row["is_key_frame"]:
            assert 0 <= stamp - row["timestamp"] < 50_000
        else:
            assert 0 < stamp - row["timestamp"] < 500_000  # nuScenes: the sample that follows
        assert nusc.get("ego_pose", row["ego_pose_token"])["timestamp"] == row["timestamp"]


def test_images_and_sweeps_exist_in_their_size(nusc, root: Path) -> None:  # noqa: ANN001
    import cv2

    for row in nusc.sample_data:
        assert row["filename"].startswith("samples/" if row["is_key_frame"] else "sweeps/")
        if row["fileformat"] == "jpg":
            assert cv2.imread(str(root / row["filename"])).shape == (SIZE[1], SIZE[0], 3)
            assert (row["width"], row["height"]) == SIZE


def test_splits_by_the_devkit(nusc) -> None:  # noqa: ANN001
    from nuscenes.utils.splits import get_scenes_of_custom_split, get_scenes_of_split

    assert get_scenes_of_split("synthetic_val", nusc) == ["scene-2002"] == get_scenes_of_custom_split("val", nusc)
    assert get_scenes_of_split("synthetic_train", nusc) == ["scene-2001"] == get_scenes_of_custom_split("train", nusc)


def test_point_counts_are_the_points_in_the_boxes(nusc) -> None:  # noqa: ANN001
    # expected: the devkit's own points_in_box on the written point cloud
    from nuscenes.utils.data_classes import LidarPointCloud
    from nuscenes.utils.geometry_utils import points_in_box

    some = 0
    for sample in nusc.sample[:4]:
        path, boxes, _ = nusc.get_sample_data(sample["data"]["LIDAR_TOP"])
        points = LidarPointCloud.from_file(path).points[:3]
        for box in boxes:
            written = nusc.get("sample_annotation", box.token)["num_lidar_pts"]
            assert int(points_in_box(box, points).sum()) == written
            some += written > 0
    assert some > 20


def test_lidar_file_is_like_nuscenes(nusc, root: Path) -> None:  # noqa: ANN001
    # expected: 5 float32 a point; 32 rings; the ground 1.84 m below the sensor
    row = nusc.get("sample_data", nusc.sample[0]["data"]["LIDAR_TOP"])
    points = np.fromfile(root / row["filename"], np.float32).reshape(-1, 5)
    assert 8_000 < len(points) < 34_700 and set(np.unique(points[:, 4])) <= set(range(32))
    lowest = points[points[:, 4] == 0]
    assert abs(np.median(lowest[:, 2]) + 1.8402) < 0.02


def test_attributes_fit_categories(nusc) -> None:  # noqa: ANN001
    # expected: nuScenes' rule: vehicles have vehicle.*, cycles cycle.*, people pedestrian.*, other things none
    for row in nusc.sample_annotation:
        names = [nusc.get("attribute", token)["name"].split(".")[0] for token in row["attribute_tokens"]]
        name = row["category_name"]
        if name in ("vehicle.bicycle", "vehicle.motorcycle"):
            assert names == ["cycle"]
        elif name.startswith("vehicle."):
            assert names == ["vehicle"]
        elif name.startswith("human.") and not name.endswith("stroller"):
            assert names == ["pedestrian"]
        else:
            assert names == []


def test_velocity_is_along_the_heading(nusc) -> None:  # noqa: ANN001
    # expected: a vehicle that moves, moves the way it looks; one that is parked does not move
    from pyquaternion import Quaternion

    moving = 0
    for row in nusc.sample_annotation:
        velocity = nusc.box_velocity(row["token"])[:2]
        if np.isnan(velocity).any() or not row["category_name"].startswith("vehicle"):
            continue
        attribute = nusc.get("attribute", row["attribute_tokens"][0])["name"]
        if attribute == "vehicle.parked":
            assert np.hypot(*velocity) < 1e-6
        if np.hypot(*velocity) > 2.5 and "bicycle" not in row["category_name"]:
            heading = Quaternion(row["rotation"]).rotation_matrix[:2, 0]
            assert heading @ velocity / np.hypot(*velocity) > 0.85
            moving += 1
    assert moving > 2


def test_map_api_reads_all_layers_everywhere(nusc, root: Path) -> None:  # noqa: ANN001
    # expected: masks of the unmodified devkit; the ego car drives on drivable ground
    from nuscenes.map_expansion.map_api import NuScenesMap

    seen = dict.fromkeys(LAYERS, 0)
    for scene in nusc.scene:
        location = nusc.get("log", scene["log_token"])["location"]
        assert location in LOCATIONS
        city = NuScenesMap(str(root), location)
        lidar = nusc.get("sample", scene["first_sample_token"])["data"]["LIDAR_TOP"]
        x, y, _ = nusc.get("ego_pose", nusc.get("sample_data", lidar)["ego_pose_token"])["translation"]
        for angle in range(0, 360, 40):
            masks = city.get_map_mask((x, y, 100, 100), angle, LAYERS, (100, 100))
            assert masks[0, 49:51, 49:51].all()
            for name, mask in zip(LAYERS, masks, strict=True):
                seen[name] += int(mask.sum())
        lane = city.get_closest_lane(x, y, radius=6)
        assert lane and city.get_arcline_path(lane)
        city.get_outgoing_lane_ids(lane)
        assert city.layers_on_point(x, y)["drivable_area"]
        assert set(city.get_records_in_patch((x - 60, y - 60, x + 60, y + 60))) >= set(LAYERS)
    assert all(seen[name] for name in LAYERS if name != "carpark_area")  # a district may have no car park


def test_map_mask_png_agrees_with_the_polygons(nusc, root: Path) -> None:  # noqa: ANN001
    # expected: every ego position lies on the mask, as MapMask reads it
    for scene in nusc.scene:
        log = nusc.get("log", scene["log_token"])
        mask = nusc.get("map", log["map_token"])["mask"]
        pose = nusc.get(
            "ego_pose",
            nusc.get("sample_data", nusc.get("sample", scene["first_sample_token"])["data"]["LIDAR_TOP"])[
                "ego_pose_token"
            ],
        )
        x, y, _ = pose["translation"]
        assert mask.is_on_mask(x, y).all() and not mask.is_on_mask(x + 1e4, y).any()


def test_can_bus_api_and_ego_motion_agree(nusc, root: Path) -> None:  # noqa: ANN001
    # expected: interpolated CAN bus positions equal the ego poses; speed equals the change of position
    from nuscenes.can_bus.can_bus_api import NuScenesCanBus

    bus = NuScenesCanBus(str(root))
    for scene in nusc.scene:
        for message in bus.all_messages:
            assert bus.get_messages(scene["name"], message)
        pose = bus.get_messages(scene["name"], "pose")
        stamps = np.array([row["utime"] for row in pose])
        where = np.array([row["pos"] for row in pose])
        sample = nusc.get("sample", scene["first_sample_token"])
        while True:
            truth = nusc.get("ego_pose", nusc.get("sample_data", sample["data"]["LIDAR_TOP"])["ego_pose_token"])
            assert stamps[0] < truth["timestamp"] < stamps[-1]
            found = [np.interp(truth["timestamp"], stamps, where[:, axis]) for axis in range(2)]
            assert np.hypot(*(np.asarray(found) - truth["translation"][:2])) < 0.02
            if not sample["next"]:
                break
            sample = nusc.get("sample", sample["next"])
        speed = np.array([row["vel"][0] for row in pose])
        step = np.hypot(*np.diff(where[:, :2], axis=0).T) / np.diff(stamps) * 1e6
        assert np.abs(step - (speed[1:] + speed[:-1]) / 2).max() < 0.1
        route, poses = bus.get_pose_and_route(scene["name"])
        assert route.shape[1] == 2 and poses.shape[1] == 2


def test_val_scenes_lie_in_districts_of_their_own(nusc) -> None:  # noqa: ANN001
    # expected: no two scenes of a location come within sight of each other
    places = {}
    for scene in nusc.scene:
        lidar = nusc.get("sample_data", nusc.get("sample", scene["first_sample_token"])["data"]["LIDAR_TOP"])
        places.setdefault(nusc.get("log", scene["log_token"])["location"], []).append(
            nusc.get("ego_pose", lidar["ego_pose_token"])["translation"][:2]
        )
    assert sum(len(spots) for spots in places.values()) == len(nusc.scene)
    for spots in places.values():
        gaps = [np.hypot(*np.subtract(a, b)) for i, a in enumerate(spots) for b in spots[:i]]
        assert all(gap > 100 for gap in gaps)


def test_same_seed_same_bytes_for_any_number_of_workers(root: Path, tmp_path: Path) -> None:
    # expected: identical files; another seed differs
    generate(tmp_path / "set", 1, 1, seed=3, image_size=SIZE, sweeps=True, workers=2, frames=FRAMES, progress=False)
    first = digest(tmp_path / "set")
    assert first == digest(root)
    generate(
        tmp_path / "set", 1, 0, seed=4, image_size=SIZE, workers=1, frames=2, progress=False
    )  # it replaces its own kind
    assert not set(digest(tmp_path / "set").values()) & {
        v for k, v in first.items() if k.startswith(("samples", "can_bus"))
    }


def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bevstack.synthetic import generate as module

    def fail(task: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(module, "make_scene", fail)
    with pytest.raises(InputError, match="no space"):
        generate(tmp_path / "set", 1, 0, workers=1, progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"train_scenes": 0, "val_scenes": 0}, "--train-scenes"),
        ({"train_scenes": -1}, "--train-scenes"),
        ({"image_size": (3200, 1800)}, "--image-size"),
        ({"frames": 1}, "--frames"),
        ({"version": "../x"}, "--version"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_bad_arguments_are_named(tmp_path: Path, settings: dict, field: str) -> None:
    with pytest.raises(InputError) as caught:
        generate(**{"root": tmp_path / "set", "train_scenes": 1, "val_scenes": 0, "progress": False, **settings})
    assert caught.value.field == field and list(tmp_path.iterdir()) == []


def test_a_folder_of_other_data_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.txt").write_text("keep me")
    with pytest.raises(InputError, match="not a synthetic dataset"):
        generate(tmp_path / "photos", 1, 0, progress=False)
    assert (tmp_path / "photos" / "one.txt").read_text() == "keep me"


def test_settings_are_written_down(root: Path) -> None:
    note = json.loads((root / "synthetic.json").read_text())
    assert note["seed"] == 3 and note["image_size"] == list(SIZE) and note["train_scenes"] == 1


def test_command_line_tells_one_line_and_exits_with_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    # expected: the project's contract for bad input: `error: FILE: FIELD: reason`, exit code 2, nothing written
    tool = Path(__file__).parents[2] / "tools" / "create_synthetic.py"
    for size in ("800", "9000x9000"):
        monkeypatch.setattr("sys.argv", ["create_synthetic.py", "--root", str(tmp_path / "set"), "--image-size", size])
        with pytest.raises(SystemExit) as caught:
            runpy.run_path(str(tool), run_name="__main__")
        assert caught.value.code == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: create_synthetic: --image-size: ")
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_run_are_swept_up(tmp_path: Path) -> None:
    # expected: a partial folder whose process is gone disappears with the next run for the same folder
    left = tmp_path / ".set.partial-99999999"
    left.mkdir()
    generate(tmp_path / "set", 1, 0, seed=1, image_size=(64, 36), workers=1, frames=2, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_another_car_sees_the_same_world(tmp_path):
    # Expected: the same poses, and the same boxes of what both see; cameras higher by what the truck is, other images.
    for car in ("sedan", "truck"):
        generate(tmp_path / car, 1, 0, seed=2, image_size=(64, 36), workers=1, frames=2, progress=False, rig=car)
    tables = {car: tmp_path / car / "v1.0-mini" for car in ("sedan", "truck")}
    for name in ("ego_pose", "sample", "scene", "log"):
        assert (tables["sedan"] / f"{name}.json").read_bytes() == (tables["truck"] / f"{name}.json").read_bytes(), name
    boxes = [json.loads((folder / "sample_annotation.json").read_text()) for folder in tables.values()]
    places = [{box["token"]: (box["translation"], box["size"], box["rotation"]) for box in each} for each in boxes]
    both = places[0].keys() & places[1].keys()
    assert len(both) > 0.8 * len(places[0]) and all(places[0][token] == places[1][token] for token in both)
    mounts = [json.loads((folder / "calibrated_sensor.json").read_text()) for folder in tables.values()]
    heights = [[m["translation"][2] for m in each if m["camera_intrinsic"]] for each in mounts]
    assert np.allclose(np.subtract(heights[1], heights[0]), 1.2)
    image = next((tmp_path / "sedan" / "samples" / "CAM_BACK").glob("*.jpg"))
    assert image.read_bytes() != (tmp_path / "truck" / "samples" / "CAM_BACK" / image.name).read_bytes()
    with pytest.raises(InputError, match="--rig: 'tram' is none of sedan"):
        generate(tmp_path / "tram", 1, 0, progress=False, rig="tram")


def test_more_of_rare_kinds_in_training_scenes(tmp_path):
    # Expected: more objects of the rare kinds in the training scenes, by far more than one; validation as it was.
    def instances(rare: float, split: str) -> Counter:
        folder = tmp_path / str(rare) / "v1.0-mini"
        tables = {
            name: json.loads((folder / f"{name}.json").read_text())
            for name in ("scene", "sample", "sample_annotation", "instance", "category", "splits")
        }
        scenes = {scene["token"] for scene in tables["scene"] if scene["name"] in tables["splits"][split]}
        samples = {sample["token"] for sample in tables["sample"] if sample["scene_token"] in scenes}
        shown = {a["instance_token"] for a in tables["sample_annotation"] if a["sample_token"] in samples}
        names = {category["token"]: category["name"] for category in tables["category"]}
        return Counter(names[row["category_token"]] for row in tables["instance"] if row["token"] in shown)

    options = dict(seed=5, image_size=(64, 36), workers=1, frames=2, progress=False)
    for rare in (0.0, 3.0):
        generate(tmp_path / str(rare), 2, 1, rare=rare, **options)
    rare_kinds = ("vehicle.truck", "vehicle.trailer", "vehicle.bus.rigid", "vehicle.construction", "vehicle.bicycle")
    few, many = (sum(instances(rare, "train")[kind] for kind in rare_kinds) for rare in (0.0, 3.0))
    assert many > 1.5 * few > 0
    assert instances(0.0, "val") == instances(3.0, "val")
    assert json.loads((tmp_path / "3.0" / "synthetic.json").read_text())["rare"] == 3
    with pytest.raises(InputError, match="--rare: -1 is not between 0 and 10"):
        generate(tmp_path / "set", 1, 0, rare=-1, progress=False)


def of_small_set(root: Path, name: str, **settings) -> dict[str, list]:
    """Tables of a set of one train and one val scene."""
    made = dict(seed=2, image_size=(64, 36), workers=1, frames=2, progress=False)
    generate(root / name, 1, 1, **made, **settings)
    return {path.stem: json.loads(path.read_text()) for path in (root / name / "v1.0-mini").glob("*.json")}


def test_five_or_seven_cameras_see_the_same_world(tmp_path):
    # Expected: boxes as with six; the cameras that are the same stand where they stood, to the last digit; five see
    # nothing behind (no ray within 60 degrees of backwards), the seventh a third of what the front camera sees.
    tables = {number: of_small_set(tmp_path, str(number), cameras=number) for number in (5, 6, 7)}
    mounts = {}
    for number, each in tables.items():
        for name in ("sample", "scene", "log"):
            assert each[name] == tables[6][name], name
        places = [{box["token"]: (box["translation"], box["rotation"]) for box in t["sample_annotation"]}
                  for t in (each, tables[6])]  # fmt: skip
        both = places[0].keys() & places[1].keys()
        assert len(both) > 0.8 * len(places[1]) and all(places[0][token] == places[1][token] for token in both)
        channel = {sensor["token"]: sensor["channel"] for sensor in each["sensor"]}
        assert sum(name.startswith("CAM") for name in channel.values()) == number
        mounts[number] = {}
        for row in each["calibrated_sensor"]:
            mounts[number].setdefault(channel[row["sensor_token"]], row)
    keys = ("translation", "rotation", "camera_intrinsic")
    for number, same in ((5, ("CAM_FRONT", "CAM_FRONT_RIGHT", "CAM_FRONT_LEFT", "LIDAR_TOP")), (7, mounts[6])):
        for name in same:
            assert [mounts[number][name][key] for key in keys] == [mounts[6][name][key] for key in keys], name
    for name in mounts[5]:
        if name.startswith("CAM"):
            row = mounts[5][name]
            ahead = Quaternion(row["rotation"]).rotation_matrix @ [0, 0, 1]
            half_deg = np.degrees(np.arctan(32 / row["camera_intrinsic"][0][0]))
            assert abs(np.degrees(np.arctan2(ahead[1], ahead[0]))) + half_deg < 150, name
    focal = [mounts[7][name]["camera_intrinsic"][0][0] for name in ("CAM_FRONT_NARROW", "CAM_FRONT")]
    assert focal[0] > 2 * focal[1]
    with pytest.raises(InputError, match="--cameras: 8 is none of 5, 6, 7"):
        generate(tmp_path / "8", 1, 0, progress=False, cameras=8)


def test_val_scenes_alone_are_as_with_the_others(tmp_path):
    # Expected: the same rows and the same images of the val scene; nothing of the train scene.
    whole, alone = of_small_set(tmp_path, "whole"), of_small_set(tmp_path, "alone", only_val=True)
    names = [scene["name"] for scene in alone["scene"]]
    assert alone["splits"]["val"] == whole["splits"]["val"] == names and alone["splits"]["train"] == []
    for name in ("sample", "sample_data", "sample_annotation", "ego_pose", "calibrated_sensor"):
        tokens = {row["token"]: row for row in whole[name]}
        assert alone[name] and all(tokens[row["token"]] == row for row in alone[name])
    images = [row["filename"] for row in alone["sample_data"] if row["fileformat"] == "jpg"]
    assert all((tmp_path / "alone" / f).read_bytes() == (tmp_path / "whole" / f).read_bytes() for f in images)
    with pytest.raises(InputError, match="--only-val: leaves no scene"):
        generate(tmp_path / "none", 1, 0, progress=False, only_val=True)
