"""Corruptions and faults of sensors: closed forms of what each does, and the same fault wherever a frame appears."""

from __future__ import annotations

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
from tables import CAMERAS, VERSION, build_root

from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.nuscenes.index_writer import write_index
from bevstack.datasets.transforms import (
    CorruptImages,
    DelayCameras,
    DisturbCalibration,
    DisturbEgoPoses,
    FitCameras,
    LoadMultiViewImages,
    LoseCameras,
    SwapCameras,
)
from bevstack.datasets.transforms.corruptions import CORRUPTIONS, IMAGE_CORRUPTIONS, image_rng, octave_noise
from bevstack.datasets.transforms.sensor_faults import random_motion
from bevstack.errors import InputError
from bevstack.structures.rigid_arrays import rigid_inverse


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = build_root(tmp_path_factory.mktemp("faults") / "root")
    for number, path in enumerate(sorted(root.glob("samples/CAM*/*.jpg"))):
        image = np.random.default_rng(number).integers(20, 200, (36, 64, 3), dtype=np.uint8)
        cv2.imwrite(str(path), image)  # the tiny root's own are of one colour each
    write_index(root, VERSION, maps=False, progress=lambda text: None)
    return root


def dataset_of(root: Path, *transforms, num_frames: int = 1, split: str = "tiny_train") -> NuScenesBEVDataset:
    pipeline = [LoadMultiViewImages(), *transforms]
    return NuScenesBEVDataset(root, VERSION, split, pipeline, num_frames=num_frames, test_mode=True)


def picture(seed: int = 0) -> np.ndarray:
    """Structures of every size, and the whole range of values."""
    rng = np.random.default_rng(seed)
    image = sum(
        cv2.resize(rng.uniform(0, 1, (n, n, 3)), (96, 64), interpolation=cv2.INTER_LINEAR) for n in (3, 8, 30)
    )
    return (255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)


def corrupted(name: str, severity: int, seed: int = 0, image: np.ndarray | None = None) -> np.ndarray:
    return IMAGE_CORRUPTIONS[name](picture() if image is None else image, severity, np.random.default_rng(seed))


@pytest.mark.parametrize("name", IMAGE_CORRUPTIONS)
def test_harder_is_farther_from_the_image(name) -> None:
    """Expected: images of the same kind, untouched input, a mean difference that grows with the severity.

    Not of fog, which is as bright as this image on average (below), nor from snow 2 to 3, whose flakes are fewer.
    """
    image = picture()
    distances = []
    for severity in (1, 2, 3):
        result = corrupted(name, severity, image=image)
        assert result.shape == image.shape and result.dtype == np.uint8
        assert np.array_equal(result, corrupted(name, severity)), "seeded, and the image is not changed in place"
        distances.append(np.abs(result.astype(float) - image).mean())
    assert 2 < distances[0], distances
    if name != "fog":
        assert distances[0] < distances[1], distances
        assert distances[1] < distances[2] or name == "snow", distances


def test_colours_keep_their_upper_bits() -> None:
    # Expected: 4, 3 and 2 bits, PIL's posterize as the published scripts call it.
    from PIL import Image, ImageOps

    for severity, bits in ((1, 4), (2, 3), (3, 2)):
        expected = np.asarray(ImageOps.posterize(Image.fromarray(picture()), bits))
        assert np.array_equal(corrupted("colour_quantisation", severity), expected)


def test_brightness_adds_to_the_value() -> None:
    # Expected: OpenCV's hue, saturation and value in float, the value raised and cut at 1.
    for severity, more in ((1, 0.1), (2, 0.2), (3, 0.3)):
        hsv = cv2.cvtColor(picture().astype(np.float32) / 255, cv2.COLOR_RGB2HSV)
        hsv[..., 2] = np.minimum(hsv[..., 2] + more, 1)
        expected = 255 * cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        assert np.abs(corrupted("brightness", severity) - expected).max() <= 1
    assert (corrupted("brightness", 1, image=np.zeros((4, 4, 3), np.uint8)) == 26).all(), "black: no hue, value 0.1"


