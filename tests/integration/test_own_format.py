"""``docs/custom_dataset.md``, second half: a format of its own, without nuScenes, from files to pictures."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bevstack.datasets import ClipDataset, transforms
from bevstack.datasets.clips import ClipIndex
from bevstack.datasets.format import SampleTable
from bevstack.datasets.plausibility import findings
from bevstack.datasets.record_checks import check_samples
from bevstack.datasets.transforms import BEVRotateScaleFlip, LoadBEVMap, LoadPastCenters, RasteriseBoxes
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from tests.integration.conftest import made_once, run_command
from tests.integration.pages import Page, assert_nothing_is_left, assert_one_line, forget, logs_of, run

PAGE = Page("custom_dataset.md", start="# A format of your own", end="# Transforms")
TRANSFORMS = Page("custom_dataset.md", start="# Transforms")
CLASSES = ("forklift", "container", "person")
FRAMES = 4
GRID = BEVGrid(shape=(80, 100), x_range_m=(-25.0, 25.0), y_range_m=(-20.0, 20.0))
ROOM = "bevstack.datasets.nuscenes"
# mmengine imports every place that a registry names at its first look-up. Where the nuScenes room is not among them,
# whatever is loaded of it is loaded by something that needs it.
FOLLOW = f"""
import sys
from pathlib import Path
from bevstack.registry import DATASETS
DATASETS._locations.remove("{ROOM}.dataset")
from tests.integration.pages import Page, follow
follow(Page("custom_dataset.md", start="# A format of your own", end="# Transforms"), *map(Path, sys.argv[1:]))
print("loaded:", *sorted(name for name in sys.modules if name.startswith("{ROOM}")))
"""


def make_frames(folder: Path) -> None:
    """The page's first command."""
    PAGE.write(folder)
    script, root = PAGE.text.split("python yard/")[1].splitlines()[0].split()
    run_command(folder / "yard" / script, folder / root)


@pytest.fixture
def frames(tiny) -> Path:
    """The page's configuration, beside the tiny demo's; its folders are made."""
    made_once(tiny.folder, "frames", lambda: make_frames(tiny.folder))
    config = tiny.config.with_name("frames.py")
    config.write_text(PAGE.files["configs/frames.py"].replace("data/frames", str(tiny.folder / "data" / "frames")))
    return config


@pytest.fixture
def root(frames) -> Path:
    return frames.parents[1] / "data" / "frames"


@pytest.fixture
def module(frames, monkeypatch):
    """The page's module, imported for one test."""
    forget("frame_folders")
    monkeypatch.syspath_prepend(str(frames.parents[1] / "yard"))
    yield importlib.import_module("frame_folders")
    forget("frame_folders")


@pytest.fixture
def clips(module, root):
    def build(split="train", classes=CLASSES, **options):
        return module.FrameFolders(root, split, classes, **{"test_mode": True, **options})

    return build


def test_it_trains_is_scored_and_drawn_without_the_nuscenes_room(frames, root, tmp_path):
    # The page's own commands. Of nuScenes' room nothing is loaded but names, which its own metrics compare with.
    assert PAGE.lines_of("yard/frame_folders.py") <= 80
    done = run_command("-c", FOLLOW, tmp_path, frames, PYTHONPATH=f"{frames.parents[1] / 'yard'}:{':'.join(sys.path)}")
    assert done.stdout.splitlines()[-1] == f"loaded: {ROOM} {ROOM}.split_names {ROOM}.taxonomy"

    logs = logs_of(tmp_path)
    assert len(logs) == 8 and np.isfinite([log["loss"] for log in logs]).all()  # 16 frames, two at a time
    assert logs[0]["detection.loss_heatmap"] > 0 and logs[0]["map.loss_cell"] > 0 and logs[0]["obstacles.loss_cell"] > 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert {"mAP", "mATE", "mAVE", "iou/paved", "iou/obstacles", *(f"AP/{name}" for name in CLASSES)} <= set(metrics)
    # Expected counts: the boxes of the two val scenes within 40 m, from the JSON files.
    boxes = [box for path in (root / "val").rglob("*.json") for box in json.loads(path.read_text())["boxes"]]
    for name in CLASSES:
        near = [box for box in boxes if box["class"] == name and np.hypot(*box["center"][:2]) < 40]
        assert metrics[f"gt/{name}"] == len(near) > 0, name
    for scene in ("e", "f"):
        pictures = sorted((tmp_path / "vis" / scene).glob("*.png"))
        assert len(pictures) == FRAMES and np.asarray(Image.open(pictures[0]).convert("RGB")).std() > 10


