"""Docstrings of public functions, classes and methods: none is empty of meaning, and tensors have their shapes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.test_architecture import FILES, PACKAGE, TREES, module_of

# What says nothing by itself; three words must be left without it.
EMPTY = r"(see|as|like|of|for) (the|its) (class|parent|base|module|function|above)|see above|as above|entry point|ones"
_SYMBOL = re.compile(r"\.\.\.|(?:[A-Z](?:_\w+|\d)?'*|[1-9]\d{0,2})(?: ?[*+/-] ?[\w']+)*")
_REFERENCE = re.compile(r":meth:`~?([\w.]+)`")

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public() -> Iterator[tuple[str, Definition]]:
    """Every public definition outside functions, by its dotted name."""
    for path in FILES:
        waiting: list[tuple[str, ast.AST]] = [(module_of(path), TREES[path])]
        while waiting:
            name, node = waiting.pop()
            for child in ast.iter_child_nodes(node):
                if isinstance(child, Definition) and not child.name.startswith("_"):
                    yield f"{name}.{child.name}", child
                    if isinstance(child, ast.ClassDef):
                        waiting.append((f"{name}.{child.name}", child))


DEFINITIONS = dict(public())
NAMES = {name.rpartition(".")[2] for name in DEFINITIONS}


def has_shape(text: str) -> bool:
    """Whether a text holds the shape of a tensor, such as (B, C, Y, X), (...), (G,), or says scalar or any shape."""
    for inside in re.findall(r"\(([^()]*)\)", text):
        items = [item.strip() for item in inside.split(",")]
        if len(items) > 1 and items[-1] == "" and len(items[0].split()) == 1:
            return True  # (thresholds,)
        if any(_SYMBOL.fullmatch(item) for item in items) and "0" not in items:
            return True
    return re.search(r"\bscalars?\b|\bany shape\b", text) is not None


def refers(name: str, text: str) -> bool:
    """Whether a method's text sends its reader to the documented method that it overrides."""
    contracts = [contract.rpartition(".") for contract in _REFERENCE.findall(text)]
    return any(own == name.rpartition(".")[2] and owner.rpartition(".")[2] in NAMES for owner, _, own in contracts)


def takes_tensors(node: Definition) -> bool:
    """Whether a function takes or gives tensors."""
    if isinstance(node, ast.ClassDef):
        return False
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    annotations = [argument.annotation for argument in every if argument is not None] + [node.returns]
    return any(re.search(r"\bTensor\b", ast.unparse(a)) for a in annotations if a is not None)


def says_something(text: str) -> bool:
    """Whether three words or a shape are left when phrases that say nothing are taken away."""
    left = re.sub(rf"\b({EMPTY})\b", " ", text, flags=re.IGNORECASE)
    return len(re.findall(r"[A-Za-z][\w'-]*", left)) >= 3 or has_shape(text)


def offenders() -> dict[str, str]:
    """Names of definitions, and what their docstrings lack."""
    found = {}
    for name, node in DEFINITIONS.items():
        text = ast.get_docstring(node) or ""
        needs_shape = takes_tensors(node) and not name.startswith("bevstack.synthetic.")
        if not says_something(text):
            found[name] = "says nothing"
        elif needs_shape and not has_shape(text) and not refers(name, text):
            found[name] = "no shapes"
    return found


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("(B, C, Y, X) on the grid", True),
        ("Boxes (..., 9) in the BEV frame", True),
        ("(G,) labels", True),
        ("(layers,) counts", True),
        ("B times (N, 3, h, w) uint8", True),
        ("a scalar", True),
        ("(B * N, tokens, C)", True),
        ("Metres (x, y) of the point (0, 0)", False),
        ("The detections (as in the paper)", False),
        ("Focal loss (Lin et al. 2017, eq. 5)", False),
        ("Another loss (Lin, 2017), on a GPU (CUDA)", False),
    ],
)
def test_shapes_are_recognised(text, shape) -> None:
    assert has_shape(text) is shape


def test_what_says_nothing_is_recognised() -> None:
    assert not any(map(says_something, ["Ones.", "See the class.", "N.", "Entry point.", ""]))
    assert all(map(says_something, ["Draw both tables anew.", "(B, C)", "See the class; steps count from zero."]))


def test_an_override_may_refer_to_its_contract() -> None:
    assert refers("bevstack.models.heads.scene.SceneHead.loss", "As :meth:`BEVHead.loss`, of each task.")
    assert not refers("bevstack.models.heads.scene.SceneHead.loss", "As :meth:`BEVHead.predict` says.")
    assert not refers("bevstack.models.heads.scene.SceneHead.loss", "As :meth:`NoHead.loss` says.")


def test_docstrings() -> None:
    assert len(DEFINITIONS) > 500 and PACKAGE.name == "bevstack", "the package is found"
    assert offenders() == {}, "docstrings to mend"
