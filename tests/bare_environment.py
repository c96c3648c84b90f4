"""A virtual environment that holds a few packages and what they ask for, and nothing else; made without a network."""

from __future__ import annotations

import os
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

from tests.test_install import ROOT


def wanted_by(*names: str) -> list[Distribution]:
    """Installed distributions and those that they require, extras left out."""
    found: dict[str, Distribution] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = distribution(name)
        requirements = map(Requirement, found[name].requires or ())
        waiting += [one.name for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})]
    return list(found.values())


def installed_bytes(distributions: list[Distribution]) -> int:
    """What their files take on the disk, but for the bytecode that Python writes beside them."""
    files = [Path(str(file.locate())) for one in distributions for file in one.files or ()]
    return sum(path.stat().st_size for path in files if path.is_file() and "__pycache__" not in path.parts)


def bare_environment(folder: Path, distributions: list[Distribution], with_bevstack: bool = True) -> Path:
    """Make an environment in ``folder`` of links to installed packages; returns its interpreter.

    Args:
        folder: is made.
        distributions: what is in it, of :func:`wanted_by`.
        with_bevstack: whether the package of this repository is in it, too, as a link.
    """
    venv.create(folder, symlinks=True)
    (site_packages,) = folder.glob("lib/python3*/site-packages")
    for one in distributions:
        for top in {file.parts[0] for file in one.files or ()} - {"..", "__pycache__"}:
            place = Path(str(one.locate_file(top)))
            if not (site_packages / top).exists():
                os.symlink(place, site_packages / top)
    if with_bevstack:
        os.symlink(ROOT / "bevstack", site_packages / "bevstack")
    return folder / "bin" / "python"
