"""``tools/results.py`` on the tiny set and its trained model, from end to end."""

from __future__ import annotations

import json

import pytest

from bevstack.experiments.results import main


def test_weights_are_scored_and_the_page_is_written(trained, tmp_path, capsys) -> None:
    """Expected: scores of the whole model are those of its test; with as many frames as it reads they are the same
    again; the gain of one frame over one frame is 0; the root that is named is the one that is scored."""
    arguments = [str(trained.config), str(trained.work_dir), "--name", "tiny", "--data-root", str(trained.root)]
    arguments += ["--work-dir", str(tmp_path / "work"), "--records", str(tmp_path / "records"), "--draws", "4"]
    assert main([*arguments, "--page", str(tmp_path / "results.md"), "--frames", "1", "2"]) == 0
    found = json.loads((tmp_path / "records" / "tiny.json").read_text())
    assert found["scenes"] == 1 and found["data"]["seed"] == 5 and len(found["sha256"]) == 64
    whole, frames = found["scores"], found["frames"]
    written = json.loads((tmp_path / "work" / "tiny" / "as_trained" / "metrics.json").read_text())
    assert found["metrics"]["mAP"] == pytest.approx(written["mAP"], abs=1e-5)
    layers = [name for name in whole if name.startswith("IoU/")]
    assert layers and written["iou/drivable_area"] == pytest.approx(whole["IoU/map/drivable_area"][0], abs=1e-4)
    for name in layers:
        assert frames["2"]["scores"][name] == whole[name], "the demo reads two frames"
        assert frames["1"]["gain"][name] == [0, 0, 0]
        low, high = whole[name][1:]
        assert low == high == whole[name][0], "one scene: every draw is the same"
    assert any(frames["1"]["scores"][name] != whole[name] for name in layers), "memory counts"
    assert {"map", "vehicle"} <= set(found["calibration"])  # of boxes where it predicts any
    page = (tmp_path / "results.md").read_text()
    assert "## tiny" in page and "**Memory" in page and "map: drivable_area" in page
