"""Manifests of the published checkpoints: names and shapes of all that their ``state_dict`` holds."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from tests.parity.golden import golden_folder

DEFAULT_FOLDER = Path(__file__).resolve().parents[3] / "shared" / "golden"
SIZES = ("tiny", "small", "base")
# What counts as no parameter: the statistics of BatchNorm and the weights of the loss.
_NO_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked", "code_weights")


def load_manifest(size: str) -> dict[str, list[int]]:
    """Name to shape; skips the test only where the whole folder is absent.

    A folder of recordings with other sizes and seeds need not repeat them: they are read from the default one, then.
    """
    name = f"checkpoint_{size}.json"
    folder = next((place for place in (golden_folder(), DEFAULT_FOLDER) if (place / name).is_file()), golden_folder())
    if not folder.is_dir():
        pytest.skip(f"no manifests: folder {folder} is absent (set BEVSTACK_GOLDEN)")
    return json.loads((folder / name).read_text())


def parameter_count(manifest: dict[str, list[int]]) -> int:
    return sum(math.prod(shape) for name, shape in manifest.items() if not name.endswith(_NO_PARAMETERS))


def synthetic_checkpoint(manifest: dict[str, list[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values under the manifest's names."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(seed) if name.endswith("num_batches_tracked") else torch.rand(shape, generator=generator)
        for name, shape in manifest.items()
    }
