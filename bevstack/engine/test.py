"""``tools/test.py``: score a checkpoint on the test set of a config."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from mmengine.config import Config

from bevstack.engine.arguments import named_checkpoint, test_parser
from bevstack.engine.checkpoint import checkpoint_of, read_checkpoint
from bevstack.engine.compilation import compile_options
from bevstack.engine.component_names import find_component
from bevstack.engine.config import accepted_keys, building, check_components, load_config
from bevstack.engine.evaluation_loops import AutocastTestLoop
from bevstack.engine.exported_model import ExportedPerception
from bevstack.engine.faults import RunError
from bevstack.engine.label_checks import check_labels, check_trained_cameras
from bevstack.engine.processes import leave_group, process_count
from bevstack.engine.report import write_report
from bevstack.engine.runner import BEVRunner
from bevstack.engine.stream_checks import check_memory, check_streams
from bevstack.engine.train import SUMMARY_NAME
from bevstack.engine.work_dir import Attempt
from bevstack.errors import InputError
from bevstack.evaluation import print_table, write_metrics
from bevstack.evaluation.report_metric import ReportMetric
from bevstack.evaluation.run_comparison import score_intervals
from bevstack.files import atomic_write, require_writable
from bevstack.models import BEVPerception
from bevstack.weights import is_name

METRICS_NAME, INTERVALS_NAME = "metrics.json", "metrics_intervals.json"
SHIPPED_OUT = Path("work_dirs/shipped")
"""Where results of shipped weights go, by their names."""
_TRAINING = ("train_dataloader", "train_cfg", "optim_wrapper", "param_scheduler", "auto_scale_lr")
_VALIDATION = ("val_dataloader", "val_cfg", "val_evaluator")
_TRAINING_HOOKS = ("EMAHook", "BudgetSchedule", "MaxSecondsHook", "LoadPartsHook", "EarlyStoppingHook")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = test_parser().parse_args(arguments)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    try:
        test(cfg, named_checkpoint(args), args.out, args.launcher, args.report, args.intervals)
        leave_group()
    except RunError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def test(
    cfg: Config,
    checkpoint: str | os.PathLike,
    out: str | os.PathLike | None = None,
    launcher: str = "none",
    report: Path | None = None,
    intervals: bool = False,
) -> dict[str, float]:
    """Predict the test set, score it, write ``metrics.json`` and print a table.

    Args:
        cfg: of :func:`load_config`.
        checkpoint: weights, a work directory or the name of shipped weights; missing and unexpected keys are an error.
            A ``.onnx`` file of ``tools/export.py`` answers in the model's place
            (:mod:`bevstack.engine.exported_model`).
        out: folder of the results; default: the checkpoint's, of shipped weights ``work_dirs/shipped/NAME``.
        launcher: "none", "pytorch" (torchrun) or "slurm".
        report: folder of a report (:mod:`bevstack.engine.report`); None writes none.
        intervals: whether to write ``metrics_intervals.json`` beside the metrics
            (:func:`bevstack.evaluation.run_comparison.score_intervals`).

    Returns:
        The metrics, with the training's ``train_seconds`` where the checkpoint's folder tells it.

    Raises:
        InputError: anything the user can mend.
    """
    out = SHIPPED_OUT / checkpoint if out is None and is_name(checkpoint) else out
    checkpoint = checkpoint_of(checkpoint)
    out = Path(out) if out is not None else checkpoint.parent
    if report is not None:
        require_writable(report, "--report")
    whole = cfg.copy()
    runner = runner_of_test(cfg, checkpoint, out, launcher)
    dataset, gathered = runner.test_loop.dataloader.dataset, ReportMetric()
    if report is not None or intervals:
        gathered.dataset_meta = dataset.metainfo
        runner.test_loop.evaluator.metrics.append(gathered)
    metrics = dict(runner.test())
    if runner.rank == 0:
        metrics |= _training_seconds(checkpoint.parent, out)
        write_metrics(out / METRICS_NAME, metrics)
        print_table(metrics)
        print(f"metrics: {out / METRICS_NAME}", flush=True)
        if intervals:
            sure = score_intervals(gathered.findings.table, gathered.findings.cells)
            with atomic_write(out / INTERVALS_NAME) as temporary:
                temporary.write_text(json.dumps(sure, indent=1) + "\n", encoding="utf-8")
            print(f"intervals: {out / INTERVALS_NAME}", flush=True)
        if report is not None:
            title = f"{Path(cfg.filename or 'config').stem}: {checkpoint.name}"
            print(f"report: {write_report(report, title, whole, dataset, gathered, metrics)}", flush=True)
    return metrics


def runner_of_test(cfg: Config, checkpoint: Path, out: Path, launcher: str = "none") -> BEVRunner:
    """A runner with the checkpoint's weights, its test loop built, all that fits not being refused.

    Args:
        cfg: of :func:`load_config`; it loses what a test does not need.
        checkpoint, out, launcher: see :func:`test`.

    Raises:
        InputError: anything the user can mend.
    """
    for part in ("test_dataloader", "test_cfg", "test_evaluator"):
        if cfg.get(part) is None:
            raise InputError(cfg.filename or "config", part, "absent: this config has no test")
    exported = checkpoint.suffix == ".onnx"
    content = {} if exported else read_checkpoint(checkpoint)  # before anything is built or written
    check_components(cfg)
    compile_options(cfg)
    check_streams(cfg, "test", process_count(launcher))
    whole = cfg.copy()
    with Attempt(out):
        _prepare(cfg, out, launcher)
        with building(cfg):
            runner = BEVRunner.from_cfg(cfg)
            check_memory(whole, runner.module, tests=True)
            dataset = runner.test_loop.dataloader.dataset
            check_labels(whole, runner.module, dataset, "test")
        cameras = (getattr(dataset, "metainfo", None) or {}).get("cameras", ())
        if exported:
            _answer_by_file(runner, checkpoint, cameras)
        else:
            check_trained_cameras(runner.module, content.get("meta") or {}, cameras, checkpoint)
            runner.take_weights(content, checkpoint, strict=True)
    return runner


def _answer_by_file(runner: BEVRunner, file: Path, cameras: Sequence[str]) -> None:
    """Let an exported file answer what the test loop asks."""
    if not isinstance(runner.test_loop, AutocastTestLoop):
        reason = f"{type(runner.test_loop).__name__} asks models only; a file is tested by StreamingTestLoop"
        raise InputError(runner.cfg.filename or "config", "test_cfg.type", reason)
    runner.test_loop.answering = ExportedPerception(cast("BEVPerception", runner.module), file, cameras)


def _prepare(cfg: Config, out: Path, launcher: str) -> None:
    """Leave only what a test needs, and tell the metrics where to write."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(out, "--out", f"cannot be created: {error.strerror or error}") from error
    if not os.access(out, os.W_OK):
        raise InputError(out, "--out", "cannot be written")
    for part in (*_TRAINING, *_VALIDATION):
        cfg[part] = None
    cfg.work_dir, cfg.launcher, cfg.resume, cfg.load_from = str(out), launcher, False, None
    cfg.custom_hooks = [hook for hook in cfg.get("custom_hooks") or () if _name(hook) not in _TRAINING_HOOKS]
    evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
    for evaluator in evaluators:
        for metric in evaluator.get("metrics", [evaluator]):
            if "out_dir" in (accepted_keys(find_component(metric["type"])) or ()):
                metric["out_dir"] = str(out)


def _name(hook: Any) -> str:
    kind = hook["type"] if isinstance(hook, dict) else type(hook)
    return (kind if isinstance(kind, str) else kind.__name__).rpartition(".")[2]


def _training_seconds(*folders: Path) -> dict[str, float]:
    for folder in folders:
        path = folder / SUMMARY_NAME
        if path.is_file():
            return {"train_seconds": float(json.loads(path.read_text())["train_seconds"])}
    return {}
