"""mmengine's Runner with what it lacks: safe and exact resume, whole files, CPU clusters, a quiet console.

The file is long because mmengine's Runner is one class: what differs of its steps stands in one place, too.
"""

from __future__ import annotations

import datetime
import itertools
import logging
import os
import time
import warnings
from pathlib import Path
from typing import Any, cast

import mmengine
import torch
from mmengine.device import get_device
from mmengine.dist import all_gather_object, is_distributed, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.hooks import CheckpointHook
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import LogProcessor, Runner
from mmengine.runner.checkpoint import weights_to_cpu
from mmengine.visualization import Visualizer
from torch import nn

from bevstack.engine import visualizer_backends
from bevstack.engine.checkpoint import (
    LAST_CHECKPOINT,
    as_parts,
    checkpoint_of,
    load_weights,
    message_hub_state,
    plain,
    read_checkpoint,
    restore_rng_state,
    rng_state,
    touches,
    unchanged_rng,
    without_parts,
    write_checkpoint,
)
from bevstack.engine.compilation import compile_options
from bevstack.engine.config import said
from bevstack.engine.console import ShortFormatter, ShortLogProcessor, WithoutNoise
from bevstack.engine.cpu_memory import keep_freed_memory
from bevstack.engine.finetuning import fitted_weights
from bevstack.engine.label_checks import check_trained_cameras, check_trained_labels, object_heads
from bevstack.engine.optim_wrapper import AutocastOptimWrapper
from bevstack.engine.packaged_parts import with_packaged_parts
from bevstack.engine.processes import join_gloo, meeting_place
from bevstack.engine.resume_check import (
    changed_settings,
    changes_rates,
    require_continuable,
    require_state,
    run_settings,
    stored_state,
)
from bevstack.engine.schedules import advance, load_optimizer
from bevstack.engine.stored_config import plain_config
from bevstack.engine.train_loops import ResumableTrainLoop
from bevstack.errors import InputError
from bevstack.evaluation import WholeEvaluator
from bevstack.files import atomic_write
from bevstack.interop.foreign_weights import check_box_convention, native_weights
from bevstack.ops.backends import select_backend
from bevstack.registry import EVALUATOR, RUNNERS
from bevstack.weights import carries_config, is_name

_RUNS = itertools.count(1)


