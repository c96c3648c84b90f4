"""Post-training static quantisation of an exported file's image network: eight bits, for CPUs with VNNI.

Backbone and neck, on which most of the time goes, are all that depends on the images alone: their convolutions, and the
activations, sums and poolings between them, are computed in eight bits (activations unsigned, weights signed with a
scale for each channel, sums in 32 bits). All else stays float32. The file stays one of standard operators: each
quantised value passes through ``QuantizeLinear`` and ``DequantizeLinear``, which a runtime melts into the operators
between them (ONNX Runtime: ``QLinearConv``, ``QLinearAdd``).
"""

from __future__ import annotations

import copy
import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from bevstack.engine.config import building
from bevstack.engine.export_comparison import Runner, Step
from bevstack.engine.export_onnx import METADATA, require_portable
from bevstack.engine.streaming import Streams, frames_of
from bevstack.errors import InputError
from bevstack.models import BEVPerception
from bevstack.registry import DATASETS
from bevstack.structures import Frame

IMAGE_INPUTS = ("images", "img")
_FOLLOWING = {"Relu", "Clip", "MaxPool", "AveragePool", "Add", "Concat"}
"""Operators that are quantised where all that they read is."""

Feed = Mapping[str, np.ndarray]


def image_nodes(graph: Any) -> list[str]:
    """Names of the nodes that make features of images: convolutions, and what only stands between them.

    Args:
        graph: an ``onnx.GraphProto``, its nodes in order.
    """
    constant = {entry.name for entry in graph.initializer} | {""}
    from_images, quantised = set(IMAGE_INPUTS), set[str]()
    nodes = {}
    for node in graph.node:
        given = [name for name in node.input if name not in constant]
        if not given:
            constant |= set(node.output)
        elif set(given) <= from_images:
            from_images |= set(node.output)
            convolves = node.op_type == "Conv" and node.input[1] in constant
            if convolves or (node.op_type in _FOLLOWING and set(given) <= quantised):
                quantised |= set(node.output)
                nodes[node.name] = node
    read_by_convolutions = {name for node in nodes.values() if node.op_type == "Conv" for name in node.input}
    for node in reversed(list(nodes.values())):  # what leads to no convolution is left as it is
        if node.op_type != "Conv" and not read_by_convolutions & set(node.output):
            del nodes[node.name]
        elif node.op_type != "Conv":
            read_by_convolutions |= set(node.input)
    return list(nodes)


