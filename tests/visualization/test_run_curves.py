"""Curves of trainings: what is read of a log, and that it is drawn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from bevstack.engine.plot_run import main, read_curves, run_labels, usual_names
from bevstack.errors import InputError
from bevstack.visualization.run_curves import draw_runs, smoothed


def write_log(run, started: str, *lines: dict) -> None:
    folder = run / started / "vis_data"
    folder.mkdir(parents=True)
    (folder / "scalars.json").write_text("".join(json.dumps(line) + "\n" for line in lines))


def step(number: int, loss: float, **more) -> dict:
    tasks = {"boxes.loss_cls": loss / 2, "boxes.loss_box": loss / 4, "map.loss": loss / 4}
    return {"loss": loss, **tasks, "lr": 1e-3, "iter": number, "step": number, "time": 0.1, **more}


@pytest.fixture
def run(tmp_path):
    """Two starts: the second resumed after step 10, and tells of 20 anew."""
    write_log(tmp_path / "run", "20260101_000000", step(10, 8.0), {"mAP": 0.1, "AP/car": 0.2, "step": 1, "time": 9},
              step(20, 6.0))  # fmt: skip
    write_log(tmp_path / "run", "20260101_010000", step(20, 5.0), {"mAP": 0.3, "AP/car": 0.4, "step": 2})
    return tmp_path / "run"


def test_a_log_is_read_over_resumes(run):
    # Expected, by hand: the later start counts; scores stand at the step before them, which was given as an epoch.
    curves = read_curves(run)
    assert [list(map(float, part)) for part in curves["loss"]] == [[10, 20], [8, 5]]
    assert [list(map(float, part)) for part in curves["mAP"]] == [[10, 20], [0.1, 0.3]]
    assert curves["losses/boxes"][1].tolist() == [6, 3.75] and curves["losses/map"][1].tolist() == [2, 1.25]
    assert curves["time"][1].tolist() == [0.1, 0.1], "the time of an evaluation is no training's"
    assert usual_names([curves]) == ["loss", "losses/boxes", "losses/map", "lr", "mAP", "AP/car"]


def test_means_over_reports():
    # Expected, by hand: of the value and the one before it; what is not finite plays no part.
    np.testing.assert_allclose(smoothed(np.array([1.0, 3, np.nan, 7, 9]), 2), [1, 2, 3, 7, 8])
    np.testing.assert_allclose(smoothed(np.array([1.0, 2]), 9), [1, 1.5])
    assert smoothed(np.array([]), 3).shape == (0,)


def test_runs_are_drawn_beside_each_other(run, tmp_path, capsys):
    # Expected: a line a run in the panels that it has, and both in the legend.
    write_log(tmp_path / "other" / "run", "20260101_000000", *(step(n, 5 / n) for n in range(1, 50)))
    arguments = [str(run), str(tmp_path / "other" / "run"), "--out", str(tmp_path / "curves.png"), "--smooth", "5"]
    assert main(arguments) == 0
    assert capsys.readouterr().out == f"6 curve(s) of 2 run(s) in {tmp_path / 'curves.png'}\n"
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > picture.height > 300
        assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    runs = {name: read_curves(place) for name, place in (("a", run), ("b", tmp_path / "other" / "run"))}
    figure = draw_runs(runs, ["loss", "mAP"], 5)
    loss, score = figure.axes
    # of 49 reports both the values and their means are drawn, of two only these
    assert [len(axes.lines) for axes in (loss, score)] == [3, 1]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]
    assert loss.lines[0].get_ydata().tolist() == [8, 5] and loss.get_title(loc="left") == "loss"


def test_runs_of_one_name_are_told_apart(tmp_path):
    assert run_labels([tmp_path / "a" / "run", tmp_path / "b" / "run"]) == ["a/run", "b/run"]
    assert run_labels([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    with pytest.raises(InputError, match="the same run is given twice"):
        run_labels([tmp_path / "a", tmp_path / "a"])


def test_names_are_listed(run, capsys):
    main([str(run), "--list"])
    assert {"loss", "boxes.loss_cls", "mAP", "AP/car"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/absent"], "absent: RUN: no log of a training"),
        (["{run}", "--keys", "map"], "--keys: no run logged 'map'; there are map.loss, losses/map, mAP"),
        (["{run}", "--out", "{tmp}/a.txt"], "a.txt: --out: expected a name that ends in .png, .svg or .pdf"),
        (["{run}", "--smooth", "0"], "plot_run: --smooth: must be positive, not 0"),
        (["{tmp}/broken.json"], "broken.json: line 1: is no JSON"),
    ],
)
def test_mistakes(run, tmp_path, arguments, said):
    (tmp_path / "broken.json").write_text('{"loss": 1')
    with pytest.raises(InputError) as caught:
        main([part.format(run=run, tmp=tmp_path) for part in arguments])
    assert said in str(caught.value)
