"""The recorded tensors of the reference: where they are, how they are read, how close is close enough.

There are two sets of the same cases: the small one in ``tests/golden``, which every test run has, and the large one
outside the repository. Tests are made from what the JSON of each set says is there.
"""

from __future__ import annotations

import json
import lzma
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

# As measured in float64, which differs from the float32 recordings by up to 1.8e-4 (tests/golden/README.md).
ATOL, RTOL = 3e-4, 1e-5
_REPOSITORY = Path(__file__).resolve().parents[2]
SMALL_FOLDER = _REPOSITORY / "tests" / "golden"


def large_folder() -> Path:
    """``BEVSTACK_GOLDEN``, or the folder ``shared/golden`` beside the repository; it need not exist."""
    return Path(os.environ.get("BEVSTACK_GOLDEN") or _REPOSITORY.parent / "shared" / "golden")


@dataclass(frozen=True)
class GoldenCase:
    """One case: its JSON and its tensors by full key (``in.*``, ``weights.*``, ``out.*``)."""

    name: str
    info: dict
    tensors: dict[str, Tensor]

    @property
    def config(self) -> dict:
        """The sizes that the case was recorded with."""
        return self.info["config"]

    def group(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose key starts with ``prefix.``, by the rest of the key."""
        start = prefix + "."
        return {key[len(start) :]: tensor for key, tensor in self.tensors.items() if key.startswith(start)}

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors


@cache
def _info(path: Path) -> dict:
    return json.loads(path.read_text())


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, also of a compressed one (``.xz``)."""
    content = path.read_bytes()
    return safetensors.torch.load(lzma.decompress(content) if path.suffix == ".xz" else content)


def load_case(path: Path) -> GoldenCase:
    """The case whose JSON is ``path``: ``pytest.fixture(params=recordings(...))`` and ``request.param``."""
    plain, packed = path.with_suffix(".safetensors"), path.with_suffix(".safetensors.xz")
    return GoldenCase(path.stem, _info(path), read_tensors(packed if packed.exists() else plain))


def recordings(name: str, *needed: str) -> list:
    """Parameters for a test or a fixture: the JSON of the case in each set that has it.

    Args:
        name: of the case.
        needed: names of tensors; a set whose JSON does not list them all has no test.

    Returns:
        One parameter a set, named ``small-`` or ``large-`` and the case; a skipped one where the large set is absent.
        A set that is there without this case is an error.
    """
    found = []
    for label, folder in (("small", SMALL_FOLDER), ("large", large_folder())):
        path = folder / f"{name}.json"
        if label == "large" and not folder.is_dir():
            skip = pytest.mark.skip(reason=f"no large set of recordings: folder {folder} is absent")
            found.append(pytest.param(path, id=f"{label}-{name}", marks=skip))
        elif set(needed) <= set(_info(path).get("tensors", ())):
            found.append(pytest.param(path, id=f"{label}-{name}"))
    return found


def assert_matches(actual: Tensor, recorded: Tensor, what: str = "") -> None:
    """Equal within the tolerance of the recordings; integer and bool tensors exactly."""
    exact = not recorded.is_floating_point()
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": RTOL, "atol": ATOL}
    torch.testing.assert_close(
        actual.detach().to(recorded.dtype) if not exact else actual,
        recorded,
        msg=lambda text: f"{what}: {text}",
        **tolerance,
    )