@RUNNERS.register_module()
class BEVRunner(Runner):
    """Runner of mmengine; configs and hooks stay as OpenMMLab users know them. What differs:

    * checkpoints are written whole or not at all, and read as plain data only (:mod:`bevstack.engine.checkpoint`);
      they also hold the config as data (:mod:`bevstack.engine.stored_config`), the random number generators of every
      rank, streams and training seconds;
    * ``resume`` continues exactly, also in the middle of an epoch, and refuses a changed config unless the config says
      ``resume_changed=True``;
    * epoch-based training without a ``type`` uses :class:`bevstack.engine.train_loops.ResumableTrainLoop`;
    * without a GPU, processes talk over gloo;
    * the console shows results, in lines of at most 120 columns (:mod:`bevstack.engine.console`); config, hooks and
      environment go to the log file and the work directory;
    * scalars, and pictures of each validation, go to TensorBoard, too, where it is installed and the config names no
      ``visualizer``;
    * runs of one process that start within a second do not share mmengine's logger, visualizer and message hub.

    Args:
        **kwargs: of mmengine's ``Runner``.
    """

    # mmengine's, each a config until it is built
    _train_loop: Any
    _val_loop: Any
    optim_wrapper: Any
    param_schedulers: Any
    auto_scale_lr: Any

    def __init__(self, **kwargs) -> None:
        if kwargs.get("experiment_name") is None:  # mmengine's is the config's name and the second
            filename = getattr(kwargs.get("cfg"), "filename", None)
            kwargs["experiment_name"] = f"{Path(filename).stem if filename else 'run'}_{next(_RUNS)}"
        super().__init__(**kwargs)
        for handler, level in self._console_levels.items():
            handler.setLevel(level)

    def build_logger(self, **kwargs) -> logging.Logger:
        """mmengine's logger; the console is quiet until everything is built."""
        logger = super().build_logger(**kwargs)
        console = [handler for handler in logger.handlers if not isinstance(handler, logging.FileHandler)]
        self._console_levels = {handler: handler.level for handler in console}
        for handler in console:
            handler.addFilter(WithoutNoise())
            handler.setFormatter(ShortFormatter())
            handler.setLevel(max(handler.level, logging.ERROR))
        return logger

    def build_log_processor(self, log_processor: dict | LogProcessor) -> LogProcessor:
        """A log processor as configured; without a type one whose lines fit a console."""
        if isinstance(log_processor, dict) and "type" not in log_processor:
            return ShortLogProcessor(**log_processor)
        return super().build_log_processor(log_processor)

    def build_visualizer(self, visualizer: dict | Visualizer | None = None) -> Visualizer:
        """A visualizer as configured; without one, scalars go to ``scalars.json`` and, if it is there, TensorBoard."""
        if visualizer is None:
            backends = [{"type": "LocalVisBackend"}]
            if visualizer_backends.tensorboard_installed():
                backends.append({"type": "bevstack.TensorboardBackend"})
            visualizer = {"type": "Visualizer", "vis_backends": backends}
        return super().build_visualizer(visualizer)

    def setup_env(self, env_cfg: dict) -> None:
        """Processes, threads and, when distributed, the process group: gloo where there is no GPU."""
        if self.distributed and not is_distributed():
            told = env_cfg.get("dist_cfg", {})
            timeout = datetime.timedelta(seconds=told.get("timeout", 1800))
            if not torch.cuda.is_available():
                join_gloo(self.launcher, timeout)
            elif self.launcher == "pytorch":
                env_cfg = {**env_cfg, "dist_cfg": {**told, **meeting_place(timeout)}}
        select_backend(self.cfg.get("ops_backend"), self.cfg.filename or "config")
        if not torch.cuda.is_available():
            keep_freed_memory()
        if self.distributed:  # what mmengine would set with two warnings
            for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
                os.environ.setdefault(name, "1")
        super().setup_env(env_cfg)

    def _log_env(self, env_cfg: dict) -> None:
        self.logger.info(
            f"torch {torch.__version__}, mmengine {mmengine.__version__}, {self.world_size} process(es), "
            f"seed {self.seed}, environment {env_cfg}"
        )

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Move to the device and, when distributed, wrap for it; on CPUs DDP takes no device ids.

        Raises:
            InputError: FSDP is asked for.
        """
        on_cpu = not torch.cuda.is_available()
        if self.distributed and model_wrapper_cfg is not None:
            kind = str(model_wrapper_cfg.get("type", ""))
            if "FullyShard" in kind:
                reason = f"{kind}: checkpoints and validation need whole weights here; leave it out, for DDP"
                raise InputError(self.cfg.filename or "config", "model_wrapper_cfg.type", reason)
        if not self.distributed or not on_cpu or model_wrapper_cfg is not None or is_model_wrapper(model):
            return super().wrap_model(model_wrapper_cfg, model)
        find_unused = self.cfg.get("find_unused_parameters", False)
        with warnings.catch_warnings():  # newer torch renames broadcast_buffers
            warnings.simplefilter("ignore", FutureWarning)
            return MMDistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=find_unused)

    def build_train_loop(self, loop: dict | ResumableTrainLoop) -> ResumableTrainLoop:
        """A loop as configured; training without a type is resumable, by epochs or by iterations."""
        if isinstance(loop, dict):
            loop = {"type": "bevstack.ResumableTrainLoop", **loop}
            loop.pop("by_epoch", None)
        return super().build_train_loop(loop)

    def build_evaluator(self, evaluator: dict | list | Evaluator) -> Evaluator:
        """An evaluator as configured; metrics alone get :class:`bevstack.evaluation.WholeEvaluator`."""
        if isinstance(evaluator, Evaluator):
            return evaluator
        if isinstance(evaluator, dict) and "metrics" in evaluator:
            return EVALUATOR.build({"type": "bevstack.WholeEvaluator", **evaluator})
        return WholeEvaluator(evaluator)

    def build_optim_wrapper(self, optim_wrapper: Any) -> Any:
        """mmengine's; a wrapper that chooses its number format hears of the model that computes in it."""
        wrapper = super().build_optim_wrapper(optim_wrapper)
        if isinstance(wrapper, AutocastOptimWrapper):
            wrapper.choose_precision_for(self.model)
        return wrapper

    def build_for_training(self) -> None:
        """Build loops, optimizer and schedulers, which :meth:`train` would build later; mistakes show up now."""
        self._train_loop = self.build_train_loop(self._train_loop)
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        self.scale_lr(self.optim_wrapper, self.auto_scale_lr)
        self.auto_scale_lr = None  # done: train() would do it again, after the schedulers took the rates
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        if self._val_loop is not None:
            self._val_loop = self.build_val_loop(self._val_loop)

    def call_hook(self, fn_name: str, **kwargs) -> None:
        """mmengine's; a hook that refuses a run or a test before it begins is named in one line."""
        if fn_name not in ("before_run", "before_test"):
            super().call_hook(fn_name, **kwargs)
            return
        for hook in self.hooks:
            try:
                getattr(hook, fn_name)(self, **kwargs)
            except InputError:
                raise
            except (TypeError, ValueError, KeyError, AttributeError, AssertionError, RuntimeError) as error:
                name = type(hook).__name__
                reason = f"refuses to run here: {said(error)} (leave it out of custom_hooks to run without it)"
                raise InputError(self.cfg.filename or "config", name, reason) from error

    def _init_model_weights(self) -> None:
        """mmengine's; weights that cannot be read or fetched are named in one line."""
        try:
            super()._init_model_weights()
        except OSError as error:
            reason = f"weights cannot be read or fetched: {error}; name a local file"
            raise InputError(self.cfg.filename or "config", "init_cfg", reason) from error

    def _maybe_compile(self, target: str) -> None:
        """``compile`` of the config: the backbone, which most of the time goes into; the loops call no ``target``."""
        options = compile_options(self.cfg)
        if options is not None:
            cast(nn.Module, self.module.backbone).compile(**options)
            self.logger.info("the backbone is compiled by torch.compile; the first steps take longer")

    def register_default_hooks(self, hooks: dict | None = None) -> None:
        """mmengine's default hooks, a progress bar, and pictures of validations; None for one of them leaves it out."""
        hooks = dict(hooks or {})
        own = {"progress": {"type": "bevstack.ProgressHook"}, "pictures": {"type": "bevstack.EvaluationPicturesHook"}}
        own |= {name: hooks.pop(name) for name in own if name in hooks}
        super().register_default_hooks(hooks)
        for hook in own.values():
            if hook is not None:
                self.register_hook(hook)

    @property
    def module(self) -> nn.Module:
        """The model without its distributed wrapper."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    def load_checkpoint(
        self,
        filename: str,
        map_location: str = "cpu",
        strict: bool = False,
        revise_keys: list | None = None,
    ) -> dict:
        """Load weights (and nothing else) of a checkpoint; what is new or left over is said in one line.

        Args:
            filename: a local file, a work directory, or the name of shipped weights.
            map_location: device to read to.
            strict: whether such keys are an error.
            revise_keys: not supported: interop converts foreign checkpoints.

        Raises:
            InputError: see :func:`read_checkpoint` and :func:`load_weights`.
        """
        if revise_keys:
            raise InputError(filename, "revise_keys", "not supported: convert the checkpoint instead")
        file = checkpoint_of(filename)
        checkpoint = read_checkpoint(file, map_location)
        if not strict and (self.cfg.get("finetune") or is_name(filename)):
            self.finetune(checkpoint, file)
        else:
            self.take_weights(checkpoint, file, strict)
        return checkpoint

    def finetune(self, checkpoint: dict, file: str | os.PathLike) -> None:
        """Start from another training's weights as far as they fit, and say in one line what does not.

        Args:
            checkpoint: of :func:`read_checkpoint`; hooks may change it.
            file: it was read from, for messages.

        Raises:
            InputError: see :func:`load_weights`; nothing fits.
        """
        meta = checkpoint.get("meta") or {}
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        weights = with_packaged_parts(checkpoint["state_dict"], meta, self.module, file, strict=False)
        check_box_convention(self.module, meta, file, weights)
        named = {name.removeprefix("module."): value for name, value in weights.items()}
        fitted = fitted_weights(dict(native_weights(named, self.module, file)), self.module, meta)
        if new := as_parts(self.cfg.get("new_parts")):
            fitted.weights = without_parts(fitted.weights, new, file)
            fitted.new = [name for name in self.module.state_dict() if name not in fitted.weights]
        load_weights(self.module, fitted.weights, file, strict=False)
        self._has_loaded = True
        self.logger.warning(f"{Path(file).name}: {fitted.line()}")

    def dump_config(self) -> None:
        """mmengine's; a config that came with weights is written as Python."""
        if carries_config(self.cfg.filename or ""):
            self.cfg.dump(Path(self.work_dir) / f"{Path(self.cfg.filename).stem}.py")
        else:
            super().dump_config()

    def take_weights(self, checkpoint: dict, filename: str | os.PathLike, strict: bool) -> None:
        """:meth:`load_checkpoint` of a file that is read already.

        Args:
            checkpoint: of :func:`read_checkpoint`; hooks may change it.
            filename: the file, for messages.
            strict: whether keys that are new or left over are an error.

        Raises:
            InputError: see :func:`load_weights`; or the weights are of heads of other classes, or of another order.
        """
        meta = checkpoint.get("meta") or {}
        self.call_hook("after_load_checkpoint", checkpoint=checkpoint)
        weights, heads, advice = checkpoint["state_dict"], None, ""
        check_box_convention(self.module, meta, filename, weights)
        weights = with_packaged_parts(weights, meta, self.module, filename, strict)
        if not strict:  # another training starts, maybe of other heads: their losses are weighed from the beginning
            new = as_parts(self.cfg.get("new_parts"))
            weights = {name: value for name, value in weights.items() if not name.startswith("balancing.")}
            if new:  # named as the model here names them
                weights = without_parts(dict(native_weights(weights, self.module, filename)), new, filename)
            given = {name for name, _ in object_heads(self.module) if any(touches(key, name) for key in weights)}
            heads = [name for name in given if not any(touches(part, name) for part in new)]
            advice = ", or start the head new: --cfg-options new_parts={}"
        message = load_weights(self.module, weights, filename, strict)
        check_trained_labels(self.module, meta, filename, heads, advice)
        if message:
            self.logger.warning(f"{filename}: {message}")
        self._has_loaded = True
        self.logger.info(f"loaded weights of {filename}")

    def resume(
        self,
        filename: str,
        resume_optimizer: bool = True,
        resume_param_scheduler: bool = True,
        map_location: str = "default",
    ) -> None:
        """Continue from a checkpoint of this package, exactly where it was written.

        Args:
            filename: the checkpoint.
            resume_optimizer: whether the optimizer continues, too.
            resume_param_scheduler: whether the schedulers continue, too.
            map_location: device to read to; "default" is the run's.

        Raises:
            InputError: it cannot be read, was not written by training, lacks what this version goes on from, or was
                written under another config (what changed is listed).
        """
        device = get_device() if map_location == "default" else map_location
        checkpoint = read_checkpoint(filename, device)
        meta = checkpoint.get("meta") or {}
        require_state(checkpoint, filename, isinstance(self.train_loop, ResumableTrainLoop))
        changes = changed_settings(meta.get("settings", {}), self._settings())
        if changes and not self.cfg.get("resume_changed", False):
            listed = "; ".join(changes[:8]) + ("; ..." if len(changes) > 8 else "")
            reason = f"settings changed since: {listed} (continue all the same: --cfg-options resume_changed=True)"
            raise InputError(filename, "--resume", reason)
        for change in changes:
            self.logger.warning(f"resuming although changed: {change}")
        new_rates = changes_rates(changes)
        require_continuable(changes, meta, len(self.train_dataloader), filename)
        cameras = (getattr(self.train_dataloader.dataset, "metainfo", None) or {}).get("cameras", ())
        check_trained_cameras(self.module, meta, cameras, filename)
        self.take_weights(checkpoint, filename, strict=True)
        with stored_state(filename, "rank_states"):
            self._resume_loop(meta)
        with stored_state(filename, "message_hub"):
            self.message_hub.load_state_dict(message_hub_state(checkpoint["message_hub"]))
        if resume_optimizer:
            load_optimizer(self.optim_wrapper, checkpoint["optimizer"], filename, keep_settings=new_rates)
        if resume_param_scheduler and self.param_schedulers is not None:
            if new_rates:
                advance(self.param_schedulers, self.iter, self.epoch)
            else:
                with stored_state(filename, "param_schedulers"):
                    for scheduler, state in zip(self.param_schedulers, checkpoint["param_schedulers"], strict=True):
                        scheduler.load_state_dict(state)
        self._has_loaded = True
        self.logger.info(f"resumed {filename} at epoch {self.epoch}, iteration {self.iter}")

    def _resume_loop(self, meta: dict) -> None:
        loop = self.train_loop
        states = meta.get("rank_states", [])
        own = states[self.rank] if len(states) == self.world_size else {}
        for name, gradient in own.get("gradients", {}).items():
            parameter = self.module.get_parameter(name)
            parameter.grad = gradient.to(parameter.device)
        if isinstance(loop, ResumableTrainLoop):
            epoch, iteration, seconds = int(meta["epoch"]), int(meta["iter"]), float(meta.get("train_seconds", 0))
            if own.get("rng") is not None:
                with unchanged_rng():  # whether it can be restored, asked for now
                    restore_rng_state(own["rng"])
            loop.resume_at(epoch, iteration, int(meta["batch_in_epoch"]), seconds, own.get("rng"))
            if hasattr(loop, "resume_streams"):
                loop.resume_streams(own.get("streams"), torch.device(get_device()))
        else:
            loop._epoch, loop._iter = int(meta["epoch"]), int(meta["iter"])

    def _gradients(self) -> dict[str, torch.Tensor]:
        """Gradients accumulated towards a step that is still to come; empty between steps."""
        if self.optim_wrapper._inner_count % self.optim_wrapper._accumulative_counts == 0:
            return {}
        return {name: plain(p.grad) for name, p in self.module.named_parameters() if p.grad is not None}

    def _settings(self) -> dict[str, str]:
        return run_settings(self.cfg, len(self.train_dataloader.dataset), self.world_size)

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Save everything that training needs to continue exactly. Called on every rank, written by the main one.

        Args:
            out_dir: folder.
            filename: name in it.
            file_client_args: must be None: files are local.
            save_optimizer: whether to keep the optimizer's state.
            save_param_scheduler: whether to keep the schedulers' states.
            meta: ``epoch`` and ``iter`` that the checkpoint stands for.
            by_epoch: how to count these where ``meta`` lacks them (see mmengine).
            backend_args: must be None: files are local.
        """
        if file_client_args is not None or backend_args is not None:
            raise InputError(out_dir, "backend_args", "checkpoints are written to local files only")
        meta = dict(meta or {})
        meta.setdefault("epoch", self.epoch + 1 if by_epoch else self.epoch)
        meta.setdefault("iter", self.iter if by_epoch else self.iter + 1)
        loop = self.train_loop
        if isinstance(loop, ResumableTrainLoop):
            done = loop.batch_in_epoch + meta["iter"] - self.iter
            meta.update(batch_in_epoch=0 if meta["epoch"] > self.epoch else done, steps_per_epoch=len(loop.dataloader))
        streams = loop.stream_state() if hasattr(loop, "stream_state") else None
        rank_states = all_gather_object({"rng": rng_state(), "streams": streams, "gradients": self._gradients()})
        if not is_main_process():
            return
        meta.update(
            config=plain_config(self.cfg),
            settings=self._settings(),
            seed=self.seed,
            experiment_name=self.experiment_name,
            time=time.strftime("%Y%m%d_%H%M%S", time.localtime()),
            unix_time=time.time(),
            mmengine_version=mmengine.__version__,
            train_seconds=getattr(loop, "seconds", 0.0),
            rank_states=rank_states,
        )
        metainfo = getattr(self.train_dataloader.dataset, "metainfo", None)
        if metainfo is not None:
            meta["dataset_meta"] = plain(metainfo)
        checkpoint: dict[str, Any] = {
            "meta": meta,
            "state_dict": weights_to_cpu(self.module.state_dict()),
            "message_hub": plain(self.message_hub.state_dict()),
        }
        if save_optimizer:
            checkpoint["optimizer"] = plain(self.optim_wrapper.state_dict())
        if save_param_scheduler and self.param_schedulers is not None:
            checkpoint["param_schedulers"] = [plain(scheduler.state_dict()) for scheduler in self.param_schedulers]
        self.call_hook("before_save_checkpoint", checkpoint=checkpoint)
        write_checkpoint(checkpoint, Path(out_dir) / filename)

    @property
    def _checkpoint_hook(self) -> CheckpointHook | None:
        return next((hook for hook in self.hooks if isinstance(hook, CheckpointHook)), None)

    @property
    def last_checkpoint(self) -> str | None:
        """The newest checkpoint that this run saved, else the one it resumed; None where there is neither."""
        return getattr(self._checkpoint_hook, "last_ckpt", None) or (self._load_from if self._resume else None)

    def save_resume_point(self) -> str:
        """Save between two steps, at any iteration, and name it in ``last_checkpoint``. Returns the path."""
        hook = self._checkpoint_hook
        folder = Path(self.work_dir if hook is None else hook.out_dir)
        path = folder / f"iter_{self.iter}.pth"
        if hook is not None and getattr(hook, "saved_iter", None) == self.iter:
            return str(hook.last_ckpt)
        self.save_checkpoint(str(folder), path.name, meta={"epoch": self.epoch, "iter": self.iter})
        if is_main_process():
            with atomic_write(Path(self.work_dir) / LAST_CHECKPOINT) as temporary:
                temporary.write_bytes(os.fsencode(path))
        if hook is not None:
            hook.last_ckpt, hook.saved_iter = str(path), self.iter
        return str(path)
