"""Clips: geometry by hand (see the world in tables.py) and by the devkit, queues, seeds, workers."""

from __future__ import annotations

import copy
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from pyquaternion import Quaternion
from tables import VERSION, build_root, edit_table
from torch.utils.data import DataLoader

from bevstack.datasets.base import BEVDataset
from bevstack.datasets.clips import ClipIndex, consecutive_queue, previous_rows, random_queue
from bevstack.datasets.ego_state import CorrectedCanBus, EgoState
from bevstack.datasets.nuscenes.create_data import create_nuscenes
from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.nuscenes.index import NuScenesIndex
from bevstack.datasets.samplers import ClipSampler, StreamingSampler
from bevstack.errors import InputError

REALDATA = os.environ.get("BEVSTACK_REALDATA", str(Path(__file__).parents[3] / "shared" / "realdata"))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = build_root(tmp_path_factory.mktemp("dataset") / "root", can_bus=True)
    create_nuscenes(root, VERSION)
    return root


def clips(root, split="tiny_train", **options) -> NuScenesBEVDataset:
    return NuScenesBEVDataset(root, VERSION, split, **options)


def tokens(sample: dict) -> list[str]:
    return [frame["token"] for frame in sample["frames"]]


# --- geometry -------------------------------------------------------------------------------------------------------


def test_boxes_in_the_bev_frame_by_hand(root):
    # Sample 1: ego at (102, 200), lidar 1 m ahead and 1.8 m up. The car at (113, 196, 1) is 10 m ahead and 4 m to the
    # right; its centre is 0.8 m below the lidar, its bottom 0.8 m lower; it points forward, along BEV y; it drives at
    # 3 m in 0.5 s = 6 m/s. The barrier (120, 201) is seen once, so its velocity is unknown.
    sample = clips(root)[1]
    assert [sample["classes"][label] for label in sample["labels"]] == ["car", "barrier"]
    np.testing.assert_allclose(sample["boxes"][0], [4, 10, -1.6, 4.5, 2.0, 1.6, math.pi / 2, 0, 6], atol=1e-5)
    np.testing.assert_allclose(sample["boxes"][1, :7], [-1, 17, -1.8, 0.5, 2, 1, 0.3 + math.pi / 2], atol=1e-5)
    assert np.isnan(sample["boxes"][1, 7:]).all()
    assert sample["boxes"].dtype == np.float32
    assert sample["attribute_names"] == ["vehicle.moving", ""]
    assert sample["num_lidar_pts"].tolist() == [9, 4] and sample["visibility"].tolist() == [4, 4]


def test_boxes_are_the_devkits_in_the_lidar_frame(root):
    from nuscenes.nuscenes import NuScenes

    nusc = NuScenes(VERSION, str(root), verbose=False)
    dataset = clips(root, "all", test_mode=True)
    for sample in dataset:
        token = nusc.get("sample", sample["token"])["data"]["LIDAR_TOP"]
        wanted = ("vehicle.car", "human.pedestrian.adult", "movable_object.barrier")
        boxes = [box for box in nusc.get_sample_data(token)[1] if box.name in wanted]
        assert len(boxes) == len(sample["boxes"])
        for row, box in zip(sample["boxes"], boxes, strict=True):
            width, length, height = box.wlh
            np.testing.assert_allclose(row[:3], box.center - [0, 0, height / 2], atol=1e-4)
            np.testing.assert_allclose(row[3:6], [length, width, height], atol=1e-6)
            yaw = box.orientation.yaw_pitch_roll[0]
            assert math.cos(row[6] - yaw) == pytest.approx(1, abs=1e-6)


def test_points_filter_and_classes(root):
    # The pedestrian has no points: left out in training with the valid flag, kept otherwise.
    def names(**options):
        sample = clips(root, **options)[1]
        return [sample["classes"][label] for label in sample["labels"]]

    assert names() == ["car", "barrier"]
    assert names(use_valid_flag=False) == names(test_mode=True) == ["car", "pedestrian", "barrier"]
    assert names(classes=("barrier", "animal")) == ["barrier", "animal"]
    with pytest.raises(InputError, match="did you mean pedestrian"):
        clips(root, classes=("pedestrain",))
    with pytest.raises(InputError, match="twice"):
        clips(root, classes=("car", "car"))


