"""``tools/train.py``: train what a config describes."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from mmengine.config import Config

from bevstack.engine import dry_run
from bevstack.engine.arguments import train_parser
from bevstack.engine.checkpoint import checkpoint_of, newest_checkpoint, read_checkpoint
from bevstack.engine.config import building, check_components, load_config
from bevstack.engine.console import batch_size
from bevstack.engine.faults import RunError
from bevstack.engine.hooks import BudgetSchedule
from bevstack.engine.label_checks import check_labels
from bevstack.engine.processes import leave_group, process_count
from bevstack.engine.runner import BEVRunner
from bevstack.engine.schedules import schedule_notes
from bevstack.engine.stream_checks import check_memory, check_streams
from bevstack.engine.training_checks import check_training
from bevstack.engine.work_dir import Attempt, WorkDirLock
from bevstack.errors import InputError
from bevstack.files import atomic_write, require_writable
from bevstack.precision import choose_precision

SUMMARY_NAME = "train_summary.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 for numbers that are not finite, 128 + n for signal n."""
    args = train_parser().parse_args(arguments)
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    cfg = load_config(args.config, args.cfg_options)
    try:
        if args.finetune is not None:
            cfg.load_from, cfg.finetune = str(checkpoint_of(args.finetune)), True
        options = RunOptions(args.resume, args.amp, args.launcher, args.auto_scale_lr, args.dry_run)
        train_with(cfg, args.work_dir, options)
        leave_group()
    except RunError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def train(
    cfg: Config,
    work_dir: str | os.PathLike | None = None,
    resume: str | None = None,
    amp: bool = False,
    launcher: str = "none",
) -> dict:
    """Train; print what is trained on and what came out.

    Args:
        cfg: of :func:`load_config`.
        work_dir: default: the config's, else ``work_dirs/<name of the config>``.
        resume: None, "auto" or a checkpoint.
        amp: mixed precision in what the device has.
        launcher: "none", "pytorch" (torchrun) or "slurm".

    Returns:
        What ``train_summary.json`` holds: train_seconds, precision, steps, device, checkpoint.

    Raises:
        InputError: anything the user can mend.
        RunError: the run stopped in the middle.
    """
    return train_with(cfg, work_dir, RunOptions(resume, amp, launcher))


@dataclass(frozen=True)
class RunOptions:
    """How a config is trained.

    Args:
        resume: None, "auto" or a checkpoint.
        amp: mixed precision in what the device has.
        launcher: "none", "pytorch" (torchrun) or "slurm".
        auto_scale_lr: whether the learning rate is scaled by the batch size (``auto_scale_lr`` of the config).
        dry_run: whether to make a few steps alone and say what they say of the whole.
    """

    resume: str | None = None
    amp: bool = False
    launcher: str = "none"
    auto_scale_lr: bool = False
    dry_run: bool = False


def train_with(cfg: Config, work_dir: str | os.PathLike | None, options: RunOptions) -> dict:
    """As :func:`train`; of a dry run nothing is left, and the summary is that of its steps."""
    started = time.monotonic()
    resume, launcher = options.resume, options.launcher
    name = Path(cfg.filename or "run").stem
    cfg.work_dir = str(work_dir or cfg.get("work_dir") or Path("work_dirs") / name)
    cfg.launcher = launcher
    for part in ("train_dataloader", "train_cfg", "optim_wrapper"):
        if cfg.get(part) is None:
            raise InputError(cfg.filename or "config", part, "absent: this config does not train")
    if options.amp:
        _use_autocast(cfg)
    if options.auto_scale_lr:
        _scale_rates(cfg)
    check_components(cfg)
    check_training(cfg, resumes=bool(resume or cfg.get("resume")))
    for part in ("train", "val"):
        check_streams(cfg, part, process_count(launcher))
    if options.dry_run:
        require_writable(cfg.work_dir, "--work-dir")
        notes = _set_resume(cfg, resume)
        with TemporaryDirectory(prefix="bevstack-dry-run-") as folder:
            dry_run.prepare(cfg, Path(folder))
            runner, notes = _built(cfg, notes)
            summary = _describe(runner, notes, "none: a dry run keeps nothing")
            lines = dry_run.run(runner)
            if runner.rank == 0:
                print(*lines, "dry run: everything was built, nothing is kept", sep="\n", flush=True)
            return {**summary, "steps": runner.iter}
    lock = WorkDirLock(cfg.work_dir) if _is_main() else None
    try:
        with Attempt(cfg.work_dir) as attempt:
            runner, notes = _built(cfg, _set_resume(cfg, resume))
            summary = _describe(runner, notes)
            try:
                runner.train()
            finally:
                attempt.began = runner.iter > 0
            return _finish(runner, summary, time.monotonic() - started)
    finally:
        if lock is not None:
            lock.release()