def test_what_is_everyones_loads_nothing_of_the_room():
    code = "import sys, bevstack.datasets, bevstack.engine.visualize, bevstack.tracking, bevstack.reference.can_bus;"
    code += f"print(sorted(name for name in sys.modules if name.startswith('{ROOM}')))"
    assert run_command("-c", code).stdout.strip() == "[]"


# --- what the format gets for its five methods ----------------------------------------------------------------------


def test_frames_by_hand(clips):
    # Frame 2 of scene a: the vehicle is 2 m ahead of its start and turned left by 10 degrees, frame 1 by 5 at 1 m.
    dataset = clips(num_frames=2)
    clip = dataset.clip(2)
    assert [frame.token for frame in clip.frames] == ["a-1", "a-2"]
    assert (clip.prev_token, clip.next_token, clip.scene.name, clip.timestamp_s) == ("a-1", "a-3", "a", 1.0)
    motion = clip.frames[-1].previous_from_current
    turn, angle = np.radians(5), np.arctan2(motion[1, 0], motion[0, 0])
    # Seen from frame 1, whose x points right, 1 m along the global x axis is ahead and a little to the right.
    np.testing.assert_allclose([angle, *motion[:2, 3]], [turn, np.sin(turn), np.cos(turn)], atol=1e-12)
    assert clip.frames[-1].seconds == 0.5 and clip.frames[-1].has_previous
    # [0:3] of the CAN-bus vector is the same metre in the axes of frame 2; [17] the turn in degrees; no bus: no speed.
    vector = clip.frames[-1].can_bus
    np.testing.assert_allclose(vector[:2], [np.sin(2 * turn), np.cos(2 * turn)], atol=1e-12)
    assert vector[17] == pytest.approx(5) and not vector[7:16].any()
    cameras = clip.frames[-1].cameras
    assert list(cameras.names) == ["AHEAD", "LEFT", "RIGHT"]
    # 10 m ahead (BEV y) and 1.5 m up lies on the principal point of AHEAD, 10 m deep.
    u, v, depth = cameras.pixels_from_camera[0] @ (cameras.camera_from_bev[0] @ [0, 10, 1.5, 1])[:3]
    np.testing.assert_allclose([u / depth, v / depth, depth], [80, 48, 10], atol=1e-9)


def test_boxes_stand_where_their_images_show_them(clips, module, root):
    # Expected: the centre of a box that is alone in its direction shows the box's colour in the stored image.
    dataset, found = clips(), 0
    colors = {"forklift": (250, 200, 0), "container": (30, 90, 180), "person": (220, 60, 60)}  # the page's, as RGB
    for i in range(len(dataset)):
        clip = dataset.clip(i)
        cameras, objects = clip.frames[-1].cameras, clip.objects
        centers = np.c_[
            objects.boxes[:, :2], objects.boxes[:, 2] + objects.boxes[:, 5] / 2, np.ones(len(objects.boxes))
        ]
        distance = np.hypot(*centers[:, :2].T)
        for path, pixels, from_bev in zip(
            cameras.image_paths, cameras.pixels_from_camera, cameras.camera_from_bev, strict=True
        ):
            image = np.asarray(Image.open(path).convert("RGB")).astype(int)
            seen = (centers @ from_bev.T)[:, :3] @ pixels.T
            u, v = (seen[:, :2] / seen[:, 2:]).T
            for k in np.flatnonzero((seen[:, 2] > 4) & (u > 2) & (u < image.shape[1] - 2) & (distance < 15)):
                hidden = (np.abs(u - u[k]) < 25) & (seen[:, 2] > 0) & (distance < distance[k])
                if not hidden.any():
                    color = image[int(v[k]), int(u[k])]
                    found += 1
                    assert np.abs(color - colors[dataset.classes[objects.labels[k]]]).max() < 40, (path, k)
    assert found > 20


