"""The house rules that a machine can check, on the source text of the package (import layers: ``lint-imports``)."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.test_dependencies import OPTIONAL

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "bevstack"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}
PYTHON = [*FILES, *sorted((ROOT / "tools").rglob("*.py")), *sorted((ROOT / "configs").rglob("*.py"))]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST, for_types: bool = False) -> Iterator[str]:
    """Dotted names of everything a module imports, also inside functions; those for type checking only where asked."""
    left_out: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test) and not for_types:
            left_out.update(inner for statement in node.body for inner in ast.walk(statement))
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_package_is_found() -> None:
    """The tests below look at something."""
    assert len(FILES) > 40 and PACKAGE / "geometry" / "transforms.py" in FILES


def test_no_drawers_for_odds_and_ends() -> None:
    drawers = {"utils", "util", "common", "misc", "helpers", "helper"}
    names = {path: {part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts} for path in FILES}
    assert [named(path) for path in FILES if names[path] & drawers] == []


def test_long_files_say_why() -> None:
    """Above 350 lines the module's docstring holds the word "lines", "long" or "length", with the reason."""
    long = [path for path in FILES if len(path.read_text().splitlines()) > 350]
    silent = [path for path in long if not re.search(r"\b(lines|long|length)\b", ast.get_docstring(TREES[path]) or "")]
    assert [named(path) for path in silent] == []


def test_no_imports_relative_or_of_everything() -> None:
    nodes = [(path, node) for path in FILES for node in ast.walk(TREES[path]) if isinstance(node, ast.ImportFrom)]
    assert [named(path) for path, node in nodes if node.level or any(alias.name == "*" for alias in node.names)] == []


# May be absent, or are slow to import and seldom needed: the extras, nuScenes' devkit and what scores with it.
IMPORTED_WHEN_NEEDED = OPTIONAL | {"nuscenes", "pycocotools", "motmetrics"}
_REASON = re.compile(r"#(?: noqa: [A-Z]\d+ -)? only here: (?:\S+ ?){2,}$")


