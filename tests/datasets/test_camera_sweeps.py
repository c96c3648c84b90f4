"""Camera sweeps from the tables to the model's clip: order, times, repetition, geometry, packing, normalisation.

The tiny root gets five sweeps between two key frames of each camera, 1/12 s apart: image number f = 6 k + i of a scene
comes f / 12 s after its first one, the key frames are the multiples of 6.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from tables import CAMERAS, IMAGE_SIZE_PX, START_US, VERSION, build_root, edit_table

from bevstack.datasets.nuscenes.camera_sweeps import ego_poses
from bevstack.datasets.nuscenes.create_data import create_nuscenes
from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.nuscenes.index import NuScenesIndex
from bevstack.datasets.transforms import (
    LoadCameraSweeps,
    LoadMultiViewImages,
    PackBEVInputs,
    ResizeCropFlipImages,
    ResizeImages,
)
from bevstack.datasets.transforms.loading import stabilised
from bevstack.errors import InputError
from bevstack.models.preprocessor import BEVPreprocessor

COUNTS = (4, 3)


def time_us(scene: int, number: int) -> int:
    key, step = divmod(number, 6)
    return START_US + scene * 100_000_000 + key * 500_000 + round(step * 1e6 / 12)


def add_sweeps(root: Path) -> None:
    """Sweeps as nuScenes has them: each belongs to the sample that follows; chains run through the key frames."""

    def edit(records: list[dict]) -> list[dict]:
        keys = {record["token"]: record for record in records}
        for scene, count in enumerate(COUNTS):
            for camera in CAMERAS:
                chain = []
                for number in range(6 * (count - 1) + 1):
                    key, step = divmod(number, 6)
                    record = keys[f"ds{scene}k{key if step == 0 else key + 1}{camera}"]
                    if step:
                        name = f"sweeps/{camera}/s{scene}f{number}.jpg"
                        (root / name).parent.mkdir(parents=True, exist_ok=True)
                        grain = np.random.default_rng(100 * scene + number).integers(0, 256, (*IMAGE_SIZE_PX, 3))
                        cv2.imwrite(str(root / name), grain.astype(np.uint8))
                        changes = {"token": f"s{scene}f{number}{camera}", "filename": name, "is_key_frame": False}
                        record = {**record, **changes, "timestamp": time_us(scene, number)}
                        records.append(record)
                    chain.append(record)
                for before, after in zip(chain[:-1], chain[1:], strict=True):
                    before["next"], after["prev"] = after["token"], before["token"]
        return records

    edit_table(root, "sample_data", edit)


def name_of(scene: int, number: int, camera: str) -> str:
    key, step = divmod(number, 6)
    return f"sweeps/{camera}/s{scene}f{number}.jpg" if step else f"samples/{camera}/s{scene}k{key}.jpg"


@pytest.fixture(scope="module")
def indexed(tmp_path_factory) -> Path:
    root = build_root(tmp_path_factory.mktemp("sweeps") / "root", sample_counts=COUNTS)
    add_sweeps(root)
    create_nuscenes(root, VERSION)
    return root


@pytest.fixture
def copy(indexed, tmp_path) -> Path:
    return Path(shutil.copytree(indexed, tmp_path / "root"))


@pytest.fixture(scope="module")
def index(indexed) -> NuScenesIndex:
    return NuScenesIndex.open(indexed, VERSION)


def dataset(root: Path, *transforms, split: str = "tiny_train", **options) -> NuScenesBEVDataset:
    return NuScenesBEVDataset(root, VERSION, split, pipeline=transforms, **options)


# --- the index ------------------------------------------------------------------------------------------------------


def test_every_sweep_is_stored_once(index, indexed):
    # Expected: 5 sweeps before each sample but its scene's first, of 6 cameras.
    per_sample = np.diff(index.arrays["sweep_offset"]).reshape(7, 6)
    assert per_sample.tolist() == [[0] * 6, *[[5] * 6] * 3, [0] * 6, *[[5] * 6] * 2]
    paths = [path.decode() for path in index.arrays["sweep_path"].tolist()]
    assert len(set(paths)) == len(paths) == 5 * 5 * 6
    assert set(paths) == {str(path.relative_to(indexed)) for path in (indexed / "sweeps").rglob("*.jpg")}
    assert index.has_sweeps


@pytest.mark.parametrize("count", [1, 6, 11])
def test_the_images_before_a_sample_in_order_of_time(index, indexed, count):
    # Expected: image numbers by hand; row 3 is image 18 of scene 0, row 5 image 6 of scene 1.
    for row, scene, number in ((3, 0, 18), (5, 1, 6)):
        paths, seconds = index.sweeps(row, count)
        numbers = [max(number - count + s, 0) for s in range(count)]
        assert paths == [[str(indexed / name_of(scene, f, camera)) for camera in CAMERAS] for f in numbers]
        expected = [[(f - number) / 12] * 6 for f in numbers]
        np.testing.assert_allclose(seconds, expected, atol=1e-6)


def test_a_scenes_start_repeats_the_oldest_image(index, indexed):
    # Expected: nothing is older than a scene's first image, so that it stands for all; times say so, too.
    paths, seconds = index.sweeps(4, 3)
    assert paths == [[str(indexed / name_of(1, 0, camera)) for camera in CAMERAS]] * 3
    assert seconds.tolist() == [[0.0] * 6] * 3
    paths, seconds = index.sweeps(1, 8)
    assert [Path(moment[0]).stem for moment in paths] == ["s0k0"] * 3 + ["s0f1", "s0f2", "s0f3", "s0f4", "s0f5"]
    np.testing.assert_allclose(seconds[:, 2], [-0.5] * 3 + [(f - 6) / 12 for f in range(1, 6)], atol=1e-6)


def test_a_long_pause_ends_the_sequence(copy):
    # Expected: images 0 to 8 of scene 0 are moved 3 s into the past: image 9 is the oldest before sample 2.
    def stretch(records):
        for record in records:
            if record["token"] in {f"s0f{f}{camera}" for f in range(9) for camera in CAMERAS} or record[
                "token"
            ].startswith(("ds0k0", "ds0k1")):
                record["timestamp"] -= 3_000_000

    edit_table(copy, "sample_data", stretch)
    create_nuscenes(copy, VERSION)
    index = NuScenesIndex.open(copy, VERSION)
    names = [Path(moment[0]).stem for moment in index.sweeps(2, 6)[0]]
    assert names == ["s0f9", "s0f9", "s0f9", "s0f9", "s0f10", "s0f11"]
    names = [Path(moment[0]).stem for moment in index.sweeps(2, 6, max_gap_seconds=5.0)[0]]
    assert names == ["s0k1", "s0f7", "s0f8", "s0f9", "s0f10", "s0f11"]


def test_where_the_camera_was(index):
    # Expected: at a key frame its own pose; between two the middle of the way and of the turn; before the first one
    # that one's. All of it as seen from the camera at the sample.
    arrays, row, n = index.arrays, 3, 2
    times = arrays["camera_timestamp_us"][:, n]
    ego = np.array(arrays["global_from_camera_ego"][:4, n])
    middle = (times[1] + times[2]) / 2
    found = ego_poses(arrays, row, n, np.array([times[0] - 100_000, times[0], middle, times[2], times[3]], float))
    np.testing.assert_allclose(found[[0, 1, 3, 4]], ego[[0, 0, 2, 3]], atol=1e-9)
    np.testing.assert_allclose(found[2, :3, 3], (ego[1, :3, 3] + ego[2, :3, 3]) / 2, atol=1e-9)
    half = found[2, :3, :3] @ ego[1, :3, :3].T
    np.testing.assert_allclose(half @ half, ego[2, :3, :3] @ ego[1, :3, :3].T, atol=1e-9)
    seconds = np.zeros((2, 6))
    seconds[0, n] = (times[1] - times[3]) * 1e-6
    from_camera = index.ego_from_camera(row)[n]
    expected = np.linalg.inv(ego[1] @ from_camera) @ ego[3] @ from_camera
    moved = index.sweep_from_camera(row, seconds)
    np.testing.assert_allclose(moved[0, n], expected, atol=1e-9)
    np.testing.assert_allclose(moved[1], np.tile(np.eye(4), (6, 1, 1)), atol=1e-12)


def test_times_of_the_synthetic_generator(tmp_path):
    # Expected: 12 Hz up to the 1.5 ms of jitter that its key frames have; every file is there.
    from bevstack.synthetic.generate import generate

    root = tmp_path / "set"
    generate(root, 1, 1, seed=0, image_size=(64, 36), sweeps=True, workers=1, frames=2, progress=False)
    assert create_nuscenes(root, "v1.0-mini", maps=False)["sweeps"] == 2 * 5 * 6
    paths, seconds = NuScenesIndex.open(root, "v1.0-mini").sweeps(1, 6)
    expected = [[(s - 6) / 12] * 6 for s in range(6)]
    np.testing.assert_allclose(seconds, expected, atol=3e-3)
    assert all(Path(path).is_file() for moment in paths for path in moment)


def test_a_set_without_sweeps_stays_as_it_was(tmp_path):
    # Expected: empty tables, clips without sweeps, and one line where a pipeline asks for them.
    root = build_root(tmp_path / "root")
    assert create_nuscenes(root, VERSION)["sweeps"] == 0
    index = NuScenesIndex.open(root, VERSION)
    assert not index.has_sweeps and len(index.arrays["sweep_path"]) == 0
    assert "sweep_paths" not in dataset(root)[0]["frames"][-1]
    with pytest.raises(InputError, match="camera sweeps: there are none between the key frames"):
        dataset(root, LoadMultiViewImages(), LoadCameraSweeps(6))


def test_tables_that_name_sweeps_which_were_not_unpacked(copy):
    # Expected: key frames alone, as many download them; the tables still name all.
    shutil.rmtree(copy / "sweeps")
    assert create_nuscenes(copy, VERSION)["sweeps"] == 0
    assert len(dataset(copy, LoadMultiViewImages())[1]["frames"][-1]["images"]) == 6


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"prev": "x"}, "'x' is no token of sample_data.json"), ({"prev": 3}, "3 is no token"),
     ({"prev": "s0f3CAM_BACK"}, "comes from another sensor"), ({"prev": "s0f5CAM_FRONT"}, "is not earlier"),
     ({"filename": "../../x.jpg"}, "leads out of the root")],
)  # fmt: skip
def test_broken_chains_are_one_line(copy, fields, reason):
    def edit(records):
        next(record for record in records if record["token"] == "s0f4CAM_FRONT").update(fields)

    edit_table(copy, "sample_data", edit)
    with pytest.raises(InputError, match="sample_data.json: .*" + reason):
        create_nuscenes(copy, VERSION)


@pytest.mark.parametrize(
    ("name", "where", "value", "reason"),
    [("sweep_offset", 3, 10**6, "do not divide"), ("sweep_path", 0, b"../x.jpg", "leads out of the root")],
)
def test_a_damaged_index_is_one_line(copy, name, where, value, reason):
    path = copy / "bevstack-index" / VERSION / f"{name}.npy"
    array = np.load(path)
    array[where] = value
    np.save(path, array)
    with pytest.raises(InputError, match=f"{name}.npy: .*{reason}"):
        NuScenesIndex.open(copy, VERSION)


def test_an_old_index_says_how_to_make_it_again(copy):
    path = copy / "bevstack-index" / VERSION / "index.json"
    path.write_text(path.read_text().replace('"schema_version": 3', '"schema_version": 1'))
    with pytest.raises(InputError, match="is 1, this program reads 3; make it again with: python tools/create_data.py"):
        NuScenesIndex.open(copy, VERSION)


# --- loading, geometry, packing -------------------------------------------------------------------------------------


def test_loading_decodes_what_the_index_names(indexed):
    # Expected: OpenCV's own decoding of the files by number; key frames among the sweeps, too.
    frame = dataset(indexed, LoadMultiViewImages(), LoadCameraSweeps(8))[2]["frames"][-1]
    assert len(frame["sweeps"]) == 8 and {len(moment) for moment in frame["sweeps"]} == {6}
    for s, moment in enumerate(frame["sweeps"]):
        for image, camera in zip(moment, CAMERAS, strict=True):
            expected = cv2.imread(str(indexed / name_of(0, 12 - 8 + s, camera)))[..., ::-1]
            np.testing.assert_array_equal(image, expected)


def test_every_frame_of_a_clip_has_its_own_sweeps(indexed):
    sample = dataset(indexed, LoadMultiViewImages(), LoadCameraSweeps(2), num_frames=2, queue="consecutive")[3]
    names = [[Path(moment[0]).stem for moment in frame["sweep_paths"]] for frame in sample["frames"]]
    assert names == [["s0f10", "s0f11"], ["s0f16", "s0f17"]]


def test_a_missing_or_different_sweep_is_one_line(copy):
    path = copy / name_of(0, 11, "CAM_BACK")
    cv2.imwrite(str(path), np.zeros((20, 64, 3), np.uint8))
    with pytest.raises(InputError, match="s0f11.jpg: size: 64x20, the camera's image of the frame is 64x36"):
        dataset(copy, LoadMultiViewImages(), LoadCameraSweeps(3))[2]
    path.unlink()
    with pytest.raises(InputError, match="s0f11.jpg: image: No such file"):
        dataset(copy, LoadMultiViewImages(), LoadCameraSweeps(3))[2]


# A camera 1.5 m above the ground that looks along y of the car (x right): its z is the car's y, its y is down.
UPRIGHT = np.array([0.0, -1.0, 0.0, 1.5])  # height of (x, y, z, 1)
PIXELS = np.array([[200.0, 0.0, 128.0], [0.0, 200.0, 72.0], [0.0, 0.0, 1.0]])


def driven(metres: float, degrees: float) -> np.ndarray:
    """From the camera now to the camera before it went straight on and turned to the right."""
    angle = np.radians(degrees)
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    pose[2, 3] = metres
    return pose


def spot(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A white spot on grey where a point (x, y, z) of the camera's frame is seen; its pixel."""
    u, v, w = PIXELS @ point
    axis_v, axis_u = np.mgrid[:144, :256] + 0.5
    bell = np.exp(-0.5 * ((axis_u - u / w) ** 2 + (axis_v - v / w) ** 2) / 2.0**2)
    return np.repeat((127 + 120 * bell)[..., None], 3, axis=2).astype(np.uint8), np.array([u / w, v / w])


