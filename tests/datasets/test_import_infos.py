"""Info files of mmdet3d and BEVFormer: read without running them, refused where they mean something else than they say.

Expected: what the same root's tables give through ``tools/create_data.py``. The files are mmdet3d's own converters'
(info_files.py); float32 matrices of mmdet3d 1.x are the only difference that is allowed for.
"""

from __future__ import annotations

import copy
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from info_files import as_bevformer, converted, write_splits
from tables import VERSION, build_root

from bevstack.datasets.nuscenes.create_data import create_nuscenes
from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.nuscenes.info_index import ImportChoices, import_infos
from bevstack.datasets.nuscenes.info_pickles import read_info_pickle
from bevstack.errors import InputError
from tests.reliability.contract import call_tool, write_config

STYLES = ("mmdet3d-0 temporal", "mmdet3d-1 infos", "mmdet3d-1 data_list")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = build_root(tmp_path_factory.mktemp("infos") / "root")
    create_nuscenes(root, VERSION, maps=False)
    return root


@pytest.fixture(scope="module")
def contents(root, tmp_path_factory) -> dict[str, dict]:
    infos, data_list = converted(root, tmp_path_factory.mktemp("converters"))
    return dict(zip(STYLES, (as_bevformer(infos, root), infos, data_list), strict=True))


def imported(contents, style, root, folder, change=None, **choices) -> dict:
    content = copy.deepcopy(contents[style])
    if change is not None:
        for info in content.get("infos", content.get("data_list")):
            change(info)
    paths = write_splits(content, folder / "pkl", "nuscenes_infos_temporal")
    return import_infos(paths, root, folder / "index", ImportChoices(**choices))


@pytest.mark.parametrize("style", STYLES)
def test_samples_are_those_of_the_tables(contents, root, tmp_path, style) -> None:
    """Every number that a clip has; a micrometre for rounding, half a millimetre where the file holds float32."""
    made = imported(contents, style, root, tmp_path)
    assert made["scenes"] == 2 and made["samples"] == 7 and made["boxes"] == 16
    atol = 5e-4 if style.endswith("data_list") else 1e-6
    for here, there in (("train", "tiny_train"), ("val", "tiny_val")):
        found = NuScenesBEVDataset(root, VERSION, here, index_root=tmp_path / "index", num_frames=2)
        expected = NuScenesBEVDataset(root, VERSION, there, num_frames=2)
        assert len(found) == len(expected) > 0 and found.classes == expected.classes
        for n in range(len(expected)):
            ours, theirs = found.clip(n), expected.clip(n)
            assert ours.frames[-1].token == theirs.frames[-1].token and ours.prev_token == theirs.prev_token
            np.testing.assert_allclose(ours.objects.boxes, theirs.objects.boxes, atol=max(atol, 1e-5))
            np.testing.assert_array_equal(ours.objects.labels, theirs.objects.labels)
            np.testing.assert_array_equal(ours.objects.num_points, theirs.objects.num_points)
            assert ours.timestamp_s == theirs.timestamp_s and Path(ours.lidar_path) == Path(theirs.lidar_path)
            for a, b in zip(ours.frames, theirs.frames, strict=True):
                np.testing.assert_allclose(a.previous_from_current, b.previous_from_current, atol=atol)
                np.testing.assert_allclose(a.can_bus, b.can_bus, atol=atol)
                assert a.cameras.names == b.cameras.names and a.cameras.image_paths == b.cameras.image_paths
                np.testing.assert_array_equal(a.cameras.image_size_px, b.cameras.image_size_px)
                np.testing.assert_allclose(a.cameras.pixels_from_camera, b.cameras.pixels_from_camera)
                np.testing.assert_allclose(a.cameras.camera_from_bev, b.cameras.camera_from_bev, atol=atol)


