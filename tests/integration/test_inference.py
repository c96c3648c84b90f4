"""The front door against the datasets' way, and ``docs/inference.md``: its files are taken out of the page and run."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from PIL import Image

from bevstack import BEVPrediction, Moment, Motion, Predictor, Rig, Sweeps, load_model
from bevstack.datasets.nuscenes.create_data import create_nuscenes
from bevstack.engine.config import load_config
from bevstack.engine.streaming import Streams
from bevstack.errors import InputError
from bevstack.registry import DATASETS
from bevstack.structures import BEVDataSample
from bevstack.synthetic.generate import generate
from tests.engine import front_door
from tests.engine.front_door import CLASSES, saved, small_config
from tests.integration.conftest import FRAMES, REPOSITORY, shrunken
from tests.integration.pages import Page

PAGE = Page("inference.md")
KEYFRAME = Path(os.environ.get("BEVSTACK_REALDATA", REPOSITORY.parent / "shared" / "realdata")) / "nuscenes-keyframe-a"


# --- the same answer as through a dataset ---------------------------------------------------------------------------


def ego_from_lidar(dataset: Any, number: int) -> np.ndarray:
    """(4, 4): where the BEV frame of a nuScenes sample stands in the car."""
    arrays = dataset.index.arrays
    return np.array(arrays["ego_from_sensor"][arrays["lidar_calibration"][int(dataset.rows[number])]])


def moment_of(dataset: Any, number: int) -> Moment:
    """What a sample of a nuScenes dataset would be in a user's hands: files, calibration, poses."""
    record = dataset.clip(number)
    frame, now = record.frames[-1], record.global_from_bev
    motion = Motion.start(now)
    if frame.has_previous:
        motion = Motion.between(dataset.clip(number - 1).global_from_bev, now, frame.seconds)
    cameras, mount = frame.cameras, ego_from_lidar(dataset, number)
    rig = Rig(cameras.pixels_from_camera, cameras.camera_from_bev, cameras.names, mount, cameras.image_size_px)
    sweeps = None if frame.sweeps is None else Sweeps(frame.sweeps.paths, frame.sweeps.sweep_from_camera)
    return Moment(cameras.image_paths, rig, motion, sweeps)


def through_the_dataset(predictor: Predictor, dataset: Any) -> list[BEVDataSample]:
    """Predicted samples as ``tools/test.py`` makes them: dataset, preprocessor, streams."""
    streams, samples = Streams(), []
    for number in range(len(dataset)):
        with torch.no_grad(), predictor.precision.autocast():
            data = predictor.model.data_preprocessor(pseudo_collate([dataset[number]]), False)
            predicted, streams = streams.step(predictor.model, data, "predict")
        samples += predicted
    return samples


def assert_equal(one: Any, other: Any, place: str = "", atol: float = 0.0) -> int:
    """All tensors in two predictions agree; returns how many numbers that were."""
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=atol, equal_nan=True, msg=lambda text: f"{place}: {text}")
        return one.numel()
    if hasattr(one, "tensor"):
        return assert_equal(one.tensor, other.tensor, place, atol)
    if hasattr(one, "__dataclass_fields__"):
        one, other = vars(one), vars(other)
    if hasattr(one, "items"):
        one, other = dict(one.items()), dict(other.items())
        assert set(one) == set(other), place
        return sum(assert_equal(value, other[key], f"{place}.{key}", atol) for key, value in one.items())
    if isinstance(one, list | tuple):
        assert len(one) == len(other), place
        return sum(assert_equal(a, b, place, atol) for a, b in zip(one, other, strict=True))
    assert one == other or one is other, place
    return 0


def predicted_fields(sample: BEVDataSample) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if name.startswith("pred_") and name != "pred_on_truth_3d"}


def assert_the_same_way(predictor: Predictor, dataset: Any, atol: float = 0.0) -> list[BEVPrediction]:
    """The predictor along a dataset's stream says what the dataset's way says."""
    expected = through_the_dataset(predictor, dataset)
    predictions = list(predictor.stream(moment_of(dataset, number) for number in range(len(dataset))))
    assert len(expected) == len(predictions) == len(dataset)
    for sample, prediction in zip(expected, predictions, strict=True):
        assert assert_equal(predicted_fields(sample), predicted_fields(prediction.sample), atol=atol) > 100
    maps = [prediction.rasters["map"].layers for prediction in predictions]
    assert not torch.equal(maps[0], maps[-1])
    return predictions