@pytest.mark.parametrize(("metres", "degrees"), [(0.0, 6.0), (3.0, 0.0), (2.5, -5.0)])
@pytest.mark.parametrize("still_height_m", [0.0, 0.5])
def test_what_stands_still_keeps_its_place(metres, degrees, still_height_m):
    # Expected: points of the plane, and far ones above the horizon, are seen where the camera now sees them.
    sweep_from_camera = driven(metres, degrees)
    plane = 1.5 - still_height_m
    for point in ([1.0, plane, 14.0], [-4.0, plane, 18.0], [3.0, plane, 25.0], [2e5, -1e5, 1e6]):
        older, _ = spot((sweep_from_camera @ [*point, 1.0])[:3])
        _, expected = spot(np.array(point))
        seen = stabilised(older, PIXELS, sweep_from_camera, UPRIGHT, still_height_m)[..., 0] - 127.0
        seen[seen < 10] = 0
        v, u = np.mgrid[:144, :256] + 0.5
        found = np.array([(u * seen).sum(), (v * seen).sum()]) / seen.sum()
        np.testing.assert_allclose(found, expected, atol=0.35)


def test_what_moves_does_not_and_what_is_not_seen_is_grey():
    # Expected: 1 m to the right in 20 m are 10 px; driving on by 4 m, the lowest rows were not in the older image; an
    # image from the same place is returned as it is.
    sweep_from_camera = driven(2.0, 0.0)
    older, _ = spot((sweep_from_camera @ [0.0, 1.5, 20.0, 1.0])[:3])
    seen = stabilised(older, PIXELS, sweep_from_camera, UPRIGHT, 0.0)
    _, now = spot(np.array([1.0, 1.5, 20.0]))
    row, column = np.unravel_index(seen[..., 0].argmax(), (144, 256))
    assert now[0] - column == pytest.approx(10, abs=1) and now[1] - row == pytest.approx(0, abs=1)
    assert (stabilised(np.zeros_like(older), PIXELS, driven(-4.0, 0.0), UPRIGHT, 0.0)[-1] == 127).all()
    assert stabilised(older, PIXELS, np.eye(4), UPRIGHT, 0.0) is older


