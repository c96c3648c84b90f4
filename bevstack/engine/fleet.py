"""``tools/infer_dataset.py``: a model over any number of scenes, by workers of Ray Data; here or on a cluster.

A scene is one piece of work: its memory is right whatever worker takes it, and its results are one file that appears
when it is whole. So a worker that dies loses nothing that was written, Ray gives its scene to another, and a job that
is started again goes on with the scenes that have no file. All is joined at the end: nuScenes' JSON and one table.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from bevstack.engine.arguments import infer_dataset_arguments
from bevstack.engine.checkpoint import checkpoint_of, file_of
from bevstack.engine.result_files import COLUMNS, require_parquet, write_json, write_row_groups
from bevstack.engine.scene_inference import (
    FleetJob,
    ScenePlan,
    ScenePredictor,
    job_config,
    job_dataset,
    read_scene,
    scene_plans,
)
from bevstack.errors import InputError
from bevstack.evaluation.submission import require_detection_classes
from bevstack.files import atomic_write, remove_partial_files, require_writable

JOB_FILE, JSON_FILE, TABLE_FILE = "job.json", "results_nusc.json", "boxes.parquet"
_RESTARTS, _RETRIES = 20, 5


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict what the command line asks for; print what was made and how fast.

    Raises:
        InputError: a mistake in the flags, the checkpoint or the data, or Ray is asked for and absent.
    """
    args = infer_dataset_arguments(arguments)
    require_parquet("infer_dataset", "--out")
    if args.workers:
        require_ray()
    threads = max(1, (os.cpu_count() or 1) // max(1, args.workers)) if args.address is None else 0
    job = FleetJob(
        model=str(file_of(args.model).absolute()),
        root=str(args.root.absolute()),
        out=str(args.out.absolute()),
        version=args.version,
        split=args.split,
        index_root=None if args.index_root is None else str(args.index_root.absolute()),
        min_score=args.min_score,
        dtype=args.dtype,
        threads=args.threads or (threads if args.workers else 0),
    )
    infer_dataset(job, args)
    return 0


def require_ray() -> None:
    """Ask before anything is read whether Ray is there.

    Raises:
        InputError: it is not installed.
    """
    if find_spec("ray") is None:
        reason = "needs Ray: pip install 'bevstack[fleet]'; --workers 0 predicts in this process, without it"
        raise InputError("infer_dataset", "--workers", reason)


def infer_dataset(job: FleetJob, args: argparse.Namespace) -> dict[str, Any]:
    """Predict the scenes of a job that have no results yet, then join the results of all.

    Args:
        job: see there.
        args: ``workers`` (0: in this process), ``address`` of a Ray cluster, ``gpus`` of each worker.

    Returns:
        scenes, samples, boxes, predicted (samples of this call), seconds, samples_per_second.
    """
    out = Path(job.out)
    require_writable(out, "--out")
    cfg = job_config(job)
    dataset = job_dataset(job, cfg)
    require_detection_classes(dataset.classes, job.model, "classes")
    plans = scene_plans(dataset)
    if not plans:
        raise InputError(job.root, "--split", "holds no sample")
    _same_job(job, out)
    (out / "scenes").mkdir(parents=True, exist_ok=True)
    remove_partial_files(out / "scenes")
    left = [plan for plan in plans if read_scene(out / "scenes" / plan.file_name, plan) is None]
    if len(left) < len(plans):
        print(f"resuming: {len(plans) - len(left)} of {len(plans)} scenes are there", flush=True)
    began = time.time()
    done = _in_ray(job, left, args) if args.workers and left else _here(job, left)
    for number, plan in enumerate(done, 1):
        print(f"{number} of {len(left)}: {plan.name}, {len(plan.tokens)} samples", flush=True)
    seconds = time.time() - began
    summary = _join(job, plans)
    summary |= _speed(out, left, seconds)
    where = f"{args.workers} worker(s) of Ray" if args.workers else "this process"
    if left:
        print(
            f"{summary['predicted']} samples of {len(left)} scenes by {where}: {summary['samples_per_second']:.2f} "
            f"samples a second while predicting, {summary['predicted'] / seconds:.2f} with the start ({seconds:.1f} s)"
        )
    print(
        f"{summary['boxes']} boxes of {summary['samples']} samples: {out / JSON_FILE}, {out / TABLE_FILE}", flush=True
    )
    return summary


def _same_job(job: FleetJob, out: Path) -> None:
    """Refuse a folder that holds the results of another model, other data or other settings."""
    digest = hashlib.sha256(checkpoint_of(job.model).read_bytes()).hexdigest()
    kept = {name: value for name, value in asdict(job).items() if name not in ("model", "out", "threads")}
    told = {"checkpoint_sha256": digest, **kept}
    path = out / JOB_FILE
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        changed = [name for name in told if before.get(name) != told[name]]
        if changed:
            reason = f"holds results of another job ({', '.join(changed)} differ): choose another folder"
            raise InputError(path, "--out", reason)
    else:
        write_json(path, told)


def _here(job: FleetJob, plans: Sequence[ScenePlan]) -> Iterator[ScenePlan]:
    """Scenes as they are done, in this process."""
    predictor = ScenePredictor(job) if plans else None
    for plan in plans:
        if predictor is not None:
            predictor.predict(plan)
        yield plan


class SceneWorker:
    """A :class:`ScenePredictor` as an actor of Ray Data. What a user can mend comes back as a row, not as a traceback.

    Args:
        job: see there.
    """

    def __init__(self, job: FleetJob) -> None:
        self.predictor, self.error = None, ""
        try:
            self.predictor = ScenePredictor(job)
        except InputError as error:
            self.error = str(error)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Predict the scene of a row and write its file; returns its number and what went wrong, "" for nothing."""
        number, error = int(row["number"]), self.error
        if self.predictor is not None:
            tokens = tuple(map(str, row["tokens"]))
            plan = ScenePlan(number, str(row["name"]), tuple(int(i) for i in row["samples"]), tokens)
            try:
                self.predictor.predict(plan)
            except InputError as wrong:
                error = str(wrong)
        return {"number": number, "error": error}


def _in_ray(job: FleetJob, plans: Sequence[ScenePlan], args: argparse.Namespace) -> Iterator[ScenePlan]:
    """Scenes as they are done, by a pool of actors; a scene whose actor dies goes to another."""
    for name, value in (("RAY_USAGE_STATS_ENABLED", "0"), ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")):
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    cpus = max(1, job.threads)
    started: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "ignore_reinit_error": True}
    if args.address is None:
        started |= {"num_cpus": args.workers * cpus + 1, "include_dashboard": False}
    try:
        ray.init(address=args.address, **started)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError("infer_dataset", "--address", f"Ray does not start: {first}") from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        rows = [
            {"number": p.number, "name": p.name, "samples": list(p.samples), "tokens": list(p.tokens)} for p in plans
        ]
        scenes = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            cast("Any", SceneWorker),
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=args.workers, max_tasks_in_flight_per_actor=1),
            num_cpus=cpus,
            num_gpus=args.gpus or None,
            max_restarts=_RESTARTS,
            max_task_retries=_RETRIES,
        )
        by_number = {plan.number: plan for plan in plans}
        for row in scenes.iter_rows():
            if row["error"]:
                raise InputError(row["error"])
            yield by_number[int(row["number"])]
    except ray.exceptions.RayError as error:
        last = str(error).strip().splitlines()[-1]
        reason = f"{type(error).__name__}: {last}; the scenes that are done stay, start again to go on"
        raise InputError("infer_dataset", "Ray", reason) from error
    finally:
        with contextlib.suppress(RuntimeError):
            ray.shutdown()


def _join(job: FleetJob, plans: Sequence[ScenePlan]) -> dict[str, Any]:
    """Join all scenes' files, one in memory at a time, in the dataset's order.

    Raises:
        InputError: a scene has no whole results.
    """
    out = Path(job.out)
    counts = {"scenes": len(plans), "samples": 0, "boxes": 0}

    def contents() -> Iterator[Mapping[str, Any]]:
        for plan in plans:
            content = read_scene(out / "scenes" / plan.file_name, plan)
            if content is None:
                raise InputError(out / "scenes" / plan.file_name, "samples", "are not those of the scene: start again")
            yield content

    with atomic_write(out / JSON_FILE) as temporary, open(temporary, "w", encoding="utf-8") as file:
        meta = {f"use_{name}": name == "camera" for name in ("camera", "lidar", "radar", "map", "external")}
        file.write('{"meta": ' + json.dumps(meta) + ', "results": {')
        for content in contents():
            for sample in content["samples"]:
                separator = ",\n" if counts["samples"] else "\n"
                file.write(separator + json.dumps(sample["token"]) + ": " + json.dumps(sample["boxes"]))
                counts["samples"] += 1
                counts["boxes"] += len(sample["boxes"])
        file.write("\n}}\n")
    write_row_groups(out / TABLE_FILE, (list(_rows(content)) for content in contents()))
    return dict(counts)


def _rows(content: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A scene's boxes as rows of the table of ``tools/infer.py``."""
    for sample in content["samples"]:
        for box in sample["boxes"]:
            width, length, height = box["size"]
            w, x, y, z = box["rotation"]
            yaw = float(np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z)))
            head = [sample["token"], content["scene"], sample["timestamp_s"], "global"]
            named = [box["detection_name"], box["detection_score"]]
            numbers = [*box["translation"], length, width, height, yaw, *box["velocity"]]
            yield dict(zip(COLUMNS, [*head, *named, *numbers, box["attribute_name"] or None, None], strict=True))


def _speed(out: Path, plans: Sequence[ScenePlan], seconds: float) -> dict[str, Any]:
    """Samples of this call, and how many a second from the first worker's start of a scene to the last one's end."""
    workers = [json.loads((out / "scenes" / plan.file_name).read_text())["worker"] for plan in plans]
    count = sum(len(plan.tokens) for plan in plans)
    busy = max(w["ended"] for w in workers) - min(w["began"] for w in workers) if workers else 0.0
    rate = count / busy if busy > 0 else 0.0
    return {"predicted": count, "seconds": seconds, "samples_per_second": rate}
