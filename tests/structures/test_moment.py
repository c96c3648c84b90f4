"""What users hand in: poses in named frames, and one line for what makes no sense."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bevstack.errors import InputError
from bevstack.structures.moment import Motion, Rig, Sweeps
from bevstack.structures.rigid_arrays import rigid_inverse
from tests.engine.front_door import EGO_FROM_BEV, pose, rig_of

INTRINSICS = [[40.0, 0.0, 40.0], [0.0, 40.0, 24.0], [0.0, 0.0, 1.0]]


def test_a_rig_from_places_in_the_car():
    # Expected: by hand. The BEV frame is 0.9 m ahead of the car's origin and 1.8 m up, its y points ahead. What lies
    # 10 m ahead of the front camera (1.2 m ahead, 1.5 m up) is on its axis, and 10.3 m ahead of the BEV frame's origin.
    rig = rig_of()
    place = rig.camera_from_bev[0] @ [0, 10.3, -0.3, 1]
    np.testing.assert_allclose(place, [0, 0, 10, 1], atol=1e-12)
    left = rig.camera_from_bev[1] @ [-1, 0, 0, 1] - rig.camera_from_bev[1] @ [0, 0, 0, 1]
    assert left[2] == pytest.approx(np.sin(np.radians(70)))  # BEV -x is the car's left
    np.testing.assert_allclose(rig.ego_from_camera[0] @ [0, 0, 1, 1], [2.2, 0, 1.5, 1], atol=1e-12)
    assert len(rig) == 3 and rig.names == ("CAM_FRONT", "CAM_LEFT", "CAM_RIGHT")


def test_lists_and_tensors_are_taken():
    one, other = (Rig(kind([INTRINSICS]), kind(np.eye(4)[None])) for kind in (np.array, torch.as_tensor))
    listed = Rig([INTRINSICS], np.eye(4)[None].tolist())
    for rig in (other, listed):
        assert np.array_equal(rig.pixels_from_camera, one.pixels_from_camera)
        assert np.array_equal(rig.camera_from_bev, one.camera_from_bev)
    assert one.names == ("camera 0",)


def test_motion_between_two_poses():
    # Expected: by hand. The car drove 2 m along its own heading of 90 degrees, which did not change: in its own axes it
    # was 2 m behind. Of the car's poses and of the BEV frame's, the motion is the same.
    before, now = pose(100, 50, 90), pose(100, 52, 90)
    motion = Motion.between(before, now, 0.5)
    np.testing.assert_allclose(motion.previous_from_current, pose(2, 0, 0), atol=1e-12)
    assert motion.has_previous and np.array_equal(motion.global_from_bev, now)
    by_car = Motion.from_ego(before, now, EGO_FROM_BEV, 0.5)
    direct = Motion.between(before @ EGO_FROM_BEV, now @ EGO_FROM_BEV, 0.5)
    np.testing.assert_allclose(by_car.previous_from_current, direct.previous_from_current, atol=1e-12)
    np.testing.assert_allclose(by_car.previous_from_current[:2, 3], [0, 2], atol=1e-12)  # BEV y points ahead


def test_a_start_has_no_moment_before():
    assert not Motion().has_previous and not Motion.start(pose(1, 2, 3)).has_previous
    assert Motion.start().global_from_bev is None


def test_the_inverse_is_an_inverse():
    poses = np.stack([pose(3, -2, 40) @ EGO_FROM_BEV, EGO_FROM_BEV])
    np.testing.assert_allclose(rigid_inverse(poses) @ poses, np.tile(np.eye(4), (2, 1, 1)), atol=1e-12)


MIRRORED, SHEARED, SCALED = np.diag([-1.0, 1, 1, 1]), np.eye(4), np.diag([2.0, 2, 2, 1])
SHEARED[0, 1] = 0.1
WRONG_RIGS = [
    (dict(pixels_from_camera=[[[1, 0], [0, 1]]]), "rig: pixels_from_camera: has shape (1, 2, 2), expected (N, 3, 3)"),
    (dict(pixels_from_camera="calibration"), "rig: pixels_from_camera: is not an array of numbers"),
    (dict(pixels_from_camera=np.zeros((0, 3, 3))), "rig: pixels_from_camera: has no camera"),
    (dict(pixels_from_camera=np.full((1, 3, 3), np.nan)), "rig: pixels_from_camera: holds numbers that are not finite"),
    (
        dict(pixels_from_camera=[np.diag([40.0, -40, 1])]),
        "rig: pixels_from_camera[0]: is no matrix of intrinsics, [[fu, 0, cu], [0, fv, cv], [0, 0, 1]] in pixels",
    ),
    (dict(pixels_from_camera=[np.array(INTRINSICS).T]), "rig: pixels_from_camera[0]: is no matrix of intrinsics"),
    (dict(camera_from_bev=np.tile(np.eye(4), (2, 1, 1))), "rig: camera_from_bev: has shape (2, 4, 4), expected (1, 4"),
    (dict(camera_from_bev=[MIRRORED]), "rig: camera_from_bev[0]: is no rotation and translation"),
    (dict(camera_from_bev=[SHEARED]), "rig: camera_from_bev[0]: is no rotation and translation"),
    (dict(camera_from_bev=[SCALED]), "rig: camera_from_bev[0]: is no rotation and translation"),
    (dict(camera_from_bev=[pose(1, 2, 3).T]), "rig: camera_from_bev[0]: is no rotation and translation"),
    (dict(names=("a", "b")), "rig: names: 2 names for 1 cameras"),
    (dict(image_size_px=[48, 80]), "rig: image_size_px: has shape (2,), expected (1, 2)"),
    (dict(ego_from_bev=SCALED), "rig: ego_from_bev: is no rotation and translation"),
]


@pytest.mark.parametrize(("changes", "said"), WRONG_RIGS)
def test_a_wrong_rig_is_one_line(changes, said):
    with pytest.raises(InputError) as caught:
        Rig(**{"pixels_from_camera": [INTRINSICS], "camera_from_bev": [np.eye(4)], **changes})
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Motion(SCALED, 0.5), "motion: previous_from_current: is no rotation and translation"),
        (lambda: Motion(np.eye(4)), "motion: seconds: 0.0 must be positive"),
        (lambda: Motion(np.eye(4), np.nan), "motion: seconds: nan must be positive"),
        (lambda: Motion(None, 0.5), "motion: seconds: 0.5 must be 0 where nothing came before"),
        (lambda: Motion.between(np.eye(4), np.eye(3), 0.5), "motion: global_from_bev: has shape (3, 3), expected (4"),
        (lambda: Motion.from_ego(SCALED, np.eye(4), np.eye(4), 1.0), "motion: global_from_ego_previous: is no rot"),
        (lambda: Sweeps([]), "sweeps: images: there are none"),
        (lambda: Sweeps([[None]], np.eye(4)), "sweeps: sweep_from_camera: has shape (4, 4), expected (1, 1, 4, 4)"),
    ],
)
def test_a_wrong_motion_is_one_line(make, said):
    with pytest.raises(InputError) as caught:
        make()
    assert str(caught.value).startswith(said)
