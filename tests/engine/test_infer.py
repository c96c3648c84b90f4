"""``tools/infer.py`` on a small model: files of a user in, results and pictures out, and one line for what is wrong."""

from __future__ import annotations

import io
import json
import os
import re
import sys
import threading
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from bevstack import Predictor, load_model
from bevstack.engine.image_folder import camera_of, find_moments
from bevstack.engine.infer import main
from bevstack.engine.moment_streams import records_in
from bevstack.engine.result_files import COLUMNS, box_rows, write_parquet
from bevstack.engine.rig_file import read_rig, rig_content
from bevstack.errors import InputError
from tests.engine.front_door import CAMERAS, EGO_FROM_BEV, SIZE_PX, images_of, pose, rig_of, saved, small_config

POSES = [pose(100 + 2 * t, 50, 5 * t) for t in range(3)]


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> Path:
    """A folder as a user has it: model, calibration, images of one moment, of three moments, and the car's poses."""
    folder = tmp_path_factory.mktemp("user")
    cfg = small_config()
    cfg.tracker = dict(type="CenterPointTracker")
    cfg.sample_visualizer = dict(type="SampleVisualizer", camera_height_px=60)
    saved(folder / "model.pth", cfg)
    (folder / "rig.json").write_text(json.dumps(rig_content(rig_of(image_size_px=[SIZE_PX] * 3))))
    for name in ("one", "clip"):
        (folder / name).mkdir()
    for t in range(3):
        for camera, image in zip(CAMERAS, images_of(t), strict=True):
            (folder / "clip" / camera).mkdir(exist_ok=True)
            cv2.imwrite(str(folder / "clip" / camera / f"{t}.png"), image[..., ::-1])
            if t == 0:
                cv2.imwrite(str(folder / "one" / f"{camera}.png"), image[..., ::-1])
    moments = [{"seconds": 7 + 0.5 * t, "global_from_ego": POSES[t].tolist()} for t in range(3)]
    (folder / "poses.json").write_text(json.dumps({"moments": moments}))
    return folder


def ask(user: Path, images: str, out: Path, *options: str) -> int:
    places = ["--images", str(user / images), "--calibration", str(user / "rig.json"), "--out", str(out)]
    return main([str(user / "model.pth"), *places, "--device", "cpu", *options])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def plain(value):
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


def test_a_folder_of_one_moment(user, tmp_path, capsys):
    # Expected: what Predictor.step says of the same files.
    assert ask(user, "one", tmp_path / "out", "--min-score", "0") == 0
    assert names(tmp_path / "out") == ["000000.json", "000000.png"]
    result = json.loads((tmp_path / "out" / "000000.json").read_text())
    predictor = Predictor(load_model(user / "model.pth", device="cpu"))
    expected, _ = predictor.step([user / "one" / f"{camera}.png" for camera in CAMERAS], rig_of())
    assert result["boxes"] == plain(expected.as_dict(cells=False)["boxes"]) and len(result["boxes"]) > 10
    assert result["boxes_frame"] == "bev" and set(result["images"]) == set(CAMERAS)
    assert result["rasters"]["map"]["layers"] == ["road", "grass"]
    assert capsys.readouterr().out == f"1 moment(s): JSON and picture of each in {tmp_path / 'out'}\n"
    with Image.open(tmp_path / "out" / "000000.png") as picture:
        assert picture.width > picture.height > 100


def test_a_clip_carries_its_memory(user, tmp_path, capsys):
    # Expected: what Predictor.stream says of the same moments; the boxes as the car, and as the world, sees them.
    options = ("--poses", str(user / "poses.json"), "--min-score", "0", "--no-pictures")
    ask(user, "clip", tmp_path / "out", *options)
    predictor, memory, rig = Predictor(load_model(user / "model.pth", device="cpu")), None, rig_of()
    from bevstack import Motion

    for t in range(3):
        motion = Motion.from_ego(POSES[t - 1], POSES[t], EGO_FROM_BEV, 0.5) if t else None
        images = [user / "clip" / camera / f"{t}.png" for camera in CAMERAS]
        prediction, memory = predictor.step(images, rig, motion, memory)
        result = json.loads((tmp_path / "out" / f"{t:06d}.json").read_text())
        assert result["boxes"] == plain(prediction.as_dict(cells=False)["boxes"]) and result["seconds"] == 7 + 0.5 * t
    for frame, matrix in (("ego", EGO_FROM_BEV), ("global", POSES[2] @ EGO_FROM_BEV)):
        ask(user, "clip", tmp_path / frame, *options, "--frame", frame)
        moved = json.loads((tmp_path / frame / "000002.json").read_text())
        assert moved["boxes_frame"] == frame
        there = matrix @ [*result["boxes"][0]["center_m"], 1]
        np.testing.assert_allclose(moved["boxes"][0]["center_m"], there[:3], atol=1e-3)
    assert names(tmp_path / "out") == [f"{t:06d}.json" for t in range(3)]


