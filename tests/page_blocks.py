"""The fenced blocks of README and docs/, and what a marker above one says of how it is tried.

A comment on the line before a block, which no reader sees:

- ``<!-- on: configs/x.py -->``: its lines go on from this config (a Python block without one: from configs/demo.py);
- ``<!-- run by: tests/x.py::test_y -->``: that test runs it;
- ``<!-- not run: reason -->``: nobody can.
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```", re.DOTALL | re.MULTILINE)
_MARKER = re.compile(r"<!-- (on|run by|not run): (\S.*?) -->")
_FILE = re.compile(r"`([\w./-]+/[\w-]+\.(?:py|json|toml))`")
_COMMANDS = ("python", "torchrun", "srun", "make", "pip", "export", "tensorboard", ".", "docker", "ros2")


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, line, language, text, the file that it is (or ""), and its marker (kind, text).

    It is a file where the paragraph above names one that is not in the repository.
    """

    page: Path
    line: int
    language: str
    text: str
    file: str
    marker: tuple[str, str]

    @property
    def place(self) -> str:
        """``page:line`` of the block's fence."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block, without comments and environment; ``$(...)`` is one word."""
        joined = re.sub(r"\$\([^)]*\)", "SUBSTITUTED", self.text.replace("\\\n", " "))
        joined = re.sub(r"\"[^\"]*\"", lambda match: match[0].replace("\n", " "), joined)
        variables: dict[str, str] = {}
        found = []
        for line in joined.splitlines():
            line = re.sub(r"\$(\w+)", lambda match: variables.get(match[1], match[0]), line)
            words = shlex.split(line, comments=True)
            while words:
                end = next((i for i, word in enumerate(words) if word in ("|", "&&", ";")), len(words))
                command, words = words[:end], words[end + 1 :]
                while command and (assigned := re.fullmatch(r"([A-Za-z_]+)=(.*)", command[0])):
                    command = command[1:]
                    if not command:
                        variables[assigned[1]] = assigned[2]
                found += [command] if command else []
        return found

    @property
    def is_shell(self) -> bool:
        """Whether it holds commands: by its language, or by its first word where it has none."""
        words = re.sub(r"^(?:[A-Za-z_]+=\S+ )+", "", self.text.lstrip()).split()
        return self.language in ("bash", "sh") or (not self.language and bool(words) and words[0] in _COMMANDS)


def blocks_of(page: Path) -> Iterator[Block]:
    """Every fenced block of a page."""
    text = page.read_text()
    for match in _FENCE.finditer(text):
        *earlier, above = text[: match.start()].rstrip().splitlines() or [""]
        marker = _MARKER.fullmatch(above.strip())
        paragraph = "\n".join(earlier if marker else [*earlier, above]).rstrip().rpartition("\n\n")[2]
        is_file = match["language"] in ("python", "json", "toml")
        named = [path for path in _FILE.findall(paragraph) if is_file and not (ROOT / path).exists()]
        yield Block(
            page,
            text[: match.start()].count("\n") + 1,
            match["language"],
            textwrap.dedent(match["text"]),
            named[-1] if named else "",
            (marker[1], marker[2]) if marker else ("", ""),
        )


def inline_commands(page: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each command in a page's prose, between backticks."""
    text = _FENCE.sub(lambda match: "\n" * match[0].count("\n"), page.read_text())
    for match in re.finditer(r"`((?:python )?tools/\w+\.py [^`]+|make [a-z][^`]*|python -m [^`]+)`", text):
        yield text[: match.start()].count("\n") + 1, " ".join(match[1].split())


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