def late_imports(text: str) -> Iterator[tuple[int, str]]:
    """Line and top name of each import inside a function whose line, or the comment above it, gives no reason."""
    lines = text.splitlines()
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    nodes = {node.lineno: node for function in functions for node in ast.walk(function)
             if isinstance(node, ast.Import | ast.ImportFrom)}  # fmt: skip
    for number, node in sorted(nodes.items()):
        above = lines[number - 2].strip()
        if not _REASON.search(lines[number - 1]) and not (above.startswith("#") and _REASON.search(above)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((number, name.split(".")[0]) for name in names)


def test_imports_inside_functions_say_why() -> None:
    """``# only here: ...`` on the import's line or above it, but for packages that one expects there."""
    examples = "import a\ndef f():\n    import b\n    # only here: it is slow\n    import c\n    import d"
    assert list(late_imports(examples + "  # only here: so it is")) == [(3, "b")], "an import would be found"
    assert list(late_imports(examples + "  # only here:")) == [(3, "b"), (6, "d")], "an empty reason is none"
    found = [(path, line, name) for path in FILES for line, name in late_imports(path.read_text())]
    assert {name for _, _, name in found} & IMPORTED_WHEN_NEEDED, "imports are found"
    assert [f"{named(path)}:{line}: {name}" for path, line, name in found if name not in IMPORTED_WHEN_NEEDED] == []


def test_types_are_seldom_ignored() -> None:
    """mypy (``make lint``) is overruled at most ten times, each time with its code and a reason beside it."""
    lines = [line for path in FILES for line in path.read_text().splitlines() if "# type: ignore" in line]
    assert len(lines) <= 10
    assert [line for line in lines if not re.search(r"# type: ignore\[[a-z-]+\]  # (?:\S+ ?){2,}$", line)] == []


def test_geometry_imports_torch_only() -> None:
    allowed = {"torch"} | sys.stdlib_module_names
    for path in FILES:
        if path.is_relative_to(PACKAGE / "geometry"):
            for name in imports(TREES[path]):
                assert name.split(".")[0] in allowed or name.startswith("bevstack.geometry"), (named(path), name)


def test_the_devkit_stays_in_two_rooms() -> None:
    for path in FILES:
        if path.relative_to(PACKAGE).parts[0] not in ("datasets", "evaluation"):
            assert not any(name.split(".")[0] == "nuscenes" for name in imports(TREES[path])), named(path)


def test_heads_do_not_know_each_other() -> None:
    heads = {path.stem for path in (PACKAGE / "models" / "heads").glob("*.py")} - {"__init__", "base"}
    # a head may be spread over files that share its name: detection3d_query and detection3d_query_decoder
    for path in (PACKAGE / "models" / "heads").glob("*.py"):
        if path.stem in ("__init__", "base"):
            continue
        for name in imports(TREES[path]):
            if name.startswith("bevstack.models.heads."):
                other = name.split(".")[3]
                related = other.startswith(path.stem) or path.stem.startswith(other)
                assert other not in heads or related, (path.stem, other)


def test_models_draw_nothing() -> None:
    """What is drawn of a sample is drawn in visualization, by painters; no part of a model makes pictures."""
    drawing = {"cv2", "PIL", "matplotlib"}
    for path in FILES:
        if path.is_relative_to(PACKAGE / "models"):
            assert not drawing & {name.split(".")[0] for name in imports(TREES[path])}, named(path)


def forwards() -> list[tuple[Path, ast.ClassDef, ast.FunctionDef]]:
    places = (PACKAGE / "models", PACKAGE / "ops", PACKAGE / "losses")
    return [
        (path, cls, function)
        for path in FILES
        if any(path.is_relative_to(place) for place in places)
        for cls in ast.walk(TREES[path])
        if isinstance(cls, ast.ClassDef)
        for function in cls.body
        if isinstance(function, ast.FunctionDef) and function.name == "forward"
    ]


def test_forward_is_short() -> None:
    """At most six arguments beside self (or an autograd function's ctx), and no ``**kwargs``."""
    offenders = []
    for path, cls, function in forwards():
        arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        own = [argument.arg for argument in arguments if argument.arg not in ("self", "ctx")]
        autograd = any("Function" in ast.unparse(base) for base in cls.bases)  # takes what its kernel takes
        if (len(own) > 6 and not autograd) or function.args.kwarg is not None:
            offenders.append(f"{named(path)}: {cls.name}.forward({', '.join(own)})")
    assert offenders == []


def test_nothing_that_runs_foreign_code() -> None:
    """No unpickling, no torch.load without weights_only=True, no yaml.load, no eval or exec."""
    forbidden = {"eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "joblib.load"}
    forbidden |= {"dill.load", "dill.loads", "marshal.loads", "pandas.read_pickle", "pd.read_pickle"}
    offenders = []
    for path in PYTHON:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            unsafe_torch = called == "torch.load" and keywords.get("weights_only") != "True"
            unsafe_numpy = called in ("np.load", "numpy.load") and keywords.get("allow_pickle", "False") != "False"
            if called in forbidden or unsafe_torch or unsafe_numpy:
                offenders.append(f"{named(path)}:{node.lineno}: {called}")
    assert offenders == []


def test_nothing_is_hidden() -> None:
    """No bare except, and none of Exception but where the reason stands beside it."""
    offenders = []
    for path in FILES:
        lines = path.read_text().splitlines()
        for node in ast.walk(TREES[path]):
            if isinstance(node, ast.ExceptHandler):
                caught = "" if node.type is None else ast.unparse(node.type)
                if caught in ("", "Exception", "BaseException") and "# noqa: BLE001 - " not in lines[node.lineno - 1]:
                    offenders.append(f"{named(path)}:{node.lineno}: except {caught}")
    assert offenders == []


def test_nothing_is_left_to_do() -> None:
    """No marks of unfinished work, no stubs (abstract methods say that they are), no paths of one machine."""
    offenders = []
    for path in FILES:
        text = path.read_text()
        stub = "NotImplementedError" in text and "abstract" not in text.lower()
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b|(?<![\w.])/(work|tmp|root|home)/", text) or stub:
            offenders.append(named(path))
    assert offenders == []


def test_classes_are_named_by_nouns() -> None:
    names = [node.name for path in FILES for node in ast.walk(TREES[path]) if isinstance(node, ast.ClassDef)]
    assert [name for name in names if re.match(r"_?(My|Custom|New)[A-Z]", name) or name.endswith("V2")] == []


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph() -> dict[str, set[str]]:
    """Which file imports which; imports inside functions and for type checking alone are counted."""
    modules = {module_of(path): path for path in FILES}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found = graph.setdefault(name, set())
        for imported in imports(TREES[path], for_types=True):
            while imported and imported not in modules:  # a name in a module
                imported = imported.rpartition(".")[0]
            if imported not in ("", name, "bevstack"):
                found.add(imported)
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of more than one node that reach each other."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for after in graph[waiting.pop()] - seen:
                seen.add(after)
                waiting.append(after)
        return seen

    reach = {node: reached(node) for node in graph}
    groups = {tuple(sorted(n for n in reach[node] if node in reach[n])) for node in graph if node in reach[node]}
    return [list(group) for group in sorted(groups)]


def test_no_circles_between_files() -> None:
    graph = import_graph()
    assert sum(map(len, graph.values())) > 500, "the graph has edges"
    assert circles({**graph, "a": {"b"}, "b": {"a"}}) == [["a", "b"]], "a circle would be found"
    assert circles(graph) == []