@pytest.mark.parametrize("flag", ["--check-cameras", "--mask-unhealthy"])
def test_what_is_wrong_with_cameras_is_written(user, tmp_path, flag):
    # Expected: a black camera is called so; masked, the moment is that of a camera without an image.
    folder = tmp_path / "one"
    folder.mkdir()
    for camera in CAMERAS:
        image = cv2.imread(str(user / "one" / f"{camera}.png"))
        cv2.imwrite(str(folder / f"{camera}.png"), image * (camera != CAMERAS[1]))
    assert ask(user, str(folder), tmp_path / "out", "--no-pictures", "--min-score", "0", flag) == 0
    result = json.loads((tmp_path / "out" / "000000.json").read_text())
    assert result["camera_health"] == {camera: ["black"] * (camera == CAMERAS[1]) for camera in CAMERAS}
    paths = [folder / f"{camera}.png" if camera != CAMERAS[1] else None for camera in CAMERAS]
    absent, _ = Predictor(load_model(user / "model.pth", device="cpu")).step(paths, rig_of())
    assert (result["boxes"] == plain(absent.as_dict(cells=False)["boxes"])) == (flag == "--mask-unhealthy")


def test_without_poses_each_moment_stands_alone(user, tmp_path, capsys):
    # Expected: the last moment as if it were the first; the files' own names; said in a note.
    ask(user, "clip", tmp_path / "out", "--min-score", "0", "--clip", "gif")
    assert "note: without --poses each moment stands alone" in capsys.readouterr().err
    assert names(tmp_path / "out") == sorted([*(f"{t}.{e}" for t in range(3) for e in ("json", "png")), "clip.gif"])
    predictor = Predictor(load_model(user / "model.pth", device="cpu"))
    alone, _ = predictor.step([user / "clip" / camera / "2.png" for camera in CAMERAS], rig_of())
    result = json.loads((tmp_path / "out" / "2.json").read_text())
    assert result["boxes"] == plain(alone.as_dict()["boxes"])
    with Image.open(tmp_path / "out" / "clip.gif") as clip:
        assert clip.n_frames == 3


def test_a_camera_without_images_is_said(user, tmp_path, capsys):
    # Expected: as a step with None in its place.
    files = [str(user / "one" / f"{camera}.png") for camera in CAMERAS[:2]]
    places = ["--images", *files, "--calibration", str(user / "rig.json"), "--out", str(tmp_path / "out")]
    main([str(user / "model.pth"), *places, "--device", "cpu", "--min-score", "0", "--cells"])
    assert "note: no images of CAM_RIGHT" in capsys.readouterr().err
    result = json.loads((tmp_path / "out" / "000000.json").read_text())
    predictor = Predictor(load_model(user / "model.pth", device="cpu"))
    expected, _ = predictor.step([*files, None], rig_of())
    assert result["rasters"] == plain(expected.as_dict()["rasters"])


