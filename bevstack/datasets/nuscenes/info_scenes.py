"""Samples of info files in scenes: by the scene's token, or by what shows where one ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bevstack.datasets.nuscenes.info_records import InfoFile, InfoSample
from bevstack.datasets.plausibility import FASTEST_EGO_MPS
from bevstack.errors import InputError

_PAUSE_S = 2.0


def scenes_of(file: InfoFile) -> Iterator[tuple[str, list[InfoSample]]]:
    """Scenes with their samples in order of time.

    By ``scene_token`` where the file has it. Else the samples, in the file's order, are cut where time goes back or
    pauses for 2 s, where the ego jumps, where the log in the lidar's file name changes, and where the list of older
    lidar sweeps starts anew, as it does at each scene's start; the scene is then called after its first sample.

    Raises:
        InputError: a sample stands twice, two of a scene have one time, or ``prev`` is not the sample before.
    """
    tokens = [sample.token for sample in file.samples]
    if len(set(tokens)) != len(tokens):
        again = next(token for n, token in enumerate(tokens) if token in tokens[:n])
        raise InputError(file.path, f"{file.style}.token", f"{again} stands twice")
    named = [bool(sample.scene_token) for sample in file.samples]
    scenes: dict[str, list[InfoSample]] = {}
    if all(named):
        for sample in sorted(file.samples, key=lambda sample: sample.timestamp_us):
            scenes.setdefault(sample.scene_token, []).append(sample)
    else:
        token = ""
        for sample in file.samples:
            if not token or _starts_anew(scenes[token][-1], sample):
                token = f"scene-of-{sample.token}"
                scenes[token] = []
            scenes[token].append(sample)
    for samples in scenes.values():
        for before, sample in zip(samples, samples[1:], strict=False):
            if sample.timestamp_us == before.timestamp_us:
                raise InputError(file.path, f"{sample.place}.timestamp", f"is also that of {before.token}")
            if sample.previous and sample.previous in tokens and sample.previous != before.token:
                reason = f"{sample.previous} is not the sample before it in time, {before.token}"
                raise InputError(file.path, f"{sample.place}.prev", reason)
    yield from scenes.items()


def _starts_anew(before: InfoSample, sample: InfoSample) -> bool:
    seconds = 1e-6 * (sample.timestamp_us - before.timestamp_us)
    if not 0 < seconds <= _PAUSE_S or (sample.lidar_sweeps == 0 < before.lidar_sweeps):
        return True
    logs = [Path(moment.lidar_path).name.split("__") for moment in (before, sample)]
    if all(len(parts) == 3 for parts in logs) and logs[0][0] != logs[1][0]:
        return True
    way = sample.global_from_ego[:3, 3] - before.global_from_ego[:3, 3]
    return bool(np.linalg.norm(way) > FASTEST_EGO_MPS * seconds)
