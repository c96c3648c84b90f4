"""One model tested many times with faulty sensors: built once, images decoded once, clean images' features kept.

Most faults leave most images as they are: a calibration that is off changes none, a lost camera one in six. So the
features of every image are computed for it alone and kept by its pixels, as long as there is room, and whichever fault
shows the same pixels again gets them back: the same bits. What ``tools/test.py`` computes of all cameras at once is
another rounding of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor

from bevstack.datasets.transforms.loading import LoadMultiViewImages
from bevstack.datasets.wrappers import innermost_configs
from bevstack.engine.config import building, load_config
from bevstack.engine.test import runner_of_test, test
from bevstack.experiments.fault_suites import FaultCase, with_faults
from bevstack.models.inference_form import inference_form
from bevstack.structures import Frame

KEPT_BYTES = 2_000_000_000
"""Room for decoded images, and as much again for features; what does not fit is computed each time."""


@dataclass(frozen=True)
class FaultTestSettings:
    """What is tested, as a process that starts for it is told.

    Args:
        config: file; options: of ``--cfg-options``.
        checkpoint: file.
        folder: for logs.
        scenes: how many of the test set's first scenes count; 0 for all.
        threads: of torch in each process; 0 leaves them.
    """

    config: str
    options: tuple[str, ...]
    checkpoint: str
    folder: Path
    scenes: int = 0
    threads: int = 0

    def loaded_config(self) -> Config:
        """The config with its options, of the first scenes alone."""
        return of_first_scenes(load_config(self.config, list(self.options)), self.scenes)


class KeptImages(LoadMultiViewImages):
    """Decodes each file once and hands out the same pixels again, which nobody may write to.

    Args:
        reduced: see :class:`LoadMultiViewImages`.
        decoded: pixels by file and kind; shared by the pipelines of all faults.
        max_bytes: room for them.
    """

    def __init__(self, reduced: bool, decoded: dict[tuple[str, bool], np.ndarray], max_bytes: int = KEPT_BYTES) -> None:
        super().__init__(reduced)
        self.decoded, self.max_bytes = decoded, max_bytes

    def read(self, path: str, size_px: tuple[int, int]) -> np.ndarray:
        """The pixels of a file."""
        image = self.decoded.get((path, self.reduced))
        if image is None:
            image = super().read(path, size_px)
            image.flags.writeable = False
            if len(self.decoded) * image.nbytes < self.max_bytes:
                self.decoded[path, self.reduced] = image
        return image


class KeptImageFeatures:
    """``image_features`` of a model, an image at a time, kept by the image's pixels.

    Args:
        model: a :class:`bevstack.models.BEVPerception` in evaluation mode.
        max_bytes: room for the features.
    """

    def __init__(self, model: Any, max_bytes: int = KEPT_BYTES) -> None:
        self._compute, self.max_bytes, self.bytes, self.computed = model.image_features, max_bytes, 0, 0
        self._kept: dict[bytes, list[Tensor]] = {}

    def __call__(self, frame: Frame) -> list[Tensor]:
        """A frame's levels (B, N, C, h, w); with sweeps or given features as the model itself makes them."""
        if frame.sweeps is not None or frame.features is not None:
            return self._compute(frame)
        batch = frame.images.shape[:2]
        rows = [self._features(frame, image[None, None]) for image in frame.images.flatten(0, 1)]
        return [torch.cat(level).unflatten(0, batch) for level in zip(*rows, strict=True)]

    def _features(self, frame: Frame, image: Tensor) -> list[Tensor]:
        """Levels (1, C, h, w) of an image (1, 1, 3, H, W)."""
        pixels = image.contiguous().view(-1).view(torch.uint8).cpu().numpy()
        size = str(tuple(image.shape[-2:])).encode()[:16]
        key = hashlib.blake2b(pixels.tobytes(), digest_size=16, salt=size).digest()
        levels = self._kept.get(key)
        if levels is None:
            self.computed += 1
            computed = self._compute(_Images(image))
            levels = [level.flatten(0, 1) for level in computed]
            taken = sum(level.nbytes for level in levels)
            if self.bytes + taken <= self.max_bytes:
                self.bytes += taken
                self._kept[key] = levels
        return levels


@dataclass(frozen=True)
class _Images:
    """What of a frame :meth:`bevstack.models.BEVPerception.image_features` reads."""

    images: Tensor
    sweeps: Tensor | None = None
    features: tuple[Tensor, ...] | None = None


