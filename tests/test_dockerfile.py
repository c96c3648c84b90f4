"""The Dockerfile of docs/examples: what it copies is there, and its commands run in a plain environment.

Expected: pyproject, the constraints file and the repository itself; there is no Docker where tests run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess

import pytest
from packaging.specifiers import SpecifierSet

from tests.bare_environment import bare_environment, wanted_by
from tests.test_install import PROJECT, ROOT

FILE = ROOT / "docs" / "examples" / "Dockerfile"


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instruction and argument of each line, by the names of the stages."""
    found: dict[str, list[tuple[str, str]]] = {}
    lines = FILE.read_text().replace("\\\n", " ").splitlines()
    for line in lines:
        if not line.strip() or line.startswith("#"):
            continue
        instruction, _, argument = line.partition(" ")
        if instruction == "FROM":
            image, _, name = argument.partition(" AS ")
            assert name not in found
            found[name] = [("FROM", image)]
        else:
            found[name].append((instruction, argument))
    return found


def test_both_images_begin_from_a_python_that_fits() -> None:
    assert list(stages()) == ["runtime", "full"]
    for (instruction, image), *_ in stages().values():
        assert (instruction, image) == ("FROM", "python:3.11-slim")
        assert image.partition(":")[2].partition("-")[0] in SpecifierSet(PROJECT["requires-python"])


@pytest.mark.parametrize("name", ["runtime", "full"])
def test_what_is_copied_and_installed_is_there(name) -> None:
    stage = stages()[name]
    known = {"FROM", "ARG", "ENV", "WORKDIR", "COPY", "RUN", "ENTRYPOINT"}
    assert {instruction for instruction, _ in stage} <= known
    for sources in (argument.split()[:-1] for instruction, argument in stage if instruction == "COPY"):
        assert all((ROOT / source).exists() for source in sources), sources
    pinned = {line.partition("==")[0] for line in (ROOT / "requirements" / "constraints.txt").read_text().splitlines()}
    commands = [argument for instruction, argument in stage if instruction == "RUN"]
    for command in commands:
        if "pip install" not in command or "--no-deps" in command:
            continue
        assert "-c requirements/constraints.txt" in command
        extras = re.findall(r"\.\[([\w,-]+)\]", command)
        asked = re.sub(r"-c \S+|--index-url \S+|--?[\w-]+|\"\S+\"", " ", command.partition("pip install")[2]).split()
        assert bool(extras) != bool(asked) and set(asked) <= pinned, command
        assert all(extra in PROJECT["optional-dependencies"] for listed in extras for extra in listed.split(","))
    assert sum("pip install" in command for command in commands) == 2


def test_the_small_image_is_made(tmp_path) -> None:
    # Expected: every command of the stage ends well in an environment with numpy, ONNX Runtime and pip, from the files
    # that are copied and no others, without an index; the package is there afterwards, torch is not.
    pytest.importorskip("onnxruntime", reason="the extra 'export' is not installed")
    packages = wanted_by("numpy", "onnxruntime", "pip", "setuptools")
    python = bare_environment(tmp_path / "bare", packages, with_bevstack=False)
    folder = tmp_path / "image"
    folder.mkdir()
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment = {**offline, "PATH": f"{python.parent}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    for instruction, argument in stages()["runtime"]:
        if instruction == "COPY":
            *sources, target = argument.split()
            for source in sources:
                if (ROOT / source).is_dir():
                    left_out = shutil.ignore_patterns("__pycache__")
                    shutil.copytree(ROOT / source, folder / target, ignore=left_out)
                else:
                    shutil.copy(ROOT / source, folder / target)
        if instruction == "RUN":
            done = subprocess.run(
                argument, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
            )
            assert done.returncode == 0, f"{argument}\n{done.stdout}\n{done.stderr}"
    told = "import bevstack, importlib.util; print(bevstack.__file__, importlib.util.find_spec('torch'))"
    done = subprocess.run([python, "-c", told], cwd=tmp_path, env=environment, capture_output=True, text=True)
    place, torch = done.stdout.split()
    assert place.startswith(str(tmp_path / "bare")) and torch == "None"
