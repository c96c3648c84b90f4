"""Calibrations of other formats as ``rig.json``: against quaternions of another package, and a closed form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pyquaternion import Quaternion

from bevstack.engine.convert_calibration import main
from bevstack.engine.image_folder import require_files
from bevstack.engine.rig_file import moments_of, read_poses, read_rig
from bevstack.errors import InputError
from tests.datasets.tables import VERSION, build_root

KITTI = """P0: 700 0 600 0 0 700 180 0 0 0 1 0
P2: 700 0 600 35 0 700 180 0 0 0 1 0
R0_rect: 1 0 0 0 1 0 0 0 1
Tr_velo_to_cam: 0 -1 0 0 0 0 -1 -0.08 1 0 0 -0.27
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return build_root(tmp_path_factory.mktemp("nuscenes"))


def table(root: Path, name: str) -> dict[str, dict]:
    return {row["token"]: row for row in json.loads((root / VERSION / f"{name}.json").read_text())}


def pose_of(row: dict) -> np.ndarray:
    pose = Quaternion(row["rotation"]).transformation_matrix
    pose[:3, 3] = row["translation"]
    return pose


def test_a_scene_of_nuscenes(root, tmp_path, capsys):
    # Expected: the tables' own rows, turned by pyquaternion; the files that they name are there.
    assert main(["nuscenes", str(root), "--version", VERSION, "--scene", "scene-0001", "--out", str(tmp_path)]) == 0
    assert "camera(s)" in capsys.readouterr().out
    rig, records = read_rig(tmp_path / "rig.json"), read_poses(tmp_path / "poses.json", root)
    require_files(records)
    sensors, mounts = table(root, "sensor"), table(root, "calibrated_sensor")
    by_channel = {sensors[row["sensor_token"]]["channel"]: row for row in mounts.values()}
    assert set(rig.names) == {name for name in by_channel if name.startswith("CAM")} and rig.names[0] == "CAM_FRONT"
    for n, name in enumerate(rig.names):
        np.testing.assert_allclose(rig.ego_from_camera[n], pose_of(by_channel[name]), atol=1e-9)
        assert rig.pixels_from_camera[n].tolist() == by_channel[name]["camera_intrinsic"]
    np.testing.assert_allclose(rig.ego_from_bev, pose_of(by_channel["LIDAR_TOP"]), atol=1e-9)
    samples = table(root, "sample")
    assert [record.seconds for record in records] == sorted(samples[r.name]["timestamp"] / 1e6 for r in records)
    poses = [row for row in table(root, "ego_pose").values()]
    for record in records:
        assert any(np.allclose(record.global_from_ego, pose_of(row), atol=1e-6) for row in poses)
    moments = [moment for _, moment in moments_of(records, rig)]
    assert [moment.motion.has_previous for moment in moments] == [False] + [True] * (len(moments) - 1)


def test_a_t4_dataset_has_its_tables_elsewhere(root, tmp_path):
    # Expected: the same rig but for the axes of the BEV frame, which are nuScenes' by default: y is the car's x.
    (tmp_path / "t4").mkdir()
    (tmp_path / "t4" / "annotation").symlink_to(root / VERSION)
    main(["t4", str(tmp_path / "t4"), "--out", str(tmp_path / "out")])
    rig = read_rig(tmp_path / "out" / "rig.json")
    assert rig.ego_from_bev[:3, 1].tolist() == [1, 0, 0] and rig.ego_from_bev[:3, 0].tolist() == [0, -1, 0]


def test_a_calibration_of_kitti(tmp_path):
    # Expected, by hand: 10 m ahead of the camera, which stands 0.27 m ahead of the lidar and 0.05 m to the left of
    # camera 0, lies on the principal point; its height is the lidar's and 8 cm less.
    (tmp_path / "calib.txt").write_text(KITTI)
    main(["kitti", str(tmp_path / "calib.txt"), "--cameras", "P0", "P2", "--out", str(tmp_path)])
    rig = read_rig(tmp_path / "rig.json")
    assert rig.names == ("P0", "P2") and rig.pixels_from_camera[1].tolist() == [[700, 0, 600], [0, 700, 180], [0, 0, 1]]
    np.testing.assert_allclose(rig.ego_from_camera[:, :3, 3], [[0.27, 0, 1.65], [0.27, 0.05, 1.65]], atol=1e-9)
    ahead = [-0.05, 10.27, 1.65 - 1.84, 1]  # in the BEV frame: x right, y forward, 1.84 m above the ground
    np.testing.assert_allclose(rig.camera_from_bev[1] @ ahead, [0, 0, 10, 1], atol=1e-9)
    assert not (tmp_path / "poses.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nuscenes", "{root}", "--version", "v9"], "v9/scene.json: scene: no such file"),
        (["nuscenes", "{root}", "--version", VERSION, "--scene", "x"], "scene.json: --scene: no scene 'x'; there are"),
        (["kitti", "{root}/absent.txt"], "absent.txt: calibration: cannot be read"),
        (["kitti", "{tmp}/calib.txt", "--cameras", "P7"], "calib.txt: P7: absent, or not 9 or 12 numbers"),
    ],
)
def test_mistakes(root, tmp_path, arguments, said):
    (tmp_path / "calib.txt").write_text(KITTI)
    with pytest.raises(InputError) as caught:
        main([part.format(root=root, tmp=tmp_path) for part in arguments] + ["--out", str(tmp_path / "out")])
    assert said in str(caught.value) and not (tmp_path / "out").exists()
