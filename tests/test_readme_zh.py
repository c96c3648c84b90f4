"""docs/README_zh-CN.md keeps in step with README.md: headings, blocks, tables, lists, pictures, code words and numbers.

Expected: README.md. What fails says which lines to look at in both.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.test_architecture import ROOT

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "docs" / "README_zh-CN.md"
_FENCE = re.compile(r"^```\w*\n.*?^```$", re.DOTALL | re.MULTILINE)


class Section(NamedTuple):
    """What stands under one heading: its line, level, title, and text without blocks."""

    line: int
    level: int
    title: str
    text: str
    blocks: list[tuple[int, str]]


def sections(page: Path) -> list[Section]:
    """A page by its headings, with the lines' numbers kept."""
    whole = page.read_text()
    blocks = [(whole[: match.start()].count("\n") + 1, match[0]) for match in _FENCE.finditer(whole)]
    lines = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), whole).splitlines()
    starts = [number for number, line in enumerate(lines) if re.match(r"#+ ", line)]
    found = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        marks, _, title = lines[start].partition(" ")
        inside = [(number, text) for number, text in blocks if start < number - 1 < end]
        found.append(Section(start + 1, len(marks), title, "\n".join(lines[start + 1 : end]), inside))
    return found


def plain(text: str) -> str:
    """Text without the targets of links and without comments."""
    return re.sub(r"<!--.*?-->", "", re.sub(r"\]\([^)]*\)", "]", text))


def numbers(text: str) -> Counter[str]:
    """Every number in figures, without those inside words of letters or code."""
    text = re.sub(r"`[^`]*`", "", plain(text))
    return Counter(re.findall(r"(?<![\w.-])\d+(?:,\d{3})*(?:\.\d+)*(?!\w|\.\w)", text, re.ASCII))


def code_words(text: str) -> Counter[str]:
    """What stands between backticks, and names of commits."""
    words = re.findall(r"`([^`]+)`", re.sub(r"\[[\w/.-]+\.md\]", "", plain(text)))
    return Counter(" ".join(word.split()) for word in words)


def shape(text: str) -> dict[str, int]:
    """How many of each kind of line."""
    kinds = {"rows of tables": r"^\|", "points of lists": r"^- ", "pictures": r"^!\["}
    return {name: len(re.findall(pattern, text, re.MULTILINE)) for name, pattern in kinds.items()}


PAIRS = list(zip(sections(ENGLISH), sections(CHINESE), strict=False))


def names(pair: tuple[Section, Section]) -> str:
    return pair[0].title


def test_there_is_a_chinese_heading_for_each() -> None:
    english, chinese = sections(ENGLISH), sections(CHINESE)
    wrong = [
        f"README.md:{a.line} '{a.title}' and docs/README_zh-CN.md:{b.line} '{b.title}' have other levels"
        for a, b in zip(english, chinese, strict=False)
        if a.level != b.level
    ]
    if len(english) != len(chinese):
        rest = english[len(chinese) :] or chinese[len(english) :]
        wrong.append(
            f"README.md has {len(english)} headings, docs/README_zh-CN.md {len(chinese)}; from: {rest[0].title}"
        )
    assert wrong == []
    assert len(english) > 10
    assert all(re.search(r"[\u4e00-\u9fff]", section.title) for section in chinese[1:]), "a heading is not Chinese"


@pytest.mark.parametrize("pair", PAIRS, ids=names)
def test_blocks_are_the_same(pair) -> None:
    english, chinese = pair
    wrong = [
        f"docs/README_zh-CN.md:{b[0]} is not README.md:{a[0]}; copy it"
        for a, b in zip(english.blocks, chinese.blocks, strict=False)
        if a[1] != b[1]
    ]
    if len(english.blocks) != len(chinese.blocks):
        counts = f"{len(english.blocks)} blocks, not {len(chinese.blocks)}"
        wrong.append(f"README.md:{english.line} '{english.title}' has {counts} (docs/README_zh-CN.md:{chinese.line})")
    assert wrong == []


def lines_with(section: Section, word: str, page: str) -> str:
    found = [n for n, line in enumerate(section.text.splitlines(), section.line + 1) if word in line]
    return ", ".join(f"{page}:{n}" for n in found) or f"nowhere in {page} from line {section.line}"


@pytest.mark.parametrize("count", [numbers, code_words], ids=["numbers", "code"])
@pytest.mark.parametrize("pair", PAIRS, ids=names)
def test_numbers_and_code_words_are_the_same(pair, count) -> None:
    english, chinese = pair
    here, there = count(english.text), count(chinese.text)
    wrong = []
    for word in sorted((here - there) + (there - here)):
        places = f"{lines_with(english, word, 'README.md')}; {lines_with(chinese, word, 'docs/README_zh-CN.md')}"
        wrong.append(f"{word}: {here[word]} times in README.md, {there[word]} in docs/README_zh-CN.md ({places})")
    assert wrong == [], "change these lines of docs/README_zh-CN.md"


@pytest.mark.parametrize("pair", PAIRS, ids=names)
def test_tables_lists_and_pictures_are_as_many(pair) -> None:
    english, chinese = pair
    assert shape(chinese.text) == shape(english.text), f"docs/README_zh-CN.md:{chinese.line}, README.md:{english.line}"
    cells = [[line.count("|") for line in section.text.splitlines() if line.startswith("|")] for section in pair]
    assert cells[0] == cells[1], f"columns of the tables from docs/README_zh-CN.md:{chinese.line}"
    targets = [Counter(Path(target.partition("#")[0]).name for target in links(section.text)) for section in pair]
    assert targets[0] == targets[1], f"links from docs/README_zh-CN.md:{chinese.line}"


def links(text: str) -> list[str]:
    """Targets of links and pictures, but for those to the same text in the other language."""
    own = {"../README.md", "docs/README_zh-CN.md"}
    return [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if target not in own]


def test_the_two_lead_to_each_other() -> None:
    assert "(docs/README_zh-CN.md)" in ENGLISH.read_text() and "(../README.md)" in CHINESE.read_text()


def test_numbers_are_read() -> None:
    assert numbers("2,123 steps, AP 0.993, 30 到 50 m，`x 7` [3](a4.md) bf16 v1.0") == Counter(
        {"2,123": 1, "0.993": 1, "30": 1, "50": 1, "3": 1}
    )