def test_cameras_see_along_their_headings(root):
    sample = clips(root)[0]["frames"][-1]
    # CAM_FRONT stands 0.5 m ahead of the lidar and 0.3 m below it; a point 10.5 m ahead of the lidar and 2 m right is
    # 10 m deep: u = 32 + 40 * 2 / 10, v = 18 + 40 * (1.5 - 1.8) / 10 (the point is at lidar height, above the camera).
    point = np.array([2.0, 10.5, 0.0, 1.0])
    u, v, depth = sample["pixels_from_camera"][0] @ (sample["camera_from_bev"][0] @ point)[:3]
    np.testing.assert_allclose([u / depth, v / depth, depth], [40.0, 18 - 1.2, 10.0], atol=1e-9)
    depths = sample["camera_from_bev"][:, 2] @ np.array([0.0, -20.0, 0.0, 1.0])  # 20 m behind
    assert [bool(d > 0) for d in depths] == [False, False, False, True, True, True]
    assert sample["image_size_px"].tolist() == [[36, 64]] * 6
    assert all(Path(path).is_file() for path in sample["image_paths"])


def test_ego_motion_forward_and_turning(root):
    # scene-0001 drives 2 m ahead a sample: what is at the BEV origin now was at y = 2 in the previous frame.
    forward = clips(root)[1]["frames"][-1]
    np.testing.assert_allclose(forward["previous_from_current"][:3, 3], [0, 2, 0], atol=1e-9)
    assert forward["has_previous"] and forward["seconds"] == pytest.approx(0.5)
    # scene-0003 turns left by 10 degrees about the ego, with the lidar 1 m ahead of it.
    turning = clips(root, "tiny_val")[1]["frames"][-1]["previous_from_current"]
    assert math.degrees(math.atan2(turning[1, 0], turning[0, 0])) == pytest.approx(10.0)
    angle = math.radians(10)
    np.testing.assert_allclose(turning[:3, 3], [-math.sin(angle), math.cos(angle) - 1, 0], atol=1e-9)


def test_corrected_can_bus_vector(root):
    # Message 5 precedes sample 1, see tables.py; 2 m ahead are +2 along BEV y.
    vector = clips(root)[1]["frames"][-1]["can_bus"]
    np.testing.assert_allclose(vector, [0, 2, 0, 1, 0, 0, 0, 5, 0.1, 9.8, 0, 0, 0.01, 4, 0, 0, 0, 0], atol=1e-9)
    # scene-0003 has no CAN bus: zeros there, the turn of 10 degrees from the poses all the same.
    vector = clips(root, "tiny_val")[2]["frames"][-1]["can_bus"]
    np.testing.assert_allclose(vector[3:7], Quaternion(axis=[0, 0, 1], degrees=20).elements, atol=1e-12)
    assert not vector[7:17].any() and vector[17] == pytest.approx(10.0)
    assert not clips(root)[0]["frames"][-1]["can_bus"][[0, 1, 2, 17]].any()


@pytest.mark.parametrize(("before", "after", "turn"), [(-175, 175, -10), (175, -175, 10), (0, 180, 180), (180, 0, 180)])
def test_turns_are_wrapped(before, after, turn):
    def state(yaw_deg):
        return EgoState(
            np.r_[0, 0, 0, Quaternion(axis=[0, 0, 1], degrees=yaw_deg).elements, np.full(9, np.nan)], False, np.eye(4)
        )

    assert CorrectedCanBus()(state(after), state(before))[17] == pytest.approx(turn)


def test_another_can_bus_form(root):
    sample = clips(root, can_bus_form=lambda current, previous: np.full(18, float(previous is None)))[1]
    assert not sample["frames"][-1]["can_bus"].any()
    assert clips(root, can_bus_form=dict(type="CorrectedCanBus"))[1]["frames"][-1]["can_bus"][1] == pytest.approx(2)


@pytest.mark.skipif(not Path(REALDATA).is_dir(), reason=f"no real keyframes at {REALDATA}: set BEVSTACK_REALDATA")
@pytest.mark.parametrize("name", ["nuscenes-keyframe-a", "dgp-scene02"])
def test_real_calibration(name, tmp_path):
    # reference.json holds lidar2cam of the source the tables were made from.
    root = Path(REALDATA) / name
    create_nuscenes(root, "v1.0-mini", tmp_path)
    index = NuScenesIndex.open(root, "v1.0-mini", tmp_path)
    reference = json.loads((root / "reference.json").read_text())["lidar2cam"]
    for row in range(len(index)):
        expected = reference[index.token(row)]
        for camera, found in zip(index.cameras, index.camera_from_bev(row), strict=True):
            np.testing.assert_allclose(found, np.array(expected[camera]).reshape(4, 4), atol=1e-5)


# --- queues ---------------------------------------------------------------------------------------------------------

CHAIN = np.array([-1, 0, 1, 2, 3, 4, -1, 6, 7])  # two streams: 0..5 and 6..8


def test_random_queue_drops_one_of_the_frames_before():
    rng = np.random.default_rng(0)
    seen = {tuple(random_queue(5, 3, CHAIN, rng)[0]) for _ in range(200)}
    # Of 2, 3, 4 one is dropped; all three ways occur.
    assert seen == {(3, 4, 5), (2, 4, 5), (2, 3, 5)}
    assert random_queue(5, 1, CHAIN, rng) == ([5], 0)