def quantise(given: Path, path: Path, feeds: Iterable[Feed], reduce_range: bool = False) -> dict[str, int]:
    """Write the INT8 form of a file that :func:`bevstack.engine.export_onnx.write_onnx` wrote.

    Args:
        given: the float32 file.
        path: of the INT8 file.
        feeds: inputs by name, from which the ranges of all values come; each is looked at once.
        reduce_range: weights of seven bits, for x86 CPUs without VNNI, whose sums of eight overflow.

    Returns:
        How often each operator stands in the file.

    Raises:
        InputError: the extra ``export`` is not installed, or nothing in the file can be quantised.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise InputError(path, "onnxruntime", f"{error.name} is missing: pip install 'bevstack[export]'") from error

    model = onnx.load(str(given))
    nodes = image_nodes(model.graph)
    if not nodes:
        raise InputError(path, "--int8", "no convolution of the images: nothing to quantise")
    description = {entry.key: entry.value for entry in model.metadata_props}.get(METADATA, "{}")
    names = {entry.name for entry in model.graph.input}

    class Reader(CalibrationDataReader):
        waiting = iter(feeds)

        def get_next(self) -> dict[str, np.ndarray] | None:
            feed = next(self.waiting, None)
            return None if feed is None else {name: value for name, value in feed.items() if name in names}

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # its advice to infer shapes first, which this quantisation does not need
    try:
        quantize_static(
            model,
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=nodes,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        root.setLevel(level)
    written = onnx.load(str(path))
    del written.metadata_props[:]
    entry = written.metadata_props.add()
    entry.key = METADATA
    entry.value = json.dumps(json.loads(description) | {"int8": {"nodes": len(nodes), "reduce_range": reduce_range}})
    require_portable(written, path)
    onnx.save(written, str(path))
    return dict(Counter(node.op_type for node in written.graph.node).most_common())


def apart(found_by: Runner, expected_by: Runner, feeds: Iterable[Feed]) -> tuple[dict[str, float], list[float]]:
    """How far a quantised file is from the float32 one on the same inputs, and its milliseconds for each.

    Returns:
        By output: root mean square of the difference, as a part of the expected output's deviation from its mean.
    """
    squares: dict[str, np.ndarray] = {}
    times = []
    for feed in feeds:
        began = time.perf_counter()
        found = found_by(feed)
        times.append((time.perf_counter() - began) * 1e3)
        for name, expected in expected_by(feed).items():
            value = expected.astype(np.float64)
            sums = [value.size, value.sum(), (value**2).sum(), ((found[name] - value) ** 2).sum()]
            squares[name] = squares.get(name, np.zeros(4)) + sums
    differences = {}
    for name, (number, total, of_values, of_differences) in squares.items():
        deviation = max(of_values / number - (total / number) ** 2, 0.0)
        differences[name] = float(np.sqrt(of_differences / number / deviation)) if deviation else 0.0
    return differences, times


def calibration_feeds(model: BEVPerception, config: Config, step: Step, samples: int) -> Iterator[Feed]:
    """Inputs of a step for training samples of the config's own data, each with the memory of what came before.

    Args:
        model: whose preprocessor and memory it is.
        config: of the model. The samples are of its training split, and what is done to their images is what is done in
            a test.
        step: what is exported.
        samples: how many, in pairs that follow each other, spread over the split.

    Raises:
        InputError: no data, or images of another size than the file's.
    """
    dataset = training_samples(config)
    starts = np.linspace(0, max(len(dataset) - 2, 0), max(samples // 2, 1)).astype(int)
    indices = [int(start) + n for start in starts for n in range(2)][:samples]
    streams = Streams()
    for index in indices:
        if not 0 <= index < len(dataset):
            continue
        with torch.no_grad():
            data = model.data_preprocessor(pseudo_collate([dataset[index]]), False)
            found = data["data_samples"]
            memory = streams.carried(found)
            for frame in data["inputs"].frames:
                past = memory if bool(frame.motion.has_previous.all()) else None
                yield _feed(step, frame, past)
                memory = model.step(frame, past)[1] if model.memory_frames else None
        streams = Streams(memory, tuple(sample.token for sample in found), frames_of(found))


def made_up_feeds(step: Step, clip: Iterable[Frame]) -> Iterator[Feed]:
    """Inputs of a step for a made-up clip, without memory: for timing, not for accuracy."""
    for frame in clip:
        with torch.no_grad():
            yield _feed(step, frame, None)


def _feed(step: Step, frame: Frame, memory: Any) -> Feed:
    expected = getattr(step, "padded_size_px", None)
    if expected is not None and tuple(frame.images.shape[-2:]) != tuple(expected):
        found, wanted = ("x".join(map(str, size)) for size in (frame.images.shape[-2:], expected))
        raise InputError("calibration", "images", f"{found} pixels, the file takes {wanted}: set --image-size")
    return {name: value.numpy() for name, value in step.inputs_of(frame, memory).items()}


def training_samples(config: Config) -> Any:
    """The training split of a config's data, read as in a test.

    Raises:
        InputError: the config has no such data, or it cannot be read.
    """
    file = config.filename or "config"
    loaders: list[Any] = [(config.get(f"{part}_dataloader") or {}).get("dataset") for part in ("test", "train")]
    if None in loaders or any("split" not in loader for loader in loaders):
        raise InputError(file, "train_dataloader", "no dataset with a split to calibrate on; --calibration-samples 0")
    settings = copy.deepcopy(loaders[0])
    settings["split"] = loaders[1]["split"]
    with building(config):
        return DATASETS.build(settings)
