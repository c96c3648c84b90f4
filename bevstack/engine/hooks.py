"""Hooks: whole checkpoints, parts of other models, a budget for training and the time left of it, a progress bar."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.dist import broadcast, is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.hooks import EMAHook as MMEngineEMAHook
from mmengine.hooks import Hook, IterTimerHook
from tqdm import tqdm

from bevstack.engine.checkpoint import LAST_CHECKPOINT, checkpoint_of, load_weights, read_checkpoint
from bevstack.engine.label_checks import check_trained_labels, object_heads
from bevstack.engine.resume_check import stored_state
from bevstack.engine.weight_average import AverageUpdate
from bevstack.errors import InputError
from bevstack.files import atomic_write
from bevstack.interop.foreign_weights import check_box_convention
from bevstack.registry import HOOKS


@HOOKS.register_module()
class CheckpointHook(MMEngineCheckpointHook):
    """mmengine's checkpoint hook, safe at every moment: an older file goes only after the newer one is whole.

    Args:
        **kwargs: of mmengine's ``CheckpointHook`` (interval, by_epoch, max_keep_ckpts, save_best, ...).
    """

    saved_iter: int | None = None

    def _save_checkpoint_with_step(self, runner, step: int, meta: dict) -> None:
        outdated: list[int] = []
        if self.max_keep_ckpts > 0 and (not self.keep_ckpt_ids or self.keep_ckpt_ids[-1] != step):
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated.append(self.keep_ckpt_ids.popleft())
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = os.path.join(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
        )
        self.saved_iter = meta["iter"]
        if not is_main_process():
            return
        with atomic_write(Path(runner.work_dir) / LAST_CHECKPOINT) as temporary:
            temporary.write_bytes(os.fsencode(self.last_ckpt))
        for old in outdated:
            Path(self.out_dir, self.filename_tmpl.format(old)).unlink(missing_ok=True)


@HOOKS.register_module()
class EMAHook(MMEngineEMAHook):
    """mmengine's average of the weights, for trainings that start from weights of another model, too.

    mmengine's own loads the checkpoint of ``load_from`` into the average by itself and fails where the model has a part
    that the file lacks. Here the average starts as a copy of the model after loading.

    Args:
        **kwargs: of mmengine's ``EMAHook``: ema_type, momentum, begin_iter, ...
    """

    _stale = False
    _update: AverageUpdate | None = None

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Take the step's weights into the average (:class:`bevstack.engine.weight_average.AverageUpdate`)."""
        if not self._ema_started(runner):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)
            return
        if self._update is None:
            self._update = AverageUpdate(self.ema_model, self.src_model)
        self._update.step()

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Continue the checkpoint's average when resuming; otherwise wait for the model to be loaded."""
        if runner._resume:
            average, file = checkpoint.get("ema_state_dict", {}), str(runner._load_from)
            with stored_state(file, "ema_state_dict"):
                if absent := [name for name in checkpoint["state_dict"] if average and f"module.{name}" not in average]:
                    raise KeyError(f"no average of {absent[0]}")
                super().after_load_checkpoint(runner, checkpoint)
        else:
            self._stale = True

    def _copy_model(self) -> None:
        if self._stale:
            self.ema_model.module.load_state_dict(self.src_model.state_dict())
            self._stale = False

    def before_train(self, runner) -> None:
        """Check the arguments (mmengine); start from the loaded model."""
        super().before_train(runner)
        self._copy_model()

    def before_val_epoch(self, runner) -> None:
        """Put the average into the model; also where only validation runs, on loaded weights."""
        self._copy_model()
        super().before_val_epoch(runner)

    def before_test_epoch(self, runner) -> None:
        """Put the average into the model."""
        self._copy_model()
        super().before_test_epoch(runner)