def test_stabilised_sweeps_are_loaded(indexed):
    # Expected: the images that are loaded without, each moved by its own camera's way.
    plain = dataset(indexed, LoadMultiViewImages(), LoadCameraSweeps(3))[2]["frames"][-1]
    frame = dataset(indexed, LoadMultiViewImages(), LoadCameraSweeps(3, still_height_m=0.5))[2]["frames"][-1]
    changed = 0
    for s, moment in enumerate(plain["sweeps"]):
        for n, image in enumerate(moment):
            place = plain["pixels_from_camera"][n], plain["sweep_from_camera"][s, n], plain["height_in_camera"][n]
            np.testing.assert_array_equal(frame["sweeps"][s][n], stabilised(image, *place, 0.5))
            changed += not np.array_equal(frame["sweeps"][s][n], image)
    assert changed == 18
    np.testing.assert_array_equal(frame["images"][0], plain["images"][0])


def test_loading_stands_right_after_the_images(indexed):
    with pytest.raises(ValueError, match="right after LoadMultiViewImages"):
        dataset(indexed, LoadMultiViewImages(), ResizeImages(0.5), LoadCameraSweeps(3))[2]
    with pytest.raises(ValueError, match="right after LoadMultiViewImages"):
        dataset(indexed, LoadCameraSweeps(3))[2]
    with pytest.raises(ValueError, match="num_sweeps: 0"):
        LoadCameraSweeps(0)