def test_a_trained_model_says_the_same_as_through_its_dataset(trained):
    # Expected: bit for bit, memory along the stream included, from files, calibration and poses alone.
    predictor = Predictor(load_model(trained.work_dir / "epoch_2.pth", device="cpu"))
    head = predictor.model.heads["detection"]
    head.decoding = replace(head.decoding, score_threshold=0.0)  # after so few steps no score is high
    dataset = DATASETS.build(predictor.config.test_dataloader.dataset)
    predictions = assert_the_same_way(predictor, dataset)
    assert len(predictions) == FRAMES and all(prediction.boxes.names for prediction in predictions)
    assert predictor.classes == dataset.classes
    # The memory does play a part: without it the last moment looks otherwise.
    last = moment_of(dataset, FRAMES - 1)
    alone, _ = predictor.step(last.images, last.rig, last.motion)
    assert not torch.equal(alone.rasters["map"].layers, predictions[-1].rasters["map"].layers)


def test_every_head_says_the_same_as_through_its_dataset(tiny, tmp_path):
    # Expected: bit for bit, the heads that read the past or the images included; and JSON takes all of it.
    cfg = shrunken(load_config(REPOSITORY / "configs" / "multitask" / "all_heads.py"), tiny.root)
    predictor = Predictor(load_model(saved(tmp_path / "model.pth", cfg), device="cpu"))
    dataset = DATASETS.build(predictor.config.test_dataloader.dataset)
    predictions = assert_the_same_way(predictor, dataset)
    plain = json.loads(json.dumps(predictions[-1].as_dict(), allow_nan=False))
    assert {"boxes", "rasters", "panoptic", "masks", "keypoints", "scene"} <= set(plain)
    moment = moment_of(dataset, len(dataset) - 1)
    assert predictor.draw(predictions[-1], moment.images, moment.rig).std() > 10


def test_sweeps_half_size_and_can_bus_are_as_in_the_dataset(tmp_path):
    # Expected: equal but for rounding: the height of a camera above the ground comes from the rig here, from the
    # calibration table there. The can_bus form is the published one, which reads absolute headings.
    root = tmp_path / "root"
    generate(root, 1, 1, 3, (128, 72), True, 1, 3, "v1.0-mini")
    shutil.rmtree(root / "can_bus")  # its accelerations are what poses do not tell
    create_nuscenes(root, "v1.0-mini", maps=False)
    swin = dict(embed_dim=16, depths=(1, 1), num_heads=(1, 2), window_size=4, beta=1 / 4, out_indices=(0, 1))
    cfg = small_config(
        backbone=dict(type="SlowFastSwin", fusion="serial", num_sweeps=2, alpha=2, **swin),
        neck=dict(type="TopDownNeck", out_channels=8, out_levels=(0,)),
    )
    cfg.model.encoder.update(num_cameras=6, motion_embedding=dict(type="MotionEmbedding", channels=8))
    cfg.model.heads.boxes.decoding.update(score_threshold=2.0)  # the order of boxes hangs on rounding
    cfg.test_dataloader.dataset.update(
        data_root=str(root),
        version="v1.0-mini",
        can_bus_form=dict(type="ReferenceCanBus"),
        pipeline=[
            dict(type="LoadMultiViewImages", reduced=True),
            dict(type="LoadCameraSweeps", num_sweeps=2, reduced=True, still_height_m=0.5),
            dict(type="ResizeCropFlipImages", heights_px=(40,), size=(32, 64)),
            dict(type="PackBEVInputs"),
        ],
    )
    predictor = Predictor(front_door.trained(cfg).eval(), cfg)
    dataset = DATASETS.build({**cfg.test_dataloader.dataset, "test_mode": True})
    assert_the_same_way(predictor, dataset, atol=1e-6)
    for number in range(len(dataset)):
        there, moment = dataset[number]["inputs"], moment_of(dataset, number)
        here = predictor.steps(moment.images, moment.rig, moment.sweeps)
        assert np.array_equal(np.stack(here["images"]), there["images"][0].permute(0, 2, 3, 1))
        np.testing.assert_allclose(here["pixels_from_camera"], there["pixels_from_camera"][0], rtol=1e-6)
        swept = np.stack([np.stack(swept) for swept in here["sweeps"]]).astype(int)
        off = np.abs(swept - there["sweeps"][0].permute(0, 1, 3, 4, 2).numpy())
        assert off.max() <= 1 and off.mean() < 1e-3
    assert CLASSES == predictor.classes