def test_low_light_is_squared_and_scaled() -> None:
    # Expected: without noise 0.6 v^2 (0.5, 0.4), so the mean; noise is added on both sides and cut at 0.
    image = picture()
    values = (image / 255.0 - image.min() / 255) / (np.ptp(image) / 255)
    for severity, scale in ((1, 0.6), (2, 0.5), (3, 0.4)):
        found = corrupted("low_light", severity).mean() / 255
        assert abs(found - scale * (values**2).mean()) < 0.01
    published = CorruptImages("low_light", 1, as_published=True)
    assert published._corrupt("a/b.jpg", image).mean() < 0.9 * CorruptImages("low_light", 1)._corrupt(
        "a/b.jpg", image
    ).mean()


def test_blur_smears_a_point_one_way() -> None:
    # Expected: all of the light is kept, on a line of at most 45 degrees that starts at the point.
    image = np.zeros((61, 61, 3), np.uint8)
    image[30, 30] = 255
    result = corrupted("motion_blur", 2, image=image)[..., 0].astype(float)
    rows, columns = np.nonzero(result)
    assert abs(result.sum() - 255) < 16
    assert (np.abs(rows - 30) <= np.abs(columns - 30) + 1).all()
    assert (columns <= 30).all() or (columns >= 30).all(), "one way"
    assert 10 <= np.ptp(columns) <= 15


def test_fog_hides_contrast_and_keeps_the_brightest() -> None:
    noise = octave_noise((50, 70), 2.0, np.random.default_rng(0))
    assert noise.shape == (50, 70) and noise.min() == 0 and noise.max() == 1
    assert np.abs(np.diff(noise, axis=1)).mean() < 0.1, "neighbours are alike"
    # Expected: one fog before two images, alike in their brightest value, leaves 1 / (1 + strength) of what differs.
    first, second = picture(0), picture(1)
    first[0, 0] = second[0, 0] = 255
    for severity, strength in ((1, 1.5), (2, 2.0), (3, 2.5)):
        differ = corrupted("fog", severity, image=first).astype(float) - corrupted("fog", severity, image=second)
        expected = (first.astype(float) - second) / (1 + strength)
        assert np.abs(differ - expected).max() <= 1.01


def test_snow_is_paler_and_has_flakes() -> None:
    dark = np.full((80, 120, 3), 20, np.uint8)
    result = corrupted("snow", 1, image=dark)
    # Expected: without a flake 0.8 * 20 + 0.2 * (30 + 127.5) = 47.5, nothing darker, and some flakes.
    assert 46 <= np.percentile(result, 5) <= 49 and result.max() > 80


def test_cameras_crash_for_good(root) -> None:
    """Expected: as many black cameras as the severity, the same in every sample, none twice."""
    for severity in (1, 2, 3):
        dataset = dataset_of(root, CorruptImages("camera_crash", severity))
        black = [[not image.any() for image in results["frames"][-1]["images"]] for results in dataset]
        assert sum(black[0]) == severity and all(row == black[0] for row in black)
    counts = {
        len(CorruptImages("camera_crash", 3, seed, as_published=True).crashed_cameras(6)) for seed in range(40)
    }
    assert 2 in counts, "drawn with replacement, one may be drawn twice"


def test_lost_frames_are_as_many_as_said() -> None:
    # Expected: a binomial share of 3 / 6 of 600 images, within four deviations.
    transform = CorruptImages("frame_lost", 3)
    image = np.full((2, 2, 3), 9, np.uint8)
    lost = sum(not transform._corrupt(f"CAM/{n}.jpg", image).any() for n in range(600))
    assert abs(lost - 300) < 4 * np.sqrt(600 / 4)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_history_is_corrupted_as_it_was(root, corruption) -> None:
    """A frame looks the same as a keyframe and in the history of the next sample."""
    dataset = dataset_of(root, CorruptImages(corruption, 2), num_frames=3)
    whole = [copy.deepcopy(dataset[i]["frames"]) for i in range(4)]
    for i in (2, 3):
        for frame in whole[i]:
            again = next(other[-1] for other in whole if other[-1]["token"] == frame["token"])
            assert all(np.array_equal(a, b) for a, b in zip(frame["images"], again["images"], strict=True))
    assert any(not np.array_equal(a, b) for a, b in zip(whole[3][-1]["images"], clean(root, 3), strict=True))


def clean(root: Path, i: int) -> list[np.ndarray]:
    return dataset_of(root)[i]["frames"][-1]["images"]


