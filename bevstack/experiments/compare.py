"""The work behind ``tools/compare.py``: train and score variants of a config at equal steps, and write one page.

The config's ``comparison`` says what is compared::

    comparison = dict(
        steps=400,                     # of every variant; a section may have its own
        seeds=(0,),                    # every variant is trained once with each
        data_root=..., version=..., train_split=..., test_split=...,  # put wherever the config has such a key; optional
        set={"a.b": value},            # for all: the place a.b becomes value; None takes it away
        metrics_of_head={...},         # the evaluators that go with each head
        sections=[
            dict(title=..., text=..., set={}, data_root=..., columns=[(header, key), ...], variants=[
                dict(name=..., heads=("detection",), set={}),
            ], prepare=[               # what its variants start from; run once, in order
                dict(tool="train", arguments=["configs/a.py"], makes="work_dirs/a/epoch_1.pth"),
            ]),
        ],
    )

A column's key is a key of ``metrics.json``, ``parameters``, ``parameters/<part>``, ``multiply_adds``,
``multiply_adds/<part>`` (part: backbone, neck, encoder, heads.<name>), ``seconds_per_step``, or ``logged/<name>``:
what the training's log said last, e.g. of ``detection.loss_heatmap``. A section with ``rows`` instead of columns,
[(label, key, variant), ...], sets each variant's number beside that of the section's variant ``joint``. What a variant
is, is said by the hash of its whole config: equal ones in several sections run once, and finished ones are kept when
the command is run again, or stopped and run again.

The length of this file: what is run and what is written of it share the same few notions, and neither is used alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bevstack.engine.config import check_components, load_config, runner_keys
from bevstack.engine.models import build_model
from bevstack.engine.source_commit import commit
from bevstack.engine.train import SUMMARY_NAME
from bevstack.errors import InputError
from bevstack.experiments.arguments import compare_parser
from bevstack.experiments.multiply_adds import DEFORMABLE_CONVOLUTION, count_multiply_adds, count_operators
from bevstack.files import atomic_write
from bevstack.registry import DATASETS

RESULTS_NAME = "comparison.json"
_PLACED = ("data_root", "version", "index_root")
_SETTINGS = {"steps", "seeds", "set", "metrics_of_head", "sections", "train_split", "test_split", *_PLACED}
_SECTION = {
    "title", "text", "steps", "set", "columns", "rows", "joint", "variants", "prepare", "train_split", "test_split",
    *_PLACED,
}  # fmt: skip
_CALL = "from bevstack.errors import run_tool; from {} import main; run_tool(main)"
_TOOLS = {
    "train": "bevstack.engine.train",
    "test": "bevstack.engine.test",
    "pretrain_motion": "bevstack.experiments.pretrain_motion",
}


@dataclass(frozen=True)
class Variant:
    """One training: ``section`` and ``name`` place it on the page, ``key`` is the hash of ``config``."""

    section: str
    name: str
    seed: int
    key: str
    config: Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 1 where a variant failed (the others are done all the same).

    Raises:
        InputError: the comparison or one of its variants is not right; before anything is trained.
    """
    args = compare_parser().parse_args(arguments)
    cfg = load_config(args.config, args.cfg_options)
    sections = chosen_sections(cfg, args.only)
    variants = list(all_variants(cfg, sections))
    results_path = args.work_dir / RESULTS_NAME
    results = read_results(results_path)
    waiting = {variant.key: variant for variant in variants if variant.key not in results}
    if args.list:
        for variant in variants:
            state = "done" if variant.key in results else "to do"
            print(f"{variant.key[:12]}  {state:<5}  {variant.section}: {variant.name}, seed {variant.seed}")
        print(f"{len(waiting)} of {len({variant.key for variant in variants})} trainings to do")
        return 0
    to_train = [] if args.page_only else list(waiting.values())
    preparations = {section["title"]: section.get("prepare", ()) for section in sections}
    failures = run_all(to_train, results, results_path, preparations) if to_train else {}
    page = args.page or args.work_dir / "comparison.md"
    with atomic_write(page) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(page_text(cfg, sections, variants, results, failures))
    print(f"{len(to_train) - len(failures)} trained, {len(failures)} failed; {page}; raw numbers: {results_path}")
    return 1 if failures else 0


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
    for section in (comparison, *sections):
        steps = section.setdefault("steps", comparison.get("steps"))
        if not isinstance(steps, int) or steps < 1:
            raise InputError(file, "comparison.steps", f"must be a positive number, not {steps!r}")
    if words:
        sections = [part for part in sections if any(word.lower() in part["title"].lower() for word in words)]
    if not sections:
        raise InputError(file, "comparison.sections", "there is none" + (f" about {', '.join(words)}" if words else ""))
    return sections