class FaultTests:
    """The test of a config, many times with other faults.

    Args:
        settings: what is tested.

    Raises:
        InputError: as of ``tools/test.py``.
    """

    def __init__(self, settings: FaultTestSettings) -> None:
        self.settings, self.whole = settings, settings.loaded_config()
        cfg = self.whole.copy()
        _in_this_process(cfg)
        self.runner = runner_of_test(cfg, Path(settings.checkpoint), settings.folder)
        self.loop = self.runner.test_loop
        self.cfg, self.decoded = cfg, dict[tuple[str, bool], np.ndarray]()
        form: Any = inference_form(self.runner.module)
        self.features = KeptImageFeatures(form)
        form.image_features = self.features
        self.loop.answering = form
        for metric in self.loop.evaluator.metrics:
            if getattr(metric, "out_dir", None) is not None:
                metric.out_dir = None  # nobody asks for a submission a fault

    def metrics(self, case: FaultCase) -> dict[str, float]:
        """All finite metrics of a case; of another data root, by a test of its own."""
        with contextlib.redirect_stdout(io.StringIO()):  # a table a case hides which is which
            if case.data_root:
                found = test(with_faults(self.whole, case), self.settings.checkpoint, self.settings.folder)
            else:
                found = self._metrics(case)
        return {name: float(value) for name, value in found.items() if math.isfinite(value)}

    def _metrics(self, case: FaultCase) -> dict[str, float]:
        faulty = with_faults(self.cfg, case)
        with building(faulty):
            loader = self.runner.build_dataloader(faulty.test_dataloader, seed=self.runner.seed)
        for dataset in _innermost(loader.dataset):
            steps = dataset.pipeline.transforms
            for place, step in enumerate(steps):
                if type(step) is LoadMultiViewImages:
                    steps[place] = KeptImages(step.reduced, self.decoded)
        self.loop.dataloader = loader
        return dict(self.runner.test())


def of_first_scenes(cfg: Config, scenes: int) -> Config:
    """The config with its test on the first scenes of each split alone, changed in place; 0 leaves it."""
    if scenes:
        told = cfg.test_evaluator
        evaluators = told if isinstance(told, list | tuple) else [told]
        metrics = [metric for evaluator in evaluators for metric in evaluator.get("metrics", [evaluator])]
        for part in (*innermost_configs(cfg.test_dataloader["dataset"]), *metrics):
            if "split" in part and not str(part["split"]).endswith("]"):
                part["split"] = f"{part['split']}[:{scenes}]"
    return cfg


def _in_this_process(cfg: Config) -> None:
    """Samples are made where the model runs: their pixels are kept there."""
    cfg.test_dataloader["num_workers"] = 0
    for name in ("persistent_workers", "prefetch_factor", "timeout", "multiprocessing_context"):
        cfg.test_dataloader.pop(name, None)


def _innermost(dataset: Any) -> Iterator[Any]:
    inner = getattr(dataset, "datasets", None)
    if inner is None:
        yield dataset
    for part in inner or ():
        yield from _innermost(part)


_tests: list[FaultTests] = []  # a process's own


def _begin(settings: FaultTestSettings) -> None:
    if settings.threads:
        torch.set_num_threads(settings.threads)
    _tests[:] = [FaultTests(settings)]


def _metrics_here(case: FaultCase) -> dict[str, float]:
    return _tests[0].metrics(case)


def scored_cases(
    settings: FaultTestSettings, cases: Sequence[FaultCase], workers: int = 1
) -> Iterator[tuple[FaultCase, dict[str, float]]]:
    """Each case with its metrics, as it is done.

    Args:
        settings: what is tested.
        cases: in the order of which they are begun.
        workers: processes; each builds the model and keeps images and features for itself.

    Raises:
        InputError: as of ``tools/test.py``; cases that were not begun are left out then.
    """
    if workers <= 1 or len(cases) <= 1:
        tests = FaultTests(settings)
        yield from ((case, tests.metrics(case)) for case in cases)
        return
    with ProcessPoolExecutor(min(workers, len(cases)), get_context("spawn"), _begin, (settings,)) as pool:
        jobs = {pool.submit(_metrics_here, case): case for case in cases}
        try:
            for job in as_completed(jobs):
                yield jobs[job], job.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def threads_for(workers: int) -> int:
    """Threads of each of several processes on this machine's cores; 0, for one process, leaves them."""
    return 0 if workers <= 1 else max(1, (os.cpu_count() or 1) // workers)