@pytest.mark.parametrize("style", STYLES)
def test_one_step_of_training_is_that_of_the_tables(contents, root, tmp_path, style, capfd) -> None:
    """The command line, then one step from either index: the losses that were logged (expected: the tables')."""
    paths = write_splits(contents[style], tmp_path, "nuscenes_infos")
    assert call_tool("import_infos", *paths, "--root", root, "--out", tmp_path / "index") == 0
    printed = capfd.readouterr().out
    assert style.split()[0] in printed and "2 scenes (all 2, train 1, val 1), 7 samples, 16 boxes" in printed
    losses = {}
    for name, split, options in (("tables", "tiny_train", {}), ("infos", "train", {"index_root": tmp_path / "index"})):

        def one_step(cfg, split=split, options=options) -> None:
            cfg.train_cfg = {"type": "ResumableTrainLoop", "max_iters": 1, "by_epoch": False}
            cfg.train_dataloader.dataset |= {"split": split, **{key: str(value) for key, value in options.items()}}
            cfg.default_hooks = {"logger": {"type": "LoggerHook", "interval": 1}}
            cfg.randomness = {"seed": 0}

        config = write_config(tmp_path / f"{name}.py", root, VERSION, one_step)
        assert call_tool("train", config, "--work-dir", tmp_path / name) == 0, capfd.readouterr().err
        (scalars,) = (tmp_path / name).glob("*/vis_data/scalars.json")
        losses[name] = {k: v for k, v in json.loads(scalars.read_text().splitlines()[0]).items() if "loss" in k}
    assert losses["tables"]["loss"] > 0
    assert losses["infos"] == pytest.approx(losses["tables"], rel=1e-3 if style.endswith("data_list") else 1e-5)


# --- conventions ----------------------------------------------------------------------------------------------------


def never_inverted(info) -> None:
    """What mmdet3d's converter wrote before it was mended: minus the camera's place, not turned."""
    for camera in info["images"].values():
        matrix = np.array(camera["lidar2cam"])
        matrix[:3, 3] = matrix[:3, :3].T @ matrix[:3, 3]  # -R T becomes -T
        camera["lidar2cam"] = matrix.astype(np.float32).tolist()


def from_camera(info) -> None:
    for camera in info["images"].values():
        camera["lidar2cam"] = np.linalg.inv(np.array(camera["lidar2cam"])).tolist()


def shifted(metres):
    def change(info) -> None:
        info["cams"]["CAM_BACK"]["sensor2lidar_translation"] = np.array(
            info["cams"]["CAM_BACK"]["sensor2lidar_translation"]
        ) + (0, 0, metres)

    return change


def in_boxes(change):
    """A change of (G, 7) boxes in either style."""

    def of(info) -> None:
        if "gt_boxes" in info:
            info["gt_boxes"] = change(np.array(info["gt_boxes"], dtype=float))
        else:
            for box in info["instances"]:
                box["bbox_3d"] = change(np.array([box["bbox_3d"]]))[0].tolist()

    return of


def lower_faces(boxes):
    return np.c_[boxes[:, :2], boxes[:, 2] - boxes[:, 5] / 2, boxes[:, 3:]]


def before_1_0(boxes):
    return np.c_[boxes[:, :3], boxes[:, 4], boxes[:, 3], boxes[:, 5], -boxes[:, 6] - np.pi / 2]


def only_sizes(boxes):
    return np.c_[boxes[:, :3], boxes[:, 4], boxes[:, 3], boxes[:, 5:]]


def half_a_turn(boxes):
    return np.c_[boxes[:, :6], boxes[:, 6] + np.pi]


