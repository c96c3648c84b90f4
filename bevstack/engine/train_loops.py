"""Training that resumes exactly, at any iteration; with memory carried along streams."""

from __future__ import annotations

import bisect
import math
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from mmengine.dist import all_reduce, is_distributed
from mmengine.model import is_model_wrapper
from mmengine.runner.loops import EpochBasedTrainLoop
from torch.utils.data import DataLoader

from bevstack.engine.checkpoint import restore_rng_state, unchanged_rng
from bevstack.engine.faults import NonFiniteError, SignalWatch, StoppedBySignal, naming_dead_worker, naming_unused
from bevstack.engine.kept_features import KeptFeatures
from bevstack.engine.streaming import Streams
from bevstack.registry import LOOPS


def sample_tokens(data_batch: dict) -> list[str]:
    """Tokens of a collated batch's samples, in order ("?" where a sample has none)."""
    return [str(getattr(sample, "token", "?")) for sample in data_batch.get("data_samples", ())]


@LOOPS.register_module()
class ResumableTrainLoop(EpochBasedTrainLoop):
    """Training by epochs or iterations that continues bit for bit from any iteration, also in the middle of an epoch.

    On resuming inside an epoch the batches already seen are skipped by their indices, without loading them; random
    number generators continue where the checkpoint left them. Validation leaves them untouched. SIGTERM and SIGINT
    finish the step, save and raise :class:`StoppedBySignal`. A loss that is not finite raises
    :class:`NonFiniteError` with the samples' tokens, before any weight changes.

    Args:
        max_epochs: training ends after so many epochs; or
        max_iters: after so many iterations, in the middle of an epoch, too. Epochs then only shuffle anew, and
            ``val_begin`` and ``val_interval`` count iterations (1000 where not given).
        kept_features: arguments of :class:`bevstack.engine.kept_features.KeptFeatures`: what a frozen backbone makes of
            a sample is computed once and kept. None computes it in every epoch, with the same results.
        **kwargs: of mmengine's ``EpochBasedTrainLoop``: runner, dataloader, val_begin, val_interval.

    Raises:
        ValueError: neither number is given, or both.
    """

    stop_training: bool

    def __init__(
        self,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        kept_features: Mapping | None = None,
        **kwargs,
    ) -> None:
        if (max_epochs is None) == (max_iters is None):
            raise ValueError(f"give max_epochs or max_iters, one of them; they are {max_epochs} and {max_iters}")
        if max_iters is not None:
            kwargs.setdefault("val_interval", 1000)
        super().__init__(max_epochs=max_epochs or 1, **kwargs)
        self.by_iterations = max_iters is not None
        if max_iters is not None:
            self._max_iters = max_iters
            self._max_epochs = math.ceil(max_iters / max(len(self.dataloader), 1))
        self.kept_features = None if kept_features is None else KeptFeatures(**kept_features)
        self.seconds = 0.0  # of training so far, over all resumes
        self.resumed_rng: dict | None = None
        self._skip = self._epoch_start = 0
        self._running: tuple[Any, int] = None, 0  # torch's iterator of this epoch, and the batches that it left out

    @property
    def batch_in_epoch(self) -> int:
        """Number of batches of the current epoch already trained on."""
        return self._iter - self._epoch_start

    @property
    def finished(self) -> bool:
        """Whether all epochs, or all iterations, are done."""
        return self._iter >= self._max_iters if self.by_iterations else self._epoch >= self._max_epochs

    def resume_at(self, epoch: int, iteration: int, skip: int, seconds: float, rng: dict | None) -> None:
        """Start from here instead of from the beginning; called with what a checkpoint says.

        Args:
            epoch: the one under way.
            iteration: done so far.
            skip: batches of the epoch that are done.
            seconds: of training so far.
            rng: states of the random number generators.
        """
        self._epoch, self._iter, self.seconds, self.resumed_rng = epoch, iteration, seconds, rng
        self._skip, self._epoch_start = skip, iteration - skip
        if not self.by_iterations:
            self._max_iters = self._epoch_start + (self._max_epochs - epoch) * len(self.dataloader)

    def run(self) -> torch.nn.Module:
        """Train until the last epoch or iteration, a budget or a signal; nothing where nothing is left.

        Returns:
            The model.
        """
        self.runner.call_hook("before_train")
        if self.kept_features is not None:
            self.kept_features.start(self.runner)
        first = self._iter
        with SignalWatch() as watch:
            while not self.finished and not self.stop_training:
                self.run_epoch(watch)
                if watch.received:
                    break
                self._decide_current_val_interval()
                if not self.by_iterations and not self.batch_in_epoch:
                    self._validate_if_due()
            if watch.received:
                raise StoppedBySignal(watch.received, self.runner.save_resume_point())
        if self._iter > first and (self.batch_in_epoch or self.stop_training and not self.finished):
            self.runner.save_resume_point()
        self.runner.call_hook("after_train")
        return self.runner.model

    def _validate_if_due(self) -> float:
        """Validate after so many epochs, or iterations; returns the seconds that it took."""
        done, last = (self._iter, self._max_iters) if self.by_iterations else (self._epoch, self._max_epochs)
        if self.runner.val_loop is None or done < self.val_begin or done % self.val_interval and done != last:
            return 0.0
        started = time.monotonic()
        with unchanged_rng():
            self.runner.val_loop.run()
        return time.monotonic() - started

    def _decide_current_val_interval(self) -> None:
        """mmengine's ``dynamic_intervals``, by what the loop counts."""
        done = self._iter if self.by_iterations else self._epoch
        self.val_interval = self.dynamic_intervals[bisect.bisect(self.dynamic_milestones, done + 1) - 1]

    def run_epoch(self, watch: SignalWatch | None = None) -> None:
        """Iterate one epoch, or what is left of it."""
        watch = watch or SignalWatch()
        self._set_epoch()
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        self.start_streams()
        started = time.monotonic()
        before = self.seconds
        with naming_dead_worker(self.dataloader, lambda: self._running):
            for index, data_batch in self._batches():
                self.run_iter(index, data_batch)
                self.seconds = before + time.monotonic() - started
                if self._should_stop(watch):
                    break
                if self.by_iterations:
                    self._decide_current_val_interval()
                    before -= self._validate_if_due()
                    self.runner.model.train()
                    if self.finished:
                        break
        if self.batch_in_epoch < len(self.dataloader):
            return
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1
        self._epoch_start = self._iter

    def _should_stop(self, watch: SignalWatch) -> bool:
        flags = torch.tensor([float(watch.received), float(self.stop_training)])
        if is_distributed():  # all ranks stop at the same step
            all_reduce(flags, op="max")
        watch.received, self.stop_training = int(flags[0]), bool(flags[1])
        wrapper = self.runner.optim_wrapper
        accumulating = wrapper._inner_count % wrapper._accumulative_counts != 0
        return (watch.received > 0 or self.stop_training) and not accumulating

    def _set_epoch(self) -> None:
        """Tell everything that draws by epoch which one it is (dataset, samplers)."""
        loader = self.dataloader
        places: list[Any] = [loader.dataset, loader.sampler, loader.batch_sampler]
        places.append(getattr(loader.batch_sampler, "sampler", None))
        for place in {id(place): place for place in places}.values():
            if hasattr(place, "set_epoch"):
                place.set_epoch(self._epoch)

    def _batches(self) -> Iterator[tuple[int, dict]]:
        """(index in the epoch, batch) of what is left of this epoch; restores the generators of a checkpoint."""
        skip, self._skip = self._skip, 0
        state, self.resumed_rng = self.resumed_rng, None
        if state is not None and not skip:
            restore_rng_state(state)
        iterator: Iterator[dict] = iter(self._without_first(skip) if skip else self.dataloader)
        self._running = iterator, skip
        iterator = islice(iterator, len(self.dataloader) - skip)  # a sampler of one's own may go on for ever
        if state is not None and skip:  # making the iterator has drawn a number, as it had before the checkpoint
            restore_rng_state(state)
        return enumerate(iterator, start=skip)

    def _without_first(self, skip: int) -> DataLoader:
        """The same loader without its first ``skip`` batches, which are never loaded."""
        loader = self.dataloader
        return DataLoader(
            loader.dataset,
            batch_sampler=list(islice(loader.batch_sampler, skip, len(loader))),
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            timeout=loader.timeout,
            worker_init_fn=loader.worker_init_fn,
            multiprocessing_context=loader.multiprocessing_context,
            prefetch_factor=loader.prefetch_factor,
        )

    def run_iter(self, index: int, data_batch: dict) -> None:
        """One step on one batch."""
        self.runner.call_hook("before_train_iter", batch_idx=index, data_batch=data_batch)
        outputs = self.train_step(data_batch)
        self.runner.call_hook("after_train_iter", batch_idx=index, data_batch=data_batch, outputs=outputs)
        self._iter += 1

    def train_step(self, data_batch: dict) -> dict[str, torch.Tensor]:
        """Forward, check, backward, update. Returns the losses to log, ``loss`` first: scalars by name."""
        model, wrapper = self.runner.model, self.runner.optim_wrapper
        module = model.module if is_model_wrapper(model) else model
        with wrapper.optim_context(model), naming_unused(model):
            data = module.data_preprocessor(data_batch, True)
            if self.kept_features is not None:
                features_of = module.backbone_features
                data["inputs"] = self.kept_features.put_into(data["inputs"], data_batch["inputs"], features_of)
            losses = self.forward_losses(model, data)
        loss, log = module.parse_losses(losses)
        if not math.isfinite(loss.item()):
            broken = [name for name, value in log.items() if not math.isfinite(value.item()) and name != "loss"]
            where = f"iteration {self._iter + 1}, samples {', '.join(sample_tokens(data_batch))}"
            raise NonFiniteError(f"loss is not finite: {', '.join(broken)} ({where}); no weight was changed")
        wrapper.update_params(loss)
        return {**log, **self.told_with_losses()}

    def forward_losses(self, model: torch.nn.Module, data: dict) -> dict[str, torch.Tensor]:
        """Losses of a preprocessed batch: scalars by name."""
        return model(**data, mode="loss")

    def told_with_losses(self) -> dict[str, torch.Tensor]:
        """What else of a step belongs into the log's line, scalars by name; here nothing."""
        return {}

    def start_streams(self) -> None:
        """Called when an epoch starts; nothing is carried here."""


