"""What must agree where memory is carried along streams: loop, sampler, batches, augmentation, clips. Checked at start.

Each piece is right by itself; only together they decide whether a sample meets the memory of its predecessor. All that
a config alone can tell is checked before anything is built (:func:`check_streams`), what the model says of itself once
it stands (:func:`check_memory`); what neither shows is watched while running (:mod:`bevstack.engine.streaming`).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.runner import loops as mmengine_loops
from torch import nn

from bevstack.datasets.samplers import SceneBatchSampler, SceneShardedSampler, StreamingSampler
from bevstack.engine.config import accepted_keys, components, find_component
from bevstack.engine.evaluation_loops import StreamingTestLoop, StreamingValLoop
from bevstack.engine.train_loops import ResumableTrainLoop, StreamingTrainLoop
from bevstack.errors import InputError

_STREAMING_LOOPS = (StreamingTrainLoop, StreamingValLoop, StreamingTestLoop)
_DEFAULT_LOOPS = {"train": ResumableTrainLoop, "val": mmengine_loops.ValLoop, "test": mmengine_loops.TestLoop}
_STREAMING_NAMES = {"train": "StreamingTrainLoop", "val": "StreamingValLoop", "test": "StreamingTestLoop"}
_OURS_OR_THEIRS = ("bevstack.", "mmengine.", "mmdet.", "mmdet3d.", "torch.")
_AUGMENTATION_KEY = "constant_along_stream"


def check_streams(cfg: Config, part: str, processes: int = 1) -> None:
    """Compare, in a part whose loop carries memory, the pieces that must agree.

    Args:
        cfg: as read; nothing is built of it.
        part: ``train``, ``val`` or ``test``.
        processes: that share the samples.

    Raises:
        InputError: names config, field and both values.
    """
    file, loader = cfg.filename or "config", cfg.get(f"{part}_dataloader")
    loop = loop_of(cfg, part)
    if loader is None or loop is None or not carries_memory(cfg, part):
        return
    place, title = f"{part}_dataloader", loop.__name__
    for name, dataset in _datasets(loader, place):
        if dataset.get("num_frames", 1) != 1:
            reason = f"{dataset['num_frames']}, but {part}_cfg.type is {title}, which carries the history itself"
            raise InputError(file, f"{name}.num_frames", f"{reason}: set it to 1")
    for name, transform in components(loader.get("dataset"), f"{place}.dataset"):
        if _AUGMENTATION_KEY in (_keys(transform) or ()) and not transform.get(_AUGMENTATION_KEY):
            reason = f"{transform.get(_AUGMENTATION_KEY, False)}, but {part}_cfg.type is {title}: memory would lie in"
            raise InputError(file, f"{name}.{_AUGMENTATION_KEY}", f"{reason} another BEV frame than the next sample")
    _check_order(file, loader, place, title, processes)


def _check_order(file: str, loader: Config, place: str, loop: str, processes: int) -> None:
    """Whether sampler and batch sampler give each sample right after its predecessor."""
    batch = loader.get("batch_size", 1)
    sampler, batcher = loader.get("sampler") or {}, loader.get("batch_sampler")
    kind, grouped = find_component(sampler.get("type")), find_component((batcher or {}).get("type"))
    if grouped is not None and not _is(grouped, SceneBatchSampler):
        if getattr(grouped, "__module__", "").startswith(_OURS_OR_THEIRS) and grouped.__name__ != "BatchSampler":
            reason = f"{grouped.__name__} does not keep the streams of {loop} together: leave it out"
            raise InputError(file, f"{place}.batch_sampler.type", reason)
        if grouped.__name__ != "BatchSampler":  # somebody's own, which may know how: watched while running
            return
        grouped = None
    if grouped is not None and not _is(kind, SceneShardedSampler):
        reason = f"{_name(kind)}, but batch_sampler.type is {grouped.__name__}, which needs SceneShardedSampler"
        raise InputError(file, f"{place}.sampler.type", reason)
    if _is(kind, StreamingSampler):
        if sampler.get("batch_size", batch) != batch:
            reason = f"{batch}, but {place}.sampler.batch_size is {sampler['batch_size']}, so that no memory would be"
            raise InputError(file, f"{place}.batch_size", f"{reason} carried to its stream: set both to the same")
        return
    if grouped is not None or not getattr(kind, "__module__", "").startswith(_OURS_OR_THEIRS):
        return
    if batch > 1:
        advice = "set batch_sampler.type=SceneBatchSampler" if _is(kind, SceneShardedSampler) else _advice(place)
        reason = f"{batch}, but {place}.sampler.type is {_name(kind)}: a batch would hold a sample and its successor"
        raise InputError(file, f"{place}.batch_size", f"{reason}; {advice}")
    if _is(kind, SceneShardedSampler):
        return
    if sampler.get("shuffle", True):
        reason = f"{_name(kind)} shuffles samples, but the loop is {loop}, which needs each after its predecessor"
        raise InputError(file, f"{place}.sampler.type", f"{reason}; {_advice(place)}")
    if processes > 1:
        reason = f"{_name(kind)} deals samples to {processes} processes in turn, but the loop is {loop}, which needs"
        raise InputError(file, f"{place}.sampler.type", f"{reason} whole scenes in each; {_advice(place)}")


def check_memory(cfg: Config, model: nn.Module, tests: bool = False) -> list[str]:
    """Compare what a model remembers with what the loops of its config let it remember.

    Args:
        cfg: as read, with its training part where it has one.
        model: with ``memory_frames``; one without remembers nothing.
        tests: whether the test is what comes now.

    Returns:
        What is allowed but should be known, a line each.

    Raises:
        InputError: a loop of mmengine's carries nothing from sample to sample, and clips of one frame have no history
            of their own; or the test would show the model another history than training did.
    """
    frames = getattr(model, "memory_frames", 0)
    if not frames:
        return []
    file, remembers = cfg.filename or "config", f"the model remembers {frames} frame(s)"
    loops = {part: loop for part in _DEFAULT_LOOPS if (loop := _loop_there(cfg, part)) is not None}
    shown = {part: _history(cfg, part, loop) for part, loop in loops.items()}
    notes = []
    for part, history in shown.items():
        loop, field = loops[part], f"{part}_cfg.type"
        place = f"{part}_dataloader.dataset.num_frames is {_clip_length(cfg, part)}"
        if not history and loop.__module__.startswith("mmengine."):
            reason = f"{loop.__name__} carries no memory and {place}, but {remembers}"
            raise InputError(file, field, f"{reason}: set it to {_STREAMING_NAMES[part]}")
        if part == "train":
            if not history:
                notes.append(f"{field}: {loop.__name__} carries no memory and {place}; {remembers} and sees none")
        elif "train" in shown and history != shown["train"]:
            trained = f"train_cfg.type is {loops['train'].__name__} with clips of {_clip_length(cfg, 'train')}"
            told = "with" if history else "without"
            reason = f"{loop.__name__} shows samples {told} their history, but {trained} frame(s) trained otherwise"
            if tests and part == "test":
                wanted = "AutocastTestLoop" if history else "StreamingTestLoop"
                raise InputError(file, field, f"{reason}; {remembers}: set it to {wanted}")
            notes.append(f"{field}: {reason}")
    return notes


def loop_of(cfg: Config, part: str) -> type | None:
    """The class of a part's loop, as the runner will choose it; None where it is somebody's function."""
    settings = cfg.get(f"{part}_cfg") or {}
    kind = find_component(settings["type"]) if settings.get("type") is not None else _DEFAULT_LOOPS[part]
    return kind if inspect.isclass(kind) else None


def carries_memory(cfg: Config, part: str) -> bool:
    """Whether the loop of a part carries memory from sample to sample."""
    loop = loop_of(cfg, part)
    return loop is not None and issubclass(loop, _STREAMING_LOOPS)


def _loop_there(cfg: Config, part: str) -> type | None:
    """As :func:`loop_of`; None also where the config has no such part."""
    return None if cfg.get(f"{part}_dataloader") is None else loop_of(cfg, part)


def _history(cfg: Config, part: str, loop: type) -> bool:
    """Whether a part shows the model any history: by its loop, or by clips of several frames."""
    return issubclass(loop, _STREAMING_LOOPS) or _clip_length(cfg, part) > 1


def _clip_length(cfg: Config, part: str) -> int:
    return max((dataset.get("num_frames", 1) for _, dataset in _datasets(cfg[f"{part}_dataloader"], part)), default=1)


def _datasets(loader: Config, place: str) -> Iterator[tuple[str, dict]]:
    """The innermost datasets of a loader: what takes ``num_frames``, inside of whatever repeats or joins them."""
    for name, node in components(loader.get("dataset"), f"{place}.dataset"):
        if "num_frames" in node and "pipeline" in node or "num_frames" in (_keys(node) or ()) and "split" in node:
            yield name, node


def _keys(node: dict) -> set[str] | None:
    component = find_component(node["type"])
    return None if component is None else accepted_keys(component)


def _is(component: Any, parent: type) -> bool:
    return inspect.isclass(component) and issubclass(component, parent)


def _name(component: Any) -> str:
    return getattr(component, "__name__", "none")


def _advice(place: str) -> str:
    if place.startswith("train"):
        return "use StreamingSampler"
    return "use SceneShardedSampler with SceneBatchSampler"