# style, what is done to it, field of the line, words of the reason. Metres and cosines are by hand: the front camera
# stands at (1.5, 0, 1.5) in the car, the lidar at (1, 0, 1.8): (0, 0.5, -0.3) in the lidar's axes. Never inverted, its
# place is R^T (0, 0.5, -0.3) = (0, -0.3, -0.5) (camera axes x right, y down, z ahead), which is 0.82 m off. Feet of the
# first scene's boxes less half their heights: -0.9 m four times, -0.6 four times, -0.5, -0.3 four times.
CONVENTIONS = {
    "never inverted": (STYLES[2], never_inverted, "lidar2cam", ("0.82 m", "never inverted", "of 24 cameras")),
    "from the camera": (STYLES[2], from_camera, "lidar2cam", ("leads from the camera to the lidar",)),
    "0.31 m too high": (STYLES[1], shifted(0.31), "cams.CAM_BACK.sensor2lidar", ("0.31 m and 0.0 degrees",)),
    "lower faces": (STYLES[1], in_boxes(lower_faces), "infos.gt_boxes", ("lower faces", "-0.60 m above")),
    "lower faces in 1.x": (STYLES[2], in_boxes(lower_faces), "data_list.bbox_3d", ("lower faces",)),
    "the ego's frame": (STYLES[1], in_boxes(lambda b: b + np.eye(7)[2] * 1.8), "gt_boxes", ("ego car's frame",)),
    "old boxes in 1.x": (STYLES[2], in_boxes(before_1_0), "data_list.bbox_3d", ("before 1.0 in a file of 1.x",)),
    "old sizes, new yaws": (STYLES[1], in_boxes(only_sizes), "infos.gt_boxes", ("mmdet3d-0 writes sizes", "yaws")),
    "turned": (STYLES[1], in_boxes(half_a_turn), "infos.gt_boxes", ("half a turn", "-1.00")),
}  # fmt: skip


@pytest.mark.parametrize("case", CONVENTIONS)
def test_wrong_conventions_are_refused_by_name(contents, root, tmp_path, case) -> None:
    style, change, field, words = CONVENTIONS[case]
    with pytest.raises(InputError) as error:
        imported(contents, style, root, tmp_path, change)
    assert field in error.value.field and all(word in error.value.reason for word in words), str(error.value)
    assert "\n" not in str(error.value) and not (tmp_path / "index").exists()


def test_0_29_m_is_within_the_limit(contents, root, tmp_path) -> None:
    assert imported(contents, STYLES[1], root, tmp_path, shifted(0.29))["boxes"] == 16


def test_a_convention_that_the_numbers_contradict(contents, root, tmp_path) -> None:
    with pytest.raises(InputError, match=r"--convention: is mmdet3d-1, but in infos.gt_boxes .* mmdet3d-0 writes"):
        imported(contents, STYLES[0], root, tmp_path, convention="mmdet3d-1")


def test_boxes_that_tell_nothing_ask_the_user(contents, root, tmp_path) -> None:
    """Without a vehicle nothing tells the two apart: the file's user has to."""

    def no_vehicles(info) -> None:
        info["gt_names"] = np.array(["pedestrian"] * len(info["gt_names"]))

    with pytest.raises(InputError, match="say --convention"):
        imported(contents, STYLES[0], root, tmp_path, no_vehicles)
    assert imported(contents, STYLES[0], root, tmp_path, no_vehicles, convention="mmdet3d-0")["boxes"] == 16


def test_a_can_bus_is_taken_over(contents, root, tmp_path) -> None:
    """[7:16] of BEVFormer's vector: acceleration, rotation rate, velocity; its zeros stand for no message."""

    def with_bus(info) -> None:
        info["can_bus"] = np.arange(18.0) + (1 if info["token"] == "s0k0" else -np.arange(18.0))

    imported(contents, STYLES[0], root, tmp_path, with_bus)
    index = NuScenesBEVDataset(root, VERSION, "all", index_root=tmp_path / "index").index
    np.testing.assert_array_equal(index.can_bus_raw[0, 7:], np.arange(8.0, 17))
    assert index.can_bus_valid.tolist() == [True] + [False] * 6


# --- malformed files ------------------------------------------------------------------------------------------------