def test_lines_on_standard_input_are_answered_one_by_one(user, tmp_path, monkeypatch, capsys):
    # Expected: an answer is printed before the next line is asked for; the same as the clip's; a new stream begins
    # anew; an empty line is passed over.
    def lines():
        for t in range(3):
            images = {camera: str(user / "clip" / camera / f"{t}.png") for camera in CAMERAS}
            moment = {"images": images, "seconds": 7 + 0.5 * t, "global_from_ego": POSES[t].tolist()}
            yield json.dumps(moment) + "\n"
            printed.append(capsys.readouterr().out)
            yield "\n"
        yield json.dumps({**moment, "stream": "b", "name": "again"}) + "\n"

    printed: list[str] = []
    monkeypatch.setattr(sys, "stdin", lines())
    options = ["--min-score", "0", "--no-pictures", "--track"]
    main([str(user / "model.pth"), "--images", "-", "--calibration", str(user / "rig.json"), "--out",
          str(tmp_path / "out"), "--device", "cpu", *options])  # fmt: skip
    answers = [json.loads(text) for text in [*printed, capsys.readouterr().out]]
    ask(user, "clip", tmp_path / "clip", *options, "--poses", str(user / "poses.json"))
    for t, answer in enumerate(answers[:3]):
        assert answer["boxes"] == json.loads((tmp_path / "clip" / f"{t:06d}.json").read_text())["boxes"]
    assert answers[2]["boxes"][0]["track_id"] >= 0
    assert answers[3]["name"] == "again" and answers[3]["boxes"] != answers[2]["boxes"]
    assert names(tmp_path / "out") == ["000000.json", "000002.json", "000004.json", "again.json"]


def moment_files(user: Path) -> list[str]:
    """The clip's moments as files of a folder that is watched."""
    made = []
    for t in range(3):
        images = {camera: str(user / "clip" / camera / f"{t}.png") for camera in CAMERAS}
        made.append(json.dumps({"images": images, "seconds": 7 + 0.5 * t, "global_from_ego": POSES[t].tolist()}))
    return made


def test_a_folder_that_is_watched(user, tmp_path, capsys):
    # Expected: the clip's own answers, in files and as lines; 10 comes after 9, whatever is written first; the end is
    # half a second after the last moment.
    (tmp_path / "in").mkdir()
    for name, text in reversed(list(zip(("8", "9", "10"), moment_files(user), strict=True))):
        (tmp_path / "in" / f"{name}.json").write_text(text)
    options = ["--min-score", "0", "--no-pictures"]
    main([str(user / "model.pth"), "--watch", str(tmp_path / "in"), "--idle-seconds", "0.5", "--calibration",
          str(user / "rig.json"), "--out", str(tmp_path / "out"), "--device", "cpu", *options])  # fmt: skip
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    ask(user, "clip", tmp_path / "clip", *options, "--poses", str(user / "poses.json"))
    assert [answer["name"] for answer in answers] == ["8", "9", "10"]
    for t, answer in enumerate(answers):
        assert answer["boxes"] == json.loads((tmp_path / "clip" / f"{t:06d}.json").read_text())["boxes"]
        assert answer == json.loads((tmp_path / "out" / f"{answer['name']}.json").read_text())


def test_moments_are_taken_as_they_come(user, tmp_path):
    # Expected: the file that is there; the one that comes while it is waited for; a half-written one when it is whole,
    # and before the one after it.
    first, second, third = moment_files(user)
    (tmp_path / "a.json").write_text(first)
    records = records_in(tmp_path, idle_seconds=20)
    assert next(records).name == "a"
    threading.Timer(0.2, (tmp_path / "b.json").write_text, [second]).start()
    record = next(records)
    assert record.name == "b" and record.seconds == 7.5
    (tmp_path / "c.json").write_text(third[:50])
    (tmp_path / "d.json").write_text(third)
    threading.Timer(0.2, (tmp_path / "c.json").write_text, [third]).start()
    assert [next(records).name, next(records).name] == ["c", "d"]
    records.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is no JSON: Expecting"), ("[]", "moment: is no JSON object"), ("{}", "moment.images: absent")],
)
def test_mistakes_in_a_watched_folder(tmp_path, text, said):
    (tmp_path / "a.json").write_text(text)
    os.utime(tmp_path / "a.json", (0, 0))  # long ago: nobody is writing it
    with pytest.raises(InputError, match=re.escape(f"{tmp_path / 'a.json'}: ")) as caught:
        next(records_in(tmp_path, idle_seconds=1))
    assert said in str(caught.value)


