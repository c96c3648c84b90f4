"""Lines of a training on a console: they fit, and say what they should."""

from __future__ import annotations

import logging
import math
import re

import numpy as np
import pytest

from bevstack.engine import visualizer_backends
from bevstack.engine.console import (
    COLUMNS,
    ShortFormatter,
    duration,
    fitting_losses,
    summary_lines,
    task_losses,
    training_line,
)
from bevstack.engine.runner import BEVRunner
from tests.engine.toy import toy_config, train_toy

PREFIX = "12:34:56 "
HEADS = ("detection", "map", "vehicle", "panoptic", "keypoints", "behaviour", "scene", "appearance")


def scalars_of(heads, losses: int = 3) -> dict[str, float]:
    """What mmengine collects: each head with so many losses of 1, 2, ...; and everything else."""
    parts = {f"{head}.loss_{n}": float(n + 1) for head in heads for n in range(losses)}
    return {"lr": 2e-4, "data_time": 0.05, "time": 0.5, "loss": sum(parts.values()), **parts, "memory": 20480,
            "detection.weight": 0.3}  # fmt: skip


def test_a_line_says_what_one_looks_for():
    # Expected, by hand: a head's three losses are 6, five of them 15; 8 samples in half a second, a tenth waited for.
    line = training_line("epoch 3/24  step 50/3517", {**scalars_of(["map"]), **scalars_of(["boxes"], 5)}, 3725, 8)
    losses = "loss 15 (boxes 15, map 6)"
    rest = "lr 2.0e-04  1:02:05 left  16 samples/s  wait 10 %  20.0 GB"
    assert line == f"epoch 3/24  step 50/3517  {losses}  {rest}"


@pytest.mark.parametrize("number", [0, 1, 2, 5, 8])
@pytest.mark.parametrize("loss", [0.001234, 1e6, math.nan])
def test_a_line_fits_120_columns(number, loss):
    scalars = {**scalars_of(HEADS[:number]), "loss": loss}
    line = training_line("epoch 24/24  step 28130/28130", scalars, 400 * 86400, 64)
    assert len(PREFIX + line) <= COLUMNS and "samples/s" in line and line.endswith("20.0 GB")


def test_losses_that_do_not_fit_are_summed():
    # Expected: by hand, the largest first, the others as one number.
    tasks = task_losses({f"{head}.loss": 8.0 - n for n, head in enumerate(HEADS)})
    assert list(tasks) == list(HEADS)
    assert fitting_losses(tasks, 200).startswith(" (detection 8, map 7,") and "more" not in fitting_losses(tasks, 200)
    assert fitting_losses(tasks, 40) == " (detection 8, map 7, 6 more 21)"
    assert fitting_losses(tasks, 5) == "" and fitting_losses({"map": 1.0}, 100) == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (65, "1:05"), (3725, "1:02:05"), (2 * 86400 + 3 * 3600 + 4 * 60, "2 d 3:04")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_scores_take_three_lines_at_most():
    # Expected: every item or the number of those left out; no line beyond the columns.
    for number in (0, 3, 20, 200):
        text = summary_lines("val after epoch 3:", [f"AP/class_{n} 0.{n:03d}" for n in range(number)])
        lines = text.split("\n")
        assert len(lines) <= 3 and all(len(PREFIX + line) <= COLUMNS for line in [lines[0]])
        assert all(len(line) <= COLUMNS for line in lines)
        more = re.search(r"\((\d+) more in scalars.json\)", text)
        assert text.count("AP/class") + (int(more[1]) if more else 0) == number


def test_levels_are_named_where_they_matter():
    records = [logging.LogRecord("run", level, "", 1, "said %d", (7,), None)
               for level in (logging.INFO, logging.WARNING)]  # fmt: skip
    texts = [ShortFormatter().format(record) for record in records]
    assert re.fullmatch(r"\d\d:\d\d:\d\d said 7", texts[0]) and texts[1].endswith(" warning: said 7")