def test_images_are_known_by_their_file() -> None:
    first, same, other = (image_rng(0, p).random() for p in ("/a/CAM/x.jpg", "/b/c/CAM/x.jpg", "/a/CAM2/x.jpg"))
    assert first == same != other


@pytest.mark.parametrize(("arguments", "said"), [(("fogg", 1), "none of"), (("fog", 4), "must be 1")])
def test_unknown_corruptions(arguments, said) -> None:
    with pytest.raises(ValueError, match=said):
        CorruptImages(*arguments)


def test_lost_cameras_are_black(root) -> None:
    images = dataset_of(root, LoseCameras(["CAM_BACK"]))[1]["frames"][-1]["images"]
    assert [not image.any() for image in images] == [name == "CAM_BACK" for name in CAMERAS]
    with pytest.raises(InputError, match="'CAM_TOP' is none of CAM_FRONT"):
        dataset_of(root, LoseCameras(["CAM_TOP"]))[0]
    untouched = dataset_of(root, LoseCameras(probability=0.0))
    assert all(image.any() for results in untouched for image in results["frames"][-1]["images"])


def test_cameras_are_lost_anew_in_training(root) -> None:
    """Without a seed: other ones each epoch, the same in all frames of a clip, a third of them (four deviations)."""
    dataset = dataset_of(root, LoseCameras(probability=1 / 3, each=True, seed=None), num_frames=3)
    dataset.test_mode = False
    rows = []
    for epoch in range(40):
        dataset.set_epoch(epoch)
        frames = dataset[2]["frames"]
        rows.append([not image.any() for image in frames[-1]["images"]])
        assert all([not image.any() for image in frame["images"]] == rows[-1] for frame in frames)
    assert abs(np.mean(rows) - 1 / 3) < 4 * np.sqrt(2 / 9 / 240) and len({tuple(row) for row in rows}) > 5
    assert LoseCameras(seed=None).draws and not LoseCameras().draws


def test_a_camera_known_to_be_lost_sees_nothing(root) -> None:
    """Expected: every point of the grid lies behind it; the others stand where they stood."""
    told = dataset_of(root, LoseCameras(["CAM_BACK"], known=True))[0]["frames"][-1]
    right = dataset_of(root)[0]["frames"][-1]
    back = CAMERAS.index("CAM_BACK")
    points = np.array([[x, y, z, 1.0] for x in (-60, 60) for y in (-60, 60) for z in (-5, 3)])
    assert ((points @ told["camera_from_bev"][back].T)[:, 2] < 0).all()
    others = [n for n in range(6) if n != back]
    assert np.array_equal(told["camera_from_bev"][others], right["camera_from_bev"][others])


@pytest.mark.parametrize(("samples", "shown"), [(1, [0, 0, 1, 2]), (2, [0, 0, 0, 1]), (None, [0, 0, 0, 0])])
def test_late_cameras_show_an_earlier_sample(root, samples, shown) -> None:
    """Expected: the images of the samples listed; other cameras, and what is told of all, are as they were."""
    dataset, right = dataset_of(root, DelayCameras(["CAM_BACK"], samples)), dataset_of(root)
    back = CAMERAS.index("CAM_BACK")
    for i, results in enumerate(dataset):
        frame, told = results["frames"][-1], right[i]["frames"][-1]
        assert np.array_equal(frame["images"][back], clean(root, shown[i])[back])
        others = [n for n in range(6) if n != back]
        assert all(np.array_equal(frame["images"][n], told["images"][n]) for n in others)
        assert np.array_equal(frame["camera_from_bev"], told["camera_from_bev"])


def test_swapped_cameras(root) -> None:
    images, right = dataset_of(root, SwapCameras(["CAM_FRONT", "CAM_BACK"]))[0]["frames"][-1]["images"], clean(root, 0)
    front, back = CAMERAS.index("CAM_FRONT"), CAMERAS.index("CAM_BACK")
    assert np.array_equal(images[front], right[back]) and np.array_equal(images[back], right[front])
    with pytest.raises(ValueError, match="two different names"):
        SwapCameras(["CAM_FRONT", "CAM_FRONT"])


def angle_deg(matrix: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(matrix[:3, :3]) - 1) / 2, -1, 1))))


