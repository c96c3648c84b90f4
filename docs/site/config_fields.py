#!/usr/bin/env python
"""Writes docs/config_fields.md from the docstrings of what a config can name: ``python docs/site/config_fields.py``.

Source text alone is read, nothing is imported: a class is registered by its decorator, its fields are the arguments of
``__init__`` (or a dataclass's), what each means stands under ``Args:`` of its docstring or a base's. A dataclass from
which an argument is built gets a section of its own. tests/test_site.py compares the page with what this file makes of
the sources, its names with the registries, and its fields with what Python says.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "config_fields.md"

HEAD = """# Every config field

A config is Python; each `dict(type="Name", ...)` in it becomes an object of the class `Name`, and the other keys are
that class's arguments. This page is written from the docstrings by `python docs/site/config_fields.py`, and a test
compares the two: do not edit it. A key that a class does not have is refused in one line with the nearest one it has.
Parts of mmengine, mmdet and mmdet3d may be named, too (`type="mmdet.ResNet"`); their own pages describe them.

"""

TOP_LEVEL = {
    "model": "the model, [`BEVPerception`](#bevperception)",
    "train_dataloader": "loader of the training: `batch_size`, `num_workers`, `sampler`, `dataset`; as mmengine's",
    "val_dataloader": "loader of the validation during training",
    "test_dataloader": "loader of `tools/test.py` and of pictures",
    "train_cfg": "the training's loop: [`ResumableTrainLoop`](#resumabletrainloop) or "
    "[`StreamingTrainLoop`](#streamingtrainloop), its epochs or iterations",
    "val_cfg": "the validation's loop",
    "test_cfg": "the test's loop",
    "val_evaluator": "metrics of the validation, a list",
    "test_evaluator": "metrics of the test, a list",
    "optim_wrapper": "optimizer, its clipping and number format: [`AutocastOptimWrapper`](#autocastoptimwrapper)",
    "param_scheduler": "schedules of the rate, mmengine's; or [`BudgetSchedule`](#budgetschedule) among the hooks",
    "auto_scale_lr": "`enable` and `base_batch_size`: the rate times samples a step over the latter "
    "(`--auto-scale-lr`)",
    "default_hooks": "hooks that every run has, by role (`logger`, `checkpoint`, `progress`, `pictures` ...); None "
    "takes one out",
    "custom_hooks": "hooks beyond these, a list",
    "custom_imports": '`dict(imports=["package"])`: modules that register parts of your own',
    "load_from": "weights to start from: a checkpoint, a work directory, or a file of another project",
    "finetune": "whether `load_from` is taken as far as it fits, class rows by their names (`--finetune`)",
    "new_parts": "parts that are not taken from `load_from`, as `heads.detection`",
    "resume": "go on from the newest checkpoint (`--resume`)",
    "resume_changed": "go on although the config has changed since",
    "work_dir": "where checkpoints and logs go (`--work-dir`)",
    "randomness": "`seed`; `deterministic=True` for the same bits on a GPU",
    "compat": "what the published BEVFormer does otherwise ([compatibility.md](compatibility.md))",
    "ops_backend": "of deformable attention ([operators.md](operators.md)); None: as `BEVSTACK_OPS` says, else the "
    "fastest",
    "compile": "True, or arguments of `torch.compile`",
    "tracker": "identities for pictures and for `Predictor.stream(track=True)`: "
    "[`CenterPointTracker`](#centerpointtracker) or [`DeepSortTracker`](#deepsorttracker)",
    "sample_visualizer": "what is drawn: [`SampleVisualizer`](#samplevisualizer)",
    "visualizer": "mmengine's: where scalars and pictures go (`vis_backends`)",
    "find_unused_parameters": "of DistributedDataParallel",
    "comparison": "variants for `tools/compare.py`",
    "default_scope": '"bevstack": where names without a scope are looked up',
    "env_cfg": "mmengine's: processes, and `dist_cfg` with the time-out in seconds",
    "log_processor": "mmengine's: over how many steps logged values are averaged",
}
"""Keys of a config that no class has; tests/test_site.py looks up that no other is read."""

CATEGORIES = {
    "MODELS": "Models",
    "DATASETS": "Datasets",
    "TRANSFORMS": "Transforms",
    "DATA_SAMPLERS": "Samplers",
    "LOOPS": "Loops",
    "OPTIM_WRAPPERS": "Optimization",
    "HOOKS": "Hooks",
    "EVALUATOR": "Evaluators",
    "METRICS": "Metrics",
    "TASK_UTILS": "Costs, trackers, CAN bus",
    "VISUALIZERS": "Painters",
    "VISBACKENDS": "Where scalars go",
    "RUNNERS": "Runners",
}
COMMON = {"init_cfg": "how the weights start, as mmengine's `init_cfg`"}


@dataclass(frozen=True)
class Source:
    """A class of the package: its text, module, registry (None where it has none), and its module's imports."""

    node: ast.ClassDef
    module: str
    registry: str | None = None
    imported: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Its name, as configs write it."""
        return self.node.name

    @property
    def doc(self) -> str:
        """Its docstring, or nothing."""
        return ast.get_docstring(self.node) or ""

    @property
    def bases(self) -> list[str]:
        """Last parts of its bases' names, without their parameters."""
        return [re.sub(r"\[.*", "", ast.unparse(base)).rpartition(".")[2] for base in self.node.bases]

    @property
    def is_dataclass(self) -> bool:
        """Whether its fields stand in its body."""
        return any("dataclass" in ast.unparse(line) for line in self.node.decorator_list)