def test_what_stands_still_stays_where_it_is(clips):
    # Things stand, the vehicle drives and turns: in today's frame each was always where it is now.
    for num_frames, queue in ((1, "random"), (3, "consecutive"), (3, "random")):
        dataset = clips(num_frames=num_frames, queue=queue, test_mode=False)
        results = LoadPastCenters(3)(dataset.pipeline_dict(3))
        now = np.repeat(results["boxes"][:, None, :2], 3, axis=1)
        assert results["past_centers"].shape == now.shape and len(now) == 12
        known = np.isfinite(results["past_centers"])
        assert known[:, :2].all() and known.all() or num_frames == 3
        np.testing.assert_allclose(results["past_centers"][known], now[known], atol=1e-4)
    first = LoadPastCenters(2)(clips().pipeline_dict(0))["past_centers"]
    assert np.isfinite(first[:, 0]).all() and np.isnan(first[:, 1]).all()


def test_the_map_lies_under_the_boxes_also_when_augmented(clips):
    # Expected: the page's picture is paved where the global y is from -10 to 10 m.
    dataset = clips(split="val")
    for augment in (lambda results: results, BEVRotateScaleFlip((20, 20), (1.1, 1.1), 1.0, 0.0)):
        results = LoadBEVMap(GRID)(augment(dataset.pipeline_dict(7)))
        raster = results["rasters"]["map"]
        assert raster.classes == ("paved",)
        global_from_grid = results["global_from_bev"] @ np.linalg.inv(results["augmented_from_bev"])
        centers = GRID.cell_centers().double().numpy()
        y = centers @ global_from_grid[1, :2] + global_from_grid[1, 3]
        certain = np.abs(np.abs(y) - 10) > 0.5
        assert 0.1 < (np.abs(y) < 10).mean() < 0.9
        np.testing.assert_array_equal(raster.layers[0].numpy()[certain] > 0, (np.abs(y) < 10)[certain])


def test_names_of_its_own(clips):
    # The taxonomy's group is painted where no layers are named; classes choose and number the labels.
    raster = RasteriseBoxes(GRID, name="obstacles")(clips().pipeline_dict(1))["rasters"]["obstacles"]
    assert raster.classes == ("obstacles",) and raster.layers.sum() > 0
    everything, people = clips().clip(0).objects, clips(classes=("person",)).clip(0).objects
    assert len(people.labels) == (everything.labels == 2).sum() > 0 and not people.labels.any()
    np.testing.assert_array_equal(people.boxes, everything.boxes[everything.labels == 2])
    with pytest.raises(InputError, match="RasteriseBoxes.layers: 'forklift' is not there: the dataset has the classes"):
        clips(classes=("person",), pipeline=[dict(type="RasteriseBoxes", grid=GRID)])


def test_truth_streams_and_seeds(clips):
    dataset = clips(split="val", test_mode=False, num_frames=3)
    assert dataset.metainfo == {"classes": CLASSES, "split": "val", "dataset": "FrameFolders"}
    assert dataset.scene_names == ["e"] * FRAMES + ["f"] * FRAMES and dataset.locations == ("yard",)
    assert dataset.stream_starts.tolist() == [True, False, False, False] * 2
    assert dataset.earlier_tokens("f-3", 2) == ["f-2", "f-1"] and dataset.earlier_tokens("f-1", 5) == ["f-0"]
    for i in range(len(dataset)):
        clip = dataset.clip(i)
        truth = dataset.truth(clip.frames[-1].token)
        np.testing.assert_array_equal(truth.boxes, clip.objects.boxes)  # no points are counted: all are learned
        assert dataset.camera_views(clip.frames[-1].token).image_paths == clip.frames[-1].cameras.image_paths
    assert clips(split="val", max_gap_seconds=0.1).stream_starts.all()
    drawn = [[frame.token for frame in dataset.clip(ClipIndex(7, epoch)).frames] for epoch in range(12)]
    assert {tuple(tokens) for tokens in drawn} == {("f-0", "f-1", "f-3"), ("f-0", "f-2", "f-3"), ("f-1", "f-2", "f-3")}
    again = [[frame.token for frame in dataset.clip(ClipIndex(7, epoch)).frames] for epoch in range(12)]
    assert drawn == again


