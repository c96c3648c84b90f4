"""Installation: the choice of the interpreter, the pins, the licence. (The Makefile itself runs in CI.)"""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10: a parser that pip brings
    from pip._vendor import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHOOSE = ROOT / "requirements" / "choose_python.sh"


def fake_python(folder: Path, name: str, version: str, venv: bool = True) -> None:
    """A command that answers as a Python of some version would."""
    path = folder / name
    path.write_text(f'#!/bin/sh\ncase "$2" in *version_info*) echo {version};; *venv*) exit {int(not venv)};; esac\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def choose(folder: Path, *names: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["/bin/sh", str(CHOOSE), *names], env={"PATH": str(folder)}, capture_output=True, text=True, timeout=20
    )


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({"python3": "3.11"}, "python3"),
        ({"python3": "3.14", "python3.12": "3.12", "python3.10": "3.10"}, "python3.12"),
        ({"python3": "3.9", "python3.10": "3.10"}, "python3.10"),
    ],
)
def test_first_python_that_fits(tmp_path, installed, expected) -> None:
    for name, version in installed.items():
        fake_python(tmp_path, name, version)
    done = choose(tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == str(tmp_path / expected)


@pytest.mark.parametrize(
    ("installed", "asked", "found"),
    [
        ({}, (), "none"),
        ({"python3": "3.13"}, (), "python3=3.13"),
        ({"python3": "3.11"}, ("python2",), "python2 (does not run)"),
    ],
)
def test_no_python_that_fits_is_one_line(tmp_path, installed, asked, found) -> None:
    for name, version in installed.items():
        fake_python(tmp_path, name, version)
    done = choose(tmp_path, *asked)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "needs Python 3.10, 3.11 or 3.12" in done.stderr and found in done.stderr


def test_python_without_venv_is_explained(tmp_path) -> None:
    fake_python(tmp_path, "python3", "3.11", venv=False)
    assert "apt-get install python3.11-venv" in choose(tmp_path).stderr


def test_mmcv_is_an_extra_only() -> None:
    """mmcv and mmcv-lite write into one folder: neither may come with the package itself."""
    assert not any(entry.startswith("mmcv") for entry in PROJECT["dependencies"])
    extras = {"mmcv", "mmcv-lite", "timm", "tracking", "dev"}
    assert extras <= set(PROJECT["optional-dependencies"])


def test_pins_fit_the_ranges() -> None:
    """Every pin of the constraints file lies in the range that pyproject gives."""
    from packaging.requirements import Requirement

    lines = (ROOT / "requirements" / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    extras = PROJECT["optional-dependencies"].values()
    every = [*PROJECT["dependencies"], *(entry for extra in extras for entry in extra)]
    wanted = {requirement.name: requirement.specifier for requirement in map(Requirement, every)}
    versions = {pin.name: str(pin.specifier).removeprefix("==") for pin in pins if str(pin.specifier).startswith("==")}
    assert {"torch", "numpy", "mmengine", "mmdet", "mmdet3d", "mmcv-lite"} <= set(versions)
    assert versions["opencv-python"] == versions["opencv-python-headless"]
    for name, version in versions.items():
        assert name not in wanted or version in wanted[name], name


def test_licence_and_python() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text() and "Apache-2.0" in PROJECT["license"]["text"]
    assert PROJECT["requires-python"] == ">=3.10,<3.13"


@pytest.mark.parametrize("target", ["install", "demo", "test", "lint"])
def test_targets_make_the_environment_themselves(target) -> None:
    """What make would run in a fresh clone starts with the virtual environment."""
    command = ["make", "--dry-run", "--always-make", target, "VENV=.venv-absent"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and "-m venv .venv-absent" in done.stdout and "pip install" in done.stdout
