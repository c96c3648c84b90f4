"""Pages about shipped weights: in step with the files, and whole."""

from __future__ import annotations

from pathlib import Path

import pytest

import bevstack.weights
from bevstack.engine.model_card import main, model_card
from bevstack.errors import InputError
from tests.weights.test_header import written

FOLDER = Path(__file__).parents[2] / "docs" / "model_cards"


def test_the_pages_are_those_of_the_files():
    # Expected: a page a file, word for word as tools/model_card.py writes it now; no page of a file that is not there.
    assert sorted(path.stem for path in FOLDER.glob("*.md")) == sorted(bevstack.weights.shipped())
    for name in bevstack.weights.shipped():
        assert (FOLDER / f"{name}.md").read_text() == model_card(name), f"run: python tools/model_card.py {name}"


def test_a_page_says_what_the_header_does(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bevstack.weights, "FOLDER", tmp_path)
    written(tmp_path / "demo.safetensors")
    assert main(["demo", "--out", str(tmp_path / "cards")]) == 0
    page = (tmp_path / "cards" / "demo.md").read_text()
    for text in (
        "| mAP | 0.250 | 0.200 to 0.300 |",
        "| detection | 1.5000 | 0.2000 | 0.1000 |",
        "`python tools/create_synthetic.py --seed 3 --image-size 448x252`",
        "| trained by | `python tools/train.py configs/demo.py` |",
        "| training | 100 steps, 1.5 hours |",
        "| commit | abc |",
        "Apache-2.0. The frozen backbone is not in the file",
        "## Limits",
    ):
        assert text in page, text
    with pytest.raises(InputError, match="full: weights: do not come"):
        main(["full", "--out", str(tmp_path)])
    assert "wrote" in capsys.readouterr().out
