"""Trails lie where things were on the ground, as seen from the car now; an identity has one colour."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData

from bevstack.structures import BEVDataSample
from bevstack.structures.poses import augmented_from_global
from bevstack.tracking import CenterPointTracker, track_samples
from bevstack.visualization import BEVWindow, TrackPainter
from bevstack.visualization.tracks import color_of_identity

WINDOW = BEVWindow((-50.0, 50.0), (-50.0, 50.0), 400)  # 4 px a metre: u = 4 (x + 50), v = 4 (50 - y)


def sample_at(t: int, things: np.ndarray, augmented=None) -> BEVDataSample:
    """A sample of a car that drives 3 m a frame along global +y; things at global (x, y)."""
    from mmdet3d.structures import LiDARInstance3DBoxes

    global_from_bev = np.eye(4)
    global_from_bev[:2, 3] = 700, 400 + 3 * t
    augmented = np.eye(4) if augmented is None else augmented
    bev = np.c_[things, np.zeros(len(things)), np.ones(len(things))] @ np.linalg.inv(global_from_bev).T @ augmented.T
    boxes = torch.zeros(len(things), 9)
    boxes[:, :2], boxes[:, 3:6], boxes[:, 7:9] = torch.from_numpy(bev[:, :2]), 2.0, torch.nan
    meta = dict(scene_token="s", timestamp_s=0.5 * t, classes=("car",), global_from_bev=global_from_bev)  # noqa: S106
    sample = BEVDataSample(metainfo={**meta, "augmented_from_bev": augmented})
    sample.pred_instances_3d = InstanceData(
        bboxes_3d=LiDARInstance3DBoxes(boxes, box_dim=9),
        scores_3d=torch.full((len(things),), 0.9),
        labels_3d=torch.zeros(len(things), dtype=torch.int64),
    )
    return sample


def stream(number=6, augmented=None):
    """One thing stands at (720, 430), one drives 3 m a frame along +x from (670, 420)."""
    return [sample_at(t, np.array([[720.0, 430], [670.0 + 3 * t, 420]]), augmented) for t in range(number)]


def has(image, xy, color, reach=4):
    u, v = np.round(WINDOW.pixels(np.array(xy))).astype(int)
    patch = image[max(0, v - reach) : v + reach + 1, max(0, u - reach) : u + reach + 1].astype(int)
    return (np.abs(patch - color).sum(-1) < 60).any()


@pytest.mark.parametrize("augmented", [None, np.diag([-1.0, 1, 1, 1])], ids=["plain", "mirrored"])
def test_trails_are_on_the_ground(augmented):
    # Closed form, in the BEV frame of the last sample (the car at (700, 415)): the standing thing is at (20, 15) with
    # no trail anywhere else, although the car has driven 15 m; the other one at (-15, 5) came from (-30, 5). A mirrored
    # BEV frame mirrors the picture.
    painter = TrackPainter(show_truth=False, show_numbers=False)
    last = list(track_samples(CenterPointTracker(), stream(augmented=augmented)))[-1]
    image = painter.paint(last, WINDOW)
    plain = painter.paint(list(track_samples(CenterPointTracker(), stream()[:1]))[0], WINDOW)
    assert image.shape == plain.shape == (400, 400, 3) and image.dtype == np.uint8
    side = 1 if augmented is None else -1
    standing, driving = (color_of_identity(int(i)) for i in last.pred_instances_3d.track_ids)
    assert has(image, (20 * side, 15), standing) and has(image, (-15 * side, 5), driving)
    assert has(image, (-18 * side, 5), driving, 8)
    for t in range(5):  # where the standing thing would have been drawn without the car's motion
        assert not has(image, (20 * side, 18 + 3 * t + 1.5), standing, 2)
    trail = np.array(last.track_trails[int(last.pred_instances_3d.track_ids[1])])
    matrix = augmented_from_global(last).numpy()
    moved = trail @ matrix[:3, :3].T + matrix[:3, 3]
    np.testing.assert_allclose(moved[:, 0], side * (np.arange(6) * 3 - 30.0), atol=1e-3)
    np.testing.assert_allclose(moved[:, 1], 5, atol=1e-3)


def test_one_identity_one_colour():
    # Successive identities differ in hue by the golden section, so that no two of the first thirty are alike.
    colors = np.array([color_of_identity(identity) for identity in range(30)])
    distance = np.abs(colors[:, None] - colors[None]).sum(-1) + 999 * np.eye(30, dtype=int)
    assert distance.min() > 15 and color_of_identity(7) == color_of_identity(7)


def test_what_is_left_out():
    # Boxes below the score and boxes without identity are not drawn; an untracked sample has no panel.
    tracked = list(track_samples(CenterPointTracker(), stream()))[-1]
    empty = list(track_samples(CenterPointTracker(limits_m=dict(bus=4.0)), stream()))[-1]
    assert empty.pred_instances_3d.track_ids.tolist() == [-1, -1] and empty.track_trails == {}
    nothing = TrackPainter(show_truth=False).paint(empty, WINDOW)
    assert (TrackPainter(score_thr=0.95, show_truth=False).paint(tracked, WINDOW) == nothing).all()
    assert (TrackPainter(show_truth=False).paint(tracked, WINDOW) != nothing).any()
    assert TrackPainter().draws(empty) and not TrackPainter().draws(stream()[0])


def test_a_new_scene_has_new_trails():
    # The same places in another scene: trails of one point, identities not given before.
    first = stream(3)
    second = [sample.new() for sample in stream(3)]
    for sample in second:
        sample.set_metainfo(dict(scene_token="other"))  # noqa: S106
    tracked = list(track_samples(CenterPointTracker(), [*first, *second]))
    assert [len(trail) for trail in tracked[2].track_trails.values()] == [3, 3]
    assert [len(trail) for trail in tracked[3].track_trails.values()] == [1, 1]
    assert not set(tracked[2].track_trails) & set(tracked[3].track_trails)
