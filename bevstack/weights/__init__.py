"""Weights that come with the package: which there are, where they lie, and what world they were trained on.

``load_model("demo")`` and every tool take these names where they take a checkpoint or a config. Nothing here reads a
weight or imports torch.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

from bevstack.errors import InputError
from bevstack.weights.header import ENDING, WeightsHeader, read_header

NAMES = ("demo", "full")
"""``demo``: boxes, map and vehicles. ``full``: every head."""
FOLDER = Path(__file__).parent
_FLAGS = ("sweeps",)  # of tools/create_synthetic.py that take no value


def is_name(place: str | os.PathLike) -> bool:
    """Whether a place is the name of shipped weights; a file or folder of that name is meant by ``./NAME``."""
    return isinstance(place, str) and place in NAMES


def shipped() -> tuple[str, ...]:
    """The names whose weights are there."""
    return tuple(name for name in NAMES if (FOLDER / f"{name}{ENDING}").is_file())


def weights_file(name: str) -> Path:
    """The file of shipped weights.

    Raises:
        InputError: there is no such name, or its weights do not come with this version.
    """
    if name not in NAMES:
        raise InputError(name, "weights", f"no such name; there are {', '.join(NAMES)}")
    path = FOLDER / f"{name}{ENDING}"
    if not path.is_file():
        there = ", ".join(shipped()) or "none"
        raise InputError(name, "weights", f"do not come with this version ({there} of {', '.join(NAMES)} is there)")
    return path


def file_of(place: str | os.PathLike) -> Path:
    """A path as it is, or the file of the shipped weights that a name means.

    Raises:
        InputError: see :func:`weights_file`.
    """
    return weights_file(str(place)) if is_name(place) else Path(place)


def carries_config(place: str | os.PathLike) -> bool:
    """Whether a place that a config was asked for is a file of weights (or a name of some), whose header has one."""
    return is_name(place) or Path(place).suffix == ENDING


def header_of(place: str | os.PathLike) -> WeightsHeader:
    """What shipped weights, or a file of weights, say of themselves.

    Raises:
        InputError: no such weights, or a header that is not whole or not what this package writes.
    """
    return read_header(file_of(place))


def world_of(place: str | os.PathLike) -> dict[str, Any]:
    """The synthetic world of some weights: arguments of ``tools/create_synthetic.py`` by their names there.

    Raises:
        InputError: see :func:`header_of`; or they were not trained on a synthetic world.
    """
    world = dict(header_of(place).recipe)
    if not world:
        raise InputError(file_of(place), "recipe", "absent: these weights were not trained on a synthetic world")
    return world


def recipe(name: str) -> list[str]:
    """The arguments of ``tools/create_synthetic.py``, but for ``--root``, of the world that weights were trained on.

    Args:
        name: of :data:`NAMES`, or a file of weights.

    Raises:
        InputError: see :func:`world_of`.
    """
    arguments: list[str] = []
    for key, value in world_of(name).items():
        flag = f"--{key.replace('_', '-')}"
        arguments += [flag] * bool(value) if key in _FLAGS else [flag, str(value)]
    return arguments


def unseen_seed(name: str, wanted: int | None = None) -> int:
    """A seed of a world that weights have not seen: the one wanted, else a drawn one, and never that of training.

    Args:
        name: of :data:`NAMES`, or a file of weights.
        wanted: taken as it is, or the next one where it is the seed of training.

    Raises:
        InputError: see :func:`world_of`.
    """
    seed = random.SystemRandom().randrange(1_000_000) if wanted is None else wanted
    return seed + (seed == world_of(name).get("seed"))