def test_calibration_is_off_by_what_is_said() -> None:
    # Expected: the angle of a rotation vector of three normal parts has a root mean square of sqrt(3) deviations.
    motions = [random_motion(np.random.default_rng(n), 2.0, 0.1) for n in range(400)]
    assert abs(np.sqrt(np.mean([angle_deg(m) ** 2 for m in motions])) - 2 * np.sqrt(3)) < 0.25
    assert abs(np.std([m[:3, 3] for m in motions]) - 0.1) < 0.01


@pytest.mark.parametrize("common", [False, True])
def test_calibration_stays_off_along_a_scene(root, common) -> None:
    """Each camera's error is the same in every sample; a common one is one motion of the rig in the BEV frame."""
    dataset, right = dataset_of(root, DisturbCalibration(2.0, 0.1, common)), dataset_of(root)
    errors = []
    for i, results in enumerate(dataset):
        told, true = results["frames"][-1]["camera_from_bev"], right[i]["frames"][-1]["camera_from_bev"]
        errors.append(rigid_inverse(true) @ told if common else told @ rigid_inverse(true))
        assert all(0.01 < angle_deg(error) < 12 for error in errors[-1])
    np.testing.assert_allclose(errors[0], errors[3], atol=1e-9)
    same = np.allclose(errors[0][0], errors[0][1], atol=1e-9)
    assert same == common


def test_calibration_is_off_anew_in_training(root) -> None:
    dataset = dataset_of(root, DisturbCalibration(1.0, seed=None), num_frames=2)
    dataset.test_mode = False
    told = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        told.append(dataset[1]["frames"][-1]["camera_from_bev"])
    assert np.array_equal(told[0], told[2]) and not np.allclose(told[0], told[1])


def test_ego_motion_is_off_and_closes_again(root) -> None:
    """Expected: the product of told steps is the true one but for the errors of the first and the last pose."""
    fault = DisturbEgoPoses(1.0, 0.3)
    dataset, right = dataset_of(root, fault), dataset_of(root)
    told, true = np.eye(4), np.eye(4)
    for i in (1, 2, 3):
        step, exact = (d[i]["frames"][-1]["previous_from_current"] for d in (dataset, right))
        assert 0.01 < np.linalg.norm(step[:2, 3] - exact[:2, 3]) < 3
        told, true = told @ step, true @ exact
    expected = rigid_inverse(fault._error("s0k0")) @ true @ fault._error("s0k3")
    np.testing.assert_allclose(told, expected, atol=1e-9)
    first = dataset[0]["frames"][-1]["previous_from_current"]
    assert np.array_equal(first, np.eye(4)), "nothing was before"


def test_ego_poses_jump_now_and_then() -> None:
    # Expected: without noise a pose is right, or 5 m off, a tenth of them.
    fault = DisturbEgoPoses(jump_m=5.0, jump_probability=0.1)
    lengths = np.array([np.linalg.norm(fault._error(f"t{n}")[:2, 3]) for n in range(500)])
    assert set(np.round(lengths, 6)) == {0.0, 5.0} and 30 < (lengths > 0).sum() < 75


@pytest.mark.parametrize("number", [1, len(CAMERAS), len(CAMERAS) + 2])
def test_as_many_cameras_as_a_model_takes(root, number) -> None:
    """Expected: the first ones as they are; those that lack are black and behind every place of 200 m around."""
    whole, fitted = (dataset_of(root, *steps, num_frames=2)[1] for steps in ((), (FitCameras(number),)))
    there = min(number, len(CAMERAS))
    assert len(fitted["camera_names"]) == number and fitted["camera_names"][:there] == whole["camera_names"][:there]
    for frame, own in zip(fitted["frames"], whole["frames"], strict=True):
        for key in ("images", "image_paths", "pixels_from_camera", "camera_from_bev", "image_size_px"):
            assert len(frame[key]) == number
            np.testing.assert_array_equal(np.array(frame[key][:there]), np.array(own[key][:there]))
        for camera in range(there, number):
            assert not frame["images"][camera].any()
            assert (frame["camera_from_bev"][camera] @ [200, -200, 200, 1])[2] < 0
    with pytest.raises(ValueError, match="at least 1"):
        FitCameras(0)
