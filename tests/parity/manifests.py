"""Manifests of the published checkpoints: names and shapes of all that their ``state_dict`` holds."""

from __future__ import annotations

import json
import lzma
import math

import torch

from tests.parity.golden import SMALL_FOLDER

SIZES = ("tiny", "small", "base")
# What counts as no parameter: the statistics of BatchNorm and the weights of the loss.
_NO_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked", "code_weights")


def load_manifest(size: str) -> dict[str, list[int]]:
    """Name to shape."""
    return json.loads(lzma.decompress((SMALL_FOLDER / f"checkpoint_{size}.json.xz").read_bytes()))


def parameter_count(manifest: dict[str, list[int]]) -> int:
    return sum(math.prod(shape) for name, shape in manifest.items() if not name.endswith(_NO_PARAMETERS))


def synthetic_checkpoint(manifest: dict[str, list[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random values under the manifest's names."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(seed) if name.endswith("num_batches_tracked") else torch.rand(shape, generator=generator)
        for name, shape in manifest.items()
    }
