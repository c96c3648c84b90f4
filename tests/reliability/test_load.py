"""Sizes that a user meets: nuScenes' full tables, loader processes on them, a stream of thousands of frames.

Memory is read from the kernel (``/proc``), of a forked process of its own; seconds are the process's own, so that what
else runs does not count. Bounds are about twice what was measured (docs/reliability.md), so that a copy too many shows.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bevstack import CameraChecks, Moment, Motion, Predictor
from bevstack.datasets.nuscenes.dataset import NuScenesBEVDataset
from bevstack.datasets.nuscenes.index import NuScenesIndex
from bevstack.datasets.nuscenes.index_writer import write_index
from tests.engine.front_door import EGO_FROM_BEV, images_of, pose, rig_of, small_config, trained

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from tables import VERSION, build_root  # noqa: E402 - a folder of helpers without a package

SAMPLES, SCENES, BOXES = 34_149, 850, 10
MB = 1e6


def memory_of(kind: str) -> float:
    """MB that the kernel counts for this process: VmRSS, VmHWM (the most so far), or Private (its alone)."""
    if kind == "Private":
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private")) / 1024
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


def in_a_fork(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a forked process; its memory goes with it."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=lambda: queue.put(function(*arguments)))
    process.start()
    try:
        return queue.get(timeout=900)
    finally:
        process.join(30)


def full_size_root(folder: Path) -> Path:
    """Tables of nuScenes' size without sweeps: 34,149 samples of six cameras and a lidar, ten boxes in each.

    They are the tiny root's rows again and again; all samples of a camera name one file.
    """
    root = build_root(folder)
    tables = {path.stem: json.loads(path.read_text()) for path in (root / VERSION).glob("*.json")}
    first = {name: {row["token"]: row for row in tables[name]} for name in ("sample_data", "ego_pose")}
    own = [row for row in tables["sample_data"] if row["sample_token"] == "s0k0"]
    box = tables["sample_annotation"][0]
    names = ("scene", "sample", "sample_data", "ego_pose", "sample_annotation", "instance")
    made: dict[str, list] = {name: [] for name in names}
    start = tables["sample"][0]["timestamp"]
    for s, rows in enumerate(np.array_split(np.arange(SAMPLES), SCENES)):
        tokens = [f"s{s}k{k}" for k in range(len(rows))]
        ends = {"first_sample_token": tokens[0], "last_sample_token": tokens[-1], "nbr_samples": len(rows)}
        scene = {"token": f"scene{s}", "log_token": "log0", "name": f"scene-{s + 1:04d}", "description": ""}
        made["scene"].append(scene | ends)
        for k, token in enumerate(tokens):
            stamp = start + s * 100_000_000 + k * 500_000
            links = {"prev": tokens[k - 1] if k else "", "next": tokens[k + 1] if k + 1 < len(tokens) else ""}
            made["sample"].append({"token": token, "timestamp": stamp, "scene_token": f"scene{s}", **links})
            for row in own:
                channel = row["calibrated_sensor_token"]
                names = {"token": f"d{token}{channel}", "ego_pose_token": f"p{token}{channel}", "sample_token": token}
                made["sample_data"].append({**row, **names, "timestamp": stamp})
                placed = {"token": f"p{token}{channel}", "timestamp": stamp, "translation": [100.0 + 2 * k, 200.0, 0.0]}
                made["ego_pose"].append({**first["ego_pose"][row["ego_pose_token"]], **placed})
            for b in range(BOXES):
                chain = {"prev": f"a{s}b{b}k{k - 1}" if k else "",
                         "next": f"a{s}b{b}k{k + 1}" if k + 1 < len(tokens) else ""}  # fmt: skip
                named = {"token": f"a{s}b{b}k{k}", "sample_token": token, "instance_token": f"i{s}b{b}"}
                made["sample_annotation"].append(
                    {**box, **named, **chain, "translation": [110.0 + 3 * k, 190.0 + b, 1.0]}
                )
        for b in range(BOXES):
            ends = {"first_annotation_token": f"a{s}b{b}k0", "last_annotation_token": f"a{s}b{b}k{len(tokens) - 1}"}
            counted = {"token": f"i{s}b{b}", "nbr_annotations": len(tokens)}
            made["instance"].append({**tables["instance"][0], **counted, **ends})
    for name, rows in made.items():
        (root / VERSION / f"{name}.json").write_text(json.dumps(rows))
    (root / VERSION / "splits.json").unlink()
    return root


def built(root: Path) -> dict[str, float]:
    """What making the index takes."""
    before, started = memory_of("VmRSS"), time.process_time()
    made = write_index(root, VERSION, maps=False, progress=lambda text: None)
    return {
        "samples": made["samples"],
        "boxes": made["boxes"],
        "index_mb": made["bytes"] / MB,
        "seconds": time.process_time() - started,
        "most_mb": memory_of("VmHWM") - before,
    }


def opened(root: Path) -> dict[str, float]:
    """What opening it takes, with all checks."""
    before, started = memory_of("Private"), time.process_time()
    index = NuScenesIndex.open(root, VERSION)
    assert len(index) == SAMPLES
    return {"seconds": time.process_time() - started, "private_mb": memory_of("Private") - before}


def size_of_sample(results: dict) -> dict[str, float]:
    """A pipeline of one step: how many boxes; of one sample in twenty, which takes time, what the process holds."""
    asked = results["rng"].random() < 0.05
    return {"boxes": len(results["boxes"]), "private_mb": memory_of("Private") if asked else float("nan")}


def loaded(root: Path, workers: int) -> dict[str, float]:
    """What a loader's processes hold after 2,000 samples from all over the index."""
    dataset = NuScenesBEVDataset(root, VERSION, "all", [size_of_sample])
    chosen = np.random.default_rng(0).choice(SAMPLES, 2000, replace=False).tolist()
    before = memory_of("Private")
    loader = DataLoader(dataset, batch_size=8, sampler=chosen, num_workers=workers, collate_fn=list)
    samples = [sample for batch in loader for sample in batch]
    assert sum(sample["boxes"] for sample in samples) == BOXES * len(samples)
    first, last = (np.nanmax([sample["private_mb"] for sample in part]) for part in (samples[:400], samples[-400:]))
    return {"first_mb": float(first), "last_mb": float(last), "main_mb": memory_of("Private") - before}