def test_queues_stay_in_their_stream_and_keep_their_length():
    rng = np.random.default_rng(0)
    seen = {(tuple(rows), repeated) for rows, repeated in (random_queue(7, 3, CHAIN, rng) for _ in range(200))}
    # Before 7 there is 6 and nothing else: of (none, none, 6) one goes, so 6 or one of the gaps.
    assert seen == {((6, 6, 7), 1), ((7, 7, 7), 2)}
    assert consecutive_queue(8, 4, CHAIN, rng) == ([6, 6, 7, 8], 1)
    assert consecutive_queue(6, 3, CHAIN, rng) == ([6, 6, 6], 2)
    assert consecutive_queue(8, 2, CHAIN, rng) == ([7, 8], 0)


def test_frames_without_predecessor_say_so(root):
    dataset = clips(root, num_frames=4, queue="consecutive")
    sample = dataset[1]
    assert tokens(sample) == ["s0k0", "s0k0", "s0k0", "s0k1"]
    assert [frame["has_previous"] for frame in sample["frames"]] == [False, False, False, True]
    for frame in sample["frames"][:3]:
        np.testing.assert_array_equal(frame["previous_from_current"], np.eye(4))
        assert frame["seconds"] == 0 and not frame["can_bus"][[0, 1, 2, 17]].any()
    np.testing.assert_allclose(sample["frames"][3]["previous_from_current"][:3, 3], [0, 2, 0], atol=1e-9)


def test_a_dropped_frame_doubles_the_motion(root):
    dataset = clips(root, num_frames=2, queue="random")
    for epoch in range(20):
        previous, current = dataset[ClipIndex(3, epoch)]["frames"]
        steps = 3 - int(previous["token"][-1])
        np.testing.assert_allclose(current["previous_from_current"][:3, 3], [0, 2 * steps, 0], atol=1e-9)
        assert current["seconds"] == pytest.approx(0.5 * steps)
        # The first frame relates to its own predecessor, one step back.
        assert previous["has_previous"] and previous["seconds"] == pytest.approx(0.5)


def test_gaps_end_a_stream(tmp_path):
    root = build_root(tmp_path / "root")

    def pause(records):
        for record in records:
            if record["token"] in ("s0k2", "s0k3"):
                record["timestamp"] += 5_000_000

    edit_table(root, "sample", pause)
    create_nuscenes(root, VERSION)
    dataset = clips(root, num_frames=3, queue="consecutive")
    assert tokens(dataset[3]) == ["s0k2", "s0k2", "s0k3"]
    assert [dataset[i]["prev_token"] for i in range(4)] == ["", "s0k0", "", "s0k2"]
    assert [dataset[i]["next_token"] for i in range(4)] == ["s0k1", "", "s0k3", ""]
    assert dataset.stream_starts.tolist() == [True, False, True, False]
    patient = clips(root, num_frames=3, queue="consecutive", max_gap_seconds=10)
    assert tokens(patient[3]) == ["s0k1", "s0k2", "s0k3"]
    assert previous_rows([-1, 0], [0, 2_000_001], 2.0).tolist() == [-1, -1]


def test_streaming_order_meets_prev_tokens(root):
    dataset = clips(root, "all")
    order = np.array(list(StreamingSampler(dataset, batch_size=2, seed=0))).reshape(-1, 2)
    for slot in order.T:
        samples = [dataset[i] for i in slot]
        for before, after in zip(samples[:-1], samples[1:], strict=True):
            assert after["prev_token"] in ("", before["token"])


# --- seeds and workers ----------------------------------------------------------------------------------------------


class DrawNumbers:
    """A transform that keeps what it draws."""

    def __call__(self, results: dict) -> dict:
        results["drawn"] = (results["rng"].random(), results["stream_rng"].random())
        return results


def drawn(dataset, indices) -> list[tuple[float, float]]:
    return [dataset[i]["drawn"] for i in indices]


def test_random_numbers_depend_on_seed_epoch_and_sample(root):
    dataset = clips(root, "all", pipeline=[DrawNumbers()])
    epochs = [drawn(dataset, [ClipIndex(i, epoch) for i in range(7)]) for epoch in (0, 1, 0)]
    assert epochs[0] == epochs[2] and epochs[0] != epochs[1]
    own, stream = zip(*epochs[0], strict=True)
    assert len(set(own)) == 7
    assert len(set(stream)) == 2 and stream[0] == stream[3] != stream[4] == stream[6]
    assert drawn(clips(root, "all", pipeline=[DrawNumbers()], seed=1), range(7)) != epochs[0]
    testing = clips(root, "all", pipeline=[DrawNumbers()], test_mode=True)
    assert drawn(testing, [ClipIndex(2, 5)]) == drawn(testing, [ClipIndex(2, 9)])


