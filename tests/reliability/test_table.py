"""docs/reliability.md names tests that exist, and every line of RELIABILITY.md's list."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()


def named_tests() -> list[tuple[str, str]]:
    """(file, function) of every test that the page names; a bare name belongs to the file named before it."""
    found, file = [], ""
    for path, function in re.findall(r"`(?:(tests/[\w/]+\.py)::)?(test_\w+)`", PAGE):
        file = path or file
        found.append((file, function))
    return found


@pytest.mark.parametrize(("file", "function"), sorted(set(named_tests())))
def test_named_tests_exist(file, function) -> None:
    tree = ast.parse((ROOT / file).read_text())
    assert function in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_no_line_is_left_out() -> None:
    """R1 to R17, M01 to M72 (also as spans), S1 to S6."""
    spans = [(int(a), int(b)) for a, b in re.findall(r"M(\d\d) to M(\d\d)", PAGE)]
    single = {int(number) for number in re.findall(r"M(\d\d)", PAGE)}
    assert {n for a, b in spans for n in range(a, b + 1)} | single == set(range(1, 73))
    assert [f"| R{n} |" for n in range(1, 18) if f"| R{n} |" not in PAGE] == []
    assert [f"| S{n} |" for n in range(1, 7) if f"| S{n} |" not in PAGE] == []


def test_ids_of_the_malformed_cases_are_the_pages() -> None:
    """Every M line is an id, or a name, of a test in this folder."""
    text = "".join(path.read_text() for path in (ROOT / "tests" / "reliability").glob("test_malformed_*.py"))
    there = {int(n) for n in re.findall(r'"M(\d\d)', text)}
    there |= {int(n) for n in re.findall(r"def test_m(\d\d)_", text)}
    assert there == set(range(1, 73))
