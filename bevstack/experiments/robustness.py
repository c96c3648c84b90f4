"""The work behind ``tools/robustness.py``: score a checkpoint with faulty sensors, keep the numbers, write one page.

Every case is a whole test of the config's test set (:mod:`bevstack.experiments.fault_suites` has them,
:mod:`bevstack.experiments.fault_tests` runs them). Numbers are kept after each, so that a run that was stopped goes on
where it was. Ratios are RoboBEV's (Xie et al. 2023): the
resilience of a corruption is its score, averaged over severities, over the clean one, mRR their mean; with the numbers
of a baseline, the corruption error is the sum of 1 - score over the baseline's, mCE their mean. Both in percent there,
as fractions here.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bevstack.engine.arguments import named_checkpoint
from bevstack.engine.checkpoint import checkpoint_of
from bevstack.engine.config import building, check_components, load_config
from bevstack.engine.visualize import build_dataset
from bevstack.errors import InputError
from bevstack.experiments.arguments import robustness_parser
from bevstack.experiments.fault_suites import CLEAN, FaultCase, FaultSettings, cases_of, with_faults
from bevstack.experiments.fault_tests import FaultTestSettings, scored_cases, threads_for
from bevstack.experiments.robustness_page import write_page
from bevstack.files import atomic_write

RESULTS_NAME, PAGE_NAME = "robustness.json", "robustness.md"
_SCORES = ("NDS", "mAP")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code.

    Raises:
        InputError: bad configuration, checkpoint, numbers of another run, or a score that the test does not give.
    """
    args = robustness_parser().parse_args(arguments)
    checkpoint = checkpoint_of(named_checkpoint(args))
    cfg = load_config(args.config, args.cfg_options)
    check_components(cfg)
    if not checkpoint.is_file():
        raise InputError(checkpoint, "checkpoint", "no such file")
    with building(cfg):
        cameras = tuple(build_dataset(cfg, None).metainfo.get("cameras", ()))
    if not cameras:
        raise InputError(cfg.filename or "config", "test_dataloader.dataset", "does not name its cameras")
    rigs = tuple(_named_root(text) for text in args.rigs)
    settings = FaultSettings(cameras, args.seed, tuple(args.severities), args.as_published, rigs)
    cases = [CLEAN, *(case for suite in args.suite for case in cases_of(suite, settings))]
    path = args.work_dir / RESULTS_NAME
    run = {
        "checkpoint": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "seed": args.seed,
        "as_published": args.as_published,
        "options": list(args.cfg_options),
        "scenes": args.scenes,
    }
    scores = read_scores(path, run)
    baseline = None if args.baseline is None else read_scores(args.baseline)
    if not args.page_only:
        for case in cases:
            with_faults(cfg, case)  # refuses a pipeline that no fault fits, before anything is built
        log, threads = args.work_dir / "test", threads_for(args.workers)
        settings_of_tests = (str(args.config), tuple(args.cfg_options), str(checkpoint), log, args.scenes, threads)
        wanted = [case for case in cases if case.key not in scores]
        started = time.monotonic()
        for case, metrics in scored_cases(FaultTestSettings(*settings_of_tests), wanted, args.workers):
            scores = {**read_scores(path, run), case.key: metrics}  # another run may have added to it
            _keep(path, run, scores)
            number, seconds = sum(case.key in scores for case in cases), time.monotonic() - started
            print(f"[{number}/{len(cases)}] {seconds:.0f} s  {case.key}  {_said(metrics, args.metric)}", flush=True)
    if CLEAN.key not in scores:
        raise InputError(path, "clean", "is not there yet: run without --page-only")
    metric = chosen_metric(scores[CLEAN.key], args.metric, path)
    page = args.work_dir / PAGE_NAME
    done = [case for case in cases if case.key in scores]
    write_page(page, done, {case.key: scores[case.key].get(metric, 0.0) for case in done}, metric, {
        "config": args.config, "checkpoint": named_checkpoint(args), **summary_of(done, scores, metric, baseline),
    })  # fmt: skip
    print(f"{len(done)} of {len(cases)} cases; {page}; raw numbers: {path}")
    return 0


