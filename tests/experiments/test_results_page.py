"""docs/results.md from files: every cell comes from them, and files that are no results are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bevstack.errors import InputError
from bevstack.experiments.results import main
from bevstack.experiments.results_page import read_files, results_page

MODEL = {
    "kind": "model",
    "name": "small",
    "config": "configs/demo.py",
    "checkpoint": "a.pth",
    "sha256": "0123456789abcdef",
    "commit": "abc",
    "machine": "two cores",
    "draws": 10,
    "scenes": 4,
    "data": {"seed": 7, "image_size": [448, 252]},
    "metrics": {"NDS": 0.25, "mAP": 0.5, "gt/car": 12, "gt/bus": 0, "ATE/car": 0.75, "AP/car": 0.5, "PQ": 0.125},
    "scores": {
        "mAP": [0.5, 0.4, 0.6],
        "AP/car": [0.5, 0.45, 0.55],
        "AP/car/0-10 m": [0.9, 0.8, 1.0],
        "AVE/movers": [4.0, 3.0, 5.0],
        "recall/seen 0-40 %": [0.2, 0.1, 0.3],
        "IoU/map/drivable_area": [0.75, 0.7, 0.8],
    },
    "calibration": {"boxes": 0.031},
    "frames": {
        "1": {"scores": {"mAP": [0.4, 0.3, 0.5]}, "gain": {"mAP": [0.0, 0.0, 0.0]}, "metrics": {"mAVE": 1.5}},
        "2": {"scores": {"mAP": [0.5, 0.4, 0.6]}, "gain": {"mAP": [0.1, 0.05, 0.15]}, "metrics": {"mAVE": 1.25}},
    },
}
ORACLE = {
    "kind": "motion oracle",
    "name": "motion",
    "width_px": 448,
    "draws": 10,
    "data": {"seed": 8},
    "distances_m": [[5.0, 10.0], [5.0, 30.0]],
    "rows": [
        {
            "method": "flow",
            "milliseconds": 83,
            "auc": [[0.9, 0.8, 1.0], [0.7, 0.6, 0.8]],
            "moving": [3, 9],
            "standing": [5, 8],
        }
    ],
}


@pytest.fixture
def folder(tmp_path) -> Path:
    for content in (MODEL, ORACLE):
        (tmp_path / f"{content['name']}.json").write_text(json.dumps(content))
    return tmp_path


def test_every_cell_comes_from_the_files(folder, capsys) -> None:
    """Expected: by hand from the numbers above; a class without objects has no row."""
    page = folder / "results.md"
    assert main(["--report", "--records", str(folder), "--page", str(page)]) == 0
    text = page.read_text()
    for line in (
        "| NDS | mAP |",
        "| 0.250 | 0.500 |",
        "| car | 12 | 0.500 (0.450 to 0.550) | 0.750 | - | - | - | - |",
        "| AP of cars | 0.900 (0.800 to 1.000) | - | - | - |",
        "| error of the velocity of those that move, m/s | 4.000 (3.000 to 5.000) |",
        "| seen 0-40 % | 0.200 (0.100 to 0.300) |",
        "| map: drivable_area | 0.750 (0.700 to 0.800) |",
        "| boxes | 0.031 |",
        "| | 1 frame | 2 frames | 2 beside 1 |",
        "| mAP | 0.400 (0.300 to 0.500) | 0.500 (0.400 to 0.600) | +0.100 (+0.050 to +0.150) |",
        "| mAVE | 1.500 | 1.250 | |",
        "| PQ | 0.125 |",
        "| flow | 83 ms | 0.900 (0.800 to 1.000) | 0.700 (0.600 to 0.800) |",
    ):
        assert line in text.replace("|  |", "| |"), line
    assert "| bus |" not in text and "0123456789ab" in text and "5-10 m: 3 and 5, 5-30 m: 9 and 8" in text
    assert text.index("## small") < text.index("## What image motion tells")
    assert "Nothing has been scored yet." in results_page([])


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"kind": "model"}', '{"kind": "other"}', json.dumps({**MODEL, "frames": 3}), "{" * 100_000,
     json.dumps({**MODEL, "metrics": {"NDS": "x"}}), json.dumps({**ORACLE, "rows": []})],
)  # fmt: skip
def test_files_that_are_no_results_are_told(folder, text) -> None:
    path = folder / "small.json"
    path.write_text(text)
    with pytest.raises(InputError) as raised:
        read_files(folder)
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value)


def test_something_to_score_is_asked_for() -> None:
    with pytest.raises(InputError, match="CONFIG CHECKPOINT: name both"):
        main([])


def test_the_page_in_the_repository_is_that_of_its_files() -> None:
    """Expected: the page as it would be written from the files beside it; whoever edits one by hand is told."""
    docs = Path(__file__).resolve().parents[2] / "docs"
    assert (docs / "results.md").read_text() == results_page(read_files(docs / "benchmarks" / "results"))
