"""What the package imports is what pyproject declares, and the other way round (expected: the source text itself)."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement

from tests.test_install import PROJECT, ROOT

# Distributions whose modules have other names.
MODULES = {"opencv-python": "cv2", "pillow": "PIL", "nuscenes-devkit": "nuscenes", "mmcv-lite": "mmcv"}
MODULES |= {"rerun-sdk": "rerun"}
MODULES |= {"import-linter": "lint-imports", "pytest-xdist": "-n"}  # commands and options of the Makefile
# Imported at the top of files although an extra: mmcv and mmcv-lite share a folder, and the user takes one of them.
CHOSEN_BY_THE_USER = {"mmcv"}
# Imported without being declared.
NOT_OURS = {"torchvision": "the doctor asks whether it can be imported; timm brings it"}
# Declared without being imported.
NOT_IMPORTED = {
    "mkdocs": "make docs runs it on docs/site/mkdocs.yml",
    "mkdocs_material": "the theme that docs/site/mkdocs.yml names",
    "tensorboard": "mmengine's TensorboardVisBackend imports torch's writer; engine/runner.py looks for it",
    "wandb": "mmengine's WandbVisBackend imports it",
    "mlflow": "mmengine's MLflowVisBackend imports it",
    "motmetrics": "the devkit imports it when it scores tracks; evaluation/tracking_scoring.py looks for it",
}


def module_of(requirement: str) -> str:
    name = Requirement(requirement).name
    return MODULES.get(name, name.replace("-", "_"))


REQUIRED = {module_of(entry) for entry in PROJECT["dependencies"]}
EXTRAS = {name: {module_of(entry) for entry in extra} for name, extra in PROJECT["optional-dependencies"].items()}
OPTIONAL = set().union(*(modules for name, modules in EXTRAS.items() if name != "dev"))


def imports(node: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Top names of modules of others that are imported, and whether inside a function, a ``try`` or for types only."""
    for child in ast.iter_child_nodes(node):
        names = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            names = [child.module]
        for name in names:
            top = name.split(".")[0]
            if top not in sys.stdlib_module_names and top != "bevstack":
                yield top, inside
        typing = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        yield from imports(child, inside or typing or isinstance(child, ast.FunctionDef | ast.Try))


def imported_by(folder: str) -> dict[str, list[tuple[str, bool]]]:
    """Per module: where it is imported."""
    found: dict[str, list[tuple[str, bool]]] = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        for name, inside in imports(ast.parse(path.read_text())):
            found.setdefault(name, []).append((str(path.relative_to(ROOT)), inside))
    return found


def test_what_is_imported_is_declared() -> None:
    found = imported_by("bevstack")
    assert {"torch", "mmengine", "timm"} <= set(found), "imports are found, also inside functions"
    assert sorted(set(found) - REQUIRED - OPTIONAL - set(NOT_OURS)) == []
    for name in set(found) - REQUIRED - CHOSEN_BY_THE_USER:
        outside = [place for place, inside in found[name] if not inside]
        assert outside == [], f"{name} is optional, but these files cannot be imported without it"


def test_what_is_declared_is_imported() -> None:
    unused = (REQUIRED | OPTIONAL) - set(imported_by("bevstack"))
    assert unused == set(NOT_IMPORTED)


def test_exceptions_are_needed() -> None:
    assert set(NOT_OURS) <= set(imported_by("bevstack")) - REQUIRED - OPTIONAL
    assert "motmetrics" in (ROOT / "bevstack" / "evaluation" / "tracking_scoring.py").read_text()


@pytest.mark.parametrize("name", sorted(EXTRAS["dev"]))
def test_what_developers_install_is_used(name) -> None:
    """A test imports it, the Makefile runs it, or an extra brings it, too, for its tests."""
    commands = re.findall(r"[\w-]+", (ROOT / "Makefile").read_text())
    assert name in imported_by("tests") or name in commands or name in OPTIONAL