@pytest.mark.parametrize("streaming", [False, True])
def test_what_a_training_prints_fits(tmp_path, capfd, streaming):
    # Expected: a line a report, of which each fits, with what is looked for; and a line of scores after validation.
    train_toy(
        str(tmp_path), streaming=streaming, log_level="INFO", default_hooks__logger=dict(type="LoggerHook", interval=4)
    )
    printed = capfd.readouterr()
    text = printed.out + printed.err
    lines = [line for line in text.splitlines() if " epoch " in line and "loss" in line]
    assert len(lines) == 4 and all(len(line) <= COLUMNS for line in lines), text
    for word in ("epoch 2/2  step 8/8", "loss ", "lr ", " left", "samples/s", "wait ", " GB"):
        assert word in lines[-1]
    assert re.search(r"val after epoch 1:  mean -?[\d.e-]+  count \d+", text)


def test_curves_for_tensorboard(tmp_path):
    # Expected: TensorBoard's own reader finds the losses of every report and the scores of both validations.
    pytest.importorskip("tensorboard", reason="an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_toy(str(tmp_path), default_hooks__logger=dict(type="LoggerHook", interval=4))
    (events,) = tmp_path.glob("*/vis_data/events.out.tfevents.*")
    found = EventAccumulator(str(events))
    found.Reload()
    assert [event.step for event in found.Scalars("loss")] == [4, 8, 12, 16]
    assert [event.step for event in found.Scalars("mean")] == [1, 2] and "samples_per_second" in found.Tags()["scalars"]


def test_nothing_is_said_where_tensorboard_is_absent(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(visualizer_backends, "tensorboard_installed", lambda: False)
    train_toy(str(tmp_path))
    assert list(tmp_path.glob("*/vis_data/scalars.json")) and not list(tmp_path.glob("*/vis_data/events*"))
    assert "ensor" not in capfd.readouterr().err


def backends(*others: dict) -> dict:
    """A config's line with further backends."""
    return dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend"), *others])


def test_weights_and_biases_without_a_network(tmp_path, monkeypatch):
    # Expected: an offline run in the folder of the scalars, whose file names what was reported.
    wandb = pytest.importorskip("wandb", reason="not installed: pip install wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)  # its code is kept: here there is none
    every = dict(default_hooks__logger=dict(type="LoggerHook", interval=4))
    train_toy(str(tmp_path), visualizer=backends(dict(type="WandbVisBackend")), **every)
    wandb.finish()
    (file,) = tmp_path.glob("*/vis_data/wandb/offline-run-*/*.wandb")
    content = file.read_bytes()
    assert all(name in content for name in (b"samples_per_second", b"loss", b"mean"))


def test_mlflow_without_a_server(tmp_path, monkeypatch):
    # Expected: MLflow's own client finds the losses of every report, and a picture that was drawn.
    mlflow = pytest.importorskip("mlflow", reason="not installed: pip install mlflow")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    every = dict(default_hooks__logger=dict(type="LoggerHook", interval=4))
    visualizer = backends(dict(type="bevstack.MLflowBackend", tracking_uri=uri))
    runner = BEVRunner.from_cfg(toy_config(tmp_path, visualizer=visualizer, **every))
    runner.train()
    runner.visualizer.add_image("val_000000_scene", np.zeros((8, 8, 3), np.uint8), step=16)
    runner.visualizer.close()
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("Default").experiment_id])
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [entry.step for entry in history] == [4, 8, 12, 16] and "mean" in run.data.metrics
    (picture,) = client.list_artifacts(run.info.run_id, "pictures")
    assert picture.path == "pictures/val_000000_scene_16.png"
    assert "config.py" in {entry.path for entry in client.list_artifacts(run.info.run_id)}


def test_a_visualizer_of_the_config_is_taken_as_it_is(tmp_path):
    runner = BEVRunner.from_cfg(toy_config(tmp_path, visualizer=dict(type="Visualizer", vis_backends=None)))
    assert runner.visualizer._vis_backends == {}