def test_set_epoch_reaches_clips_without_epoch(root):
    dataset = clips(root, "all", pipeline=[DrawNumbers()])
    dataset.set_epoch(4)
    assert drawn(dataset, range(3)) == drawn(dataset, [ClipIndex(i, 4) for i in range(3)])


def _first(batch: list[dict]) -> tuple:
    return tuple((s["token"], s["drawn"], tuple(tokens(s))) for s in batch)


def test_any_number_of_workers_gives_the_same_clips(root):
    runs = []
    for workers in (0, 2):
        dataset = clips(root, "all", num_frames=3, pipeline=[DrawNumbers()])
        sampler = ClipSampler(dataset, seed=3)
        loader = DataLoader(
            dataset, 2, sampler=sampler, num_workers=workers, collate_fn=_first, persistent_workers=workers > 0
        )
        epochs = []
        for epoch in range(2):
            sampler.set_epoch(epoch)
            epochs.append(list(loader))
        assert epochs[0] != epochs[1]
        runs.append(epochs)
    assert runs[0] == runs[1]


def test_mmengine_runner_builds_the_loader(root):
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner

    init_default_scope("bevstack")
    config = dict(
        batch_size=2,
        num_workers=0,
        dataset=dict(
            type="NuScenesBEVDataset",
            data_root=str(root),
            version=VERSION,
            split="all",
            num_frames=2,
            pipeline=[dict(type="LoadMultiViewImages"), dict(type="PackBEVInputs")],
        ),
        sampler=dict(type="StreamingSampler", batch_size=2),
        collate_fn=dict(type="pseudo_collate"),
    )
    loader = Runner.build_dataloader(config, seed=0)
    batch = next(iter(loader))
    assert [tuple(images.shape) for images in batch["inputs"]["images"]] == [(2, 6, 3, 36, 64)] * 2
    assert len({sample.scene_token for sample in batch["data_samples"]}) == 2
    assert loader.dataset.metainfo["classes"][0] == "car"


def test_bad_arguments(root):
    for options in (dict(num_frames=0), dict(queue="latest")):
        with pytest.raises(ValueError, match=next(iter(options))):
            clips(root, **options)
    with pytest.raises(InputError, match="create_data.py"):
        NuScenesBEVDataset(root, "v1.0-mini", "all")
    with pytest.raises(IndexError):
        clips(root)[4]


def test_workers_share_the_index(root):
    dataset = clips(root)
    assert all(isinstance(array, np.memmap) for array in dataset.index.arrays.values() if array.size)
    assert isinstance(dataset._epoch, torch.Tensor) and dataset._epoch.is_shared()


def test_it_answers_all_that_is_asked(root):
    # Expected: every member of the protocol; what is asked of a sample agrees with its clip.
    dataset = clips(root, "all")
    assert {name for name in vars(BEVDataset) if not name.startswith("_")} <= set(dir(dataset))
    assert dataset.scene_names == ["scene-0001"] * 4 + ["scene-0003"] * 3
    assert dataset.locations == ("singapore-onenorth",) and dataset.source == dataset.index.folder
    clip = dataset.clip(1)
    assert clip.frames[-1].token == "s0k1" and (clip.prev_token, clip.next_token) == ("s0k0", "s0k2")
    assert dataset.camera_views("s0k1").image_paths == clip.frames[-1].cameras.image_paths
    # The pedestrian has no points: it is truth, but not learned in training.
    assert [dataset.classes[label] for label in clip.objects.labels] == ["car", "barrier"]
    assert [dataset.classes[label] for label in dataset.truth("s0k1").labels] == ["car", "pedestrian", "barrier"]
    assert dataset.earlier_tokens("s0k3", 2) == ["s0k2", "s0k1"] and dataset.earlier_tokens("s1k0", 2) == []


def test_a_dataset_travels_to_workers_without_its_map_tiles(root):
    dataset = clips(root)
    assert not dataset.has_map("singapore-onenorth") and dataset._opened_tiles is not None
    assert dataset._tiles is dataset._tiles  # opened once
    again = pickle.loads(pickle.dumps(dataset))
    assert again._opened_tiles is None and not again.has_map("singapore-onenorth")
    assert tokens(again[2]) == tokens(dataset[2])


def test_the_handle_stays_in_the_worker_and_is_not_copied(root):
    # A transform meets the dataset itself, also in a copy of the dict; the sample that leaves has no trace of it.
    met = []

    def look(results):
        met.append((results["dataset"], copy.deepcopy(results)["dataset"]))
        return results

    dataset = clips(root, pipeline=[look])
    assert "dataset" not in dataset[1]
    assert met == [(dataset, dataset)]
