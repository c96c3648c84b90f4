"""What is wrong with a camera: each fault made by hand is found, and nothing on clean pictures, real ones among them.

The world of most tests is a textured plane and a textured sphere far away, drawn into every camera by its own rays:
what a camera sees is exact, and a calibration that is told wrongly is off by what was added.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from bevstack import CameraChecks, Moment, Motion, Predictor, Rig
from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.nuscenes.index_writer import write_index
from bevstack.engine.camera_health import FAULTS, CameraHealth, sharpness
from bevstack.engine.image_steps import ImageSteps
from bevstack.errors import InputError
from bevstack.images import read_image
from bevstack.structures.rigid_arrays import rigid_inverse
from tests.engine.front_door import EGO_FROM_BEV, pose, small_config, trained

REALDATA = Path(os.environ.get("BEVSTACK_REALDATA", Path(__file__).parents[3] / "shared" / "realdata"))
SIZE_PX = (160, 320)
YAWS_DEG = (0, -60, 60, 180, 120, -120)
NAMES = ("FRONT", "FRONT_RIGHT", "FRONT_LEFT", "BACK", "BACK_LEFT", "BACK_RIGHT")
CHECKS = CameraChecks(moments=1)


def texture(seed: int) -> np.ndarray:
    """(1024, 1024) float32 of structures of all sizes, 60 to 200; it goes on at its edges."""
    rng = np.random.default_rng(seed)
    total = np.zeros((1024, 1024), np.float32)
    for cells in (16, 64, 256, 1024):
        noise = cv2.resize(rng.normal(0, 1, (cells, cells)).astype(np.float32), (1024, 1024))
        total += noise
    return 130 + 25 * total


def rig_of(fov_deg: float = 75.0) -> Rig:
    """Six cameras around the car, 1.6 m above the ground, 0.4 m from its middle."""
    height, width = SIZE_PX
    focal = width / 2 / np.tan(np.radians(fov_deg / 2))
    poses = []
    for yaw in np.radians(YAWS_DEG):
        matrix = np.eye(4)
        matrix[:3, 0] = np.sin(yaw), -np.cos(yaw), 0
        matrix[:3, 1] = 0, 0, -1
        matrix[:3, 2] = np.cos(yaw), np.sin(yaw), 0
        matrix[:3, 3] = 1 + 0.4 * np.cos(yaw), 0.4 * np.sin(yaw), 1.6
        poses.append(matrix)
    intrinsics = [[[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]] * len(poses)
    return Rig.from_ego(intrinsics, poses, EGO_FROM_BEV, NAMES)


def seen_by(
    rig: Rig, global_from_ego: np.ndarray | None = None, seed: int = 0, walls_m: float = np.inf
) -> list[np.ndarray]:
    """What each camera of a rig sees: (H, W, 3) uint8, with the noise of a sensor, which ``seed`` draws.

    With walls, textured ones stand so many metres around the origin in place of what is far away.
    """
    height, width = SIZE_PX
    ground, sky = texture(1), texture(2)
    place = np.eye(4) if global_from_ego is None else global_from_ego
    v, u = np.mgrid[0:height, 0:width] + 0.5
    images, rng = [], np.random.default_rng(seed)
    for pixels_from_camera, ego_from_camera in zip(rig.pixels_from_camera, rig.ego_from_camera, strict=True):
        matrix = place @ ego_from_camera
        rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(pixels_from_camera).T @ matrix[:3, :3].T
        rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
        reach = matrix[2, 3] / np.maximum(-rays[..., 2], 1e-6)
        x, y = (matrix[k, 3] + rays[..., k] * reach for k in (0, 1))
        plane = cv2.remap(ground, *_wrapped(x * 40, y * 40), cv2.INTER_LINEAR)
        around, up = np.arctan2(rays[..., 1], rays[..., 0]), np.arcsin(rays[..., 2])
        dome = cv2.remap(sky, *_wrapped(around * 512 / np.pi, up * 512 / np.pi * 2), cv2.INTER_LINEAR)
        near = (rays[..., 2] < 0) & (reach < 60)
        if np.isfinite(walls_m):
            far = np.min([(walls_m * np.sign(rays[..., k]) - matrix[k, 3]) / rays[..., k] for k in (0, 1)], axis=0)
            x, y, z = (matrix[k, 3] + rays[..., k] * far for k in range(3))
            near &= reach < far
            dome = cv2.remap(sky, *_wrapped((x + y) * 20, z * 20), cv2.INTER_LINEAR)
        image = np.where(near, plane, dome) + rng.normal(0, 2, plane.shape)
        images.append(np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, axis=2))
    return images


def _wrapped(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.mod(x, 1023).astype(np.float32), np.mod(y, 1023).astype(np.float32)


def told_wrongly(rig: Rig, camera: int, axis: int, degrees: float) -> Rig:
    """A rig in which one camera is said to be turned about its own x (pitch) or y (yaw)."""
    off = np.eye(4)
    vector = np.zeros(3)
    vector[axis] = np.radians(degrees)
    off[:3, :3] = cv2.Rodrigues(vector)[0]
    poses = rig.camera_from_bev.copy()
    poses[camera] = off @ poses[camera]
    return replace(rig, camera_from_bev=poses)


def steps() -> ImageSteps:
    cfg = small_config()
    cfg.test_dataloader.dataset.pipeline[1].scale = 1.0
    return ImageSteps.of_config(cfg)


def check(
    images, rig: Rig, before: CameraHealth | None = None, checks: CameraChecks = CHECKS, **options
) -> CameraHealth:
    return checks(steps()(images, rig), rig.names, rig.ego_from_bev, before, **options)


@pytest.fixture(scope="module")
def rig() -> Rig:
    return rig_of()


@pytest.fixture(scope="module")
def images(rig) -> list[np.ndarray]:
    return seen_by(rig)


def test_nothing_is_wrong_with_clean_cameras(rig, images) -> None:
    # Expected: no fault, alone and after a moment of the same place with other noise, and all six pairs agree to a
    # step and a half of the grid; to the side to three, since the check takes the sphere for 60 m away.
    first = check(images, rig)
    again = check(seen_by(rig, seed=1), rig, first)
    for health in (first, again):
        assert health.well.all() and health.as_dict() == {name: [] for name in NAMES}
    assert len(first.off_deg) == 6 and (np.abs(list(first.off_deg.values())).max(0) < [0.5, 0.25]).all()


def blurred(image: np.ndarray) -> np.ndarray:
    return cv2.GaussianBlur(image, (0, 0), 2.0)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda image: np.zeros_like(image), "black"),
        (lambda image: image // 16, "black"),
        (lambda image: np.full_like(image, 190), "blank"),
        (blurred, "out of focus"),
        (lambda image: None, "absent"),
    ],
)
def test_faults_of_one_picture(rig, images, change, fault) -> None:
    # Expected: that camera has that fault, and no other camera any; its neighbours are not blamed for it.
    for camera in (0, 4):
        health = check([change(image) if n == camera else image for n, image in enumerate(images)], rig)
        assert health.faults[camera] == (fault,) and fault in FAULTS
        assert health.well.sum() == len(NAMES) - 1


def test_sharpness_by_hand() -> None:
    # Expected: noise of single pixels has far more in its finest structures than in larger ones; the more blurred, the
    # less; a picture of one grey says nothing.
    noise = np.random.default_rng(0).integers(0, 255, (80, 80), dtype=np.uint8)
    values = [sharpness(noise), *(sharpness(cv2.GaussianBlur(noise, (0, 0), sigma)) for sigma in (1, 2, 3))]
    assert values[0] > 2 and values == sorted(values, reverse=True)
    assert np.isnan(sharpness(np.full((8, 8), 7, np.uint8)))


def test_a_frozen_camera(rig, images) -> None:
    # Expected: the one that shows the same picture again; where the car stands still, the
    # others' noise is new.
    before, now = check(images, rig), seen_by(rig, seed=5)
    now[2] = images[2]
    assert check(now, rig, before).as_dict() == {name: ["frozen"] * (n == 2) for n, name in enumerate(NAMES)}
    assert check(now, rig).well.all(), "nothing is known of the moment before"


def test_a_late_image(rig, images) -> None:
    # Expected: of the ages that are told; without them nobody knows.
    ages = [0.0, 0.05, 0.5, 0.02, 0.04, float("nan")]
    late = {name: ["late"] * (n in (2, 5)) for n, name in enumerate(NAMES)}
    assert check(images, rig, image_ages_s=ages).as_dict() == late
    with pytest.raises(InputError, match="5 ages for 6 cameras"):
        check(images, rig, image_ages_s=ages[:5])


@pytest.mark.parametrize("camera", [0, 3])
@pytest.mark.parametrize(("axis", "degrees"), [(0, 1.5), (0, -1.5), (1, 3.7), (1, -3.7)])
def test_a_calibration_that_is_off(rig, images, camera, axis, degrees) -> None:
    # Expected: that camera alone, and both of its pairs are off by what was added, to a step of the grid and a half.
    wrong = told_wrongly(rig, camera, axis, degrees)
    health = check(images, wrong)
    assert health.as_dict() == {name: ["calibration"] * (n == camera) for n, name in enumerate(NAMES)}
    for pair, off in health.off_deg.items():
        if NAMES[camera] in pair:
            assert abs(abs(off[1 - axis]) - abs(degrees)) < 0.5


DRIVING, WALLS_M = CameraChecks(overlap=False), 12.0


def driven(told: Rig) -> CameraHealth:
    """What is known after five moments of a car that drives by 0.8 m and turns a little from each to the next.

    ``told`` is the rig that the check is given; the pictures are those of :func:`rig_of`.
    """
    rig, health, place, step = rig_of(), None, np.eye(4), pose(0.8, 0.02, 0.5)
    before_from_now = rigid_inverse(EGO_FROM_BEV) @ step @ EGO_FROM_BEV
    for seed in range(5):
        health = check(seen_by(rig, place, seed, WALLS_M), told, health, DRIVING, before_from_now=before_from_now)
        place = place @ step
    return health


def test_a_car_that_drives_finds_nothing_wrong_with_its_cameras(rig) -> None:
    health = driven(rig)
    assert health.well.all() and set(health.turned_deg) == set(NAMES)
    assert all(fits.max() > 0.5 * corners > 100 for fits, corners in health.fits.values())


@pytest.mark.parametrize(
    ("camera", "axis", "degrees"), [(0, 1, 4.0), (1, 1, -4.0), (3, 1, 4.0), (0, 0, 1.5), (1, 0, -1.5), (4, 0, 1.5)]
)
def test_a_turned_camera_is_found_by_driving(rig, camera, axis, degrees) -> None:
    # Expected: that camera alone, turned the other way round by what was added, to three steps of what is tried.
    health = driven(told_wrongly(rig, camera, axis, degrees))
    assert health.as_dict() == {name: ["calibration"] * (n == camera) for n, name in enumerate(NAMES)}
    wanted = np.zeros(2)
    wanted[1 - axis] = -degrees
    np.testing.assert_allclose(health.turned_deg[NAMES[camera]], wanted, atol=0.8)


def test_a_car_that_stands_still_tells_nothing(rig) -> None:
    wrong = told_wrongly(rig, 0, 1, 4.0)
    first = check(seen_by(rig), wrong, checks=DRIVING)
    health = check(seen_by(rig, seed=1), wrong, first, DRIVING, before_from_now=np.eye(4))
    assert health.well.all() and not health.fits and not health.turned_deg


def test_a_motion_that_is_wrong_blames_no_camera(rig) -> None:
    # Expected: with all turned alike, it is the car's frame that is: what is measured is told, and nobody is blamed.
    told = rig
    for camera in range(len(NAMES)):
        told = told_wrongly(told, camera, 0, 1.5)
    health = driven(told)
    assert sum(np.isfinite(turn).all() for turn in health.turned_deg.values()) > 3
    assert health.well.all()


def test_half_a_degree_is_not_called_wrong(rig, images) -> None:
    assert check(images, told_wrongly(rig, 1, 0, 0.5)).well.all()


def test_one_pair_that_disagrees_blames_nobody(rig, images) -> None:
    # Expected: with two neighbours alone, nobody knows which of the two is wrong.
    wrong = told_wrongly(rig, 0, 0, 2.0)
    two = replace(wrong, pixels_from_camera=wrong.pixels_from_camera[:2], camera_from_bev=wrong.camera_from_bev[:2],
                  names=NAMES[:2])  # fmt: skip
    health = check(images[:2], two)
    assert health.well.all() and abs(health.off_deg["FRONT", "FRONT_RIGHT"][1]) > 1.5


def test_a_calibration_is_judged_after_some_moments(rig, images) -> None:
    # Expected: the third moment is the first to say so; one bad moment among good ones is outvoted.
    wrong, checks, health = told_wrongly(rig, 0, 0, 2.0), CameraChecks(moments=3), None
    found = []
    for seed in range(3):
        health = check(seen_by(rig, seed=seed), wrong, health, checks)
        found.append(health.well.all())
    assert found == [True, True, False]
    health = None
    for told in (rig, wrong, rig, rig):
        health = check(seen_by(rig, seed=9), told, health, replace(checks, frozen_levels=0.0))
        assert health.well.all()


def test_health_of_other_cameras_is_refused(rig, images) -> None:
    health = check(images, rig)
    with pytest.raises(InputError, match="camera_health: names: is of"):
        check(images, replace(rig, names=NAMES[::-1]), health)


@pytest.mark.parametrize("name", ["nuscenes-keyframe-a", "dgp-scene02"])
def test_no_false_alarm_on_real_cameras(name, tmp_path) -> None:
    # Expected: nothing: these are the recordings' own images and calibrations (one moment, and three).
    root = REALDATA / name
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    write_index(root, "v1.0-mini", tmp_path, maps=False, progress=lambda text: None)
    dataset = NuScenesBEVDataset(root, "v1.0-mini", "all", index_root=tmp_path)
    cfg = small_config()
    cfg.test_dataloader.dataset.pipeline[1] = dict(type="ResizeImages", scale=0.5)
    health = None
    for row in dataset.rows.tolist():
        views = dataset.camera_views(dataset.token(row))
        ego_from_bev = dataset.index.ego_from_camera(row)[0] @ views.camera_from_bev[0]
        rig = Rig(views.pixels_from_camera, views.camera_from_bev, tuple(views.names), ego_from_bev)
        images = [read_image(path) for path in views.image_paths]
        health = CHECKS(ImageSteps.of_config(cfg)(images, rig), rig.names, rig.ego_from_bev, health)
        assert health.well.all(), health.as_dict()
        assert np.isfinite(list(health.off_deg.values())).any(), "something was measured"


def predictor_of(**options) -> Predictor:
    cfg = small_config()
    cfg.model.encoder.num_cameras = len(NAMES)
    return Predictor(trained(cfg).eval(), cfg, **options)


def answer_of(prediction) -> np.ndarray:
    return prediction.rasters["map"].layers.numpy()


def test_a_masked_camera_is_one_without_an_image(rig, images) -> None:
    # Expected: with the mask the answer of None in its place, bit for bit; without it another one, and the health is
    # told either way.
    broken = [np.zeros_like(image) if n == 1 else image for n, image in enumerate(images)]
    masking, telling = (predictor_of(camera_checks=CHECKS, mask_unhealthy=mask) for mask in (True, False))
    absent, _ = telling.step([None if n == 1 else image for n, image in enumerate(images)], rig)
    masked, _ = masking.step(broken, rig)
    told, _ = telling.step(broken, rig)
    np.testing.assert_array_equal(answer_of(masked), answer_of(absent))
    assert not np.array_equal(answer_of(told), answer_of(absent))
    assert masked.as_dict()["camera_health"]["FRONT_RIGHT"] == told.camera_health.as_dict()["FRONT_RIGHT"] == ["black"]
    unchecked, _ = predictor_of().step(images, rig)
    assert unchecked.camera_health is None and "camera_health" not in unchecked.as_dict()
    np.testing.assert_array_equal(answer_of(telling.step(images, rig)[0]), answer_of(unchecked))


def test_with_every_camera_masked_there_is_an_answer(rig, images) -> None:
    prediction, _ = predictor_of(camera_checks=CHECKS, mask_unhealthy=True).step([image * 0 for image in images], rig)
    assert not prediction.camera_health.well.any() and np.isfinite(answer_of(prediction)).all()


def test_health_goes_along_a_stream(rig, images) -> None:
    # Expected: the second moment knows the first one's picture, the new stream does not; as step by step by hand.
    predictor = predictor_of(camera_checks=CHECKS)
    motion = Motion.between(pose(0, 0, 0) @ EGO_FROM_BEV, pose(1, 0, 0) @ EGO_FROM_BEV, 0.5)
    moments = [Moment(images, rig), Moment(images, rig, motion), Moment(images, rig)]
    healths = [prediction.camera_health for prediction in predictor.stream(moments)]
    assert [health.faults[0] for health in healths] == [(), ("frozen",), ()]
    first, memory = predictor.step(images, rig)
    second, _ = predictor.step(images, rig, motion, memory, health=first.camera_health)
    assert second.camera_health.as_dict() == healths[1].as_dict()


def test_masking_needs_a_check() -> None:
    with pytest.raises(InputError, match="Predictor: mask_unhealthy: needs camera_checks"):
        predictor_of(mask_unhealthy=True)