@HOOKS.register_module()
class LoadPartsHook(Hook):
    """Start a new training with parts of another model, such as the trunk and the head of one with another backbone.

    What is not named stays new, even if the file has it; so parts of other shapes do no harm. A resumed run is left
    alone.

    Args:
        checkpoint: file; or the work directory of a run, whose last checkpoint is taken.
        parts: of the model, as ``encoder`` or ``heads.detection``.

    Raises:
        InputError: when training starts: no such file or part, a shape that does not fit, or a head of other classes.
    """

    priority = "VERY_HIGH"

    def __init__(self, checkpoint: str | os.PathLike, parts: Sequence[str]) -> None:
        self.checkpoint, self.parts = Path(checkpoint), tuple(parts)

    def before_train(self, runner) -> None:
        """Load them, and say in one line what was loaded."""
        if runner.iter > 0:
            return
        path = checkpoint_of(self.checkpoint)
        content = read_checkpoint(path)
        weights, meta = content["state_dict"], content.get("meta") or {}
        for part in self.parts:
            if not any(name.startswith(f"{part}.") for name in weights):
                raise InputError(path, part, "the file has no such part of a model")
        chosen = {
            name: weight for name, weight in weights.items() if name.startswith(tuple(f"{p}." for p in self.parts))
        }
        check_box_convention(runner.module, meta, path, weights)
        load_weights(runner.module, chosen, path, strict=False)
        heads = [name for name, _ in object_heads(runner.module)]
        whole = [name for name in heads if any(f"{name}.".startswith(f"{part}.") for part in self.parts)]
        check_trained_labels(runner.module, meta, path, whole, ", or name only those of its layers that know no class")
        runner.logger.info(f"loaded {', '.join(self.parts)} ({len(chosen)} weights) of {path}")


def _elapsed(runner) -> float:
    """Training seconds of the run, resumes included; the main process's clock on every rank."""
    seconds = torch.tensor([runner.train_loop.seconds], dtype=torch.float64)
    broadcast(seconds)
    return float(seconds)


@HOOKS.register_module()
class MaxSecondsHook(Hook):
    """Ends training cleanly, with a checkpoint, once it has taken ``max_seconds`` (validation not counted).

    Args:
        max_seconds: wall-clock budget of training.
    """

    priority = "VERY_LOW"

    def __init__(self, max_seconds: float) -> None:
        if not max_seconds > 0:
            raise ValueError(f"max_seconds must be positive, not {max_seconds}")
        self.max_seconds = max_seconds

    def before_train(self, runner) -> None:
        """Train nothing where the budget was spent before, in a run that is resumed."""
        if _elapsed(runner) >= self.max_seconds:
            runner.logger.info(f"time budget of {self.max_seconds:g} s was spent before: nothing is left to train")
            runner.train_loop.stop_training = True

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """Stop when the budget is spent."""
        if _elapsed(runner) >= self.max_seconds:
            runner.logger.info(f"time budget of {self.max_seconds:g} s is spent: training ends here")
            runner.train_loop.stop_training = True