# --- which images belong together -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["CAM_FRONT.jpg", "CAM_LEFT.jpg"], {"000000": ["CAM_FRONT.jpg", "CAM_LEFT.jpg"]}),
        (
            ["a10_CAM_FRONT.jpg", "a2_CAM_FRONT.jpg", "a2-CAM_LEFT.png"],
            {"a2": ["a2_CAM_FRONT.jpg", "a2-CAM_LEFT.png"], "a10": ["a10_CAM_FRONT.jpg"]},
        ),
        (["CAM_FRONT/1.jpg", "CAM_FRONT/2.jpg", "CAM_LEFT/2.jpg", "CAM_LEFT/notes.txt"],
         {"1": ["CAM_FRONT/1.jpg"], "2": ["CAM_FRONT/2.jpg", "CAM_LEFT/2.jpg"]}),
        # nuScenes' own names: each camera has its own time stamps
        (["CAM_FRONT/n__CAM_FRONT__9.jpg", "CAM_FRONT/n__CAM_FRONT__12.jpg", "CAM_LEFT/n__CAM_LEFT__8.jpg",
          "CAM_LEFT/n__CAM_LEFT__13.jpg"],
         {"000000": ["CAM_FRONT/n__CAM_FRONT__9.jpg", "CAM_LEFT/n__CAM_LEFT__8.jpg"],
          "000001": ["CAM_FRONT/n__CAM_FRONT__12.jpg", "CAM_LEFT/n__CAM_LEFT__13.jpg"]}),
    ],
)  # fmt: skip
def test_images_become_moments(tmp_path, files, expected):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_moments([tmp_path], CAMERAS)
    listed = {record.name: [str(path.relative_to(tmp_path)) for path in record.images.values()] for record in found}
    assert listed == expected and list(listed) == list(expected)


def test_files_without_names_are_in_the_rigs_order(tmp_path):
    paths = [tmp_path / f"{name}.jpg" for name in "cab"]
    for path in paths:
        path.touch()
    (record,) = find_moments(paths, CAMERAS)
    assert record.images == dict(zip(CAMERAS, paths, strict=True))


def test_the_longest_name_is_the_camera():
    cameras = ("CAM_FRONT", "CAM_FRONT_LEFT", "cam0", "cam01")
    stems = ("x_CAM_FRONT_LEFT_3", "CAM_FRONT_3", "cam01", "cam0-7", "CAM_FRONTAL")
    assert [camera_of(stem, cameras) for stem in stems] == ["CAM_FRONT_LEFT", "CAM_FRONT", "cam01", "cam0", ""]


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_rig_survives_its_file(tmp_path):
    # Expected: the same numbers; JSON keeps every bit of a double.
    rig = rig_of(image_size_px=[SIZE_PX] * 3)
    (tmp_path / "rig.json").write_text(json.dumps(rig_content(rig)))
    read = read_rig(tmp_path / "rig.json")
    assert read.names == rig.names and np.array_equal(read.image_size_px, rig.image_size_px)
    assert np.array_equal(read.pixels_from_camera, rig.pixels_from_camera)
    np.testing.assert_allclose(read.camera_from_bev, rig.camera_from_bev, atol=1e-12)


ROW = {
    "name": "7", "stream": "", "seconds": 0.5, "boxes_frame": "bev",
    "boxes": [{"class": "car", "score": 0.5, "center_m": [1, 2, 3], "size_m": [4, 2, 1.5], "yaw": 0.1,
               "velocity_mps": None, "attribute": "vehicle.parked", "track_id": 3}],
}  # fmt: skip


def test_rows_of_boxes():
    # Expected: by hand; a part that nothing says is null.
    (row,) = box_rows(ROW)
    assert list(row) == list(COLUMNS)
    assert list(row.values()) == ["7", "", 0.5, "bev", "car", 0.5, 1, 2, 3, 4, 2, 1.5, 0.1, None, None,
                                  "vehicle.parked", 3]  # fmt: skip
    assert box_rows({"name": "7"}) == []


class RecordedWriter:
    """A file of a table's rows, group after group."""

    def __init__(self, path, schema):
        self.path, self.table = path, {"rows": [], "schema": schema}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.path.write_text(json.dumps(self.table))

    def write_table(self, table):
        self.table["rows"] += table["rows"]


class RecordedArrow(types.ModuleType):
    """What write_parquet asks of pyarrow, noted: names of types as pyarrow has them, the schema, the table."""

    string, float32, float64, int64 = (
        staticmethod(lambda name=name: name) for name in ("string", "float32", "float64", "int64")
    )

    class Table:
        @staticmethod
        def from_pylist(rows, schema):
            return {"rows": rows, "schema": schema}

    @staticmethod
    def schema(columns):
        return columns


