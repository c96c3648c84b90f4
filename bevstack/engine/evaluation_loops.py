"""Validation and test in a chosen number format; with memory carried along streams."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any, cast

import torch
from mmengine.evaluator import Evaluator
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from mmengine.runner.loops import TestLoop, ValLoop
from torch.utils.data import DataLoader

from bevstack.engine.checkpoint import unchanged_rng
from bevstack.engine.compilation import compile_form
from bevstack.engine.streaming import Streams, require_streams
from bevstack.models.inference_form import inference_form
from bevstack.precision import Precision, choose_precision
from bevstack.registry import LOOPS


class _AutocastEvaluation:
    """What validation and test share: a number format and, for streams, memory that starts empty."""

    runner: Runner
    dataloader: DataLoader
    evaluator: Evaluator
    precision: Precision

    def asked_model(self) -> torch.nn.Module:
        """What predictions are asked of: the runner's model, without what wraps it."""
        model = self.runner.model
        return model.module if is_model_wrapper(model) else model

    def _predict(self, data_batch: dict) -> list:
        module: Any = self.asked_model()
        with self.precision.autocast():
            data = module.data_preprocessor(data_batch, False)
            return self.predictions(module, data)

    def predictions(self, module: torch.nn.Module, data: dict) -> list:
        """Predicted samples of a preprocessed batch."""
        return module(**data, mode="predict")

    def start_streams(self) -> None:
        """Called when the loop starts."""

    def check_metrics(self) -> None:
        """Let the metrics refuse the model before the first prediction."""
        for metric in self.evaluator.metrics:
            if hasattr(metric, "check_model"):
                metric.check_model(_AutocastEvaluation.asked_model(self))

    def rehearse(self) -> None:
        """Let every metric take the first sample, predicted by the model as it is, and forget it again.

        What a metric lacks (a raster, a head, a label) shows now instead of after an epoch of training.

        Raises:
            InputError: of a metric.
        """
        self.check_metrics()
        self.start_streams()
        model, loader = self.runner.model, self.dataloader
        if not len(cast("Sized", loader.dataset)) or not len(self.evaluator.metrics):
            return
        was_training = model.training
        model.eval()
        try:
            with torch.no_grad(), unchanged_rng():
                batch = loader.collate_fn([loader.dataset[0]])
                self.evaluator.process(data_samples=self._predict(batch), data_batch=batch)
        finally:
            model.train(was_training)
            self.start_streams()
            for metric in self.evaluator.metrics:
                metric.results.clear()


def refuse_fp16(settings: Mapping[str, Any]) -> None:
    """Refuse mmengine's ``fp16`` of its loops, which nothing here would read.

    Raises:
        ValueError: it is asked for.
    """
    if settings.get("fp16"):
        raise ValueError("fp16=True: say dtype='float16' instead, or dtype='auto' for what the device is fast in")


class _AlongStreams:
    """Predictions along scenes: memory is carried from each sample to its successor and starts empty."""

    streams = Streams()
    frames: int | None = None

    def start_streams(self) -> None:
        self.streams = Streams()

    def predictions(self, module: torch.nn.Module, data: dict) -> list:
        require_streams(data["data_samples"], self.streams)
        predicted, streams = self.streams.step(module, data, "predict")
        self.streams = streams if self.frames is None else streams.newest(self.frames - 1)
        return predicted


@LOOPS.register_module()
class AutocastValLoop(_AutocastEvaluation, ValLoop):
    """Validation in a chosen number format.

    Args:
        dtype: "auto", "float32", "bfloat16" or "float16"; see :func:`bevstack.precision.choose_precision`.
        **kwargs: of mmengine's ``ValLoop``: runner, dataloader, evaluator.
    """

    def __init__(self, dtype: str = "float32", **kwargs) -> None:
        refuse_fp16(kwargs)
        super().__init__(**kwargs)
        self.precision = choose_precision(dtype, model=self.runner.model)

    def run(self) -> dict:
        """Validate; returns the metrics."""
        self.check_metrics()
        self.start_streams()
        return super().run()

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Predict one batch and hand it to the evaluator."""
        self.runner.call_hook("before_val_iter", batch_idx=idx, data_batch=data_batch)
        outputs = self._predict(data_batch)
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook("after_val_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)


@LOOPS.register_module()
class AutocastTestLoop(_AutocastEvaluation, TestLoop):
    """Test in a chosen number format, of the model's form for inference (:mod:`bevstack.models.inference_form`).

    Args:
        dtype: "auto", "float32", "bfloat16" or "float16"; see :func:`bevstack.precision.choose_precision`.
        **kwargs: of mmengine's ``TestLoop``: runner, dataloader, evaluator.

    Attributes:
        answering: asked in place of the runner's model: an exported file, or a form that serves many tests.
    """

    form: torch.nn.Module | None = None
    answering: torch.nn.Module | None = None

    def __init__(self, dtype: str = "float32", **kwargs) -> None:
        refuse_fp16(kwargs)
        super().__init__(**kwargs)
        self.precision = choose_precision(dtype, model=self.runner.model)

    def run(self) -> dict:
        """Test; returns the metrics."""
        self.check_metrics()
        self.start_streams()
        self.form = None  # of this run's weights, after the hooks that put others in their place
        return super().run()

    def asked_model(self) -> torch.nn.Module:
        """The form for inference of the model that the runner has at the first batch, or what answers in its place."""
        if self.answering is not None:
            return self.answering
        if self.form is None:
            self.form = inference_form(super().asked_model())
            compile_form(self.form, self.runner.cfg)
        return self.form

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: dict) -> None:
        """Predict one batch and hand it to the evaluator."""
        self.runner.call_hook("before_test_iter", batch_idx=idx, data_batch=data_batch)
        outputs = self._predict(data_batch)
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        self.runner.call_hook("after_test_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)


@LOOPS.register_module()
class StreamingValLoop(_AlongStreams, AutocastValLoop):
    """Validation along scenes, with memory (:class:`bevstack.engine.streaming.Streams`).

    Args:
        **kwargs: of :class:`AutocastValLoop`.
    """


@LOOPS.register_module()
class StreamingTestLoop(_AlongStreams, AutocastTestLoop):
    """Test along scenes, with memory (:class:`bevstack.engine.streaming.Streams`).

    Args:
        frames: how many frames a prediction may rest on, the current one among them; None: as many as the model
            remembers. It asks what memory gives to weights that are trained. What a recurrent encoder made of a frame
            still holds those before it; with one frame nothing is left of any.
        **kwargs: of :class:`AutocastTestLoop`.

    Raises:
        ValueError: fewer than one frame.
    """

    def __init__(self, frames: int | None = None, **kwargs) -> None:
        if frames is not None and frames < 1:
            raise ValueError(f"frames: {frames}: a prediction rests on one frame at least")
        super().__init__(**kwargs)
        self.frames = frames