def test_a_real_keyframe_says_the_same_as_through_its_dataset(trained, tmp_path):
    # Expected: bit for bit; six 1600 x 900 images of another rig than the model was trained on.
    if not KEYFRAME.is_dir():
        pytest.skip(f"no real keyframe at {KEYFRAME}: set BEVSTACK_REALDATA")
    create_nuscenes(KEYFRAME, "v1.0-mini", tmp_path, maps=False)
    predictor = Predictor(load_model(trained.work_dir / "epoch_2.pth", device="cpu"))
    pipeline = [dict(step) for step in predictor.config.test_dataloader.dataset.pipeline]
    kept = [step for step in pipeline if step["type"] not in ("LoadBEVMap", "RasteriseBoxes")]
    place = dict(data_root=str(KEYFRAME), split="mini_train", index_root=str(tmp_path), pipeline=kept)
    dataset = DATASETS.build({**predictor.config.test_dataloader.dataset, **place})
    (sample,), moment = through_the_dataset(predictor, dataset), moment_of(dataset, 0)
    prediction, _ = predictor.step(moment.images, moment.rig, moment.motion)
    assert assert_equal(predicted_fields(sample), predicted_fields(prediction.sample)) > 100
    assert prediction.sample.metainfo["image_size_px"].tolist() == [[64, 128]] * 6


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory) -> Path:
    """What the page's user has: six image files, their calibration, a clip, a checkpoint. No index, no tables."""
    folder = tmp_path_factory.mktemp("user")
    PAGE.write(folder)
    predictor = Predictor(load_model(trained.work_dir / "epoch_2.pth", device="cpu"))
    dataset = DATASETS.build(predictor.config.test_dataloader.dataset)
    row, records = int(dataset.rows[0]), [dataset.clip(number).frames[-1].cameras for number in range(len(dataset))]
    (folder / "images").mkdir()
    for name, path in zip(records[0].names, records[0].image_paths, strict=True):
        shutil.copy(path, folder / "images" / f"{name}.jpg")
    parts = (records[0].names, records[0].pixels_from_camera.tolist(), dataset.index.ego_from_camera(row).tolist())
    keys = ("name", "pixels_from_camera", "ego_from_camera")
    cameras = [dict(zip(keys, camera, strict=True)) for camera in zip(*parts, strict=True)]
    calibration = {"ego_from_bev": ego_from_lidar(dataset, 0).tolist(), "cameras": cameras}
    (folder / "calibration.json").write_text(json.dumps(calibration))
    poses = dataset.index.arrays["global_from_lidar_ego"][dataset.rows].tolist()
    frames = [
        {"images": list(record.image_paths), "global_from_ego": pose, "seconds": 0.5}
        for record, pose in zip(records, poses, strict=True)
    ]
    rig = dict(zip(("names", *keys[1:]), parts, strict=True)) | {"ego_from_bev": calibration["ego_from_bev"]}
    (folder / "clip.json").write_text(json.dumps({"rig": rig, "frames": frames}))
    shutil.copy(trained.work_dir / "epoch_2.pth", folder / "model.pth")
    return folder


def test_twenty_lines_draw_a_picture(folder, monkeypatch, capsys):
    # Expected: a picture with the six cameras and the panel from above; a line a box, and one that the untrained model
    # is not sure of is not among them.
    monkeypatch.chdir(folder)
    assert PAGE.lines_of("examples/predict.py") <= 20
    done = runpy.run_path("examples/predict.py")
    prediction = done["prediction"]
    picture = np.asarray(Image.open("prediction.png").convert("RGB"))
    assert picture.shape[1] > 1.5 * picture.shape[0] > 600 and picture.std() > 20
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (prediction.boxes.scores >= 0.3).sum()
    assert prediction.rasters["map"].layers.shape[0] == 6
    assert prediction.sample.metainfo["camera_names"][0] == "CAM_FRONT"