def test_the_table_has_its_types_without_rows_too(tmp_path, monkeypatch):
    # pyarrow is an extra; here a stand-in notes what it is asked for.
    arrow, parquet = RecordedArrow("pyarrow"), types.ModuleType("pyarrow.parquet")
    parquet.ParquetWriter = RecordedWriter
    arrow.parquet = parquet
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    write_parquet(tmp_path / "boxes.parquet", [])
    table = json.loads((tmp_path / "boxes.parquet").read_text())
    assert table["rows"] == [] and [name for name, _ in table["schema"]] == list(COLUMNS)
    assert dict(table["schema"])["score"] == "float32" and dict(table["schema"])["x_m"] == "float64"


def test_a_table_that_is_read_again(tmp_path):
    # Expected: the row as it was handed in, and a table of no rows with the same columns.
    reader = pytest.importorskip("pyarrow.parquet", reason="the extra 'parquet' is not installed")
    rows = box_rows(ROW)
    write_parquet(tmp_path / "boxes.parquet", rows)
    table = reader.read_table(tmp_path / "boxes.parquet")
    assert table.to_pylist() == rows and table.schema.field("class").type == "string"
    write_parquet(tmp_path / "none.parquet", [])
    assert reader.read_table(tmp_path / "none.parquet").schema == table.schema


# --- mistakes ---------------------------------------------------------------------------------------------------------


def broken_rig(change) -> str:
    content = rig_content(rig_of())
    change(content)
    return json.dumps(content)