def sources(root: Path = ROOT) -> dict[str, list[Source]]:
    """Every class of the package, by name."""
    found: dict[str, list[Source]] = {}
    for path in sorted((root / "bevstack").rglob("*.py")):
        module, tree = ".".join(path.relative_to(root).with_suffix("").parts), ast.parse(path.read_text())
        froms = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
        imported = {alias.asname or alias.name: node.module or "" for node in froms for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                decorators = map(ast.unparse, node.decorator_list)
                registry = next((text.split(".")[0] for text in decorators if "register_module" in text), None)
                found.setdefault(node.name, []).append(Source(node, module, registry, imported))
    return found


def class_of(name: str, asking: Source, known: dict[str, list[Source]]) -> Source | None:
    """The class that a name means in another class's module; None where it is none of the package."""
    origin = asking.imported.get(name, asking.module)
    candidates = [one for one in known.get(name, []) if one is not asking and one.module.startswith(origin)]
    return candidates[0] if len(candidates) == 1 else None


def lineage(source: Source, known: dict[str, list[Source]]) -> Iterator[Source]:
    """A class, then its bases in the package, depth first."""
    yield source
    for base in source.bases:
        if (found := class_of(base, source, known)) is not None:
            yield from lineage(found, known)


def arguments(function: ast.FunctionDef) -> tuple[dict[str, str | None], bool]:
    """Arguments of an ``__init__`` with their defaults (None: required), and whether it takes any others."""
    given = function.args
    positional = [argument.arg for argument in (*given.posonlyargs, *given.args)][1:]
    defaults: list[str | None] = [None] * (len(positional) - len(given.defaults))
    defaults += [ast.unparse(value) for value in given.defaults]
    found = dict(zip(positional, defaults, strict=True))
    for argument, value in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        found[argument.arg] = None if value is None else ast.unparse(value)
    return found, given.kwarg is not None


def fields_of(source: Source, known: dict[str, list[Source]]) -> dict[str, str | None]:
    """Fields of a class with their defaults as text; None where one has to be given."""
    if source.is_dataclass:
        found: dict[str, str | None] = {}
        for one in reversed(list(lineage(source, known))):
            for line in one.node.body:
                if (
                    isinstance(line, ast.AnnAssign)
                    and one.is_dataclass
                    and "ClassVar" not in ast.unparse(line.annotation)
                ):
                    found[line.target.id] = None if line.value is None else ast.unparse(line.value)
        return found
    found = {}
    for one in lineage(source, known):
        init = next((n for n in one.node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if init is not None:
            own, passes_on = arguments(init)
            found = {**found, **{name: value for name, value in own.items() if name not in found}}
            if not passes_on:
                break
    return {name: value for name, value in found.items() if not name.startswith("_")}


def sections(doc: str) -> tuple[str, dict[str, str]]:
    """A docstring's text before its sections, and what stands under ``Args:`` by name."""
    text, _, rest = re.sub(r"\n(?=(?:Raises|Attributes|Returns|Source|Example):)", "\n\0", doc).partition("Args:\n")
    text = text.partition("\0")[0]
    found: dict[str, str] = {}
    names: list[str] = []
    for line in rest.partition("\0")[0].splitlines():
        if line and not line.startswith(" "):
            break
        if match := re.match(r"    (\*{0,2}\w+(?:, \*{0,2}\w+)*): ?(.*)", line):
            names = [name.strip() for name in match[1].split(",")]
            found.update(dict.fromkeys(names, match[2]))
        else:
            found.update({name: f"{found[name]} {line.strip()}".strip() for name in names})
    return text.strip(), found


def referred(path: str, asking: Source, known: dict[str, list[Source]]) -> Source | None:
    """The class that a reference in a docstring means, by its name or its dotted path."""
    module, _, name = path.rpartition(".")
    candidates = [one for one in known.get(name, []) if one.module.startswith(module)]
    return class_of(name, asking, known) or (candidates[0] if len(candidates) == 1 else None)


def meaning(name: str, source: Source, known: dict[str, list[Source]], seen: frozenset[str] = frozenset()) -> str:
    """What a field means: by the class's docstring, that of the class it refers to, or a base's; else nothing."""
    for one in lineage(source, known):
        text = sections(one.doc)[1].get(name, "")
        reference = re.match(r"(?:see|as in|as of|of) :class:`~?([\w.]+)`", text)
        other = referred(reference[1], one, known) if reference else None
        if other is not None and other.name not in seen:
            text = meaning(name, other, known, seen | {source.name}) or text
        if text:
            return text
    return COMMON.get(name, "")


def groups(registered: list[Source], known: dict[str, list[Source]]) -> list[Source]:
    """Dataclasses that fields of registered classes are built from, as their annotations say, and those in them."""
    found: dict[str, Source] = {}
    waiting = list(registered)
    while waiting:
        one = waiting.pop()
        inits = [node for node in one.node.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
        nodes = one.node.body if one.is_dataclass else [arg for init in inits for arg in ast.walk(init.args)]
        annotations = [ast.unparse(n.annotation) for n in nodes if getattr(n, "annotation", None) is not None]
        for name in {word for text in annotations if "Mapping" in text for word in re.findall(r"\w+", text)}:
            other = class_of(name, one, known)
            if other is not None and other.is_dataclass and not other.registry and name not in found:
                found[name] = other
                waiting.append(other)
    return sorted(found.values(), key=lambda one: one.name)


class Writer:
    """The page's text, from the classes by name."""

    def __init__(self, known: dict[str, list[Source]]) -> None:
        self.known = known
        every = [one for same in known.values() for one in same]
        self.registered = sorted((one for one in every if one.registry), key=lambda one: one.name)
        self.groups = groups(self.registered, known)
        self.linked = {one.name for one in (*self.registered, *self.groups)}

    def prose(self, text: str, own: str = "") -> str:
        """A docstring's text as Markdown; names of classes on the page become links."""

        def role(match: re.Match[str]) -> str:
            name = match[1].lstrip("~").rpartition(".")[2]
            return f"[`{name}`](#{name.lower()})" if name in self.linked and name != own else f"`{name}`"

        text = re.sub(r":\w+:`([^`]+)`", role, text)
        return re.sub(r"``([^`]+)``", r"`\1`", text)

    def section(self, one: Source) -> str:
        """Heading, text and table of fields of a class."""
        text = self.prose(sections(one.doc)[0], one.name)
        external = [base for base in one.bases if class_of(base, one, self.known) is None]
        lines = [f"### {one.name}", "", f"`{one.module}`", "", text, ""]
        rows = []
        for name, default in fields_of(one, self.known).items():
            told = " ".join(self.prose(meaning(name, one, self.known), one.name).split()).replace("|", "\\|")
            shown = "required" if default is None else f"`{' '.join(default.split())}`".replace("|", "\\|")
            rows.append(f"| `{name}` | {shown} | {told} |")
        if rows:
            lines += ["| field | default | what |", "| --- | --- | --- |", *rows, ""]
        elif one.registry and external:
            lines += [f"No fields beyond those of `{external[-1]}`.", ""]
        return "\n".join(lines)

    def page(self) -> str:
        """The whole page."""
        parts = [HEAD, "## Top level\n\n| key | what |\n| --- | --- |\n"]
        parts += [f"| `{name}` | {told} |\n" for name, told in TOP_LEVEL.items()]
        for registry, title in CATEGORIES.items():
            members = [self.section(one) for one in self.registered if one.registry == registry]
            parts += [f"\n## {title}\n\n", "\n".join(members)] if members else []
        parts += ["\n## Groups of numbers\n\nWhat stands as a dict inside another part's fields.\n\n"]
        parts += ["\n".join(self.section(one) for one in self.groups)]
        return "".join(parts).rstrip() + "\n"

    def undocumented(self) -> list[str]:
        """Fields about which no docstring says anything."""
        every = [(one, name) for one in (*self.registered, *self.groups) for name in fields_of(one, self.known)]
        return [f"{one.name}.{name}" for one, name in every if not meaning(name, one, self.known)]


def main() -> None:
    """Write the page."""
    writer = Writer(sources())
    PAGE.write_text(writer.page())
    print(f"wrote {PAGE.relative_to(ROOT)}: {len(writer.registered)} classes, {len(writer.groups)} groups")


if __name__ == "__main__":
    main()
