"""Checkpoint files: written whole or not at all, checked when read, never unpickled into code."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bevstack.errors import InputError
from bevstack.files import atomic_write
from bevstack.interop.foreign_weights import native_weights
from bevstack.weights import file_of
from bevstack.weights.header import WeightsHeader, names_of, read_metadata

LAST_CHECKPOINT = "last_checkpoint"
TRAINED_WITH = ("classes", "cameras")  # lists of a dataset's metainfo that stripped weights tell, too
_PATTERNS = ("epoch_*.pth", "iter_*.pth")


def _mmengine_globals() -> list:
    """What checkpoints of mmengine hold beside tensors and plain values: histories of logged scalars."""
    scalars = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "bool_")
    dtype_classes = {type(np.dtype(getattr(np, name))) for name in scalars}
    multiarray = np.core.multiarray
    # What numpy pickles arrays and scalars by; its stubs leave both out.
    functions = [multiarray._reconstruct, multiarray.scalar]  # type: ignore[attr-defined]  # left out
    return [HistoryBuffer, *functions, np.ndarray, np.dtype, *dtype_classes]


def write_checkpoint(checkpoint: dict, path: str | os.PathLike) -> None:
    """Save a checkpoint so that ``path`` is at every moment either the earlier file or the complete new one.

    Raises:
        InputError: it cannot be written; or it holds something that reading with ``weights_only`` would refuse.
    """
    path, remark = Path(path), "; the checkpoint before it is intact"
    with atomic_write(path, "write", remark) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
        except RuntimeError as error:  # torch's zip writer where the disk is full
            raise InputError(path, "write", f"cannot be written: {str(error).splitlines()[0]}{remark}") from error
        allowed = {f"{entry.__module__}.{entry.__qualname__}" for entry in _mmengine_globals()}
        refused = set(torch.serialization.get_unsafe_globals_in_checkpoint(temporary)) - allowed
        if refused:
            raise InputError(path, "content", f"objects that are not plain data: {', '.join(sorted(refused))}")


def read_checkpoint(path: str | os.PathLike, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this package or of mmengine, or a safetensors file: plain data only, every byte checked.

    Returns:
        A dict with at least ``state_dict``; a file that is a bare state dict is put under that key. What a safetensors
        file says about itself is its ``meta``; of one with a whole header (:mod:`bevstack.weights.header`) with the
        header's values.

    Raises:
        InputError: no such file, not a checkpoint, truncated, damaged, or a pickle that would run code (it does not).
    """
    path = Path(path)
    _check_file(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path, map_location)
    try:
        with torch.serialization.safe_globals(_mmengine_globals()):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "refused: it is not plain data (a pickle may run code), or it is damaged"
        raise InputError(path, "checkpoint", reason) from error
    except (RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise InputError(path, "checkpoint", f"cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict):
        raise InputError(path, "checkpoint", f"holds a {type(checkpoint).__name__}, not a dict")
    if "state_dict" not in checkpoint:
        if not checkpoint or not all(isinstance(value, Tensor) for value in checkpoint.values()):
            raise InputError(path, "state_dict", "the file has none")
        checkpoint = {"state_dict": checkpoint}
    return checkpoint


def _read_safetensors(path: Path, map_location: str | torch.device) -> dict[str, Any]:
    told = read_metadata(path)
    meta: dict[str, Any] = dict(told)
    if "format_version" in told:
        header = WeightsHeader.of_metadata(told, path)
        meta |= {part.name: value for part in fields(header) if (value := getattr(header, part.name))}
    trained = {name: names_of(_plain_json(told[name], name, path), name, path) for name in TRAINED_WITH if name in told}
    if trained:
        meta["dataset_meta"] = trained
    try:
        with safe_open(path, framework="pt", device=str(map_location)) as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(path, "checkpoint", f"truncated or damaged ({error})") from error
    return {"state_dict": weights, "meta": meta}


def _plain_json(text: str, name: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(path, name, "is no JSON") from None


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise InputError(path, "checkpoint", "no such file" if not path.exists() else "not a file")
    if path.stat().st_size == 0:
        raise InputError(path, "checkpoint", "the file is empty")
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    if not zipped:
        return  # torch's older format has no checksums; reading it finds what it finds
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError) as error:
        raise InputError(path, "checkpoint", f"truncated or damaged ({error})") from error
    if damaged is not None:
        raise InputError(path, "checkpoint", f"damaged: checksum of {damaged} does not match")


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that training can continue from; damaged ones are passed over.

    What counts is when training wrote it, as the file itself says: copying a folder changes the files' own times.

    Args:
        folder: a work directory; where it holds no checkpoints, the folder that its ``last_checkpoint`` names.

    Returns:
        The file, or None where there is none, and one text for each newer file that cannot be read.
    """
    files = [path for pattern in _PATTERNS for path in folder.glob(pattern)]
    pointer = folder / LAST_CHECKPOINT
    if not files and pointer.is_file():
        elsewhere = Path(os.fsdecode(pointer.read_bytes().strip())).parent
        files = [path for pattern in _PATTERNS for path in elsewhere.glob(pattern)]
    problems: list[str] = []
    for path in sorted(files, key=_written, reverse=True):
        try:
            read_checkpoint(path)
        except InputError as error:
            problems.append(str(error))
        else:
            return path, problems
    return None, problems


def checkpoint_of(place: str | os.PathLike) -> Path:
    """The checkpoint that a place means: shipped weights by their name (:data:`bevstack.weights.NAMES`), a file itself,
    of a work directory the newest one that can be read.

    Raises:
        InputError: the directory has none, or the weights of that name do not come with this version.
    """
    path = file_of(place)
    if not path.is_dir():
        return path
    newest, problems = newest_checkpoint(path)
    if newest is None:
        raise InputError(path, "checkpoint", "; ".join(["this folder has none", *problems]))
    return newest


def _written(path: Path) -> tuple[float, int]:
    """When a checkpoint was written and after how many steps; what cannot be read counts as the newest."""
    try:
        with torch.serialization.safe_globals(_mmengine_globals()):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        meta = checkpoint["meta"]
        return float(meta.get("unix_time", path.stat().st_mtime)), int(meta.get("iter", 0))
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, TypeError, OSError):
        return float("inf"), 0


def load_weights(model: nn.Module, state_dict: dict[str, Tensor], file: str | os.PathLike, strict: bool) -> str:
    """Copy weights into a model.

    Args:
        model: receives them; untouched when an error is raised.
        state_dict: names (a leading ``module.`` is dropped) to tensors of any shape; published models' are recognised
            (:mod:`bevstack.interop.foreign_weights`).
        file: named in messages.
        strict: whether missing and unexpected keys are an error rather than a message.

    Returns:
        "" or one line on missing and unexpected keys.

    Raises:
        InputError: a shape that does not fit (key and both shapes are named), weights that are not finite, keys under
            ``strict``, or no key in common.
    """
    weights = {key.removeprefix("module."): value for key, value in state_dict.items()}
    weights = dict(native_weights(weights, model, file))
    own = model.state_dict()
    others = [key for key, value in weights.items() if key in own and getattr(value, "shape", None) != own[key].shape]
    for key, value in weights.items():
        if key in others and isinstance(value, Tensor):
            reason = f"the file has shape {tuple(value.shape)}, the model needs {tuple(own[key].shape)}"
            raise InputError(file, key, reason if strict else f"{reason}; {_start_new(others)}")
        if not isinstance(value, Tensor):
            raise InputError(file, key, f"holds a {type(value).__name__}, not a tensor")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(file, key, "weights are not finite")
    missing = [key for key in own if key not in weights]
    unexpected = [key for key in weights if key not in own]
    if len(missing) == len(own):
        raise InputError(file, "state_dict", f"no key fits the model; the first is {next(iter(weights), 'absent')!r}")
    kinds = (("missing", missing), ("unexpected", unexpected))
    if strict and (missing or unexpected):
        reason = "; ".join(_listed(kind, keys) for kind, keys in kinds if keys)
        raise InputError(file, "state_dict", reason)
    model.load_state_dict(weights, strict=False)
    told = (("new weights, not in the file", missing), ("weights of the file without a place", unexpected))
    return "; ".join(f"{kind}: {_by_part(keys)}" for kind, keys in told if keys)


def as_parts(parts: str | Sequence[str] | None) -> tuple[str, ...]:
    """Names of parts of a model, as a config states them: none, one as text, or several."""
    return () if not parts else (parts,) if isinstance(parts, str) else tuple(parts)


def touches(part: str, name: str) -> bool:
    """Whether a part of a model is another one, contains it or belongs to it, by their names (``heads.detection``)."""
    return f"{name}.".startswith(f"{part}.") or part.startswith(f"{name}.")


def without_parts(
    weights: dict[str, Tensor], parts: Sequence[str], file: str | os.PathLike
) -> dict[str, Tensor]:
    """Weights of a file without those of some parts of the model, which thereby start new.

    Args:
        weights: by name, of any shape.
        parts: names as ``heads.detection`` or ``heads.detection.heatmap``.
        file: named in messages.

    Raises:
        InputError: the file has no such part.
    """
    kept = dict(weights)
    for part in parts:
        found = [name for name in kept if f"{name.removeprefix('module.')}.".startswith(f"{part}.")]
        if not found:
            raise InputError(file, "new_parts", f"the file has no part {part!r}")
        for name in found:
            del kept[name]
    return kept


def _start_new(keys: Sequence[str]) -> str:
    """How to start without some weights: the option that names the layers that they belong to."""
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in keys))
    return f"to start these layers new, as for other classes: --cfg-options new_parts={','.join(layers)}"


def _by_part(keys: Sequence[str]) -> str:
    """Keys counted by part of the model, each head a part of its own: ``heads.scene (10), neck (2)``."""
    parts = Counter(".".join(key.split(".")[: 1 + key.startswith(("heads.", "image_heads."))]) for key in keys)
    return ", ".join(f"{part} ({number})" for part, number in parts.items())


def _listed(kind: str, keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:3])
    return f"{len(keys)} {kind} key{'s' * (len(keys) > 1)}: {shown}{', ...' * (len(keys) > 3)}"


def plain(value: Any) -> Any:
    """A copy of nested containers that ``weights_only`` reads.

    Tensors go to the CPU, numpy arrays become tensors and numpy scalars numbers, histories of logged scalars become
    ``{"history": (values, counts, max_length)}``, paths text; anything else stays as it is.
    """
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, HistoryBuffer):
        values, counts = value.data
        numbers = torch.tensor(values.tolist(), dtype=torch.float64), torch.tensor(counts.tolist(), dtype=torch.float64)
        return {"history": (*numbers, value.max_length)}
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value] if isinstance(value, list) else tuple(plain(entry) for entry in value)
    return str(value) if isinstance(value, os.PathLike) else value


def message_hub_state(state: dict[str, Any]) -> dict[str, Any]:
    """What mmengine's ``MessageHub.load_state_dict`` takes, from its :func:`plain` form (or its own)."""
    scalars = {}
    for name, entry in state["log_scalars"].items():
        if isinstance(entry, dict):
            values, counts, max_length = entry["history"]
            entry = HistoryBuffer(values.cpu().numpy(), counts.cpu().numpy(), max_length)
        scalars[name] = entry
    return {**state, "log_scalars": scalars}


def rng_state() -> dict[str, Any]:
    """States of the random number generators of Python, numpy, torch and the CUDA devices, as plain data."""
    state = np.random.get_state(legacy=False)
    keys = torch.from_numpy(state["state"]["key"].astype(np.int64))
    return {
        "python": random.getstate(),
        "numpy": (state["bit_generator"], keys, state["state"]["pos"], state["has_gauss"], state["gauss"]),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Counterpart of :func:`rng_state`."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([entry.cpu() for entry in state["cuda"]])


@contextmanager
def unchanged_rng() -> Iterator[None]:
    """Leave the random number generators as they were: what happens inside must not change training."""
    state = rng_state()
    try:
        yield
    finally:
        restore_rng_state(state)