@HOOKS.register_module()
class BudgetSchedule(Hook):
    """One cycle of the learning rate over a budget of seconds or iterations, whichever is nearer to its end.

    With p = max(seconds / max_seconds, iteration / max_iters), each group's base rate is multiplied by a factor that
    rises linearly from ``start_factor`` to 1 while p < ``warmup`` and then falls by half a cosine to ``end_factor``
    at p = 1, where training ends. A slower machine thus sees fewer steps of a whole schedule instead of the beginning
    of a longer one. Without ``max_seconds`` it depends on iterations only and is deterministic. Takes the place of
    ``param_scheduler``.

    Args:
        max_seconds: wall-clock budget of training, or None.
        max_steps: training ends after so many iterations, also in the middle of an epoch; the loop's own number of
            iterations where not given.
        warmup: fraction of the budget.
        start_factor: factor at p = 0.
        end_factor: factor at p = 1.
    """

    priority = "HIGHEST"

    def __init__(
        self,
        max_seconds: float | None = None,
        warmup: float = 0.1,
        start_factor: float = 0.1,
        end_factor: float = 0.001,
        max_steps: int | None = None,
    ) -> None:
        for name, limit in (("max_seconds", max_seconds), ("max_steps", max_steps)):
            if limit is not None and not limit > 0:
                raise ValueError(f"{name} must be positive, not {limit}")
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup is a fraction in [0, 1), not {warmup}")
        self.max_seconds, self.max_steps, self.warmup = max_seconds, max_steps, warmup
        self.start_factor, self.end_factor = start_factor, end_factor

    def factor(self, progress: float) -> float:
        """Multiplier of the learning rate at a progress in [0, 1]."""
        if progress < self.warmup:
            return self.start_factor + (1 - self.start_factor) * progress / self.warmup
        falling = (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup))) / 2
        return self.end_factor + (1 - self.end_factor) * falling

    def _steps(self, runner) -> int:
        return min(runner.max_iters, self.max_steps or runner.max_iters)

    def limits(self, runner) -> str:
        """What ends training, in words."""
        seconds = "" if self.max_seconds is None else f" or {self.max_seconds:g} s"
        return f"at most {self._steps(runner)} steps{seconds}"

    def progress(self, runner) -> float:
        """p of the class text, at most 1; the same on every rank."""
        return self.progress_at(runner, 0.0 if self.max_seconds is None else _elapsed(runner))

    def progress_at(self, runner, seconds: float) -> float:
        """p where so many seconds have passed; asks no other process."""
        done = runner.iter / self._steps(runner)
        if self.max_seconds is not None:
            done = max(done, seconds / self.max_seconds)
        return min(done, 1.0)

    def before_train(self, runner) -> None:
        """Train nothing where the seconds or steps were spent before, in a run that is resumed."""
        seconds_spent = self.max_seconds is not None and _elapsed(runner) >= self.max_seconds
        if seconds_spent or self.max_steps is not None and runner.iter >= self.max_steps:
            runner.logger.info(f"{self.limits(runner)} were spent before: nothing is left to train")
            runner.train_loop.stop_training = True

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        """Set the learning rate of the coming step."""
        factor = self.factor(self.progress(runner))
        for group in runner.optim_wrapper.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
            group["lr"] = group["initial_lr"] * factor

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs=None) -> None:
        """End training once the seconds or the steps are spent."""
        if self.max_seconds is not None and _elapsed(runner) >= self.max_seconds:
            runner.logger.info(f"time budget of {self.max_seconds:g} s is spent: training ends here")
            runner.train_loop.stop_training = True
        if self.max_steps is not None and runner.iter + 1 >= self.max_steps:
            runner.train_loop.stop_training = True


@HOOKS.register_module()
class BudgetTimerHook(IterTimerHook):
    """mmengine's timer, whose ``eta`` in the log is what a :class:`BudgetSchedule` leaves, where there is one."""

    def _after_iter(self, runner, batch_idx: int, data_batch=None, outputs=None, mode: str = "train") -> None:
        super()._after_iter(runner, batch_idx, data_batch, outputs, mode)
        if mode != "train":
            return
        seconds = runner.train_loop.seconds
        for schedule in (hook for hook in runner.hooks if isinstance(hook, BudgetSchedule)):
            if (done := schedule.progress_at(runner, seconds)) > 0:
                runner.message_hub.update_info("eta", seconds * (1 - done) / done)


@HOOKS.register_module()
class ProgressHook(Hook):
    """A progress bar over training, validation and test, where the output is a terminal (logs have their own lines)."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self._bar: tqdm | None = None

    def _open(self, total: int, done: int, text: str) -> None:
        self._close()
        hidden = not is_main_process() or not sys.stderr.isatty()
        self._bar = tqdm(total=total, initial=done, desc=text, disable=hidden, dynamic_ncols=True, leave=False)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def before_train_epoch(self, runner) -> None:
        """Open the bar of one epoch."""
        done = getattr(runner.train_loop, "batch_in_epoch", 0)
        self._open(len(runner.train_dataloader), done, f"train {runner.epoch + 1}/{runner.max_epochs}")

    def before_val_epoch(self, runner) -> None:
        """Open the bar of validation."""
        self._open(len(runner.val_dataloader), 0, "validate")

    def before_test_epoch(self, runner) -> None:
        """Open the bar of the test."""
        self._open(len(runner.test_dataloader), 0, "test")

    def _after_iter(self, runner, batch_idx: int, data_batch=None, outputs=None, mode: str = "train") -> None:
        if self._bar is None or self._bar.disable:
            return
        self._bar.update()
        if mode == "train" and outputs is not None and "loss" in outputs:
            self._bar.set_postfix_str(f"loss {outputs['loss'].item():.3f}", refresh=False)

    def _after_epoch(self, runner, mode: str = "train") -> None:
        self._close()

    def after_train(self, runner) -> None:
        """Close a bar that a stop in mid-epoch left open."""
        self._close()
