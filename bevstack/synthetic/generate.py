"""Make a whole synthetic dataset: scenes in parallel, then tables, maps and splits, then one rename.

Locations carry nuScenes' four names (its map reader knows no others); each is a generated city of districts, one
district a scene, so validation scenes lie in districts that no training scene ever saw. In ``boston-seaport`` traffic
keeps right, in the Singapore ones left, as in nuScenes.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bevstack.errors import InputError
from bevstack.files import atomic_folder
from bevstack.synthetic import tables
from bevstack.synthetic.cameras import CAMERA_SETS, LIDAR_NAME, NATIVE_SIZE_PX, RIGS
from bevstack.synthetic.map_expansion import write_location
from bevstack.synthetic.plan import DISTRICT_SIZE_M
from bevstack.synthetic.recorder import SCENE_TABLES, SceneTask, token_of
from bevstack.synthetic.scene import make_scene

LOCATIONS = ("singapore-onenorth", "boston-seaport", "singapore-hollandvillage", "singapore-queenstown")
CONDITIONS = ("day", "rain", "day", "night", "day")
FIRST_SCENE_NUMBER = 2001  # beyond nuScenes' own numbers and the CAN bus block list
MAP_MARGIN_M = 20.0


def plan_scenes(
    root: Path,
    train: int,
    val: int,
    seed: int,
    image_size: tuple[int, int],
    sweeps: bool,
    frames: int,
    rig: str,
    rare: float,
    cameras: int,
) -> tuple[list[SceneTask], dict[str, list[str]], dict[str, tuple[float, float]]]:
    """The scenes to make, the splits, and each location's map extent (width, height) in metres."""
    total = train + val
    columns = max(1, int(np.ceil(np.sqrt(np.ceil(total / len(LOCATIONS))))))
    used: dict[str, int] = {}
    plan: list[SceneTask] = []
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for index in range(total):
        split, place = ("train", index) if index < train else ("val", index - train)
        location = LOCATIONS[(place + place // len(LOCATIONS)) % len(LOCATIONS)]
        slot = used.get(location, 0)
        used[location] = slot + 1
        pitch = DISTRICT_SIZE_M + 2 * MAP_MARGIN_M
        origin = (MAP_MARGIN_M + pitch * (slot % columns), MAP_MARGIN_M + pitch * (slot // columns))
        name = f"scene-{FIRST_SCENE_NUMBER + index:04d}"
        splits[split].append(name)
        start_us = 1_735_689_600_000_000 + index * 60_000_000
        plan.append(
            SceneTask(
                str(root),
                index,
                seed,
                name,
                location,
                origin,
                CONDITIONS[place % len(CONDITIONS)],
                frames,
                image_size,
                sweeps,
                start_us,
                rig,
                rare if split == "train" else 0.0,
                cameras,
            )
        )
    extents = {
        name: (pitch * min(columns, count), pitch * int(np.ceil(count / columns))) for name, count in used.items()
    }
    return plan, splits, extents


def _run(plan: list[SceneTask], workers: int, each: Callable[[], None]) -> Iterator[dict]:
    """Results in the plan's order, whatever order the workers finish in."""
    if workers <= 1 or len(plan) == 1:
        for task in plan:
            yield make_scene(task)
            each()
        return
    # a server that has imported everything once forks the workers: no threads to inherit, no import a worker
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload([make_scene.__module__])
    with ProcessPoolExecutor(min(workers, len(plan)), mp_context=context) as pool:
        try:
            for future in [pool.submit(make_scene, task) for task in plan]:
                yield future.result()
                each()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def generate(
    root: str | os.PathLike,
    train_scenes: int,
    val_scenes: int,
    seed: int = 0,
    image_size: tuple[int, int] = (800, 450),
    sweeps: bool = False,
    workers: int = 0,
    frames: int = 20,
    version: str = "v1.0-mini",
    progress: bool = True,
    rig: str = "sedan",
    rare: float = 0.0,
    cameras: int = 6,
    only_val: bool = False,
) -> dict[str, float]:
    """Make a dataset at ``root`` (which must not exist, or hold an earlier synthetic dataset, which is replaced).

    ``image_size`` is (width, height) in pixels, at most 1600x900; ``workers`` 0 means one a core; ``rig`` is the car
    that the cameras are on (:data:`bevstack.synthetic.cameras.RIGS`), ``cameras`` how many there are (5, 6 or 7,
    :data:`bevstack.synthetic.cameras.CAMERA_SETS`), in the same world; ``rare`` is how many more of rare kinds there
    are in training scenes (:func:`bevstack.synthetic.traffic.populate`). ``only_val`` leaves the train scenes out and
    makes the others as if they were there. The bytes depend on the other arguments only. Returns counts and seconds.
    Raises InputError on arguments that cannot work and where the files cannot be written; nothing half written stays.
    """
    root = Path(root)
    _check(root, train_scenes, val_scenes, seed, image_size, frames, version)
    if only_val and val_scenes < 1:
        raise InputError("create_synthetic", "--only-val", "leaves no scene; name some --val-scenes")
    if rig not in RIGS:
        raise InputError("create_synthetic", "--rig", f"{rig!r} is none of {', '.join(RIGS)}")
    if not 0 <= rare <= 10:
        raise InputError("create_synthetic", "--rare", f"{rare} is not between 0 and 10")
    if cameras not in CAMERA_SETS:
        raise InputError("create_synthetic", "--cameras", f"{cameras} is none of {', '.join(map(str, CAMERA_SETS))}")
    started = time.perf_counter()
    with atomic_folder(root, "root") as work:
        for name in (*CAMERA_SETS[cameras], LIDAR_NAME):
            (work / "samples" / name).mkdir(parents=True)
            if sweeps and name != LIDAR_NAME:
                (work / "sweeps" / name).mkdir(parents=True)
        for folder in ("maps/expansion", "can_bus", version):
            (work / folder).mkdir(parents=True)
        plan, splits, extents = plan_scenes(
            work, train_scenes, val_scenes, seed, image_size, sweeps, frames, rig, rare, cameras
        )
        if only_val:
            plan, splits["train"] = [task for task in plan if task.name in splits["val"]], []
            there = {task.location for task in plan}
            extents = {name: extent for name, extent in extents.items() if name in there}
        workers = workers or os.cpu_count() or 1
        results = _with_progress(plan, workers) if progress else list(_run(plan, workers, lambda: None))
        counts = _write(work, version, plan, results, splits, extents)
    counts["seconds"] = time.perf_counter() - started
    return counts


def _check(root: Path, train: int, val: int, seed: int, image_size: tuple[int, int], frames: int, version: str) -> None:
    for field, value, low in (
        ("--train-scenes", train, 0),
        ("--val-scenes", val, 0),
        ("--frames", frames, 2),
        ("--seed", seed, 0),
    ):
        if value < low:
            raise InputError("create_synthetic", field, f"{value} is below {low}")
    if train + val < 1:
        raise InputError("create_synthetic", "--train-scenes", "no scene asked for")
    if FIRST_SCENE_NUMBER + train + val > 9999:
        raise InputError(
            "create_synthetic", "--train-scenes", "scene names have four digits: at most 7999 scenes in all"
        )
    if not root.name:
        raise InputError(root, "root", "names no folder of its own")
    width, height = image_size
    if not (32 <= width <= NATIVE_SIZE_PX[0] and 32 <= height <= NATIVE_SIZE_PX[1]):
        raise InputError("create_synthetic", "--image-size", f"{width}x{height} is not between 32x32 and 1600x900")
    if not version or os.sep in version or version.startswith("."):
        raise InputError("create_synthetic", "--version", f"{version!r} is not a folder name")
    if root.exists() and not (root.is_dir() and ((root / "synthetic.json").exists() or not any(root.iterdir()))):
        raise InputError(root, "root", "exists and is not a synthetic dataset; remove it or choose another folder")
    if not os.access(_existing_parent(root), os.W_OK):
        raise InputError(root, "root", "cannot be written")


def _existing_parent(path: Path) -> Path:
    for parent in path.absolute().parents:
        if parent.exists():
            return parent
    return Path("/")


def _with_progress(plan: list[SceneTask], workers: int) -> list[dict]:
    columns = (
        TextColumn("rendering scenes"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        job = bar.add_task("scenes", total=len(plan))
        return list(_run(plan, workers, lambda: bar.advance(job)))


def _write(
    work: Path,
    version: str,
    plan: list[SceneTask],
    results: list[dict],
    splits: dict[str, list[str]],
    extents: dict[str, tuple[float, float]],
) -> dict[str, float]:
    merged = tables.fixed_tables(CAMERA_SETS[plan[0].cameras])
    for name in SCENE_TABLES:
        merged[name] = [row for result in results for row in result["tables"][name]]
    merged["map"] = []
    for location, extent in extents.items():
        token = token_of("map", location)
        logs = [row["token"] for row in merged["log"] if row["location"] == location]
        merged["map"].append(
            {"category": "semantic_prior", "token": token, "filename": f"maps/{token}.png", "log_tokens": logs}
        )
        write_location(
            work,
            location,
            f"maps/{token}.png",
            [r["map"] for r, t in zip(results, plan, strict=True) if t.location == location],
            extent,
        )
    for name, rows in merged.items():
        (work / version / f"{name}.json").write_text(json.dumps(rows))
    named = {**splits, "synthetic_train": splits["train"], "synthetic_val": splits["val"]}
    (work / version / "splits.json").write_text(json.dumps(named, indent=1))
    task = plan[0]
    (work / "synthetic.json").write_text(
        json.dumps(
            {
                "seed": task.seed,
                "train_scenes": len(splits["train"]),
                "val_scenes": len(splits["val"]),
                "image_size": list(task.image_size),
                "frames": task.frames,
                "sweeps": task.sweeps,
                "rig": task.rig,
                "rare": task.rare,
                "cameras": task.cameras,
            },
            indent=1,
        )
    )
    return {
        "scenes": len(plan),
        "samples": len(merged["sample"]),
        "images": sum(int(r["images"]) for r in results),
        "annotations": len(merged["sample_annotation"]),
    }
