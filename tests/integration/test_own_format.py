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

from bevstack.datasets import transforms
from bevstack.datasets.clips import ClipIndex
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
    # The page's own commands. Of nuScenes' room nothing is loaded but its names, which its own metrics compare with.
    assert PAGE.lines_of("yard/frame_folders.py") <= 80
    done = run_command("-c", FOLLOW, tmp_path, frames, PYTHONPATH=f"{frames.parents[1] / 'yard'}:{':'.join(sys.path)}")
    assert done.stdout.splitlines()[-1] == f"loaded: {ROOM} {ROOM}.taxonomy"

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
    arguments = [str(config), "--dataset-only", "--out", str(tmp_path / "vis")]
    assert run("tools/visualize.py", [*arguments, *(["--cfg-options", *options] if options else [])]) == 2
    forget("frame_folders")
    assert_one_line(capfd.readouterr().err, said.replace("ROOT", str(root)), config.name)
    assert_nothing_is_left(tmp_path)