@pytest.mark.parametrize("per_camera", [False, True])
@pytest.mark.parametrize("reduced", [False, True])
def test_sweeps_change_as_the_image_does(indexed, per_camera, reduced):
    # Expected: where a sweep is the image itself (a scene's first sample), it stays so through random changes; and
    # matrices and random numbers are those of the same pipeline without sweeps.
    change = ResizeCropFlipImages(
        scale=(0.6, 1.2), size=(16, 32), left=(0.0, 1.0), flip_probability=0.5, per_camera=per_camera
    )
    images = LoadMultiViewImages(reduced)
    sample = dataset(indexed, images, LoadCameraSweeps(3, reduced), change)[0]
    plain = dataset(indexed, images, change)[0]
    frame, alone = sample["frames"][-1], plain["frames"][-1]
    for moment in frame["sweeps"]:
        for sweep, image, camera in zip(moment, frame["images"], CAMERAS, strict=True):
            np.testing.assert_array_equal(sweep, image, err_msg=camera)
    for key in ("pixels_from_camera", "image_size_px", "camera_from_bev"):
        np.testing.assert_array_equal(frame[key], alone[key])
    assert sample["rng"].random() == plain["rng"].random()


def test_sweeps_of_other_content_are_cut_alike(indexed):
    # Expected: the change that is drawn is put on a sweep by hand.
    change = ResizeCropFlipImages(scale=(0.6, 1.2), size=(16, 32), left=(0.0, 1.0), flip_probability=0.5)
    loaded = dataset(indexed, LoadMultiViewImages(), LoadCameraSweeps(4))[2]
    drawn = change.draw(np.random.default_rng([0, 0, 0, 2]))  # the dataset's seed of sample 2 in epoch 0
    expected = [[change.apply(image, drawn)[0] for image in moment] for moment in loaded["frames"][-1]["sweeps"]]
    changed = dataset(indexed, LoadMultiViewImages(), LoadCameraSweeps(4), change)[2]["frames"][-1]["sweeps"]
    np.testing.assert_array_equal(np.array(changed), np.array(expected))


