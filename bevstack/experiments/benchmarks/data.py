"""Suite ``data``: a clip's images to what the network takes, on one core, beside the usual OpenMMLab pipeline.

From decoded images on, and from files on. Base is four frames of six images of 1600 x 900; tiny three, brought to half
that size. Both ways are :mod:`bevstack.experiments.usual_pipeline`'s, tested equal to one grey level.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from bevstack.errors import InputError
from bevstack.experiments.benchmarks.measuring import Row, Spread, Stopwatch
from bevstack.experiments.benchmarks.settings import Settings
from bevstack.experiments.usual_pipeline import (
    BASE,
    SMALL,
    TINY,
    PipelineSettings,
    bytes_between_processes,
    our_clip,
    our_images,
    usual_clip,
    usual_images,
)

FILE_PX = (900, 1600)
"""(height, width) of nuScenes' images."""
CLIPS = {"base": BASE, "small": SMALL, "tiny": TINY}
SEED = 0


def run(watch: Stopwatch, settings: Settings) -> list[Row]:
    """Rows of clips for training (with photometric distortion) and for testing; all on one thread.

    ``grey levels apart`` are the mean and the largest difference of the two ways' answers. Where a configuration
    resizes (tiny), the usual one distorts colours before and ours after that, which differs at sharp edges.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in settings.sizes or ("base", "tiny"):
            if name not in CLIPS:
                raise InputError("benchmark", "--sizes", f"{name} has no clips; there are {', '.join(CLIPS)}")
            clip = CLIPS[name]
            paths = picture_files(Path(folder), clip.num_frames)
            decoded = {"usual": usual_images(paths), "ours": our_images(paths)}
            for kind, seed in (("training", SEED), ("testing", None)):
                for start, given in (("decoded", decoded), ("files", dict.fromkeys(decoded, paths))):
                    ways: dict[str, Any] = {"usual": usual_clip, "ours": our_clip}
                    candidates: dict[str, Any] = {key: partial(ways[key], given[key], clip, seed) for key in ways}
                    row = watch.row(f"{name} clip, {kind}, from {start}", candidates)
                    mean, most = grey_levels(candidates["ours"](), candidates["usual"](), clip)
                    row.facts |= {"grey levels apart, mean": mean, "at most": most}
                    for key, taken in row.seconds.items():
                        row.facts[f"{key}: clips a second a core"] = round(1 / Spread.of(taken).median, 2)
                    sent = bytes_between_processes(given["ours"], clip)
                    row.facts |= dict(zip(("usual: bytes sent", "ours: bytes sent"), sent, strict=True))
                    rows.append(row)
    return rows


def grey_levels(found: list[Tensor], expected: Tensor, clip: PipelineSettings) -> tuple[float, float]:
    """How far T frames (N, 3, H, W) are from a clip (T, N, 3, H, W), in grey levels of the images: mean and most."""
    apart = (torch.stack(found) - expected).abs() * torch.tensor(clip.std)[:, None, None]
    return round(apart.mean().item(), 3), round(apart.max().item(), 2)


def picture_files(folder: Path, frames: int) -> list[list[Path]]:
    """Six JPEG files, as smooth and as noisy as a camera's, for each frame; those that are there are kept."""
    generator = np.random.default_rng(0)
    paths = [[folder / f"{frame}_{camera}.jpg" for camera in range(6)] for frame in range(frames)]
    for path in (path for row in paths for path in row if not path.exists()):
        coarse = generator.integers(0, 256, (FILE_PX[0] // 10, FILE_PX[1] // 10, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, FILE_PX[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int16)
        picture += generator.integers(-6, 7, picture.shape, dtype=np.int16)
        cv2.imwrite(str(path), picture.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return paths