# Slip of a format's author -> change of the module's text, the measure that doubts it, words of the doubt.
FLAT = "np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])"  # x ahead, y left, z up
SLIPS = {
    "boxes of another frame": ("-y, x, z - height", "x + 500, y, z - height", "boxes within 51.2 m", "in which frame"),
    "a camera's axes": (
        'np.array([camera["camera_from_v', f'{FLAT} @ np.array([camera["camera_from_v',
        "cameras' axes above the horizon", "a camera's z axis points ahead",
    ),
    "another image size": (
        'np.array([camera["size"]', '4 * np.array([camera["size"]', "principal point", "of another image size?",
    ),
    "a clock in milliseconds": ("1e6 * seconds", "1e3 * seconds", "time between samples", "in microseconds?"),
    "poses in millimetres": (
        'np.array(self.frames[row]["global', '[[1, 1, 1, 1e3]] * np.array(self.frames[row]["global',
        "ego speed", "the ego jumps 1000 m in a at sample a-1, and 11 times more",
    ),
    "unknown velocities": ("-vy, vx", "np.nan, np.nan", "known velocities", "who moves and who stands"),
    "one image for all": ('camera["image"])', '"0_AHEAD.jpg")', "image files", "16 samples show one file"),
}  # fmt: skip


def test_it_is_plausible(clips):
    # Expected from the page's script: 2 scenes of 4 frames, 0.5 s and 1 m apart (2 m/s) and turned by 5 degrees (10 a
    # second); things stand; focal length of half the width: 90 degrees each, three cameras 70 apart see 230 of 360.
    measures = {finding.what: finding for finding in findings(clips(split="val", test_mode=False))}
    assert not any(finding.doubt for finding in measures.values())
    assert "boxes with points" not in measures  # nobody counts them
    for what, found in {
        "boxes within 51.2 m": "96 of 96 (100 %)",
        "known velocities": "96 of 96 (100 %)",
        "ego speed": "2.0 m/s (median), 2.0 at most",
        "ego turn": "10.0 degrees/s (median), 10.0 at most",
        "time between samples": "0.5 s (median), 0.5 to 0.5, 0 pauses above 2 s",
        "field of view": "90 to 90 degrees",
        "directions that a camera sees": "64 %",
        "image files": "24 of 24 named",
    }.items():
        assert measures[what].found == found


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_of_a_format_is_doubted_by_name(root, module, tmp_path, monkeypatch, slip):
    before, after, what, doubt = SLIPS[slip]
    text = PAGE.files["yard/frame_folders.py"]
    assert text.count(before) == 1
    (tmp_path / "frame_folders.py").write_text(text.replace(before, after))
    forget("frame_folders")
    monkeypatch.syspath_prepend(str(tmp_path))
    slipped = importlib.import_module("frame_folders")
    measures = {finding.what: finding for finding in findings(slipped.FrameFolders(root, "train", CLASSES))}
    assert doubt in measures[what].doubt, measures