def all_variants(cfg: Config, sections: Sequence[Mapping]) -> Iterator[Variant]:
    """Every variant of the sections with each seed, its config complete and its names checked."""
    for section in sections:
        for entry in section["variants"]:
            unknown = sorted(set(entry) - {"name", "heads", "set"})
            if unknown:
                place = f"comparison: {section['title']}: {entry.get('name')}"
                raise InputError(
                    cfg.filename or "config", place, f"unknown key {unknown[0]!r}; known: name, heads, set"
                )
            for seed in cfg.comparison.get("seeds", (0,)):
                config = variant_config(cfg, section, entry, seed)
                check_components(config)
                yield Variant(section["title"], entry["name"], seed, key_of(config), config)


def variant_config(cfg: Config, section: Mapping, entry: Mapping, seed: int) -> Config:
    """The whole config of one variant: the base's with its heads, its changes, its data and the equal schedule."""
    comparison = cfg.comparison.to_dict()
    tree = copy.deepcopy(cfg._cfg_dict.to_dict())
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
    tree["custom_hooks"] = [dict(type="BudgetSchedule", max_steps=section["steps"]), *kept]
    tree["train_cfg"]["max_epochs"] = 1_000_000  # the steps end it
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


def read_results(path: Path) -> dict[str, dict]:
    """Raw numbers by the variants' hashes; empty where there is no file.

    Raises:
        InputError: the file is not what this command writes.
    """
    if not path.exists():
        return {}
    try:
        results = json.loads(path.read_text(encoding="utf-8"))["results"]
    except (ValueError, KeyError, TypeError, OSError, RecursionError) as error:
        raise InputError(path, "results", f"cannot be read ({error}); remove the file to begin anew") from None
    if not isinstance(results, dict) or not all(isinstance(result, dict) for result in results.values()):
        raise InputError(path, "results", "must be an object of objects; remove the file to begin anew")
    return results


def run_all(
    variants: Sequence[Variant],
    results: dict[str, dict],
    path: Path,
    preparations: Mapping[str, Sequence[Mapping]],
) -> dict[str, str]:
    """Train and score the variants one after another, adding to ``results`` and its file; returns what failed, why.

    ``preparations``: by section title, what is run before the section's first variant.
    """
    failures: dict[str, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(file=sys.stderr)) as bar:
        task = bar.add_task("comparing", total=len(variants))
        for variant in variants:
            title = f"{variant.section}: {variant.name}, seed {variant.seed}"
            bar.update(task, description=title)
            try:
                prepare(preparations.get(variant.section, ()))
                results[variant.key] = run_variant(variant, path.parent / variant.key[:12])
            except RunFailure as failure:
                failures[variant.key] = str(failure)
                bar.console.print(f"failed: {title}: {failure}", markup=False, highlight=False)
            else:
                with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
                    json.dump({"results": results}, file, indent=1, sort_keys=True)
            bar.advance(task)
    return failures


class RunFailure(RuntimeError):
    """The training or the test of a variant ended with an error; holds its last line."""


def prepare(steps: Sequence[Mapping]) -> None:
    """Run the steps whose file is not there yet.

    Raises:
        RunFailure: one did not end well, or did not make what it says.
    """
    for step in steps:
        made = Path(step["makes"])
        if not made.exists():
            made.parent.mkdir(parents=True, exist_ok=True)
            _call(step["tool"], step["arguments"], made.parent)
        if not made.exists():
            raise RunFailure(f"{step['tool']} ended well, but there is no {made}")