@pytest.mark.slow
def test_an_index_of_nuscenes_size(tmp_path, capsys) -> None:
    """Built in bounded time and memory, opened in a fraction of both, and shared by a loader's processes: what each
    holds for itself is the same for two as for four, far below the index, and does not grow from batch to batch."""
    root = full_size_root(tmp_path / "root")
    made = in_a_fork(built, root)
    with capsys.disabled():
        print("\nfull size:", json.dumps(made))
    assert made["samples"] == SAMPLES and made["boxes"] == SAMPLES * BOXES
    assert made["seconds"] < 60 and made["most_mb"] < 2500, made
    read = in_a_fork(opened, root)
    assert read["seconds"] < 5 and read["private_mb"] < 200, read
    held = {workers: in_a_fork(loaded, root, workers) for workers in (0, 2, 4)}
    for workers, sizes in held.items():
        assert sizes["last_mb"] < sizes["first_mb"] + 20, (workers, sizes)
    assert max(held[workers]["last_mb"] for workers in (2, 4)) < 50, held
    assert held[4]["last_mb"] < 1.2 * held[2]["last_mb"] + 5
    with capsys.disabled():
        print("opened:", json.dumps(read), "loaded:", json.dumps(held))


def moments(count: int) -> Iterator[Moment]:
    """A drive of which every moment has a calibration of its own, as where it is measured anew all the time."""
    pictures = [images_of(seed) for seed in range(8)]
    before = None
    for k in range(count):
        now = pose(0.5 * k, 0.0, k % 360) @ EGO_FROM_BEV
        rig = rig_of()
        rig.camera_from_bev[:, 0, 3] += 1e-4 * k
        yield Moment(pictures[k % 8], rig, None if before is None else Motion.between(before, now, 0.5))
        before = now


def streamed(frames: int) -> dict[str, list[float]]:
    """Memory and the process's own seconds at the end of each tenth of a stream."""
    torch.set_num_threads(1)
    cfg = small_config()
    predictor = Predictor(trained(cfg).eval(), cfg, camera_checks=CameraChecks(overlap=False))
    sizes, seconds, started = [], [], time.process_time()
    for number, prediction in enumerate(predictor.stream(moments(frames)), start=1):
        assert prediction.boxes is not None
        if number % (frames // 10) == 0:
            sizes.append(memory_of("VmRSS"))
            seconds.append(time.process_time() - started)
            started = time.process_time()
    return {"mb": sizes, "seconds": seconds}


@pytest.mark.slow
def test_2000_frames_of_a_stream(capsys) -> None:
    """From the second tenth on, memory grows by less than 1 % and a tenth takes no longer than 1.5 times the second."""
    found = in_a_fork(streamed, 2000)
    assert len(found["mb"]) == 10 and found["mb"][-1] < 1.01 * found["mb"][1], found
    assert np.median(found["seconds"][-3:]) < 1.5 * found["seconds"][1], found
    with capsys.disabled():
        print("\nstream of 2000:", json.dumps(found))


def test_a_short_stream_keeps_its_memory() -> None:
    """The same over 100 frames: less than 10 MB from the second tenth to the last."""
    found = in_a_fork(streamed, 100)
    assert found["mb"][-1] < found["mb"][1] + 10, found