# What an author may answer wrongly -> method, change of its record, the line about sample a-0.
WRONG_ANSWERS = {
    "one calibration": ("cameras", dict(pixels_from_camera=np.eye(3)), "pixels_from_camera is (3, 3), not (3, 3, 3)"),
    "a path": ("cameras", dict(image_paths="a.jpg"), "image_paths is (), not (3,)"),
    "images of no size": ("cameras", dict(image_size_px=np.zeros((3, 2), int)), "image_size_px must be 1 or more"),
    "a pose of nothing": ("cameras", dict(camera_from_bev=np.full((3, 4, 4), np.nan)), "camera_from_bev is not finite"),
    "boxes without velocity": ("objects", dict(boxes=np.ones((12, 7))), "objects.boxes is (12, 7), not (12, 9)"),
    "labels from 1": ("objects", dict(labels=np.full(12, 3)), "objects.labels: 3 is no place in the 3 classes"),
    "a label too few": ("objects", dict(labels=np.zeros(11, int)), "objects.labels are 11, but boxes 12"),
    "a box without size": ("objects", dict(boxes=np.zeros((12, 9))), "length, width, height, yaw) is no box"),
    "a box nowhere": ("objects", dict(boxes=np.full((12, 9), np.nan)), "length, width, height, yaw) is no box"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG_ANSWERS)
def test_wrong_answers_are_one_line(root, clips, monkeypatch, case):
    dataset = clips()
    method, fields, said = WRONG_ANSWERS[case]
    answer = replace(getattr(dataset, method)(0), **fields)
    monkeypatch.setattr(dataset, method, lambda row: answer)
    asked = [lambda: dataset.clip(0), lambda: findings(dataset)]
    asked += [lambda: dataset.truth("a-0") if method == "objects" else dataset.camera_views("a-0")]
    for ask in asked:
        with pytest.raises(InputError) as caught:
            ask()
        assert str(caught.value).startswith(f"{root}: sample a-0: ") and said in str(caught.value)


def test_unknown_velocities_are_no_wrong_answer(clips, monkeypatch):
    dataset = clips()
    objects = dataset.objects(0)
    boxes = objects.boxes.copy()
    boxes[:, 7:] = np.nan
    monkeypatch.setattr(dataset, "objects", lambda row: replace(objects, boxes=boxes))
    np.testing.assert_array_equal(dataset.clip(0).objects.boxes, boxes)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (dict(type="LoadPastCenters", num_frames=2), "LoadPastCenters: the dataset's objects have no instance_ids"),
        (dict(type="RasteriseBoxes", grid=GRID, min_visibility=2), "min_visibility: the dataset does not know how"),
        (dict(type="MakePanopticMap", grid=GRID, min_visibility=2, stuff=()), "min_visibility: the dataset does not"),
        (dict(type="MakePanopticMap", grid=GRID, things=("boat",), stuff=()), "things: 'boat' is not there: the"),
        (dict(type="MakePanopticMap", grid=GRID, stuff=("paved",)), "raster 'map' is not there: put LoadBEVMap before"),
    ],
)
def test_what_a_dataset_does_not_know_is_refused_where_it_is_built(module, root, step, said):
    class Nameless(module.FrameFolders):
        def objects(self, row):
            return replace(super().objects(row), instance_ids=None)

    with pytest.raises(InputError) as caught:
        Nameless(root, "train", CLASSES, pipeline=[step])
    assert said in str(caught.value)