def run_variant(variant: Variant, folder: Path) -> dict:
    """Train and score one variant, each in a process of its own, and count what its model costs.

    Returns:
        ``section``, ``name``, ``seed``, ``cost`` (:func:`cost_of`), ``metrics`` of the test, ``training`` (the
        training's summary), ``logged`` (:func:`last_logged`) and ``commit``.

    Raises:
        RunFailure: the training or the test did not end well; ``folder`` holds their output.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.py"
    variant.config.dump(config)
    if not (folder / SUMMARY_NAME).exists():  # written last: a training that ended well is not begun again
        resume = ["--resume"] if (folder / "last_checkpoint").exists() else []
        _call("train", [config, "--work-dir", folder, *resume], folder)
    summary = json.loads((folder / SUMMARY_NAME).read_text())
    _call("test", [config, summary["checkpoint"], "--out", folder], folder)
    return {
        "section": variant.section,
        "name": variant.name,
        "seed": variant.seed,
        "cost": cost_of(variant.config),
        "metrics": json.loads((folder / "metrics.json").read_text()),
        "training": summary,
        "logged": last_logged(folder),
        "commit": commit(),
    }


def last_logged(folder: Path) -> dict[str, float]:
    """The last line of losses in a training's log (means over the log's window); empty where it wrote none."""
    lines = [line for log in sorted(folder.glob("*/vis_data/scalars.json")) for line in log.read_text().splitlines()]
    losses = [logged for line in lines if "loss" in (logged := json.loads(line))]
    return losses[-1] if losses else {}


def _call(tool: str, arguments: Sequence[str | Path], folder: Path) -> None:
    command = [sys.executable, "-c", _CALL.format(_TOOLS[tool]), *map(str, arguments)]
    log = folder / f"{tool}.log"
    with open(log, "w", encoding="utf-8") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode  # noqa: S603 - our own tool
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["no output"]
        raise RunFailure(f"{tool} exited with {code}: {lines[-1].strip()[:300]} ({log})")


def cost_of(config: Config) -> dict[str, float]:
    """Parameters and multiply-adds of one frame (all cameras, batch 1), in total and by part.

    Keys: ``parameters``, ``parameters/<part>``, ``multiply_adds``, ``multiply_adds/<part>``; parts are backbone, neck,
    encoder, bev_neck and heads.<name>. The images' size is that of the test pipeline.
    """
    model = build_model(config, "cpu").eval()
    cost: dict[str, float] = {"parameters": float(sum(p.numel() for p in model.parameters()))}
    for name, part in [*model.named_children(), *((f"heads.{name}", head) for name, head in model.heads.items())]:
        cost[f"parameters/{name}"] = float(sum(p.numel() for p in part.parameters()))
    height, width = image_size(config)
    counts = count_multiply_adds(model.to("meta"), (height, width))
    if DEFORMABLE_CONVOLUTION in counts:
        counts["backbone"] += counts.pop(DEFORMABLE_CONVOLUTION)
    else:
        sweeps = getattr(model.backbone, "num_sweeps", 0)
        shape = (model.encoder.num_cameras, *([sweeps + 1] if sweeps else []), 3, height, width)
        counts["backbone"] = count_operators(model.backbone, torch.empty(shape, device="meta"))
    return cost | {"multiply_adds": sum(counts.values())} | {f"multiply_adds/{key}": v for key, v in counts.items()}


def image_size(config: Config) -> tuple[int, int]:
    """(H, W) of the padded image tensor that the test pipeline's last resizing and the preprocessor make."""
    sizes = [step["size"] for step in config.test_dataloader.dataset.pipeline if step.get("size")]
    if not sizes:
        raise InputError(config.filename or "config", "test_dataloader.dataset.pipeline", "no step gives images a size")
    divisor = config.model.get("data_preprocessor", {}).get("pad_divisor", 32)
    return tuple(-(-int(length) // divisor) * divisor for length in sizes[-1])


def value_of(result: Mapping, key: str) -> float | None:
    """A number of one result by a column's key; None where it has none."""
    if key == "seconds_per_step":
        return result["training"]["train_seconds"] / max(1, result["training"]["steps"])
    if key.startswith("logged/"):
        return result["logged"].get(key.removeprefix("logged/"))
    return result["cost"].get(key, result["metrics"].get(key))


def cell(results: Sequence[Mapping], key: str) -> str:
    """Mean over the seeds, and half the range where there are several; M and G for counts."""
    values = [value for value in (value_of(result, key) for result in results) if value is not None]
    if not values:
        return "-"
    mean, spread = sum(values) / len(values), (max(values) - min(values)) / 2
    if key.startswith("parameters"):
        return f"{mean / 1e6:.3g} M"
    if key.startswith("multiply_adds"):
        return f"{mean / 1e9:.3g} G"
    return f"{mean:.3f}" + (f" ± {spread:.3f}" if len(values) > 1 else "")


def page_text(
    cfg: Config,
    sections: Sequence[Mapping],
    variants: Sequence[Variant],
    results: Mapping[str, Mapping],
    failures: Mapping[str, str],
) -> str:
    """The page: where the numbers come from, then a table a section."""
    comparison = cfg.comparison.to_dict()
    done = [results[variant.key] for variant in variants if variant.key in results]
    lines = ["# Comparison", "", "Written by `tools/compare.py`; do not edit. " + provenance(cfg, variants, done), ""]
    for section in sections:
        own: dict[str, list[Mapping]] = {entry["name"]: [] for entry in section["variants"]}
        broken: dict[str, str] = {}
        for variant in variants:
            if variant.section == section["title"]:
                if variant.key in results:
                    own[variant.name].append(results[variant.key])
                elif variant.key in failures:
                    broken[variant.name] = failures[variant.key]
        lines += [f"## {section['title']}", ""]
        if section["steps"] != comparison["steps"]:
            lines += [f"{section['steps']} steps for every variant of this section.", ""]
        if section.get("text"):
            lines += [section["text"], ""]
        lines += table_of(section, own) + [""]
        lines += [f"- `{name}` failed: {why}" for name, why in broken.items()]
        absent = [name for name, found in own.items() if len(found) < len(comparison.get("seeds", (0,)))]
        lines += [f"Not done yet: {', '.join(f'`{name}`' for name in absent)}.", ""] if absent else []
    return "\n".join(lines).rstrip() + "\n"


def table_of(section: Mapping, own: Mapping[str, Sequence[Mapping]]) -> list[str]:
    """A section's table as lines of markdown."""
    if section.get("rows"):
        lines = ["| head | number | alone | jointly |", "| --- | --- | --- | --- |"]
        joint = own.get(section.get("joint", "joint"), ())
        for label, key, name in section["rows"]:
            lines.append(f"| {label} | {key} | {cell(own.get(name, ()), key)} | {cell(joint, key)} |")
        return lines
    headers = [header for header, _ in section["columns"]]
    lines = [f"| | {' | '.join(headers)} |", "| --- |" + " --- |" * len(headers)]
    for name, found in own.items():
        lines.append(f"| {name} | " + " | ".join(cell(found, key) for _, key in section["columns"]) + " |")
    return lines


def provenance(cfg: Config, variants: Sequence[Variant], done: Sequence[Mapping]) -> str:
    """One paragraph: commit, date, machine, steps, seeds, scenes."""
    comparison = cfg.comparison.to_dict()
    commits = sorted({result["commit"] for result in done}) or [commit()]
    seeds = ", ".join(map(str, comparison.get("seeds", (0,))))
    batch = variants[0].config.train_dataloader.batch_size
    devices = sorted({result["training"]["device"] for result in done})
    parts = [
        f"Commit {', '.join(commits)}",
        datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        f"{processor()} ({'; '.join(devices) or 'nothing trained yet'})",
        f"{comparison['steps']} steps of {batch} samples for every variant where nothing else is said, seed {seeds}",
        scenes_of(variants[0].config),
    ]
    return "; ".join(parts) + "."


def scenes_of(config: Config) -> str:
    """How many scenes and samples are trained on and scored."""
    texts = []
    for word, loader in (("trained on", config.train_dataloader), ("scored on", config.test_dataloader)):
        dataset = DATASETS.build({**loader.dataset, "pipeline": []})
        texts.append(f"{word} {len(np.unique(dataset.scene_rows))} scenes ({len(dataset)} samples)")
    return ", ".join(texts)


def processor() -> str:
    """The CPU's name and number of cores."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = re.findall(r"model name\s*: (.*)", info.read_text())
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores"
