"""``tools/benchmark.py`` runs a step of the demo's configuration and says what it measured."""

import re

import pytest

from tests.integration.conftest import printed_by


@pytest.mark.parametrize("kind", ["inference", "training step"])
def test_it_prints_one_line(tiny, kind):
    train = ["--train"] if kind == "training step" else []
    printed, _ = printed_by("tools/benchmark.py", tiny.config, "--repeats", "1", *train)
    line = printed.strip().splitlines()[-1]
    found = re.search(rf"{kind} ([\d.]+) s \(median of 1, .*\), peak memory ([\d.]+) GB, ", line)
    assert found and float(found[1]) > 0 and float(found[2]) > 0
