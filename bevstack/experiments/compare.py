"""The work behind ``tools/compare.py``: train and score variants of a config, and write one page.

What is compared, the config's ``comparison`` says (:mod:`bevstack.experiments.variants`). Each run has a folder of its
own and leaves one record (:mod:`bevstack.experiments.run_records`); finished ones are kept when the command is run
again, and one that was stopped goes on from its last checkpoint. The page is made of the records alone
(:mod:`bevstack.experiments.comparison_page`).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bevstack.engine.config import load_config
from bevstack.engine.source_commit import commit
from bevstack.engine.test import METRICS_NAME
from bevstack.engine.train import SUMMARY_NAME
from bevstack.engine.work_dir import WorkDirLock
from bevstack.errors import InputError
from bevstack.evaluation.detection_metric import RESULTS_NAME
from bevstack.evaluation.drawn_scores import table_scores
from bevstack.evaluation.nuscenes_scoring import ScoredSplit
from bevstack.evaluation.submitted_table import submitted_table
from bevstack.experiments.arguments import compare_parser
from bevstack.experiments.benchmarks.machine import processor_name
from bevstack.experiments.comparison_page import page_text
from bevstack.experiments.model_cost import cost_of
from bevstack.experiments.run_records import RunRecords
from bevstack.experiments.variants import Place, Variant, all_variants, budget_of, chosen_sections, variant_config
from bevstack.files import atomic_write
from bevstack.registry import DATASETS

RECORDS_NAME, LOG_NAME = "records", "compare.log"
_CALL = "from bevstack.errors import run_tool; from {} import main; run_tool(main)"
_TOOLS = {
    "compare": "bevstack.experiments.compare",
    "train": "bevstack.engine.train",
    "test": "bevstack.engine.test",
    "pretrain_motion": "bevstack.experiments.pretrain_motion",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, or 1 where a variant failed (the others are done all the same).

    Raises:
        InputError: the comparison or one of its variants is not right; before anything is trained.
    """
    args = compare_parser().parse_args(arguments)
    cfg = load_config(args.config, args.cfg_options)
    sections = chosen_sections(cfg, args.only)
    variants = list(all_variants(cfg, sections))
    records = RunRecords(args.records or args.work_dir / RECORDS_NAME)
    for section, name, seed, folder in args.take or ():
        print(f"taken in: {take(cfg, sections, variants, records, (section, name, seed), Path(folder))}")
    waiting = {v.key: v for v in reversed(variants) if records.of(*v.place, v.key) is None}  # equal ones: the first
    if args.list:
        for variant in variants:
            state = "to do" if variant.key in waiting else "done"
            print(f"{variant.key[:12]}  {state:<5}  {variant.section}: {variant.name}, seed {variant.seed}")
        print(f"{len(waiting)} of {len({variant.key for variant in variants})} trainings to do")
        return 0
    to_train = [] if args.report or args.take else list(reversed(waiting.values()))
    if to_train and args.detach:
        return detached(sys.argv[1:] if arguments is None else arguments, args.work_dir)
    failures: dict[Place, str] = {}
    if to_train:
        preparations = {section["title"]: section.get("prepare", ()) for section in sections}
        with WorkDirLock(args.work_dir):
            failures = run_all(to_train, records, args.work_dir, preparations)
    page = args.page or args.work_dir / "comparison.md"
    with atomic_write(page) as temporary, open(temporary, "w", encoding="utf-8") as file:
        keys = {variant.place: variant.key for variant in variants}
        file.write(page_text(cfg.comparison.to_dict(), sections, keys, records, failures))
    print(f"{len(to_train) - len(failures)} trained, {len(failures)} failed; {page}; records: {records.folder}")
    return 1 if failures else 0


def detached(arguments: Sequence[str], work_dir: Path) -> int:
    """Start the same command in a session of its own, which goes on when this one ends; returns 0."""
    work_dir.mkdir(parents=True, exist_ok=True)
    own = [argument for argument in arguments if argument != "--detach"]
    command = [sys.executable, "-c", _CALL.format(_TOOLS["compare"]), *own]
    with open(work_dir / LOG_NAME, "a", encoding="utf-8") as log:
        process = subprocess.Popen(  # noqa: S603 - our own tool
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    print(f"process {process.pid} goes on by itself; kill {process.pid} stops it; log: {work_dir / LOG_NAME}")
    return 0


def run_all(
    variants: Sequence[Variant], records: RunRecords, work_dir: Path, preparations: Mapping[str, Sequence[Mapping]]
) -> dict[Place, str]:
    """Train and score the variants one after another, each with a record at its end; returns what failed, why.

    ``preparations``: by section title, what is run before the section's first variant.
    """
    failures: dict[Place, str] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(file=sys.stderr)) as bar:
        task = bar.add_task("comparing", total=len(variants))
        for variant in variants:
            title = f"{variant.section}: {variant.name}, seed {variant.seed}"
            bar.update(task, description=title)
            try:
                prepare(preparations.get(variant.section, ()))
                records.keep(run_variant(variant, work_dir / variant.key[:12]))
            except RunFailure as failure:
                failures[variant.place] = str(failure)
                bar.console.print(f"failed: {title}: {failure}", markup=False, highlight=False)
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
        Its record (:mod:`bevstack.experiments.run_records`).

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
    scored = scored_split(variant.config)
    return {
        **place_of(variant),
        "key": variant.key,
        "cost": cost_of(variant.config),
        **results_of(folder, scored),
        "training": summary,
        "logged": last_logged(folder),
        "data": scenes_of(variant.config),
        "commit": commit(),
        "machine": f"{processor()} ({summary.get('device', 'unknown device')})",
        "source": "tools/compare.py",
    }