def _said(metrics: Mapping[str, float], wanted: str | None) -> str:
    names = (wanted,) if wanted else _SCORES
    return "  ".join(f"{name} {metrics[name]:.3f}" for name in names if name in metrics)


def _named_root(text: str) -> tuple[str, str]:
    name, sign, root = text.partition("=")
    if not sign or not name or not Path(root).is_dir():
        raise InputError("--rigs", text, "expected NAME=ROOT, as truck=data/synthetic-truck, of a folder that is there")
    return name, root


def chosen_metric(clean: Mapping[str, float], wanted: str | None, path: Path) -> str:
    """The score that is compared: the one wanted, else NDS, else mAP.

    Raises:
        InputError: the clean test does not give it, or it is 0, so that no ratio exists.
    """
    names = [wanted] if wanted else [name for name in _SCORES if clean.get(name)]
    if not names or names[0] not in clean:
        reason = f"the test gives no {names[0] if names else 'NDS or mAP above 0'}; it gives {', '.join(sorted(clean))}"
        raise InputError(path, "--metric", reason)
    if not clean[names[0]] > 0:
        raise InputError(path, "--metric", f"{names[0]} is {clean[names[0]]:g} without any fault: nothing to compare")
    return names[0]


def summary_of(
    cases: Sequence[FaultCase],
    scores: Mapping[str, Mapping[str, float]],
    metric: str,
    baseline: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, float]:
    """mRR, mCE with a baseline, and the mean part of the score that stays with one camera lost, where they were tested.

    Args:
        cases: that were scored.
        scores, baseline: metrics by the cases' keys; a corruption that the baseline lacks does not count for mCE.
        metric: the score, between 0 and 1.
    """
    found = {case.key: scores[case.key].get(metric, 0.0) for case in cases}
    clean, summary = found[CLEAN.key], {}
    groups: dict[str, list[str]] = {}
    for case in cases:
        if case.suite == "corruptions":
            groups.setdefault(case.group, []).append(case.key)
    if groups:
        summary["mRR"] = float(np.mean([np.mean([found[key] for key in keys]) / clean for keys in groups.values()]))
    if baseline is not None:
        errors = []
        for keys in groups.values():
            if all(metric in baseline.get(key, {}) for key in keys):
                others = sum(1 - baseline[key][metric] for key in keys)
                errors.append(sum(1 - found[key] for key in keys) / others)
        if errors:
            summary["mCE"] = float(np.mean(errors))
    lost = [found[case.key] / clean for case in cases if case.group == "one lost"]
    if lost:
        summary["one camera lost"] = float(np.mean(lost))
    return summary


def read_scores(path: Path, run: Mapping[str, Any] | None = None) -> dict[str, dict[str, float]]:
    """Metrics by the cases' keys; empty where there is no file yet and ``run`` says what it will be of.

    Raises:
        InputError: the file is not what this command writes, or of another run.
    """
    if run is not None and not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # not UTF-8 is a ValueError, too
        raise InputError(path, "content", f"cannot be read ({error})") from None
    scores = content.get("scores") if isinstance(content, dict) else None
    if not isinstance(scores, dict) or not isinstance(content.get("run"), dict):
        raise InputError(path, "content", "is not what this command writes")
    for key, metrics in scores.items():
        if not isinstance(metrics, dict) or not all(type(value) in (int, float) for value in metrics.values()):
            raise InputError(path, f"scores.{key}", "must be numbers by name")
    if run is not None and content["run"] != run:
        other = [name for name in run if content["run"].get(name) != run[name]]
        reason = f"was made with another {', '.join(other) or 'setting'}; name another --work-dir"
        raise InputError(path, "run", reason)
    return scores


def _keep(path: Path, run: Mapping[str, Any], scores: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        json.dump({"run": run, "scores": scores}, file, indent=1)
        file.write("\n")
