"""Suite ``latency``: the demo as a stream, frame by frame, as a car would run it: how long, and how evenly.

Image files in, boxes and rasters out, through :class:`bevstack.engine.inference.Predictor`; or an exported file of any
model, by :mod:`bevstack.runtime`. Four parts: decoding the files, what is done to images before the model, the model's
step, and what is read from its answers.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from tqdm import tqdm

from bevstack.engine.inference import Predictor
from bevstack.experiments.benchmarks.inputs import demo_model, rig_of
from bevstack.experiments.benchmarks.latency_mlperf import QUICK_STEPS, mlperf_rows
from bevstack.experiments.benchmarks.measuring import Row, Stopwatch, percentiles
from bevstack.experiments.benchmarks.settings import Settings
from bevstack.images import read_image
from bevstack.models import BEVPerception
from bevstack.runtime import ExportedModel
from bevstack.runtime import Motion as MovedBy
from bevstack.runtime.session import description_of, open_session
from bevstack.structures.moment import Motion, Rig

SOURCE_PX = (252, 448)
"""(height, width) of the demo's image files."""
PARTS = ("whole frame", "decode files", "prepare images", "step", "read answers")
WARM_UP, QUICK_FRAMES, MOMENTS = 20, 30, 8


def run(watch: Stopwatch, settings: Settings) -> list[Row]:
    """A row of whole frames and one of each part; of a file for MLPerf, see :func:`mlperf_rows`."""
    frames = QUICK_FRAMES if settings.quick else settings.frames
    with tempfile.TemporaryDirectory() as folder:
        if settings.file is not None:
            session = open_session(settings.file, torch.get_num_threads())
            if description_of(session, settings.file).get("interface") == "mlperf":
                return mlperf_rows(session, settings.file, QUICK_STEPS if settings.quick else settings.frames)
            candidate = f"exported {settings.file.name}"
            exported = ExportedModel(session, str(settings.file))
            seconds = exported_stream_seconds(exported, frames, Path(folder))
        else:
            model, cfg = demo_model()
            candidate = "ours"
            seconds = stream_seconds(model.eval(), cfg, settings.dtype, frames, Path(folder))
    return [Row(name, {candidate: seconds[name]}, facts=percentiles(seconds[name])) for name in PARTS]


def exported_stream_seconds(model: ExportedModel, frames: int, folder: Path) -> dict[str, list[float]]:
    """As :func:`stream_seconds`, of an exported file.

    Args:
        model: of six cameras.
        frames: how many count.
        folder: for the image files, of the size that the file was made for.
    """
    height, width = model.described["images"]["source_size_px"]
    size_px = (int(height), int(width))
    paths, rig, memory = picture_files(folder, size_px), rig_of_files(size_px), None
    moves, motion = "can_bus" in model.inputs, None
    spent: dict[str, float] = defaultdict(float)
    seconds: dict[str, list[float]] = defaultdict(list)
    with spent_in(model, "run", spent), spent_in(model.session, "run", spent, "session"):
        for number in tqdm(range(WARM_UP + frames), desc="stream"):
            spent.clear()
            started = time.perf_counter()
            images = [read_image(path) for path in paths[number % MOMENTS]]
            decoded = time.perf_counter()
            _, memory = model.step(images, rig.pixels_from_camera, rig.camera_from_bev, motion, memory)
            ended = time.perf_counter()
            motion = MovedBy(forward(), 0.5, np.zeros(18) if moves else None)
            if number < WARM_UP:
                continue
            seconds["whole frame"].append(ended - started)
            seconds["decode files"].append(decoded - started)
            seconds["prepare images"].append(ended - decoded - spent["run"])
            seconds["step"].append(spent["session"])
            seconds["read answers"].append(spent["run"] - spent["session"])
    return seconds


def stream_seconds(model: BEVPerception, cfg: Config, dtype: str, frames: int, folder: Path) -> dict[str, list[float]]:
    """Seconds of each frame of a stream, whole and by part, without those of the warm-up.

    Args:
        model: in evaluation mode.
        cfg: the model's, with what is done to images.
        dtype: "float32", "bfloat16" or "auto".
        frames: how many count.
        folder: for the image files.
    """
    predictor = Predictor(model, cfg, dtype)
    paths, rig, motion, memory = picture_files(folder), rig_of_files(), None, None
    spent: dict[str, float] = defaultdict(float)
    seconds: dict[str, list[float]] = defaultdict(list)
    with spent_in(predictor.model, "step", spent), spent_in(predictor.model, "predictions", spent):
        for number in tqdm(range(WARM_UP + frames), desc="stream"):
            spent.clear()
            started = time.perf_counter()
            images = [read_image(path) for path in paths[number % MOMENTS]]
            decoded = time.perf_counter()
            _, memory = predictor.step(images, rig, motion, memory)
            ended = time.perf_counter()
            motion = Motion(forward(), seconds=0.5)
            if number < WARM_UP:
                continue
            inside = spent["step"] + spent["predictions"]
            seconds["whole frame"].append(ended - started)
            seconds["decode files"].append(decoded - started)
            seconds["prepare images"].append(ended - decoded - inside)
            seconds["step"].append(spent["step"])
            seconds["read answers"].append(spent["predictions"])
    return seconds


@contextmanager
def spent_in(owner: Any, name: str, spent: dict[str, float], title: str | None = None) -> Iterator[None]:
    """Add the seconds of every call of a method to ``spent[title]``, its name by default, while the context lasts."""
    title = title or name
    method: Callable[..., Any] = getattr(owner, name)

    def called(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = method(*arguments, **named)
        spent[title] += time.perf_counter() - started
        return result

    setattr(owner, name, called)
    try:
        yield
    finally:
        delattr(owner, name)


def picture_files(folder: Path, size_px: tuple[int, int] = SOURCE_PX) -> list[list[Path]]:
    """Six JPEG files (height, width) of smooth noise for each of some moments."""
    generator = np.random.default_rng(0)
    paths = []
    for moment in range(MOMENTS):
        paths.append([folder / f"{moment}_{camera}.jpg" for camera in range(6)])
        for path in paths[-1]:
            coarse = generator.integers(0, 256, (size_px[0] // 8, size_px[1] // 8, 3), dtype=np.uint8)
            cv2.imwrite(str(path), cv2.resize(coarse, size_px[::-1], interpolation=cv2.INTER_CUBIC))
    return paths


def rig_of_files(size_px: tuple[int, int] = SOURCE_PX) -> Rig:
    """nuScenes' cameras at the size of the files, (height, width)."""
    rig = rig_of(size_px, size_px)
    names = tuple(f"camera {number}" for number in range(rig.num_cameras))
    return Rig(rig.pixels_from_camera[0].double().numpy(), rig.camera_from_bev[0].double().numpy(), names)


def forward(metres: float = 2.5) -> np.ndarray:
    """``previous_from_current`` (4, 4) of going straight on; y is ahead."""
    matrix = np.eye(4)
    matrix[1, 3] = metres
    return matrix
