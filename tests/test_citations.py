"""Every citation of docs/reference.md has its place in the page, and every place of the page a citation."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_architecture import ROOT

PAGE = ROOT / "docs" / "reference.md"
COPIED = ROOT / "docs" / "config_fields.md"  # of docstrings, which are looked at where they stand
FOLDERS = ("bevstack", "configs", "tools", "tests", "docs")
# Where a section with headings of its own may be cited as a whole.
WHOLE = {
    ("4.1", "bevstack/reference/compat.py"),
    ("4.1", "docs/compatibility.md"),
    ("4.6", "bevstack/models/heads/detection3d_query.py"),
}
_FULL = re.compile(r"docs/reference\.md\)?(?P<rest>[^\n]*)")
_SHORT = re.compile(r"\((4\.[1-8](?: [A-Z](?:, [A-Z])*)?)\)")  # in a file that has full ones: (4.1 F)


def places() -> dict[str, set[str]]:
    """Sections of the page by number, each with the letters and names of its own headings."""
    found: dict[str, set[str]] = {}
    number = ""
    for line in PAGE.read_text().splitlines():
        if section := re.match(r"#{2,3} (\d(?:\.\d)?) \S", line):
            number = section[1]
            assert number not in found, f"{number} twice"
            found[number] = set()
        elif item := re.match(r"#### (.+)", line):
            name = item[1] if number != "4.1" else item[1].split()[0]
            assert name not in found[number], f"{number}, {name} twice"
            found[number].add(name)
    return found


def cited(text: str) -> list[tuple[str, str]]:
    """Section and heading ("" for a whole section) of each part of a citation, as ``4.1 A, G, 4.5, Init``.

    Raises:
        ValueError: it is none.
    """
    end = re.search(r"[);:\"'|]|\.(?=[\s\"]|$)", text)
    parts, section = [], ""
    for part in text[: end.start() if end else None].strip().split(", "):
        if match := re.fullmatch(r"(\d(?:\.\d)?)(?: ([A-Z]))?", part):
            section = match[1]
            parts.append((section, match[2] or ""))
        elif not section or not part:
            raise ValueError(text)
        elif parts[-1] == (section, ""):
            parts[-1] = (section, part)
        else:
            parts.append((section, part))
    return parts


def citations() -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
    """Place and text of every citation, and what it names."""
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in (".py", ".md")]
    for path in [*files, ROOT / "README.md"]:
        content = path.read_text()
        if path in (PAGE, COPIED, Path(__file__)) or "reference.md" not in content:
            continue
        for number, line in enumerate(content.splitlines(), 1):
            place = f"{path.relative_to(ROOT)}:{number}"
            texts = [match["rest"] for match in _FULL.finditer(line)]
            if path.suffix == ".md":  # links to the page need no section
                texts = [text for text in texts if re.match(r" \d", text)]
            for text in [*texts, *(f" {match[1]}" for match in _SHORT.finditer(line))]:
                try:
                    yield place, text, cited(text)
                except ValueError:
                    raise ValueError(f"{place}: docs/reference.md{text}: says no section or heading") from None


def test_citations_are_read_as_they_are_meant() -> None:
    assert cited(" 4.5, Rotate prev_bev).") == [("4.5", "Rotate prev_bev")]
    assert cited(" 4.1 A, G, 4.5, Init: so") == [("4.1", "A"), ("4.1", "G"), ("4.5", "Init")]
    assert cited(" 4.6, 4.8, Positions. And") == [("4.6", ""), ("4.8", "Positions")]
    for wrong in (", golden README", " as it says"):
        with pytest.raises(ValueError, match=wrong):
            cited(wrong)


def test_every_citation_has_its_place() -> None:
    known, wrong = places(), []
    found = list(citations())
    assert len(found) > 40, "citations are found"
    for place, text, parts in found:
        for section, name in parts:
            whole = not name and known.get(section) and (section, place.split(":")[0]) not in WHOLE
            if section not in known or (name and name not in known[section]) or whole:
                wrong.append(f"{place}:{text[:60]}: {section}, {name or 'which of its headings?'}")
    assert wrong == []


def test_every_place_is_cited() -> None:
    known = places()
    parts = {part for _, _, found in citations() for part in found}
    wanted = {(section, name) for section, names in known.items() for name in names or {""}}
    overviews = {("4", ""), ("2", "")}  # they hold sections
    assert sorted(wanted - parts - overviews) == []


def test_exceptions_are_needed() -> None:
    used = {(section, place.split(":")[0]) for place, _, found in citations() for section, name in found if not name}
    assert WHOLE <= used
