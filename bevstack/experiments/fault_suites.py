"""What ``tools/robustness.py`` does to sensors: suites of faults, each as transforms that a test pipeline gets."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from mmengine.config import Config

from bevstack.datasets.transforms.corruptions import CORRUPTIONS, SEVERITIES
from bevstack.datasets.wrappers import innermost_configs
from bevstack.errors import InputError

CALIBRATION_LEVELS = ((0.5, 0.05), (1.0, 0.10), (2.0, 0.20), (5.0, 0.50))
"""Standard deviations in degrees and in metres."""

_LOADING = ("LoadMultiViewImages", "LoadCameraSweeps")


@dataclass(frozen=True)
class FaultCase:
    """One test: ``group`` and ``level`` place it on the page, ``transforms`` are configs of what is faulty.

    ``data_root``: of the same world as another rig sees it; "" for the config's own.
    """

    suite: str
    group: str
    level: str
    transforms: tuple[dict[str, Any], ...] = ()
    data_root: str = ""

    @property
    def key(self) -> str:
        """Name of it among the raw numbers."""
        return "/".join(dict.fromkeys((self.suite, self.group, self.level)))


CLEAN = FaultCase("clean", "clean", "clean")


@dataclass(frozen=True)
class FaultSettings:
    """What is common to the suites' faults: names of the cameras, the seed, severities of corruptions; and for ``rig``
    names and roots of the sets that other rigs took."""

    cameras: tuple[str, ...]
    seed: int = 0
    severities: tuple[int, ...] = (1, 2, 3)
    as_published: bool = False
    rigs: tuple[tuple[str, str], ...] = ()


def cases_of(suite: str, settings: FaultSettings) -> list[FaultCase]:
    """The tests of ``corruptions``, ``cameras``, ``calibration``, ``rig`` or ``time``."""
    makers = {"corruptions": _corruptions, "cameras": _cameras, "calibration": _calibration, "rig": _rig, "time": _time}
    return list(makers[suite](settings))


def _corruptions(settings: FaultSettings) -> Iterator[FaultCase]:
    for corruption in CORRUPTIONS:
        for severity in settings.severities:
            options = dict(corruption=corruption, severity=severity, as_published=settings.as_published)
            step = dict(type="CorruptImages", seed=settings.seed, **options)
            yield FaultCase("corruptions", corruption, SEVERITIES[severity - 1], (step,))


def _cameras(settings: FaultSettings) -> Iterator[FaultCase]:
    names = settings.cameras
    for count, group in ((1, "one lost"), (2, "two lost")):
        for lost in combinations(names, count):
            if count < len(names):
                yield FaultCase("cameras", group, " + ".join(lost), (dict(type="LoseCameras", cameras=list(lost)),))
    if len(names) > 1:
        for name in names:
            yield FaultCase("cameras", "one lost, and known", name, (
                dict(type="LoseCameras", cameras=[name], known=True),
            ))  # fmt: skip
    first = [names[0]]
    yield FaultCase("cameras", "frozen", names[0], (dict(type="DelayCameras", cameras=first),))
    for samples in range(1, 6):
        step = dict(type="DelayCameras", cameras=first, samples=samples)
        yield FaultCase("cameras", f"{names[0]} late", f"{samples} samples", (step,))
    if len(names) > 1:
        pair = list(names[:2])
        yield FaultCase("cameras", "swapped", " + ".join(pair), (dict(type="SwapCameras", cameras=pair),))


def _calibration(settings: FaultSettings) -> Iterator[FaultCase]:
    for common in (False, True):
        whose = "all alike" if common else "each camera"
        for rotation_deg, translation_m in CALIBRATION_LEVELS:
            fault = dict(type="DisturbCalibration", common=common, seed=settings.seed)
            turned, shifted = {**fault, "rotation_deg": rotation_deg}, {**fault, "translation_m": translation_m}
            yield FaultCase("calibration", f"rotation, {whose}", f"{rotation_deg:g} degrees", (turned,))
            yield FaultCase("calibration", f"shift, {whose}", f"{100 * translation_m:g} cm", (shifted,))


def _rig(settings: FaultSettings) -> Iterator[FaultCase]:
    for name, root in settings.rigs:
        step = dict(type="FitCameras", number=len(settings.cameras))
        yield FaultCase("rig", name, root, (step,), data_root=root)


def _time(settings: FaultSettings) -> Iterator[FaultCase]:
    seed = settings.seed
    for probability in (0.1, 0.3, 0.5):
        step = dict(type="LoseCameras", probability=probability, seed=seed)
        yield FaultCase("time", "frames dropped", f"{100 * probability:g} %", (step,))
    for probability in (0.3, 0.6):
        step = dict(type="DelayCameras", samples=1, probability=probability, seed=seed)
        yield FaultCase("time", "images a sample late", f"{100 * probability:g} %", (step,))
    for metres, degrees in ((0.1, 0.5), (0.5, 2.0)):
        step = dict(type="DisturbEgoPoses", translation_m=metres, rotation_deg=degrees, seed=seed)
        yield FaultCase("time", "noise of ego poses", f"{100 * metres:g} cm, {degrees:g} degrees", (step,))
    step = dict(type="DisturbEgoPoses", jump_m=5.0, jump_probability=0.1, seed=seed)
    yield FaultCase("time", "ego poses jump", "5 m at every tenth sample", (step,))


def with_faults(cfg: Config, case: FaultCase) -> Config:
    """A copy of a config whose test pipeline has a case's transforms right behind what loads images.

    Raises:
        InputError: the test's pipeline loads no images.
    """
    faulty = copy.deepcopy(cfg)
    if case.data_root:
        told = faulty.test_evaluator
        evaluators = told if isinstance(told, list | tuple) else [told]
        metrics = [metric for evaluator in evaluators for metric in evaluator.get("metrics", [evaluator])]
        for part in (*innermost_configs(faulty.test_dataloader["dataset"]), *metrics):
            if "data_root" in part:
                part["data_root"] = case.data_root
    if not case.transforms:
        return faulty
    for dataset in innermost_configs(faulty.test_dataloader["dataset"]):
        pipeline: Sequence[Any] = dataset.get("pipeline") or ()
        loads = [place for place, step in enumerate(pipeline) if _name(step) in _LOADING]
        if not loads:
            reason = "loads no images, so that no sensor can be faulty"
            raise InputError(cfg.filename or "config", "test_dataloader.dataset.pipeline", reason)
        place = loads[-1] + 1
        dataset["pipeline"] = [*pipeline[:place], *copy.deepcopy(list(case.transforms)), *pipeline[place:]]
    return faulty


def _name(step: Any) -> str:
    kind = step.get("type") if isinstance(step, dict) else type(step)
    return (kind if isinstance(kind, str) else getattr(kind, "__name__", "")).rpartition(".")[2]
