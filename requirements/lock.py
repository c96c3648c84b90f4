"""Write requirements/demo.txt: every package that ``make demo`` needs, pinned, each with the hash of its file.

    python requirements/lock.py    # resolves anew, by pip, under requirements/constraints.txt; needs the network

The hashes are those of the files that pip chooses for this Python on this machine: the head of the file says which.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import tomllib

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("mmcv-lite", "timm")
TARGET, CONSTRAINTS = ROOT / "requirements" / "demo.txt", ROOT / "requirements" / "constraints.txt"


def wanted() -> list[str]:
    """What the project and the demo's extras ask for."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *(one for extra in EXTRAS for one in project["optional-dependencies"][extra])]


def resolved(requirements: list[str]) -> list[dict]:
    """What pip would install, without installing it."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        options = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report), "-c", str(CONSTRAINTS)]
        command = [sys.executable, "-m", "pip", "install", "--prefer-binary", *options, *requirements]
        subprocess.run(command, check=True)  # noqa: S603 - names of pyproject.toml
        return json.loads(report.read_text())["install"]


def lines(packages: list[dict]) -> list[str]:
    """Lines of a requirements file, by name."""
    pinned = {}
    for package in packages:
        name, version = package["metadata"]["name"], package["metadata"]["version"]
        digest = package["download_info"]["archive_info"]["hashes"]["sha256"]
        pinned[name.lower().replace("_", "-")] = f"{version} --hash=sha256:{digest}"
    return [f"{name}=={rest}" for name, rest in sorted(pinned.items())]


def main() -> None:
    """Resolve and write."""
    version = ".".join(platform.python_version_tuple()[:2])
    head = [
        f"# Python {version}, {platform.system()} {platform.machine()}; made by: python requirements/lock.py",
        "# pip install --require-hashes -r requirements/demo.txt && pip install --no-deps -e .",
    ]
    pins = lines(resolved(wanted()))
    if any(line.startswith("torch==") and "+cpu" in line for line in pins):
        head.append("--extra-index-url https://download.pytorch.org/whl/cpu")  # torch's own, of builds for CPUs
    TARGET.write_text("\n".join([*head, *pins]) + "\n")


if __name__ == "__main__":
    main()
