"""Past centres: the annotations of earlier samples in today's BEV frame, by hand (see the world in tables.py)."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from tables import INSTANCES, VERSION, build_root

from bevstack.datasets.nuscenes.create_data import create_nuscenes
from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.transforms import (
    BEVRotateScaleFlip,
    LoadPastCenters,
    ObjectNameFilter,
    PackBEVInputs,
)
from bevstack.errors import InputError

NOWHERE = [np.nan, np.nan]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = build_root(tmp_path_factory.mktemp("past") / "root")
    create_nuscenes(root, VERSION)
    return root


def clips(root, split="tiny_train", **options) -> NuScenesBEVDataset:
    return NuScenesBEVDataset(root, VERSION, split, **{"test_mode": True, **options})


def places_now(k: int, *samples: int) -> dict[str, list]:
    """By class, where the objects of scene-0001 were in some samples, in the BEV frame of sample k.

    The lidar of sample k is at global (101 + 2 k, 200) and looks along +x; BEV x is -y, BEV y is x.
    """

    def place(positions, sample):
        there = 0 <= sample and positions[sample] is not None
        return [200 - positions[sample][1], positions[sample][0] - (101 + 2 * k)] if there else NOWHERE

    named = {"car": INSTANCES[0][2], "pedestrian": INSTANCES[1][2], "barrier": INSTANCES[2][2]}
    return {name: [place(positions, sample) for sample in samples] for name, positions in named.items()}


def assert_places(results: dict, expected: dict[str, list]) -> None:
    for label, found in zip(results["labels"], results["past_centers"], strict=True):
        np.testing.assert_allclose(found, expected[results["classes"][label]], atol=1e-6)


@pytest.mark.parametrize("k", range(4))
def test_the_past_of_a_stream_by_hand(root, k):
    # Frame m is sample k - m; before the scene, and where an object was not annotated, nothing is known.
    results = LoadPastCenters(3)(clips(root).pipeline_dict(k))
    assert results["past_centers"].shape == (len(results["boxes"]), 3, 2) and len(results["boxes"]) >= 2
    assert_places(results, places_now(k, k, k - 1, k - 2))
    np.testing.assert_allclose(results["past_centers"][:, 0], results["boxes"][:, :2], atol=1e-5)


def test_what_stands_still_stays_where_it_is_while_the_ego_turns(root):
    results = LoadPastCenters(3)(clips(root, "tiny_val").pipeline_dict(2))
    np.testing.assert_allclose(results["past_centers"][0], np.tile(results["boxes"][0, :2], (3, 1)), atol=1e-5)


def test_a_clips_past_is_the_frames_it_has(root):
    # The random queue leaves a sample out; the places are those of the samples that the clip names.
    dataset = clips(root, test_mode=False, use_valid_flag=False, num_frames=3, queue="random")
    seen = set()
    for epoch in range(6):
        dataset.set_epoch(epoch)
        results = LoadPastCenters(4)(dataset.pipeline_dict(3))
        samples = [int(frame["token"][-1]) for frame in reversed(results["frames"])]
        seen.add(tuple(samples))
        assert_places(results, places_now(3, *samples, -1))
    assert len(seen) > 1
    # At a stream's start the clip repeats its first frame: that is no past.
    assert_places(LoadPastCenters(3)(dataset.pipeline_dict(0)), places_now(0, 0, -1, -1))


def test_the_past_follows_the_augmentation_whichever_comes_first(root):
    # Expected: A times the places by hand. And brought back into an earlier frame by the augmented ego motion, a place
    # is A times where that earlier sample's own annotation is in its own BEV frame.
    augment = BEVRotateScaleFlip((30, 30), (1.1, 1.1), 1.0, 0.0)
    clip = clips(root).pipeline_dict(3)
    plain = LoadPastCenters(2)(copy.deepcopy(clip))
    before = augment(LoadPastCenters(2)(copy.deepcopy(clip)))
    after = LoadPastCenters(2)(augment(copy.deepcopy(clip)))
    np.testing.assert_allclose(before["past_centers"], after["past_centers"], atol=1e-9)
    np.testing.assert_allclose(before["past_centers"][:, 0], before["boxes"][:, :2], atol=1e-5)
    matrix = after["augmented_from_bev"]
    expected = plain["past_centers"] @ matrix[:2, :2].T + matrix[:2, 3]
    np.testing.assert_allclose(after["past_centers"], expected, atol=1e-9)

    previous_from_current = after["frames"][-1]["previous_from_current"]
    brought = after["past_centers"][:, 1] @ previous_from_current[:2, :2].T + previous_from_current[:2, 3]
    own = clips(root).pipeline_dict(2)
    own_places = {i: box[:2] @ matrix[:2, :2].T for i, box in zip(own["instance_ids"], own["boxes"], strict=True)}
    assert len(after["instance_ids"]) == 2
    for instance, place in zip(after["instance_ids"], brought, strict=True):
        np.testing.assert_allclose(place, own_places[instance], atol=1e-5)


def test_filters_and_packing_keep_them_in_step(root):
    results = ObjectNameFilter(["pedestrian"])(LoadPastCenters(2)(clips(root).pipeline_dict(3)))
    assert_places(results, places_now(3, 3, 2))
    for frame in results["frames"]:
        frame["images"] = [np.zeros((4, 6, 3), np.uint8)] * 6
        frame["image_size_px"] = np.array([[4, 6]] * 6)
    instances = PackBEVInputs()(results)["data_samples"].gt_instances_3d
    expected = np.array(places_now(3, 3, 2)["pedestrian"], dtype=np.float32)
    np.testing.assert_allclose(instances.past_centers.numpy(), expected[None], atol=1e-5)


def test_a_gap_ends_the_past_and_nothing_has_no_past(root):
    # Samples are 0.5 s apart; whether that is a gap, the dataset alone says.
    assert_places(LoadPastCenters(2)(clips(root, max_gap_seconds=0.1).pipeline_dict(3)), places_now(3, 3, -1))
    assert clips(root).past_centers(["s0k3", "s0k2"], np.zeros(0, dtype=np.int64)).shape == (0, 2, 2)
    transform = pickle.loads(pickle.dumps(LoadPastCenters(2)))
    assert_places(transform(clips(root).pipeline_dict(1)), places_now(1, 1, 0))
    with pytest.raises(ValueError, match="num_frames: 0"):
        LoadPastCenters(0)
    with pytest.raises(InputError, match="LoadPastCenters: the dataset's objects have no instance_ids"):
        LoadPastCenters(2)({"frames": []})
