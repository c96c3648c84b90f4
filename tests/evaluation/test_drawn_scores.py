"""Scores over scenes and draws of scenes; every expected number is worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bevstack.errors import InputError
from bevstack.evaluation.drawn_scores import drawn_times, interval, raster_scores, table_scores, visibility_scores
from bevstack.evaluation.nuscenes_scoring import ScoredSplit
from bevstack.evaluation.submitted_table import submitted_table
from tests.evaluation.nuscenes_root import SPLIT, VERSION
from tests.evaluation.test_breakdown import OBJECTS, moved, sample, table_of
from tests.evaluation.test_detection_metric import metric_of, score, true_boxes


def turned(sample, *angles):
    """The sample with its first predictions turned."""
    boxes = sample.pred_instances_3d.bboxes_3d.tensor
    boxes[: len(angles), 6] = boxes.new_tensor(angles)
    return sample


def test_scores_by_distance_and_motion() -> None:
    """Two cars 5 m away (one turned by half and standing, one across and moving at 4 m/s, taken for 1 m/s), one 25 m
    away, 1 m off: found at 2 and 4 m alone, so AP 0.5 there."""
    true = [(0, 5, 0), (0, -5, 0, 4), (0, 0, 25)]
    made = turned(sample([(0, 5, 0), (0, -5, 0, 1), (0, 0, 26)], [0.9, 0.8, 0.7], true), np.pi, np.pi / 2)
    scores = table_scores(table_of(made))
    expected = {
        "AP/car/0-10 m": 1, "AP/car/20-30 m": 0.5, "mAP/20-30 m": 0.5, "off/0-10 m": 0, "off/20-30 m": 1,
        "AOE/0-10 m": 0.75 * np.pi, "heading/across/0-10 m": 0.5, "heading/turned by half/0-10 m": 0.5,
        "heading/within 15 deg/0-10 m": 0, "heading/within 15 deg/20-30 m": 1,
        "true_speed/movers": 4, "speed/movers": 1, "AVE/movers": 3, "moving/movers": 1,
        "speed/standing": 0, "moving/standing": 0,
    }  # fmt: skip
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    assert "AP/car/10-20 m" not in scores and "AP/pedestrian/0-10 m" not in scores


def test_as_many_boxes_count_as_there_are_objects() -> None:
    """Of two objects one is found by the best of three boxes, the other by the third, which does not count."""
    true, boxes = [(0, 5, 0), (0, -15, 0)], [(0, 5, 0), (0, 30, 0), (0, -15, 0)]
    table = table_of(sample(boxes, [0.9, 0.5, 0.4], true, visibility=[4, 1]), sample([], [], [(0, 9, 9)], "b", "two"))
    scores = visibility_scores(table, ["s", "two"], np.ones((1, 2), int))
    assert {name: values.tolist() for name, values in scores.items()} == {
        "recall/seen 0-40 %": [0],
        "recall/seen 80-100 %": [1],
    }


def test_draws() -> None:
    """The first row is the set; every draw has as many scenes. Draws of equal scenes are equal: an interval of one
    point. A layer that no scene of a draw has gives nothing there."""
    times = drawn_times(4, 20, seed=3)
    assert times[0].tolist() == [1] * 4 and (times.sum(1) == 4).all() and times.shape == (21, 4)
    table = table_of(*(sample(moved(0.7), [0.9] * 6, OBJECTS, f"t{n}", f"s{n}") for n in range(4)))
    assert table_scores(table)["mAP"] == pytest.approx(0.75)
    assert interval(np.array([0.5, 0.1, np.nan, 0.9])) == pytest.approx((0.5, 0.12, 0.88))
    cells = {("map", "road", "a"): np.array([10, 20, 20])}
    iou = raster_scores(cells, ["a", "b"], np.array([[1, 1], [0, 2]]))["IoU/map/road"]
    assert iou[0] == pytest.approx(1 / 3) and np.isnan(iou[1])


def test_a_submission_gives_the_table_that_its_samples_gave(root, tables, sample_of, tmp_path) -> None:
    """Expected: the annotations themselves, written and read again, are found at every distance, nothing off; as many
    objects as the official filters leave; one visible box more or less turned is off by so much."""
    samples = [sample_of(one["token"], *true_boxes(tables, one["token"])) for one in tables.sample]
    metrics = score(metric_of(root, tmp_path), samples)
    path, scored = tmp_path / "results_nusc.json", ScoredSplit(str(root), VERSION, SPLIT)
    table = submitted_table(path, scored)
    counts = {name: int((table.true_label == label).sum()) for label, name in enumerate(table.classes)}
    assert counts == {name: metrics[f"gt/{name}"] for name in table.classes}
    assert table.hit.all() and np.nanmax(table.off_m) < 1e-4 and np.nanmax(table.velocity_off) < 1e-4
    assert np.nanmax(table.heading_off) < 1e-3 and (table.visibility == 4).all()
    assert sorted(set(table.scenes.tolist())) == ["tiny-0", "tiny-1"]

    content = json.loads(path.read_text())
    token = tables.sample[0]["token"]
    for box in content["results"][token]:
        w, _, _, z = box["rotation"]
        box["rotation"] = [-z, 0, 0, w]  # a quarter turn more, twice: by half
        box["velocity"] = [box["velocity"][0] + 3, box["velocity"][1] - 4]
    path.write_text(json.dumps(content))
    first = submitted_table(path, scored)
    own = first.sample == 0
    barrier = first.label == first.classes.index("barrier")
    np.testing.assert_allclose(first.heading_off[own & ~barrier], np.pi, atol=1e-3)
    np.testing.assert_allclose(first.heading_off[own & barrier], 0, atol=1e-3)
    np.testing.assert_allclose(first.velocity_off[own & ~barrier], 5, atol=1e-3)
    assert (first.heading_off[~own] < 1e-3).all()

    del content["results"][token]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="lacks 1 samples of split"):
        submitted_table(path, scored)
    for text in ("", "[]", '{"results": 3}'):
        path.write_text(text)
        with pytest.raises(InputError, match="results"):
            submitted_table(path, scored)


def test_symmetric_classes_have_no_front() -> None:
    """Expected: a car turned by half is off by pi."""
    made = turned(sample([(0, 5, 0), (1, 8, 0)], [0.9, 0.8], [(0, 5, 0), (1, 8, 0)]), np.pi, -0.5)
    assert table_of(made).heading_off.tolist() == pytest.approx([np.pi, 0.5], abs=1e-6)
