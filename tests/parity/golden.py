"""The recorded tensors of the reference: where they are, how they are read, how close is close enough."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

# As stated in the README beside the recordings: they are float32, and float64 differs from them by up to 1.8e-4.
ATOL, RTOL = 3e-4, 1e-5
_REPOSITORY = Path(__file__).resolve().parents[2]


def golden_folder() -> Path:
    """``BEVSTACK_GOLDEN``, or the folder ``shared/golden`` beside the repository."""
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


def load_case(name: str) -> GoldenCase:
    """Read a case; skips the test only where the whole folder is absent. A folder without this case is an error."""
    folder = golden_folder()
    if not folder.is_dir():
        pytest.skip(f"no recorded tensors: folder {folder} is absent (set BEVSTACK_GOLDEN)")
    from safetensors.torch import load_file

    info = json.loads((folder / f"{name}.json").read_text())
    return GoldenCase(name, info, load_file(folder / f"{name}.safetensors"))


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
