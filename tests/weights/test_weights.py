"""Names of shipped weights: where they lie, what world they know, how large they may be."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bevstack.weights as weights
from bevstack.errors import InputError
from tests.weights.test_header import WHOLE, written

MOST_BYTES = 12_000_000


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """A folder in place of the package's, with a file of the demo's name."""
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    return written(tmp_path / "demo.safetensors")


def test_a_name_means_its_file(shelf):
    assert weights.shipped() == ("demo",) and weights.file_of("demo") == weights.weights_file("demo") == shelf
    assert weights.file_of("work_dirs/demo") == Path("work_dirs/demo") and not weights.is_name("./demo")
    assert weights.header_of("demo") == WHOLE
    assert weights.carries_config("demo") and weights.carries_config("a/b.safetensors")
    assert not weights.carries_config("demo.py")


def test_a_name_without_its_file_is_one_line(shelf):
    with pytest.raises(InputError, match=r"^full: weights: do not come with this version \(demo of demo, full is the"):
        weights.file_of("full")
    with pytest.raises(InputError, match="^other: weights: no such name; there are demo, full$"):
        weights.weights_file("other")


def test_the_recipe_is_what_create_synthetic_takes(shelf, tmp_path):
    # Expected: the header's, as words of a command line; a flag without a value only where it is set.
    assert weights.recipe("demo") == ["--seed", "3", "--image-size", "448x252"]
    assert weights.world_of("demo") == WHOLE.recipe
    swept = written(tmp_path / "b.safetensors", recipe='{"sweeps": true, "train_scenes": 2}')
    assert weights.recipe(str(swept)) == ["--sweeps", "--train-scenes", "2"]
    other = written(tmp_path / "c.safetensors", recipe=None)
    with pytest.raises(InputError, match="c.safetensors: recipe: absent"):
        weights.recipe(str(other))


def test_the_seed_of_training_is_never_taken(shelf):
    # Expected: 3 is training's; others are kept; drawn ones differ from run to run.
    assert (weights.unseen_seed("demo", 3), weights.unseen_seed("demo", 4), weights.unseen_seed("demo", 0)) == (4, 4, 0)
    assert len({weights.unseen_seed("demo") for _ in range(20)}) > 10


def test_what_is_shipped_is_small_and_whole():
    # The bound is the issue's; each file that is there names its world and its licence.
    assert sum(path.stat().st_size for path in weights.FOLDER.iterdir() if path.is_file()) <= MOST_BYTES
    for name in weights.shipped():
        header = weights.header_of(name)
        assert header.classes and header.cameras and header.rig and header.licence and header.command, name
        assert header.metrics and weights.recipe(name) and "Apache" in header.licence, name


def test_names_need_neither_torch_nor_numpy():
    # Expected: a command line answers at once (bevstack.engine.arguments reads the names).
    code = "import sys, bevstack.weights; sys.exit(bool({'torch', 'numpy', 'mmengine'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_they_are_in_the_wheel(tmp_path):
    # Expected: what pyproject declares as package data matches the files' names.
    declared = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert '"bevstack.weights" = ["*.safetensors"]' in declared
    shutil.copy(written(tmp_path / "demo.safetensors"), tmp_path / "copy.safetensors")
    assert len(list(tmp_path.glob("*.safetensors"))) == 2
