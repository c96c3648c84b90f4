"""Part of the files is not there: what is missing is counted, refused or left out, and nothing is found out later."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from tables import VERSION, build_root, edit_table
from test_camera_sweeps import add_sweeps

from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.nuscenes.index import NuScenesIndex
from bevstack.datasets.nuscenes.index_writer import write_index
from bevstack.datasets.nuscenes.sample_rows import IndexChoices
from bevstack.datasets.transforms import LoadCameraSweeps, LoadMultiViewImages
from bevstack.errors import InputError


@pytest.fixture(scope="module")
def valid_root(tmp_path_factory) -> Path:
    root = build_root(tmp_path_factory.mktemp("valid") / "root")
    add_sweeps(root)
    return root


@pytest.fixture
def root(valid_root, tmp_path) -> Path:
    return Path(shutil.copytree(valid_root, tmp_path / "root"))


def create(root: Path, **choices) -> dict:
    return write_index(root, VERSION, maps=False, choices=IndexChoices(**choices), progress=lambda text: None)


def drop_key_frame(root: Path, token: str) -> None:
    edit_table(
        root,
        "sample_data",
        lambda records: [r if r["token"] != token else {**r, "is_key_frame": False} for r in records],
    )


def test_missing_images_are_counted_and_the_way_out_is_named(root):
    for image in (root / "samples").rglob("s1k*.jpg"):
        image.unlink()
    # By hand: the three samples of scene-0003 with six cameras.
    said = r"3 of 7 samples are not whole: 18 image files are missing; --skip-missing leaves them out"
    with pytest.raises(InputError, match=said) as caught:
        create(root)
    assert caught.value.file.endswith("samples/CAM_FRONT/s1k0.jpg") and caught.value.field == "image"
    assert not (root / "bevstack-index").exists()


def test_samples_that_are_not_whole_are_left_out_of_splits(root):
    for image in (root / "samples").rglob("s1k*.jpg"):
        image.unlink()
    (root / "samples/CAM_BACK/s0k1.jpg").unlink()
    with pytest.warns(UserWarning, match="4 of 7 samples are not whole: 19 image files are missing; they are left out"):
        summary = create(root, skip_missing=True)
    index = NuScenesIndex.open(root, VERSION)
    assert (summary["samples"], summary["scenes"]) == (3, 1)
    assert [index.token(row) for row in index.samples("tiny_train")] == ["s0k0", "s0k2", "s0k3"]
    assert "tiny_val" not in index.splits
    assert index.left_out.keys() == {"s0k1", "s1k0", "s1k1", "s1k2"}
    # The sample after the hole follows the one before it, 1 s away: within a stream, whose pauses are 2 s at most.
    dataset = NuScenesBEVDataset(root, VERSION, "tiny_train")
    assert dataset.clip(1).frames[0].has_previous and dataset.clip(1).frames[0].seconds == pytest.approx(1.0)
    assert dataset.metainfo["left_out"] == tuple(index.left_out)
    # Velocities are the whole tables': the car runs 3 m per 0.5 s, also next to the hole.
    np.testing.assert_allclose(index.boxes(0).velocity[0], [6.0, 0, 0])
    np.testing.assert_allclose(index.boxes(1).velocity[0], [6.0, 0, 0])


def test_nothing_whole_is_refused(root):
    shutil.rmtree(root / "samples" / "CAM_BACK")
    with pytest.raises(InputError, match="not one sample has all its images"):
        create(root, skip_missing=True)


def test_a_camera_that_is_not_always_there(root):
    drop_key_frame(root, "ds0k2CAM_BACK_LEFT")
    said = r"1 of 7 samples are not whole: 1 lack a key frame of CAM_BACK_LEFT; .* --cameras chooses cameras"
    with pytest.raises(InputError, match=said):
        create(root)
    with pytest.warns(UserWarning, match="left out of all splits"):
        assert create(root, skip_missing=True)["samples"] == 6
    assert create(root, cameras=["CAM_BACK", "CAM_FRONT"])["samples"] == 7
    assert NuScenesIndex.open(root, VERSION).cameras == ["CAM_BACK", "CAM_FRONT"]


@pytest.mark.parametrize(
    ("choices", "said"),
    [
        ({"cameras": ["CAM_SIDE"]}, "--cameras: no key frame comes from CAM_SIDE; there are CAM_FRONT, "),
        ({"cameras": ["CAM_BACK", "CAM_BACK"]}, "--cameras: a camera is named twice"),
        ({"lidar": "LIDAR_ROOF"}, "--lidar: no key frame comes from LIDAR_ROOF; there are LIDAR_TOP"),
    ],
)
def test_sensors_that_are_not_there(root, choices, said):
    with pytest.raises(InputError) as caught:
        create(root, **choices)
    assert said in str(caught.value)


def test_the_lidar_can_be_chosen(root):
    # A second lidar 5 m ahead of the vehicle's origin, not turned: its frame's origin is at ego + (5, 0, 0).
    edit_table(root, "sensor", lambda r: [*r, {"token": "sen2", "channel": "LIDAR_BUMPER", "modality": "lidar"}])
    mount = {"token": "cal2", "sensor_token": "sen2", "camera_intrinsic": [], "translation": [5.0, 0, 0]}
    edit_table(root, "calibrated_sensor", lambda r: [*r, {**mount, "rotation": [1.0, 0, 0, 0]}])
    edit_table(root, "sample_data", lambda records: records + [
        {**r, "token": f"{r['token']}2", "calibrated_sensor_token": "cal2"} for r in records if "LIDAR" in r["token"]
    ])  # fmt: skip
    create(root)
    assert NuScenesIndex.open(root, VERSION).lidar == "LIDAR_TOP"
    create(root, lidar="LIDAR_BUMPER")
    index = NuScenesIndex.open(root, VERSION)
    np.testing.assert_allclose(index.global_from_bev(1)[:3, 3], [102.0 + 5.0, 200.0, 0.0])
    assert NuScenesBEVDataset(root, VERSION, "all").metainfo["lidar"] == "LIDAR_BUMPER"


def test_a_dataset_sees_by_the_cameras_it_is_told(root):
    create(root)
    names = ["CAM_BACK", "CAM_FRONT"]
    pipeline = [LoadMultiViewImages(), LoadCameraSweeps(num_sweeps=2)]
    chosen = NuScenesBEVDataset(root, VERSION, "all", pipeline, cameras=names)
    everything = NuScenesBEVDataset(root, VERSION, "all", pipeline)
    places = [3, 0]  # of these two in nuScenes' order of six
    some, all_six = chosen.clip(2).frames[0], everything.clip(2).frames[0]
    assert list(some.cameras.names) == names and chosen.metainfo["cameras"] == tuple(names)
    assert [all_six.cameras.image_paths[n] for n in places] == list(some.cameras.image_paths)
    for field in ("image_size_px", "pixels_from_camera", "camera_from_bev"):
        np.testing.assert_array_equal(getattr(some.cameras, field), getattr(all_six.cameras, field)[places])
    assert some.sweeps.paths == [[moment[n] for n in places] for moment in all_six.sweeps.paths]
    np.testing.assert_array_equal(some.sweeps.seconds, all_six.sweeps.seconds[:, places])
    np.testing.assert_array_equal(some.sweeps.sweep_from_camera, all_six.sweeps.sweep_from_camera[:, places])
    np.testing.assert_array_equal(some.sweeps.height_in_camera, all_six.sweeps.height_in_camera[places])
    assert len(chosen[2]["frames"][0]["sweeps"][0]) == 2
    for wrong, said in (
        (["CAM"], "'CAM' is no camera of the index"),
        ([], "name at least one"),
        (names * 2, "each once"),
    ):
        with pytest.raises(InputError, match=said):
            NuScenesBEVDataset(root, VERSION, "all", cameras=wrong)


def test_missing_sweeps_are_left_out_where_the_index_is_made(root):
    sweeps = sorted((root / "sweeps").rglob("*.jpg"))
    for file in sweeps[::2]:
        file.unlink()
    with pytest.warns(
        UserWarning, match=f"{len(sweeps[::2])} of {len(sweeps)} camera images between key frames are mis"
    ):
        assert create(root)["sweeps"] == len(sweeps) - len(sweeps[::2])
    pipeline = [LoadMultiViewImages(), LoadCameraSweeps(num_sweeps=3)]
    dataset = NuScenesBEVDataset(root, VERSION, "all", pipeline)
    for i in range(len(dataset)):  # every sample loads; the images are the next older ones that are there
        paths = dataset[i]["frames"][0]["sweep_paths"]
        assert all(Path(path).is_file() for moment in paths for path in moment)


def test_every_other_sample(root):
    create(root, every=2)
    index = NuScenesIndex.open(root, VERSION)
    assert [index.token(row) for row in range(len(index))] == ["s0k0", "s0k2", "s1k0", "s1k2"]
    assert index.left_out.keys() == {"s0k1", "s0k3", "s1k1"}
    np.testing.assert_allclose(index.boxes(1).velocity[0], [6.0, 0, 0])  # of the whole tables' neighbours, 0.5 s away
    # The images of the sample between are sweeps like the 5 on either side of it.
    paths, _ = index.sweeps(1, 11)
    names = [Path(moment[0]).name for moment in paths]
    assert names == [f"s0f{k}.jpg" for k in range(1, 6)] + ["s0k1.jpg"] + [f"s0f{k}.jpg" for k in range(7, 12)]


def test_velocities_across_slow_samples(root):
    # 3 s between samples: by the devkit's rule no velocity, with a gap of 4 s the car's 3 m per 3 s.
    for table in ("sample", "sample_data", "ego_pose"):
        edit_table(root, table, lambda r: [{**d, "timestamp": 1.6e15 + 6 * (d["timestamp"] - 1.6e15)} for d in r])
    create(root)
    assert np.isnan(NuScenesIndex.open(root, VERSION).boxes(1).velocity).all()
    create(root, velocity_gap_s=4.0)
    np.testing.assert_allclose(NuScenesIndex.open(root, VERSION).boxes(1).velocity[0], [1.0, 0, 0])
    dataset = NuScenesBEVDataset(root, VERSION, "tiny_train", max_gap_seconds=4.0)
    assert [dataset.clip(i).frames[0].has_previous for i in range(4)] == [False, True, True, True]


def jump(root: Path, first: str = "s0k2", by_m: float = 20_000.0) -> None:
    """Ego and boxes are elsewhere from sample ``first`` on to the end of its scene, as after a fault of the GPS."""
    scene, k = first.split("k")
    there = {f"{scene}k{n}" for n in range(int(k), 4)}
    sample_of = {}
    edit_table(root, "sample_data", lambda r: sample_of.update({d["ego_pose_token"]: d["sample_token"] for d in r}))
    for table, sample in (
        ("ego_pose", lambda record: sample_of.get(record["token"], "")),
        ("sample_annotation", lambda record: record["sample_token"]),
    ):
        edit_table(root, table, lambda records, sample=sample: [
            {**r, "translation": [r["translation"][0] + by_m * (sample(r) in there), *r["translation"][1:]]}
            for r in records
        ])  # fmt: skip


@pytest.mark.parametrize(("by_m", "known"), [(20_000.0, "one side"), (20.0, "both")])
def test_no_velocity_across_a_jump_of_the_ego(root, by_m, known):
    # Between samples 1 and 2. The car drives 3 m per 0.5 s. Samples 0 and 3 have their neighbour on their own side; the
    # centred differences of 1 and 2 reach across. 22 m per 0.5 s (44 m/s) can still be driven: velocities stay as told.
    jump(root, by_m=by_m)
    create(root)
    index = NuScenesIndex.open(root, VERSION)
    speeds = [index.boxes(k).velocity[0, 0] for k in range(4)]
    if known == "one side":
        np.testing.assert_allclose(speeds, [6.0, np.nan, np.nan, 6.0])
        dataset = NuScenesBEVDataset(root, VERSION, "tiny_train")
        learned = [dataset.clip(k).objects.boxes[0, 7:9] for k in range(4)]  # the BEV's y is the global x
        np.testing.assert_allclose(learned, [[0, 6], [np.nan] * 2, [np.nan] * 2, [0, 6]], atol=1e-6)
        assert np.isfinite([index.boxes(k).velocity[0] for k in (4, 5, 6)]).all()  # the other scene is as it was
    else:
        np.testing.assert_allclose(speeds, [6.0, 26.0, 26.0, 6.0])


def test_a_jump_is_seen_across_samples_that_are_left_out(root):
    # Every other sample alone: 0 and 2 of scene-0001; velocities are still those of all neighbours.
    jump(root, "s0k1")
    create(root, every=2)
    index = NuScenesIndex.open(root, VERSION)
    np.testing.assert_allclose([index.boxes(row).velocity[0, 0] for row in (0, 1)], [np.nan, 6.0])


def test_one_image_may_serve_two_samples(root):
    # A camera slower than the samples: the same file and time twice; then a chain that runs in a loop at one time.
    def repeat(records):
        first = next(r for r in records if r["token"] == "ds0k0CAM_FRONT")
        for r in records:
            if r["token"] == "ds0k1CAM_FRONT":
                r.update(filename=first["filename"], timestamp=first["timestamp"], prev=first["token"])

    edit_table(root, "sample_data", repeat)
    edit_table(root, "sample_data", lambda r: [d for d in r if not d["token"].startswith("s0f")])
    edit_table(
        root, "sample_data", lambda r: [{**d, "prev": "" if d["prev"].startswith("s0f") else d["prev"]} for d in r]
    )
    create(root)
    dataset = NuScenesBEVDataset(root, VERSION, "all", [LoadMultiViewImages(), LoadCameraSweeps(num_sweeps=3)])
    assert np.isfinite(dataset[3]["frames"][0]["sweep_from_camera"]).all()
    edit_table(root, "sample_data", lambda r: [
        {**d, "prev": "ds0k1CAM_FRONT"} if d["token"] == "ds0k0CAM_FRONT" else d for d in r
    ])  # fmt: skip
    with pytest.raises(InputError, match="the chain runs in a loop"):
        create(root)