def test_other_cameras_in_one_sample_are_named(clips, monkeypatch):
    dataset = clips(num_frames=2)
    cameras = dataset.cameras
    monkeypatch.setattr(dataset, "cameras", lambda row: replace(cameras(row), names=["A", "B", str(row // 2)]))
    with pytest.raises(InputError, match="a-2: has other cameras than a-1"):
        dataset.clip(2)
    with pytest.raises(InputError, match="a-2: has other cameras than a-"):
        findings(dataset)


@pytest.mark.parametrize(
    ("scene", "seconds", "said"),
    [
        ([], [], "samples: there is none"),
        ([0, 0, 1, 0], [0, 1, 0, 2], "samples: row 3: scene 0 goes on after another one"),
        ([0, 0, 0], [0, 2, 1], "samples: row 2: its time is 1000000 microseconds, not later than 2000000"),
        ([0, 0, 0], [0, 1, 1], "samples: row 2: its time is"),
        ([0, 0, 0], [0, 1], "samples: scene is \\(3,\\) and timestamp_us \\(2,\\)"),
    ],
)
def test_samples_out_of_order_are_refused(module, root, scene, seconds, said):
    # Streams and memories go from a row to the next one.
    class Other(module.FrameFolders):
        def __init__(self):
            self.root, self.frames, self.paths = root, [], []
            samples = SampleTable(np.array(scene, int), (1e6 * np.array(seconds)).astype(np.int64))
            ClipDataset.__init__(self, samples, root, "train", CLASSES)

    with pytest.raises(InputError, match=said):
        Other()
    # Another scene may begin earlier than the one before it ends.
    check_samples(SampleTable(np.array([5, 5, 2]), np.array([100, 200, 100])), root)


def test_the_pictures_of_a_dataset_begin_with_the_table(frames, tmp_path, capfd):
    options = ["--ground-truth", str(frames), "--max-samples", "2", "--format", "none", "--out", str(tmp_path / "vis")]
    environment = {"PYTHONPATH": f"{frames.parents[1] / 'yard'}:{':'.join(sys.path)}"}
    done = run_command("tools/visualize.py", *options, **environment)
    assert "plausibility" in done.stdout and "24 of 24 (100 %)" in done.stdout  # 12 boxes at each of two samples
    assert done.stdout.splitlines()[-1].startswith("2 picture(s)") and "warning" not in done.stderr


def test_records_keep_their_objects_together(clips):
    objects = clips().clip(0).objects
    few = objects.kept(objects.labels == 1)
    assert set(few.known()) == {"boxes", "labels", "instance_ids"} and few.num_points is None
    np.testing.assert_array_equal(few.instance_ids, objects.instance_ids[objects.labels == 1])
    counted = replace(objects, num_lidar_pts=objects.labels, num_radar_pts=objects.labels)
    assert counted.num_points.tolist() == (2 * objects.labels).tolist()


# --- the page -------------------------------------------------------------------------------------------------------


def test_every_transform_is_in_the_table():
    named = [row.split("`")[1] for row in TRANSFORMS.text.splitlines() if row.startswith("| `")]
    assert sorted(named) == sorted(transforms.__all__)


# The page's mistakes: options of the command line, and changes of the configuration's or the module's text.
HOW: dict[str, tuple[list[str], dict[str, tuple[str, str]]]] = {
    '`split="vall"`': (["test_dataloader.dataset.split=vall"], {}),
    "`LoadBEVMap` without `yard.png`": (["test_dataloader.dataset.data_root=BARE"], {}),
    '`layers=("grass",)` in `LoadBEVMap`': (['test_dataloader.dataset.pipeline.2.layers=["grass"]'], {}),
    "`LoadCameraSweeps`": (
        [],
        {"configs/frames.py": ("Images\"),\n", "Images\"),\n    dict(type=\"LoadCameraSweeps\", num_sweeps=2),\n")},
    ),
    "no method `objects`": ([], {"yard/frame_folders.py": ("def objects", "def things")}),
}  # fmt: skip


def test_every_mistake_of_the_page_is_made_here():
    assert {mistake for mistake, _ in PAGE.mistakes} == set(HOW)


@pytest.mark.parametrize(("mistake", "said"), PAGE.mistakes, ids=[mistake for mistake, _ in PAGE.mistakes])
def test_mistakes_give_one_line(frames, root, tmp_path, monkeypatch, capfd, mistake, said):
    # Expected: the page's line on stderr, alone; exit code 2; nothing left behind.
    options, changes = HOW[mistake]
    if "BARE" in str(options):
        shutil.copytree(root, tmp_path / "bare", ignore=shutil.ignore_patterns("yard.png"))
        options, root = [options[0].replace("BARE", str(tmp_path / "bare"))], tmp_path / "bare"
    texts = {**PAGE.files, "configs/frames.py": frames.read_text()}
    for file, (before, after) in changes.items():
        assert before in texts[file]
        texts[file] = texts[file].replace(before, after)
    config = frames.with_name("mistaken_frames.py")
    config.write_text(texts["configs/frames.py"])
    (tmp_path / "frame_folders.py").write_text(texts["yard/frame_folders.py"])
    forget("frame_folders")
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = [str(config), "--ground-truth", "--out", str(tmp_path / "vis")]
    assert run("tools/visualize.py", [*arguments, *(["--cfg-options", *options] if options else [])]) == 2
    forget("frame_folders")
    assert_one_line(capfd.readouterr().err, said.replace("ROOT", str(root)), config.name)
    assert_nothing_is_left(tmp_path)