class Runs:
    """Pickled, it calls a function when it is read."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def forgeries(folder: Path) -> dict[str, tuple[object, str]]:
    """Pickles that would make ``folder/ran``, and the name that the line says."""
    command = f"touch {folder / 'ran'}"
    return {
        "os.system": (Runs(os.system, command), "posix.system"),
        "eval": (Runs(eval, f"open({str(folder / 'ran')!r}, 'w')"), "builtins.eval"),
        "getattr": (Runs(getattr, "text", "upper"), "builtins.getattr"),
        "inside an array": (np.array([Runs(os.system, command)], dtype=object), "posix.system"),
        "a class of this package": (Runs(ImportChoices), "bevstack.datasets.nuscenes.info_index.ImportChoices"),
        "numpy's loader": (Runs(np.load, str(folder / "x.npy")), "numpy.load"),
        "subprocess": (Runs(__import__("subprocess").check_call, ["sh", "-c", command]), "subprocess.check_call"),
    }


@pytest.mark.parametrize("name", forgeries(Path()))
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_forged_pickles_never_run(tmp_path, root, capfd, name, protocol) -> None:
    """Refused by the name of what they would call, one line, exit code 2; the control shows that the forgery works."""
    forged, said = forgeries(tmp_path)[name]
    path = tmp_path / "infos_val.pkl"
    content = {"infos": [forged], "metadata": {"version": VERSION}}
    path.write_bytes(pickle.dumps(content, protocol=protocol, fix_imports=False))
    assert call_tool("import_infos", path, "--root", root, "--out", tmp_path / "index") == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: pickle: names ") and said in line
    assert not (tmp_path / "ran").exists() and not (tmp_path / "index").exists()
    if name == "os.system":
        pickle.loads(path.read_bytes())
        assert (tmp_path / "ran").exists()


def test_whatever_else_a_file_holds_is_one_line(contents, root, tmp_path) -> None:
    """Cut at 40 places, 200 bytes changed one by one with a seed: read, or refused; nothing else is raised."""
    whole = pickle.dumps(contents[STYLES[1]])
    generator, path = np.random.default_rng(0), tmp_path / "infos_val.pkl"
    cuts = [whole[:size] for size in generator.integers(0, len(whole), 40)]
    for n in generator.integers(0, len(whole), 200):
        cuts.append(whole[:n] + bytes([generator.integers(256)]) + whole[n + 1 :])
    refused = 0
    for content in cuts:
        path.write_bytes(content)
        try:
            import_infos([path], root, tmp_path / "index", ImportChoices())
        except InputError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused >= 40


def missing_key(info) -> None:
    del info["lidar2ego_rotation"]


def another_shape(info) -> None:
    info["cams"]["CAM_FRONT"]["cam_intrinsic"] = np.eye(4)


def not_finite(info) -> None:
    info["ego2global_translation"] = [np.nan, 0, 0]


def out_of_root(info) -> None:
    info["cams"]["CAM_FRONT"]["data_path"] = "samples/../../secret.jpg"


def no_image(info) -> None:
    info["cams"]["CAM_FRONT"]["data_path"] = "samples/CAM_FRONT/none.jpg"


def same_token(info) -> None:
    info["token"] = "s0"


def no_unit(info) -> None:
    info["lidar2ego_rotation"] = [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        (missing_key, "infos[0].lidar2ego_rotation", "is missing"),
        (another_shape, "infos[0].cams.CAM_FRONT.cam_intrinsic", "(4, 4), not (3, 3)"),
        (not_finite, "infos[0].ego2global_translation", "not finite"),
        (out_of_root, "infos[0].cams.CAM_FRONT.data_path", "leads out of the root"),
        (no_image, "image", "yet infos[0].cams.CAM_FRONT of nuscenes_infos_temporal_train.pkl names it"),
        (same_token, "infos.token", "s0 stands twice"),
        (no_unit, "infos[0].lidar2ego_rotation", "no unit quaternion"),
    ],
)
def test_wrong_fields_are_named(contents, root, tmp_path, change, field, reason) -> None:
    content = copy.deepcopy(contents[STYLES[1]])
    change_all = change is same_token
    for info in content["infos"] if change_all else content["infos"][:1]:
        change(info)
    if change_all:
        content["infos"] = content["infos"][:2]
    path = tmp_path / "nuscenes_infos_temporal_train.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(InputError) as error:
        import_infos([path], root, tmp_path / "index", ImportChoices())
    assert error.value.field == field and reason in error.value.reason


def test_texts_of_python_2_are_read(tmp_path) -> None:
    """Bytes that older pickles hold as text of as many characters (``_codecs.encode``), as protocol 2 writes them."""
    path = tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps({"a": np.arange(3, dtype=np.float32), "b": b"\xff\x00"}, protocol=2))
    found = read_info_pickle(path)
    assert found["b"] == b"\xff\x00" and found["a"].tolist() == [0, 1, 2] and "_codecs" in sys.modules
