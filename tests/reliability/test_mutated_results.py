"""Files of results changed at random: read, or refused in one line that names the file; never a traceback.

What is mutated is what the tools read back: numbers of a comparison, of a robustness run, of a benchmark, and metrics.
With the mutated tables (tests/datasets/test_mutated_tables.py) and, slow, 500 of each.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bevstack.errors import InputError
from bevstack.experiments.robustness import read_scores
from bevstack.experiments.run_records import read_record
from tests.json_mutations import change

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.sampled_from(["\ud800", 2**80, -1])
)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
RUN = {"checkpoint": "abc", "seed": 0}
VALID = {
    "robustness": {"run": RUN, "scores": {"clean": {"NDS": 0.5}, "time/a/b": {"NDS": 0.25, "mAP": 0.1}}},
    "comparison": {
        **dict.fromkeys(("section", "name", "budget", "commit", "machine", "data", "source"), "a"),
        **dict.fromkeys(("metrics", "scores", "cost", "training", "logged"), {"NDS": 0.5}),
        **{"seed": 0, "key": None},
    },
}
READERS = {"robustness": lambda path: read_scores(path, RUN), "comparison": lambda path: {"record": read_record(path)}}


def mutated(data: st.DataObject, kind: str) -> str:
    content = json.loads(json.dumps(VALID[kind]))
    change(data, content, JSON)
    text = json.dumps(content)
    return text[: data.draw(st.integers(0, len(text)))] if data.draw(st.booleans()) else text


def read_or_refuse(path: Path, kind: str) -> None:
    try:
        found = READERS[kind](path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
    else:
        assert isinstance(found, dict) and all(isinstance(value, dict) for value in found.values())


def check(kind: str, folder: Path, count: int) -> None:
    path = folder / "results.json"

    @settings(max_examples=count, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def run(data) -> None:
        path.write_text(mutated(data, kind), encoding="utf-8")
        read_or_refuse(path, kind)

    run()


@pytest.mark.parametrize("kind", READERS)
def test_s6_results_are_read_or_refused(tmp_path, kind) -> None:
    check(kind, tmp_path, 500)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 200_000, b"", b"null", b'{"results": 3}', b"NaN"])
def test_other_bytes_are_refused(tmp_path, kind, content) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(InputError):
        READERS[kind](path)
