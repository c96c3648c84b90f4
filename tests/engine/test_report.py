"""``tools/test.py --report`` from the command line to the files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from bevstack.engine import test as test_tool
from bevstack.engine.compare_runs import main as compare
from bevstack.errors import InputError
from bevstack.evaluation.detection_table import DetectionTable
from tests.visualization.test_visualize_tool import checkpoint, config, root  # noqa: F401 - fixtures


@pytest.fixture
def arguments(config, checkpoint, tmp_path):  # noqa: F811
    path = Path(config())
    loader = 'test_dataloader = dict(dataset=dataset, num_workers=0, sampler=dict(type="SceneShardedSampler"),\n'
    loader += (
        '    batch_sampler=dict(type="SceneBatchSampler"), batch_size=1, collate_fn=dict(type="pseudo_collate"))\n'
    )
    loader += 'test_evaluator = dict(type="CenterDistanceMetric", max_distance_m=50.0)\n'
    path.write_text(path.read_text().replace("test_dataloader = dict(dataset=dataset)\n", loader))
    return [str(path), checkpoint, "--out", str(tmp_path / "out")]


def test_a_report_stands_beside_the_metrics(arguments, tmp_path, capsys):
    # Expected: the model predicts one car at (0, 10) with score 0.9 in each of the scene's three samples; the report
    # has a table of them, and each sample among the worst, whose pictures lead into a page that holds it.
    folder = tmp_path / "report"
    assert test_tool.main([*arguments, "--report", str(folder)]) == 0
    assert f"report: {folder / 'report.html'}" in capsys.readouterr().out
    table = DetectionTable.load(folder / "detections.npz")
    assert sorted(table.tokens.tolist()) == ["s1k0", "s1k1", "s1k2"] and table.scenes.tolist() == ["scene-0003"] * 3
    assert table.score.tolist() == pytest.approx([0.9] * 3) and table.distance_m.tolist() == [10] * 3
    page = (folder / "report.html").read_text()
    for title in (
        "By class",
        "By distance",
        "By speed",
        "By time of day",
        "By weather",
        "Calibration",
        "The worst samples",
    ):
        assert title in page
    assert "<script" not in page and "://" not in page
    links = re.findall(r'href="worst.html#(\w+)"', page)
    assert sorted(links) == ["s1k0", "s1k1", "s1k2"]
    assert [(folder / name).is_file() for name in re.findall(r'src="(worst_\d.png)"', page)] == [True] * 3
    (data,) = re.findall(r'type="application/json">(.*?)</script>', (folder / "worst.html").read_text())
    moments = json.loads(data)["moments"]
    assert [moment["token"] for moment in moments] == links
    assert all(len(moment["predicted"]) == 1 for moment in moments)
    assert compare([str(folder), str(folder), "--draws", "5"]) == 0


def test_a_report_that_cannot_be_written_is_told_before_the_test(arguments, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--report: cannot be written to"):
        test_tool.main([*arguments, "--report", str(tmp_path / "file" / "report")])
    assert not (tmp_path / "out").exists()