def place_of(variant: Variant) -> dict[str, Any]:
    """Where a record of the variant stands, and its budget."""
    return {"section": variant.section, "name": variant.name, "seed": variant.seed, "budget": variant.budget}


def results_of(folder: Path, scored: ScoredSplit | None) -> dict[str, dict[str, float]]:
    """``metrics`` and ``scores`` of a test's folder; no scores where it wrote no submission.

    Raises:
        InputError: the folder holds no test.
    """
    try:
        metrics = json.loads((folder / METRICS_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(folder / METRICS_NAME, "metrics", f"tools/test.py writes it: {error}") from None
    submission = folder / RESULTS_NAME
    known = scored is not None and submission.is_file()
    return {"metrics": metrics, "scores": table_scores(submitted_table(submission, scored)) if known and scored else {}}


def scored_split(config: Config) -> ScoredSplit | None:
    """What a config's nuScenes detections are scored on; None where they are not."""
    evaluators = config.get("test_evaluator") or ()
    for metric in evaluators if isinstance(evaluators, list | tuple) else [evaluators]:
        if metric.get("type") == "NuScenesDetectionMetric":
            return ScoredSplit(str(Path(metric["data_root"]).resolve()), metric["version"], metric["split"])
    return None


def take(
    cfg: Config,
    sections: Sequence[Mapping],
    variants: Sequence[Variant],
    records: RunRecords,
    place: tuple[str, str, str],
    folder: Path,
) -> Path:
    """Take in a run that was finished elsewhere.

    Args:
        cfg: of the comparison; its test set is what the run is scored on.
        sections, variants: of the comparison.
        records: that it is added to.
        place: section (a word of its title), name of the variant, seed.
        folder: of ``tools/test.py --out``, beside or in that of the training.

    Returns:
        The record's file.

    Raises:
        InputError: there is no such variant, or the folder holds no test.
    """
    word, name, seed = place
    titles = {s["title"]: s for s in sections if word.lower() in s["title"].lower()}
    entries = [(s, entry) for s in titles.values() for entry in s["variants"] if entry["name"] == name]
    if len(entries) != 1 or not seed.isdigit():
        reason = f"{len(entries)} variants are called {name!r} in sections about {word!r}; the seed is {seed!r}"
        raise InputError(cfg.filename or "config", "--take", reason)
    section, entry = entries[0]
    known = next((v for v in variants if v.place == (section["title"], name, int(seed))), None)
    training: dict[str, Any] = {}
    logged: dict[str, float] = {}
    for run in (folder, folder.parent):
        if (run / SUMMARY_NAME).is_file():
            training, logged = json.loads((run / SUMMARY_NAME).read_text(encoding="utf-8")), last_logged(run)
            break
    base = known.config if known else variant_config(cfg, section, {"name": name}, int(seed))
    device = training.get("device", "unknown device")
    return records.keep(
        {
            "section": section["title"],
            "name": name,
            "seed": int(seed),
            "budget": budget_of(section),
            "key": None,
            "cost": cost_of(known.config) if known else {},
            **results_of(folder, scored_split(base)),
            "training": training,
            "logged": logged,
            "data": scenes_of(base),
            "commit": "another checkout" if entry.get("taken") else f"{commit()} (taken in then)",
            "machine": f"{processor()} ({device})",
            "source": "tools/compare.py --take",
        }
    )


def last_logged(folder: Path) -> dict[str, float]:
    """The last line of losses in a training's log (means over the log's window); empty where it wrote none."""
    lines = [line for log in sorted(folder.glob("*/vis_data/scalars.json")) for line in log.read_text().splitlines()]
    losses = [logged for line in lines if "loss" in (logged := json.loads(line))]
    return losses[-1] if losses else {}


def _call(tool: str, arguments: Sequence[str | Path], folder: Path) -> None:
    command = [sys.executable, "-c", _CALL.format(_TOOLS[tool]), *map(str, arguments)]
    log = folder / f"{tool}.log"
    with open(log, "w", encoding="utf-8") as file:
        with _ended_first(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)) as process:  # noqa: S603
            code = process.wait()
    if code:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["no output"]
        raise RunFailure(f"{tool} exited with {code}: {lines[-1].strip()[:300]} ({log})")


@contextlib.contextmanager
def _ended_first(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    """What ends this process asks its child to end before, which a training does with a checkpoint."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield process
    except BaseException:  # noqa: BLE001 - whatever ends the wait, the child is not left behind
        process.terminate()
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def scenes_of(config: Config) -> str:
    """How many scenes and samples are trained on and scored."""
    texts = []
    for word, loader in (("trained on", config.train_dataloader), ("scored on", config.test_dataloader)):
        dataset = DATASETS.build({**loader.dataset, "pipeline": []})
        texts.append(f"{word} {len(np.unique(dataset.scene_rows))} scenes ({len(dataset)} samples)")
    return ", ".join(texts)


def processor() -> str:
    """The CPU's name and number of cores."""
    return f"{processor_name()}, {os.cpu_count()} cores"
