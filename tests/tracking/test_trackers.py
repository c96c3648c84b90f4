"""Trackers on hand-made scenes; the expected identities are those that the scenes were made with."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from bevstack.registry import TASK_UTILS
from bevstack.tracking import CenterPointTracker, DeepSortTracker, Tracker
from bevstack.tracking.centerpoint_tracker import greedy_matches
from bevstack.tracking.deepsort_tracker import assign, cosine_distance, footprint_iou
from tests.tracking.scenes import frame, identities

RED, BLUE, GREEN = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)
TRACKERS = ["CenterPointTracker", "DeepSortTracker"]


def build(name, **options) -> Tracker:
    return TASK_UTILS.build(dict(type=f"bevstack.{name}", **options))


def kept(ids: list[list[int]]) -> bool:
    """Every frame names the same objects in the same order, each by its own identity."""
    return all(row == ids[0] for row in ids) and len(set(ids[0])) == len(ids[0]) and -1 not in ids[0]


@pytest.mark.parametrize("name", TRACKERS)
def test_crossing_objects_keep_their_identities(name):
    # Two cars meet head on, 2.5 m apart sideways, at 10 m/s each: 5 m a frame, nearer to the other's place than to
    # their own. Positions alone would swap them; their velocities tell.
    frames = [
        frame(t * 0.5, [(-12.5 + 5 * t, 0), (12.5 - 5 * t, 2.5)], [(10, 0), (-10, 0)]) for t in range(6)
    ]
    assert kept(identities(build(name), frames))


@pytest.mark.parametrize("name", TRACKERS)
def test_the_order_of_detections_does_not_matter(name):
    frames = [frame(t * 0.5, [(0, t), (20, -t), (-20, 2 * t)], [(0, 2), (0, -2), (0, 4)]) for t in range(5)]
    mixed = [f.take(np.roll(np.arange(3), t)) for t, f in enumerate(frames)]
    ids = [np.roll(row, -t).tolist() for t, row in enumerate(identities(build(name), mixed))]
    assert kept(ids)


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize("missed", [1, 2])
def test_a_hidden_object_comes_back(name, missed):
    # The second car drives 4 m/s behind something for some frames; the default max_age of both allows two.
    def places(t):
        return [(0, 30)] if 3 <= t < 3 + missed else [(0, 30), (2 * t, 0)]

    frames = [frame(t * 0.5, places(t), [(0, 0), (4, 0)][: len(places(t))]) for t in range(8)]
    ids = identities(build(name), frames)
    assert kept([row for row in ids if len(row) == 2])
    assert all(row[0] == ids[0][0] for row in ids)


@pytest.mark.parametrize("name", TRACKERS)
def test_an_object_hidden_too_long_is_another(name):
    # max_age 2: seen in frame 2, gone in frames 3 and 4, back in frame 5, which is three frames later.
    frames = [frame(t * 0.5, [] if t in (3, 4) else [(0, 0)], None) for t in range(7)]
    ids = identities(build(name, max_age=2), frames)
    assert ids[0] == ids[2] and ids[6][0] not in (ids[0][0], -1)


def test_deepsort_finds_an_object_again_by_its_looks():
    # Two pedestrians stand 1 m apart, vanish for two frames, and come back with their places swapped: by motion alone
    # they would be confused, by their looks they are not.
    def stream(looks):
        here, there = [(0, 0), (1, 0)], [(1, 0), (0, 0)]
        for t, places in enumerate([here, here, here, [], [], there, there]):
            seen = None if looks is None else np.reshape(looks, (2, 3))[: len(places)]
            yield frame(t * 0.5, places, [(0, 0)] * len(places), "pedestrian", looks=seen)

    with_looks = identities(build("DeepSortTracker"), stream((RED, BLUE)))
    without = identities(build("DeepSortTracker"), stream(None))
    assert kept([row for row in with_looks if row])
    assert without[5] == without[0][::-1]
    # Looks that are the same tell nothing: as without.
    assert identities(build("DeepSortTracker"), stream((RED, RED))) == without


def test_deepsort_swapped_between_two_frames():
    # The same without a pause.
    here, there = [(0, 0), (1, 0)], [(1, 0), (0, 0)]
    frames = [
        frame(t * 0.5, places, [(0, 0)] * 2, "pedestrian", looks=(RED, BLUE))
        for t, places in enumerate([here, here, there, here, there])
    ]
    assert kept(identities(build("DeepSortTracker"), frames))


def test_the_cascade_prefers_what_was_seen_last():
    # One track was seen a frame ago, another, at the very place where the detection now appears, three frames ago.
    # Both are within the gate: the one seen last takes it (Wojke et al. 2017, listing 1).
    tracker = build("DeepSortTracker", motion_weight=1.0)
    frames = [frame(0.5 * t, [(0, 0), (0, 1.2)], [(0, 0)] * 2) for t in range(3)]
    frames += [frame(0.5 * t, [(0, 0)], [(0, 0)]) for t in (3, 4)]
    ids = identities(tracker, [*frames, frame(2.5, [(0, 1.2)], [(0, 0)])])
    assert ids[-1] == [ids[0][0]]


def test_no_match_beyond_the_limit_however_unsure_the_track():
    # A pedestrian of unknown speed has a gate of many metres after two frames; 6 m away appears another one, beyond
    # 1 m a frame. With a wider limit it is taken for the same.
    frames = [frame(0.5 * t, [place] if place else [], names="pedestrian")
              for t, place in enumerate([(0, 0), (0, 0), None, (6, 0)])]  # fmt: skip
    assert identities(build("DeepSortTracker", min_hits=1), frames)[-1] == [1]
    assert identities(build("DeepSortTracker", min_hits=1, limits_m=dict(pedestrian=4.0)), frames)[-1] == [0]


def test_tentative_tracks_are_confirmed_or_end():
    # After the first frames an object is reported from its third sighting on; one that is missed meanwhile never.
    tracker = build("DeepSortTracker", min_hits=3)
    always, flash = (0, 0), (30, 0)
    seen = [[always]] * 4 + [[always, flash], [always], [always, flash], [always, flash], [always, flash]]
    ids = identities(tracker, [frame(t * 0.5, places) for t, places in enumerate(seen)])
    assert [row[0] for row in ids] == [0] * 9
    assert [row[1] for row in ids if len(row) == 2][:3] == [-1, -1, -1] and ids[-1][1] > 0


@pytest.mark.parametrize("name", TRACKERS)
def test_the_ego_motion_does_not_matter(name):
    # Detections in the BEV frame of a car that drives and turns, moved to the global frame by detections_of: an object
    # that stands still does not move there, so that it keeps its identity although it jumps 12 m in the BEV frame.
    import torch
    from mmdet3d.structures import LiDARInstance3DBoxes
    from mmengine.structures import InstanceData

    from bevstack.structures import BEVDataSample
    from bevstack.tracking import detections_of, track_samples

    standing = np.array([[30.0, 5, 0, 1], [20.0, -8, 0, 1]])
    mirrored = np.diag([-1.1, 1.1, 1.1, 1.0])  # a BEV augmentation: mirror and scale

    def samples():
        for t in range(4):
            angle = 0.4 * t
            global_from_bev = np.eye(4)
            global_from_bev[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
            global_from_bev[:3, 3] = [100 + 12 * t, 50, 2]
            bev = standing + [100, 50, 2, 0]
            bev = bev @ (mirrored @ np.linalg.inv(global_from_bev)).T
            boxes = torch.zeros(2, 9)
            boxes[:, :3], boxes[:, 3:6] = torch.from_numpy(bev[:, :3]), 2.0
            meta = dict(
                scene_token="s", timestamp_s=1e9 + 0.5 * t, classes=("car",), global_from_bev=global_from_bev,
                augmented_from_bev=mirrored,
            )  # fmt: skip
            sample = BEVDataSample(metainfo=meta)
            sample.pred_instances_3d = InstanceData(
                bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
                scores_3d=torch.ones(2), labels_3d=torch.zeros(2, dtype=torch.int64),
            )  # fmt: skip
            yield sample

    for sample in samples():
        np.testing.assert_allclose(detections_of(sample).boxes[:, :2], standing[:, :2] + [100, 50], atol=1e-4)
        np.testing.assert_allclose(detections_of(sample).boxes[:, 3:6], 2 / 1.1, rtol=1e-6)
    tracked = list(track_samples(build(name), samples(), trail_length=3))
    ids = [sample.pred_instances_3d.track_ids.tolist() for sample in tracked]
    assert kept(ids)
    trail = tracked[-1].track_trails[ids[0][0]]
    np.testing.assert_allclose(trail[:, :2], [[130, 55]] * 3, atol=1e-4)
    assert "track_ids" not in next(samples()).pred_instances_3d


@pytest.mark.parametrize("name", TRACKERS)
def test_empty_frames(name):
    tracker = build(name)
    assert identities(tracker, [frame(0.5 * t, []) for t in range(3)]) == [[], [], []]
    ids = identities(tracker, [frame(0, [(0, 0)]), frame(0.5, []), frame(1.0, [(0, 0)]), frame(1.5, [])])
    assert ids[1] == ids[3] == []


@pytest.mark.parametrize("name", TRACKERS)
@pytest.mark.parametrize(
    ("second", "what"),
    [(dict(scene="other", time_s=0.5), "another scene"), (dict(time_s=3.0), "a gap"), (dict(time_s=-9.0), "back")],
)
def test_streams_do_not_mix(name, second, what):
    # The same place in another scene, after a gap, or earlier is another object, with an identity never given before.
    tracker = build(name)
    first, state = tracker.step(None, frame(0.0, [(0, 0), (9, 9)]))
    ids, _ = tracker.step(state, frame(places=[(0, 0)], **second))
    assert ids[0] >= 0 and ids[0] not in first, what


@pytest.mark.parametrize("name", TRACKERS)
def test_two_streams_in_turns_are_as_each_alone(name):
    # The state is all there is: streams that are followed in turns do not know of each other, and a state is not
    # changed by a step.
    streams = [
        [frame(0.5 * t, [(3 * t, 0), (0, 20)], [(6, 0), (0, 0)], scene="a") for t in range(4)],
        [frame(0.5 * t, [(0, 2 * t)], [(0, 4)], scene="b") for t in range(4)],
    ]
    tracker, states, answers = build(name), [None, None], [[], []]
    for t, b in itertools.product(range(4), range(2)):
        before = copy.deepcopy(states[b])
        held = states[b]
        ids, states[b] = tracker.step(held, streams[b][t])
        answers[b].append(ids.tolist())
        assert repr(held) == repr(before)
    assert answers == [identities(build(name), stream) for stream in streams]


@pytest.mark.parametrize("name", TRACKERS)
def test_classes_and_scores_that_are_not_tracked(name):
    # Barriers are no tracking class; what scores too low does not begin a track; a bus never becomes a car.
    tracker = build(name, min_score=0.3)
    places = [(0, 0), (10, 0), (20, 0)]
    first = frame(0, places, names=["car", "barrier", "car"], scores=[0.9, 0.9, 0.2])
    later = frame(0.5, places, names=["bus", "barrier", "car"], scores=[0.9, 0.9, 0.9])
    (a, b, c), (d, e, f) = identities(tracker, [first, later])
    assert a >= 0 and b == c == e == -1 and d not in (a, -1) and f not in (a, -1)


@pytest.mark.parametrize("name", TRACKERS)
def test_distance_limits_are_per_class(name):
    # 3 m in half a second without a measured velocity: within a car's limit (4 m), beyond a pedestrian's (1 m).
    tracker = build(name)
    frames = [frame(t * 0.5, [(3 * t, 0), (3 * t, 50)], names=["car", "pedestrian"]) for t in range(2)]
    (car, walker), (car_later, walker_later) = identities(tracker, frames)
    assert car == car_later and walker_later != walker


def test_greedy_is_by_turns():
    # By hand: the first takes column 1 (nearest), the second wants it too and takes 0, the third is too far from all.
    distance = np.array([[2.0, 1.0], [1.5, 0.5], [0.9, 0.1]])
    assert greedy_matches(distance, np.array([3.0, 3.0, 3.0])).tolist() == [1, 0, -1]
    assert greedy_matches(distance, np.array([0.5, 3.0, 3.0])).tolist() == [-1, 1, 0]
    assert greedy_matches(np.zeros((2, 0)), np.ones(2)).tolist() == [-1, -1]


def test_assignment_is_the_cheapest_of_the_allowed():
    # Expected: all assignments of 4 rows to 4 columns tried one by one.
    rng = np.random.default_rng(3)
    cost, allowed = rng.random((4, 4)), rng.random((4, 4)) < 0.6
    pairs = assign(cost, allowed)
    best = max(
        ((sum(allowed[r, c] for r, c in enumerate(p)), -sum(cost[r, c] for r, c in enumerate(p) if allowed[r, c]))
         for p in itertools.permutations(range(4))),
    )  # fmt: skip
    assert len(pairs) == best[0] and -sum(cost[r, c] for r, c in pairs) == pytest.approx(best[1])
    assert assign(cost, np.zeros((4, 4), bool)) == []
    full = assign(cost, np.ones((4, 4), bool))
    assert full == list(zip(*(part.tolist() for part in linear_sum_assignment(cost)), strict=True))


def test_overlap_of_turned_footprints():
    # Closed forms: two 4 x 2 boxes 1 m apart along their length share 6 of 10 square metres; turned by 90 degrees they
    # share a 2 x 2 square of 12; beside each other nothing.
    box = np.array([[0, 0, 0, 4, 2, 1.5, 0, 0, 0]], float)
    others = np.array(
        [[1, 0, 0, 4, 2, 1, 0, 0, 0], [0, 0, 0, 4, 2, 1, np.pi / 2, 0, 0], [0, 3, 0, 4, 2, 1, 0, 0, 0]], float
    )
    np.testing.assert_allclose(footprint_iou(box, others), [[0.6, 4 / 12, 0.0]], atol=1e-12)


def test_cosine_distance_takes_the_nearest_of_the_gallery():
    gallery = np.array([RED, BLUE])
    np.testing.assert_allclose(cosine_distance(gallery, np.array([RED, GREEN, np.array([0.6, 0.8, 0])])), [0, 1, 0.2])


def test_last_stage_by_overlap():
    # Tentative tracks match by overlap: 1 m along a 4 m car (IoU 0.6) is the same object, 3.5 m (1/15) is another.
    for shift, same in ((1.0, True), (3.5, False)):
        tracker = build("DeepSortTracker", last_stage="iou")
        (first,), (second,) = identities(tracker, [frame(0, [(0, 0)], [(0, 0)]), frame(0.5, [(shift, 0)], [(0, 0)])])
        assert (first == second) is same


@pytest.mark.parametrize(
    ("tracker", "options", "said"),
    [
        (CenterPointTracker, dict(max_age=0), "max_age: 0 must be at least 1"),
        (CenterPointTracker, dict(limits_m=dict(car=-1.0)), "limits_m: car must be positive"),
        (DeepSortTracker, dict(last_stage="giou"), "last_stage: 'giou' is neither"),
        (DeepSortTracker, dict(motion_weight=2), "motion_weight: 2 must lie between 0 and 1"),
        (DeepSortTracker, dict(gate_probability=1.0), "gate_probability: 1.0 must lie between 0 and 1"),
    ],
)
def test_options_that_make_no_sense(tracker, options, said):
    with pytest.raises(ValueError, match=said):
        tracker(**options)