RIGS = {
    "not json": ("{", "--calibration: is no JSON"),
    "a list": ("[]", "content: is no JSON object with ego_from_bev, cameras"),
    "no cameras": (broken_rig(lambda rig: rig.pop("cameras")), "cameras: absent"),
    "no camera": (broken_rig(lambda rig: rig.update(cameras=[])), "cameras: is no list of cameras"),
    "misspelt": (broken_rig(lambda rig: rig["cameras"][1].update(ego_from_camra=1)),
                 "cameras[1].ego_from_camra: unknown; nearest: ego_from_camera"),
    "distorted": (broken_rig(lambda rig: rig["cameras"][0].update(distortion=[0])), "undistort the images first"),
    "twice": (broken_rig(lambda rig: rig["cameras"][2].update(name="CAM_LEFT")), "cameras[2].name: 'CAM_LEFT' stands"),
    "3 x 4": (broken_rig(lambda rig: rig["cameras"][0].update(ego_from_camera=np.eye(4)[:3].tolist())),
              "cameras[0].ego_from_camera: has shape (3, 4), expected (4, 4)"),
    "no pose": (broken_rig(lambda rig: rig["cameras"][2].update(ego_from_camera=np.diag([2, 2, 2, 1]).tolist())),
                "cameras[2].ego_from_camera: is no rotation"),
    "nan": (broken_rig(lambda rig: rig["cameras"][0].update(pixels_from_camera=(np.eye(3) * np.nan).tolist())),
            "cameras[0].pixels_from_camera: holds numbers that are not finite"),
    "one size": (broken_rig(lambda rig: rig["cameras"][0].update(image_size_px=[48, 80])),
                 "cameras[1].image_size_px: absent, though other cameras have it"),
    "no focus": (broken_rig(lambda rig: rig["cameras"][0].update(pixels_from_camera=np.zeros((3, 3)).tolist())),
                 "is no matrix of intrinsics"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGS)
def test_mistakes_in_the_calibration(tmp_path, name):
    text, said = RIGS[name]
    (tmp_path / "rig.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_rig(tmp_path / "rig.json")
    assert str(caught.value).startswith(f"{tmp_path / 'rig.json'}: ") and said in str(caught.value)


def posed(*moments: dict) -> str:
    return json.dumps({"moments": list(moments)})


STILL = {"seconds": 1, "global_from_ego": np.eye(4).tolist()}
POSE_FILES = {
    "not there": (None, "--poses: no such file"),
    "empty": (posed(), "moments: is no list of moments"),
    "too few": (posed(STILL), "1 poses for the 3 moments of the images"),
    "no time": (posed({"global_from_ego": np.eye(4).tolist()}), "moments[0].seconds: absent: a pose goes with"),
    "back": (posed(STILL, STILL, STILL), "moments[1].seconds: 1 is not after the moment before it in its stream (1)"),
    "camera": (posed({**STILL, "images": {"CAM_RIHGT": "a.png"}}), "the rig has no such camera; nearest: CAM_RIGHT"),
    "image": (posed({**STILL, "images": {"CAM_LEFT": "a.png"}}), "a.png: CAM_LEFT: no such image"),
    "blind": (posed({**STILL, "images": {"CAM_LEFT": None}}), "images: absent: no camera has an image"),
    "name": (posed({**STILL, "name": "../a"}), "moments[0].name: '../a' is no name for a file"),
    "names": (posed({**STILL, "name": "a"}, {**STILL, "name": "a"}), "moments[1].name: 'a' stands twice"),
    "key": (posed({**STILL, "second": 1}), "moments[0].second: unknown; nearest: seconds"),
}


@pytest.mark.parametrize("name", POSE_FILES)
def test_mistakes_in_the_poses(user, tmp_path, name):
    text, said = POSE_FILES[name]
    if text is not None:
        (tmp_path / "poses.json").write_text(text)
    with pytest.raises(InputError) as caught:
        ask(user, "clip", tmp_path / "out", "--poses", str(tmp_path / "poses.json"))
    assert said in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--images", "{user}/absent"], "absent: --images: no such file or folder"),
        (["--images", "{user}"], "its name holds no camera of the rig"),
        (["--images", "{tmp}"], "--images: holds no image"),
        (["--images", "{user}/one", "{user}/clip"], "give one folder, or files"),
        (["--calibration", "{user}/absent.json"], "absent.json: --calibration: no such file"),
        (["--min-score", "2"], "infer: --min-score: 2 is no score from 0 to 1"),
        (["--fps", "0"], "infer: --fps: must be positive"),
        (["--no-pictures", "--clip", "gif"], "infer: --clip: is made of the pictures"),
        (["--frame", "global"], "infer: --frame: global needs --poses"),
        (["--images", "-", "--poses", "{user}/poses.json"], "'-' stands alone"),
        (["--idle-seconds", "1"], "infer: --idle-seconds: a positive number"),
        (["--out", "{user}/rig.json"], "rig.json: --out: cannot be written to"),
        (["--device", "cuda:77"], "infer: --device: 'cuda:77' is not there"),
        (["--device", "toaster"], "infer: --device: 'toaster' is not there"),
    ],
)
def test_mistakes_on_the_command_line(user, tmp_path, options, said):
    (user / "picture.png").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError) as caught:
        ask(user, "one", tmp_path / "out", *(part.format(user=user, tmp=tmp_path) for part in options))
    assert said in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--watch", "{tmp}/absent", "--out", "{tmp}/out"], "absent: --watch: no such folder"),
        (["--watch", "{tmp}", "--out", "{tmp}"], "--out: is the folder that is watched"),
        (["--watch", "{tmp}", "--out", "{tmp}/out", "--poses", "p.json"], "--watch: goes without --poses"),
        (["--watch", "{tmp}", "--out", "{tmp}/out", "--idle-seconds", "0"], "--idle-seconds: a positive number"),
    ],
)
def test_mistakes_of_watching(user, tmp_path, options, said):
    given = [part.format(tmp=tmp_path) for part in options]
    with pytest.raises(InputError) as caught:
        main([str(user / "model.pth"), "--calibration", str(user / "rig.json"), *given])
    assert said in str(caught.value) and not (tmp_path / "out").exists()


def test_unequal_cameras_are_refused(tmp_path):
    for name in ("CAM_FRONT_1.jpg", "CAM_FRONT_2.jpg", "CAM_LEFT_3.jpg"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="share no names and are not equally many: CAM_FRONT 2, CAM_LEFT 1"):
        find_moments([tmp_path], CAMERAS)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "stdin: line 1: is no JSON"),
        ("[]", "stdin: line 1: is no JSON object"),
        ("{}", "stdin: line 1.images: absent: no camera has an image"),
        ('{"images": {"CAM_LEFT": "gone.png"}}', "gone.png: CAM_LEFT: no such image (stdin)"),
    ],
)
def test_mistakes_on_standard_input(user, tmp_path, monkeypatch, line, said):
    monkeypatch.setattr(sys, "stdin", io.StringIO(line + "\n"))
    with pytest.raises(InputError) as caught:
        main([str(user / "model.pth"), "--images", "-", "--calibration", str(user / "rig.json"), "--out",
              str(tmp_path / "out"), "--device", "cpu"])  # fmt: skip
    assert said in str(caught.value)