def test_the_calibration_of_the_page_is_one(folder):
    # Expected: the page's example is what its code reads, cut to one camera.
    text = json.loads(PAGE.files["examples/calibration.json"])
    keys = ("pixels_from_camera", "ego_from_camera")
    rig = Rig.from_ego(*([text["cameras"][0][key]] for key in keys), text["ego_from_bev"], ["CAM_FRONT"])
    place = rig.camera_from_bev[0] @ [-0.02, 11.70 - 0.94, 1.51 - 1.84, 1]  # 10 m ahead of the camera
    np.testing.assert_allclose(place, [0, 0, 10, 1], atol=1e-9)
    assert {"ego_from_bev", "cameras"} == set(json.loads((folder / "calibration.json").read_text()))


def test_a_clip_is_answered_moment_by_moment(folder, monkeypatch):
    # Expected: the same as step after step, the memory handed on.
    monkeypatch.chdir(folder)
    runpy.run_path("examples/clip.py")
    lines = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    assert len(lines) == FRAMES
    clip, memory, before = json.loads(Path("clip.json").read_text()), None, None
    predictor, rig = Predictor(load_model("model.pth")), Rig.from_ego(**clip["rig"])
    for line, frame in zip(lines, clip["frames"], strict=True):
        now, motion = frame["global_from_ego"], None
        if before is not None:
            motion = Motion.from_ego(before, now, rig.ego_from_bev, frame["seconds"])
        prediction, memory = predictor.step(frame["images"], rig, motion, memory)
        assert line == prediction.as_dict(cells=False)
        before = now


def without_config(folder: Path) -> None:
    content = torch.load(folder / "model.pth", weights_only=True)
    torch.save(content["state_dict"], "model.pth")
    load_model("model.pth")


def with_an_unknown_head(folder: Path) -> None:
    content = torch.load(folder / "model.pth", weights_only=True)
    config = content["meta"]["config"]
    config["model"]["heads"]["crowd"] = {"type": "CrowdHead"}
    torch.save(content | {"meta": {"config": config | {"custom_imports": {"imports": ["crowd"]}}}}, "model.pth")
    load_model("model.pth")


def asked(**changes: Any) -> Callable[[Path], None]:
    """A step on the page's images with something wrong."""

    def ask(folder: Path) -> None:
        calibration = json.loads((folder / "calibration.json").read_text())
        cameras = calibration["cameras"]
        poses = [camera["ego_from_camera"] for camera in cameras]
        if changes.get("pose"):
            poses[2] = np.diag([2.0, 2, 2, 1]).tolist()
        rig = Rig.from_ego([c["pixels_from_camera"] for c in cameras], poses, calibration["ego_from_bev"])
        images: list = [str(folder / "images" / f"{camera['name']}.jpg") for camera in cameras]
        predictor = Predictor(load_model(folder / "model.pth", device="cpu"))
        if changes.get("cameras") == 7:
            rig = Rig(*(np.concatenate([m, m[:1]]) for m in (rig.pixels_from_camera, rig.camera_from_bev)))
            images = [*images, images[0]]
        if changes.get("floats"):
            images[0] = np.zeros((72, 128, 3))
        if changes.get("sweeps"):
            steps = predictor.config.test_dataloader.dataset.pipeline
            steps.insert(1, dict(type="LoadCameraSweeps", num_sweeps=6))
            predictor = Predictor(predictor.model)
        memory = predictor.step(images, rig)[1] if changes.get("memory") else None
        predictor.step(images[: changes.get("number")], rig, None, memory)

    return ask


HOW: dict[str, Callable[[Path], None]] = {
    "weights alone, and no `config=`": without_config,
    "a head of your own, not imported": with_an_unknown_head,
    "five images for six cameras": asked(number=5),
    "seven cameras for a model of six": asked(cameras=7),
    "floats for pixels": asked(floats=True),
    "a pose that is none": asked(pose=True),
    "a memory, and no motion": asked(memory=True),
    "no sweeps for a video backbone": asked(sweeps=True),
}


def test_every_mistake_of_the_page_is_made_here():
    assert {mistake for mistake, _ in PAGE.mistakes} == set(HOW)


@pytest.mark.parametrize(("mistake", "said"), PAGE.mistakes, ids=[mistake for mistake, _ in PAGE.mistakes])
def test_mistakes_give_one_line(folder, tmp_path, monkeypatch, mistake, said):
    # Expected: the page's line.
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        HOW[mistake](folder)
    assert str(caught.value) == re.sub("^`|`$", "", said)
