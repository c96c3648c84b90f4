"""The variants of a comparison, each a whole config of its own.

They are compared at equal samples (``steps``) or at equal wall clock (``seconds``), as the config's ``comparison``
says::

    comparison = dict(
        steps=400,                     # of every variant; a section may have its own, or seconds=510 in their place
        seeds=(0, 1, 2),               # every variant is trained once with each
        title=..., intro=...,          # of the page; optional
        data_root=..., version=..., train_split=..., test_split=...,  # put wherever the config has such a key; optional
        set={"a.b": value},            # for all: the place a.b becomes value; None takes it away
        metrics_of_head={...},         # the evaluators that go with each head; the config's own where absent
        sections=[
            dict(title=..., text=..., set={}, data_root=..., columns=[(header, key), ...], variants=[
                dict(name=..., text=..., heads=("detection",), set={}),
                dict(name=..., config="lever.py"),   # a config of its own, beside this one
                dict(name=..., taken=True),          # only what --take brings: a run of another checkout
            ], base="demo",            # the variant whose spread the others are held against; optional
            tables={"By class": columns, "By distance": columns},  # in place of columns
            prepare=[                  # what its variants start from; run once, in order
                dict(tool="train", arguments=["configs/a.py"], makes="work_dirs/a/epoch_1.pth"),
            ]),
        ],
    )

A column's key is a key of ``metrics.json``, ``scores/<name>`` (by distance, of movers:
:func:`bevstack.evaluation.drawn_scores.table_scores`), ``parameters``, ``parameters/<part>``, ``multiply_adds``,
``multiply_adds/<part>`` (part: backbone, neck, encoder, heads.<name>), ``steps``, ``seconds_per_step``, or
``logged/<name>``: what the training's log said last, e.g. of ``detection.loss_heatmap``. A section with ``rows``
instead of columns, [(label, key, variant), ...], sets each variant's number beside that of the section's variant
``joint``. What a variant is, is said by the hash of its whole config: equal ones in several sections run once.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from bevstack.engine.config import check_components, load_config, runner_keys
from bevstack.errors import InputError

_PLACED = ("data_root", "version", "index_root")
BUDGETS = {"steps": "steps", "seconds": "seconds of training"}
_SETTINGS = {
    "seeds", "set", "metrics_of_head", "sections", "train_split", "test_split", "title", "intro", *BUDGETS, *_PLACED,
}  # fmt: skip
_SECTION = {
    "title", "text", "set", "columns", "tables", "rows", "joint", "base", "variants", "prepare", "train_split",
    "test_split", *BUDGETS, *_PLACED,
}  # fmt: skip
_ENTRY = {"name", "text", "heads", "set", "config", "taken"}
Place = tuple[str, str, int]
"""Section, name and seed of a variant."""


@dataclass(frozen=True)
class Variant:
    """One training: ``section`` and ``name`` place it on the page, ``key`` is the hash of ``config``, ``budget`` what
    ends it, in words."""

    section: str
    name: str
    seed: int
    key: str
    config: Config
    budget: str

    @property
    def place(self) -> Place:
        """Section, name and seed."""
        return self.section, self.name, self.seed


def chosen_sections(cfg: Config, words: Sequence[str] | None) -> list[dict]:
    """The comparison's sections, all or those with one of the words in their title; checked.

    Raises:
        InputError: no comparison, an unknown key in it, or no such section.
    """
    file, comparison = cfg.filename or "config", cfg.get("comparison")
    if not comparison:
        raise InputError(file, "comparison", "absent: this config compares nothing")
    comparison = comparison.to_dict()
    for place, node, known in [
        ("comparison", comparison, _SETTINGS),
        *((f"comparison.sections.{i}", section, _SECTION) for i, section in enumerate(comparison.get("sections", ()))),
    ]:
        unknown = sorted(set(node) - known)
        if unknown:
            raise InputError(file, place, f"unknown key {unknown[0]!r}; known are {', '.join(sorted(known))}")
    sections = list(comparison.get("sections", ()))
    for section in sections:
        if not any(unit in section for unit in BUDGETS):
            section |= {unit: comparison[unit] for unit in BUDGETS if unit in comparison}
        given = [section[unit] for unit in BUDGETS if section.get(unit) is not None]
        if len(given) != 1 or not isinstance(given[0], int) or given[0] < 1:
            said = f"one of them must be a positive number, not {given[0] if len(given) == 1 else given!r}"
            raise InputError(file, f"comparison.{' or '.join(BUDGETS)}", said)
    if words:
        sections = [part for part in sections if any(word.lower() in part["title"].lower() for word in words)]
    if not sections:
        raise InputError(file, "comparison.sections", "there is none" + (f" about {', '.join(words)}" if words else ""))
    return sections


def all_variants(cfg: Config, sections: Sequence[Mapping]) -> Iterator[Variant]:
    """Every variant of the sections with each seed, its config complete and its names checked."""
    for section in sections:
        for entry in section["variants"]:
            unknown = sorted(set(entry) - _ENTRY)
            if unknown:
                place = f"comparison: {section['title']}: {entry.get('name')}"
                reason = f"unknown key {unknown[0]!r}; known: {', '.join(sorted(_ENTRY))}"
                raise InputError(cfg.filename or "config", place, reason)
            if entry.get("taken"):
                continue
            for seed in cfg.comparison.get("seeds", (0,)):
                config = variant_config(cfg, section, entry, seed)
                check_components(config)
                yield Variant(section["title"], entry["name"], seed, key_of(config), config, budget_of(section))


def budget_of(section: Mapping) -> str:
    """What ends the trainings of a section, in words."""
    return ", ".join(f"{section[unit]} {words}" for unit, words in BUDGETS.items() if section.get(unit))


def variant_config(cfg: Config, section: Mapping, entry: Mapping, seed: int) -> Config:
    """The whole config of one variant: the base's, or its own, with its heads, changes, data and the equal schedule."""
    comparison = cfg.comparison.to_dict()
    own = cfg
    if entry.get("config"):
        own = load_config(Path(cfg.filename or ".").parent / entry["config"])
    tree = copy.deepcopy(own._cfg_dict.to_dict())
    for name in [name for name in tree if name != "model" and not _is_run_key(name)]:
        tree.pop(name)
    heads = entry.get("heads") or tuple(tree["model"]["heads"])
    absent = [name for name in heads if name not in tree["model"]["heads"]]
    if absent:
        place = f"comparison: {section['title']}: {entry['name']}"
        raise InputError(cfg.filename or "config", place, f"there is no head {absent[0]!r} in the base config")
    tree["model"]["heads"] = {name: head for name, head in tree["model"]["heads"].items() if name in heads}
    if comparison.get("metrics_of_head"):
        tree["test_evaluator"] = [
            copy.deepcopy(m) for name in heads for m in comparison["metrics_of_head"].get(name, ())
        ]
    for changes in (comparison.get("set"), section.get("set"), entry.get("set")):
        for place, value in (changes or {}).items():
            set_place(tree, place, copy.deepcopy(value), cfg.filename or "config")
    for name in _PLACED:
        value = section.get(name, comparison.get(name))
        if value is not None:
            put_everywhere(tree, name, value)
    for name, loaders in (
        ("train_split", ("train_dataloader",)),
        ("test_split", ("test_dataloader", "test_evaluator")),
    ):
        value = section.get(name, comparison.get(name))
        if value is not None:
            for loader in loaders:
                put_everywhere(tree[loader], "split", value)
    kept = [hook for hook in tree.get("custom_hooks") or () if hook["type"] not in ("BudgetSchedule", "MaxSecondsHook")]
    if section.get("steps"):
        budget = [dict(type="BudgetSchedule", max_steps=section["steps"])]
    else:
        seconds = section["seconds"]
        budget = [dict(type="BudgetSchedule", max_seconds=seconds), dict(type="MaxSecondsHook", max_seconds=seconds)]
    tree["custom_hooks"] = [*budget, *kept]
    tree["train_cfg"]["max_epochs"] = 1_000_000  # the budget ends it
    tree["default_hooks"]["checkpoint"] = dict(type="CheckpointHook", interval=1_000_000)
    tree["randomness"] = dict(seed=seed)
    return Config(tree, filename=cfg.filename, format_python_code=False)


