"""Two runs side by side: scores as they are, intervals that say what is noise."""

from __future__ import annotations

import numpy as np
import pytest

from bevstack.engine.compare_runs import main
from bevstack.errors import InputError
from bevstack.evaluation.detection_table import DetectionTable, table_path
from bevstack.evaluation.run_comparison import compare_runs, load_cells, save_cells, score_intervals
from tests.evaluation.test_breakdown import OBJECTS, moved, sample, table_of


def write(folder, shifts, found=(10, 20, 20)):
    """A report of one sample a scene, each shifted by so much."""
    folder.mkdir()
    samples = [sample(moved(by), [0.9] * 6, OBJECTS, f"t{n}", f"scene-{n}") for n, by in enumerate(shifts)]
    table_of(*samples).save(table_path(folder))
    cells = {("map", "road", f"scene-{n}"): np.array([found, [0, 0, 0]]) for n in range(len(shifts))}
    save_cells(folder, cells)
    return str(folder)


def test_a_steady_difference_is_certain(tmp_path):
    # Expected: shifts of 0.7 m are AP 0.75 and of 1.5 m AP 0.5 in whatever scenes are drawn; IoU 10 / 30, 20 / 40.
    first, second = write(tmp_path / "a", [1.5] * 6), write(tmp_path / "b", [0.7] * 6, (20, 30, 30))
    lines = {line.name: line for line in compare_runs(first, second, draws=50)}
    assert list(lines) == ["mAP", "AP/car", "AP/pedestrian", "IoU/map/road"]
    for name in ("mAP", "AP/car", "AP/pedestrian"):
        line = lines[name]
        expected = (0.5, 0.75, 0.25, 0.25)
        assert (line.first, line.second, line.low, line.high) == pytest.approx(expected) and line.certain
    assert (lines["IoU/map/road"].first, lines["IoU/map/road"].second) == pytest.approx((1 / 3, 1 / 2))


def test_one_scene_among_others_is_noise(tmp_path, capsys):
    # Expected: B finds more in one scene and less in another; draws that hold neither show no difference, so that the
    # interval holds 0. A run beside itself: the difference is exactly 0, and may be noise.
    first, second = write(tmp_path / "a", [0.7] * 8), write(tmp_path / "b", [0.4, 3.0] + [0.7] * 6)
    line = compare_runs(first, second, draws=200)[0]
    assert line.low < 0 < line.high and not line.certain
    same = compare_runs(first, first, draws=20)[0]
    assert (same.low, same.high, same.certain) == (0, 0, False)
    assert main([first, second, "--draws", "50"]) == 0
    assert "may be noise" in capsys.readouterr().out


def test_draws_are_those_of_the_seed(tmp_path):
    first, second = write(tmp_path / "a", [0.7] * 8), write(tmp_path / "b", [0.4, 3.0] + [0.7] * 6)
    runs = [compare_runs(first, second, draws=40, seed=seed)[0].low for seed in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_what_cannot_be_compared_is_refused(tmp_path):
    first = write(tmp_path / "a", [0.7] * 3)
    with pytest.raises(InputError, match="tokens: differ from those of"):
        compare_runs(first, write(tmp_path / "b", [0.7] * 4))
    with pytest.raises(InputError, match="report: no such file; tools/test.py"):
        compare_runs(first, tmp_path / "nowhere")
    (tmp_path / "a" / "detections.npz").write_text("no table")
    with pytest.raises(InputError, match="report: is no table of detections"):
        compare_runs(first, first)


def test_cells_come_back_summed_over_rings(tmp_path):
    save_cells(tmp_path, {("map", "road", "one"): np.array([[1, 2, 3], [4, 5, 6]])})
    ((key, counts),) = load_cells(tmp_path).items()
    assert key == ("map", "road", "one") and counts.tolist() == [5, 7, 9]
    assert load_cells(tmp_path / "nowhere") == {}


def test_intervals_of_one_test(tmp_path):
    # Expected: by hand. All scenes alike: every draw scores the same (AP 0.75 at a shift of 0.7 m; the mean over both
    # classes of the table, IoU 10 / 20). Two kinds of scenes: the interval lies between the two, around the whole's.
    table, cells = read(write(tmp_path / "a", [0.7] * 6))
    steady = score_intervals(table, cells, draws=30)
    assert list(steady) == ["mAP", "mAP_present", "AP/car", "AP/pedestrian", "iou/road"]
    for name, value in (("mAP", 0.75), ("mAP_present", 0.75), ("AP/car", 0.75), ("iou/road", 1 / 3)):
        assert steady[name] == pytest.approx((value, value))
    mixed = score_intervals(*read(write(tmp_path / "b", [0.7] * 4 + [1.5] * 4)), draws=200)
    low, high = mixed["AP/car"]
    assert 0.5 < low < 0.65 and 0.6 < high < 0.75
    assert mixed == score_intervals(*read(tmp_path / "b"), draws=200)
    assert set(score_intervals(None, cells, draws=10)) == {"iou/road"} and score_intervals(None, {}) == {}
    with pytest.raises(InputError, match="draws: must be at least 2"):
        score_intervals(table, cells, draws=1)


def read(folder):
    """What a report's folder holds of boxes and cells."""
    return DetectionTable.load(table_path(folder)), load_cells(folder)