def _built(cfg: Config, notes: list[str]) -> tuple[BEVRunner, list[str]]:
    """The runner of a config with all that it trains by, checked, and what the user should know."""
    with building(cfg):
        runner = BEVRunner.from_cfg(cfg)
        notes = [*notes, *check_memory(cfg, runner.module)]
        runner.build_for_training()
        check_labels(cfg, runner.module, runner.train_dataloader.dataset, "train")
        if runner.val_loop is not None:
            check_labels(cfg, runner.module, runner.val_dataloader.dataset, "val")
            if hasattr(runner.val_loop, "rehearse"):
                runner.val_loop.rehearse()
        notes += schedule_notes(cfg, runner.max_epochs, runner.max_iters)
    scale = cfg.get("auto_scale_lr") or {}
    if scale.get("enable"):
        size = batch_size(runner.train_dataloader) * runner.world_size
        base = scale["base_batch_size"]
        notes.append(f"learning rate times {size / base:g}: {size} samples a step, the config's is for {base}")
    return runner, notes


def _is_main() -> bool:
    """Whether this is the main process, before there is a process group."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def _scale_rates(cfg: Config) -> None:
    """Switch on mmengine's scaling of the learning rate, by samples a step beside ``base_batch_size``."""
    scale = cfg.get("auto_scale_lr") or {}
    if not scale.get("base_batch_size"):
        reason = "absent: --auto-scale-lr asks for the samples a step that the learning rate is for"
        raise InputError(cfg.filename or "config", "auto_scale_lr.base_batch_size", reason)
    cfg.auto_scale_lr = {**scale, "enable": True}


def _use_autocast(cfg: Config) -> None:
    wrapper = cfg.optim_wrapper
    if wrapper.get("type") not in ("AutocastOptimWrapper", "bevstack.AutocastOptimWrapper"):
        wrapper.type = "bevstack.AutocastOptimWrapper"
        wrapper.pop("loss_scale", None)
    wrapper.dtype = "auto"


def _set_resume(cfg: Config, resume: str | None) -> list[str]:
    """Point the config at the checkpoint to continue from; returns what the user should know."""
    resume = resume or ("auto" if cfg.get("resume") else None)
    cfg.resume = False
    if resume is None:
        return []
    notes: list[str] = []
    if resume == "auto":
        path, problems = newest_checkpoint(Path(cfg.work_dir))
        notes += [f"passed over {problem}" for problem in problems]
        if path is None:
            return [*notes, f"nothing to resume in {cfg.work_dir}: starting from the beginning"]
    else:
        path = Path(resume)
    meta = read_checkpoint(path).get("meta", {})
    cfg.resume, cfg.load_from = True, str(path)
    if meta.get("seed") is not None:  # samplers are seeded when they are built
        cfg.randomness = {**(cfg.get("randomness") or {}), "seed": meta["seed"]}
    return [*notes, f"resuming {path}"]


def device_name() -> str:
    """The device in words: the GPU's name, or the number of CPU threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU, {torch.get_num_threads()} threads"


def _describe(runner: BEVRunner, notes: list[str], place: str | None = None) -> dict:
    """Print what is trained on what, and start the summary."""
    precision = getattr(runner.optim_wrapper, "precision", None) or choose_precision("float32")
    parameters = list(runner.module.parameters())
    total, frozen = sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if not p.requires_grad)
    loader = runner.train_dataloader
    batch = getattr(loader.batch_sampler, "batch_size", None) or loader.batch_size or "?"
    processes = f", {runner.world_size} processes" * (runner.world_size > 1)
    budgets = [hook.limits(runner) for hook in runner.hooks if isinstance(hook, BudgetSchedule)]
    length = budgets[0] if budgets else f"{runner.max_epochs} epochs, {runner.max_iters} steps"
    lines = {
        "device": f"{device_name()}{processes}, {precision.name} ({precision.reason})",
        "model": f"{runner.model_name}, {total / 1e6:.2f} M parameters, {frozen / 1e6:.2f} M of them frozen",
        "data": f"{len(loader.dataset)} samples, {len(loader)} steps of {batch} an epoch",
        "schedule": f"{length}, seed {runner.seed}",
        "work dir": place or runner.work_dir,
    }
    if runner.rank == 0:
        for key, text in lines.items():
            print(f"  {key:<9} {text}")
        for note in notes:
            print(f"  {'note':<9} {note}")
        print(end="", flush=True)
    return {"precision": precision.name, "device": device_name(), "processes": runner.world_size}


def _finish(runner: BEVRunner, summary: dict, wall_seconds: float) -> dict:
    loop = runner.train_loop
    checkpoint = runner.last_checkpoint
    summary |= {
        "train_seconds": round(getattr(loop, "seconds", wall_seconds), 3),
        "wall_seconds": round(wall_seconds, 3),
        "steps": runner.iter,
        "epochs": runner.epoch,
        "checkpoint": checkpoint,
    }
    if runner.rank == 0:
        with atomic_write(Path(runner.work_dir) / SUMMARY_NAME) as temporary:
            temporary.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        print(f"trained {runner.iter} steps in {summary['train_seconds']:.1f} s; checkpoint: {checkpoint}", flush=True)
    return summary