@LOOPS.register_module()
class StreamingTrainLoop(ResumableTrainLoop):
    """Training on concurrent scenes: slot b of each batch continues slot b of the last one, and so does its memory.

    Memory is cut from the graph between steps, stays in a slot while its samples follow each other (``prev_token``), is
    dropped at an epoch's start and kept in checkpoints, so that resuming inside an epoch is exact
    (:class:`bevstack.engine.streaming.Streams`). The log's line tells as ``without_memory`` which part of the samples
    whose predecessor belongs to the set met no memory of it: about 1 / n where the sampler cuts streams into n frames.

    Args:
        **kwargs: of :class:`ResumableTrainLoop`.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.streams, self._resumed = Streams(), Streams()
        self._without_memory: float | None = None

    def start_streams(self) -> None:
        """Forget the last epoch's streams; on resuming inside an epoch continue the checkpoint's."""
        self.streams, self._resumed = self._resumed, Streams()

    def forward_losses(self, model: torch.nn.Module, data: dict) -> dict[str, torch.Tensor]:
        """Losses of a batch whose clips carry the memory of their predecessors: scalars by name."""
        samples = data["data_samples"]
        followers = sum(bool(sample.prev_token) for sample in samples)
        self._without_memory = len(self.streams.without_memory(samples)) / followers if followers else None
        losses, self.streams = self.streams.step(model, data, "loss")
        return losses

    def told_with_losses(self) -> dict[str, torch.Tensor]:
        """The part of the samples that should have met a memory and did not: a scalar, where any should."""
        share = self._without_memory
        return {} if share is None else {"without_memory": torch.tensor(share)}

    def stream_state(self) -> dict:
        """The streams as plain data, for a checkpoint."""
        return self.streams.plain()

    def resume_streams(self, state: dict | None, device: torch.device) -> None:
        """Counterpart of :meth:`stream_state`."""
        if state is not None:
            self._resumed = Streams.from_plain(state, device)