def packed(root: Path, **options) -> tuple[dict, dict]:
    transforms = (LoadMultiViewImages(), LoadCameraSweeps(3))
    loaded = dataset(root, *transforms, num_frames=2, queue="consecutive", **options)[2]
    return loaded, PackBEVInputs().transform(loaded)


def test_packing(indexed):
    loaded, result = packed(indexed)
    sweeps = result["inputs"]["sweeps"]
    assert sweeps.shape == (2, 3, 6, 3, *IMAGE_SIZE_PX) and sweeps.dtype == torch.uint8
    expected = np.array([frame["sweeps"] for frame in loaded["frames"]])
    np.testing.assert_array_equal(sweeps.permute(0, 1, 2, 4, 5, 3).numpy(), expected)
    plain = dataset(indexed, LoadMultiViewImages(), PackBEVInputs())[2]["inputs"]
    assert "sweeps" not in plain


# --- the preprocessor -----------------------------------------------------------------------------------------------


def test_normalised_as_images_are(indexed):
    # Expected: (pixel - mean) / std, zero padding to a multiple of 32, batch of two.
    samples = [packed(indexed)[1], packed(indexed)[1]]
    clip = BEVPreprocessor(mean=(100.0, 110.0, 120.0), std=(50.0, 60.0, 70.0))(pseudo_collate(samples))["inputs"]
    mean, std = torch.tensor([100.0, 110.0, 120.0]).view(3, 1, 1), torch.tensor([50.0, 60.0, 70.0]).view(3, 1, 1)
    for t, frame in enumerate(clip.frames):
        assert frame.sweeps.shape == (2, 3, 6, 3, 64, 64)
        for b in range(2):
            expected = (samples[b]["inputs"]["sweeps"][t].float() - mean) / std
            torch.testing.assert_close(frame.sweeps[b, ..., :36, :], expected, atol=1e-5, rtol=1e-5)
        assert (frame.sweeps[..., 36:, :] == 0).all()


def test_an_image_and_its_sweeps_are_distorted_and_masked_alike(indexed):
    # Expected: sweeps that are copies of the image stay copies of it, under random colours and GridMask.
    sample = packed(indexed)[1]
    inputs = sample["inputs"]
    inputs["sweeps"] = inputs["images"].unsqueeze(1).expand(-1, 3, -1, -1, -1, -1).clone()
    model = BEVPreprocessor(photometric={}, grid_mask={"prob": 1.0})
    torch.manual_seed(0)
    clip = model(pseudo_collate([sample, sample]), training=True)["inputs"]
    for frame in clip.frames:
        assert torch.equal(frame.sweeps, frame.images.unsqueeze(1).expand_as(frame.sweeps))
    assert not torch.equal(clip.frames[1].images[0], clip.frames[1].images[1])  # drawn for each image by itself
    without = [{**s, "inputs": {k: v for k, v in s["inputs"].items() if k != "sweeps"}} for s in (sample, sample)]
    torch.manual_seed(0)
    plain = model(pseudo_collate(without), training=True)["inputs"]
    for frame, other in zip(clip.frames, plain.frames, strict=True):
        assert other.sweeps is None and torch.equal(frame.images, other.images)