def _is_run_key(name: str) -> bool:
    return name in runner_keys()


def set_place(tree: dict, place: str, value: Any, file: str | os.PathLike = "config") -> None:
    """Put a value at a dotted place of nested dicts and lists; None takes the place away.

    Raises:
        InputError: there is no such place to put it in.
    """
    *way, last = place.split(".")
    node: Any = tree
    for step in way:
        index: Any = int(step) if isinstance(node, list) and step.isdigit() else step
        if not (isinstance(node, dict) and index in node or isinstance(node, list) and isinstance(index, int)):
            raise InputError(file, f"comparison: set {place}", f"the config has no {step!r} there")
        node = node[index]
    if value is None:
        node.pop(int(last)) if isinstance(node, list) else node.pop(last, None)
    elif isinstance(node, list):
        node[int(last)] = value
    else:
        node[last] = value


def put_everywhere(node: Any, name: str, value: Any) -> None:
    """Set every key of this name in nested dicts and lists."""
    if isinstance(node, dict):
        for key in node:
            if key == name:
                node[key] = value
            else:
                put_everywhere(node[key], name, value)
    elif isinstance(node, list | tuple):
        for part in node:
            put_everywhere(part, name, value)


def key_of(config: Config) -> str:
    """Hash of a variant's whole config."""
    text = json.dumps(
        config._cfg_dict.to_dict(), sort_keys=True, default=lambda part: getattr(part, "__name__", str(part))
    )
    return hashlib.sha256(text.encode()).hexdigest()
