"""Pages of docs/ as tests: their files are taken out and installed, their commands run, their mistakes made."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

import bevstack.registry
from tests.integration.conftest import REPOSITORY, run

TOOLS = ("tools/train.py", "tools/test.py", "tools/visualize.py")


class Page:
    """A page of docs/, or the part of it between the headings ``start`` and ``end`` (whole lines).

    ``files``: what follows a line that ends in the file's name, by name; ``commands``: the lines that call Python on a
    tool, split; ``mistakes``: rows of the table (mistake, what the tool says, "..." standing for anything).
    """

    def __init__(self, name: str, start: str = "", end: str = "") -> None:
        text = (REPOSITORY / "docs" / name).read_text()
        assert all(f"\n{heading}\n" in text for heading in (start, end) if heading), (start, end)
        text = text.partition(f"\n{start}\n")[2] if start else text
        self.text = text.partition(f"\n{end}\n")[0] if end else text
        fenced = re.findall(r"`([\w./]+/[\w./]+)`[^\n]*\n\n```\w+\n(.*?)^```", self.text, re.DOTALL | re.MULTILINE)
        self.files = dict(fenced)
        lines = re.findall(r"^python (tools/.*)$", self.text, re.MULTILINE)
        self.commands = [shlex.split(line, comments=True) for line in lines]
        self.mistakes = re.findall(r"^\| ([^|]+?) \| (`[^|]+) \|$", self.text, re.MULTILINE)

    def write(self, folder: Path) -> None:
        """All files below a folder."""
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)

    def install(self, folder: Path, package: str) -> None:
        """Write the files and install the package among them into ``folder / installed``."""
        self.write(folder)
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
        options += ["--upgrade", "--target", str(folder / "installed")]
        command = [sys.executable, "-m", "pip", "install", *options, str(folder / package)]
        subprocess.run(command, check=True, timeout=600)

    def lines_of(self, name: str) -> int:
        """Lines of a file that are not empty."""
        return len([line for line in self.files[name].splitlines() if line.strip()])


def follow(page: Page, work_dir: Path, config: Path, *options: str) -> None:
    """Run the page's training, test and drawing one after another on ``config`` into ``work_dir``."""
    for tool, *arguments in page.commands:
        if tool not in TOOLS:
            continue
        checkpoint = ""
        if tool != "tools/train.py":
            checkpoint = json.loads((work_dir / "train_summary.json").read_text())["checkpoint"]
        places = {"CHECKPOINT": checkpoint, arguments[0]: str(config)}
        given = [places.get(part, re.sub(r"work_dirs/\w+", str(work_dir), part)) for part in arguments]
        given += ["--cfg-options", *options] if options else []
        if tool == "tools/train.py" and not options:
            given += ["--cfg-options", "train_cfg.max_epochs=1"]
        assert run(tool, given) == 0, given


def logs_of(work_dir: Path) -> list[dict]:
    """What the training logged, step by step."""
    return [json.loads(line) for path in work_dir.glob("*/vis_data/scalars.json") for line in open(path)]


def assert_one_line(printed: str, said: str, config: str) -> None:
    """Standard error has one line that begins with "error:", and it is what the page says."""
    pattern = ".*".join(re.escape(part) for part in re.findall(r"`([^`]*)`", said))
    lines = [line for line in printed.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "Traceback" not in printed, printed
    assert re.match("error: " + pattern.replace("CONFIG", f".*{re.escape(config)}"), lines[0]), (lines, pattern)


def assert_nothing_is_left(work_dir: Path) -> None:
    """No checkpoint and no lock."""
    assert not list(work_dir.glob("*.pth")) and not (work_dir / ".train.lock").exists()


def forget(module: str) -> None:
    """As if a package of one module had never been imported in this process."""
    sys.modules.pop(module, None)
    for registry in vars(bevstack.registry).values():
        if isinstance(registry, bevstack.registry.Registry):
            for name, found in list(registry.module_dict.items()):
                if found.__module__ == module:
                    registry.module_dict.pop(name)


def most_frequent(picture: np.ndarray) -> tuple[np.ndarray, float]:
    """The colour that most pixels of (H, W, 3) have, and how large a part of them."""
    colors, counts = np.unique(picture.reshape(-1, 3), axis=0, return_counts=True)
    return colors[counts.argmax()], counts.max() / counts.sum()
