"""Tables changed at random: they are either indexed and read to the end, or refused in one line; never a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tables import VERSION, build_root

from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.nuscenes.index_writer import write_index
from bevstack.errors import InputError
from tests.json_mutations import change

TABLES = (
    "category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose", "log", "scene",
    "sample", "sample_data", "sample_annotation", "map", "splits",
)  # fmt: skip
VALUES = st.one_of(
    st.sampled_from(
        [
            None,
            "",
            "x",
            "s0k1",
            "\ud800",
            "a\0b",
            "../x",
            0,
            -1,
            1.5,
            2**70,
            1e308,
            True,
            [],
            {},
            [[]],
            [None],
            [1, 2, 3, 4],
        ]
    ),
    st.text(max_size=4),
    st.integers(),
    st.floats(allow_nan=False),
    st.lists(st.floats(allow_nan=False), max_size=4),
)


@pytest.fixture(scope="module")
def valid_root(tmp_path_factory) -> Path:
    return build_root(tmp_path_factory.mktemp("mutated") / "root")


_SETTINGS = dict(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(max_examples=60, **_SETTINGS)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_indexed_or_refused(valid_root, data):
    index_or_refuse(valid_root, data)


@pytest.mark.slow
@settings(max_examples=500, **_SETTINGS)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore")
def test_s6_tables_are_indexed_or_refused(valid_root, data):
    index_or_refuse(valid_root, data)


def index_or_refuse(valid_root: Path, data: st.DataObject) -> None:
    table = data.draw(st.sampled_from(TABLES))
    path = valid_root / VERSION / f"{table}.json"
    original = path.read_text(encoding="utf-8")
    content = json.loads(original)
    out = valid_root / "out"
    try:
        change(data, content, VALUES)
        text = json.dumps(content)
        path.write_text(text[: data.draw(st.integers(len(text) // 2, len(text)))] if data.draw(st.booleans()) else text)
        try:
            write_index(valid_root, VERSION, out, progress=lambda text: None)
        except InputError as error:
            assert "\n" not in str(error) and str(valid_root) in str(error)
            assert not out.exists()
            return
        dataset = NuScenesBEVDataset(valid_root, VERSION, "all", num_frames=2, index_root=out)
        assert len(list(dataset)) == len(dataset) > 0
    except InputError as error:
        # Fit for an index, not for this dataset: no split "all" left, say.
        assert "\n" not in str(error)
    finally:
        path.write_text(original, encoding="utf-8")
        shutil.rmtree(out, ignore_errors=True)
