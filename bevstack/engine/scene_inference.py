"""One scene after another through a model, each with its own memory: what a worker of a fleet does, alone or in Ray."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from bevstack.datasets.base import BEVDataset
from bevstack.engine.checkpoint import checkpoint_of, read_checkpoint
from bevstack.engine.config import building
from bevstack.engine.label_checks import check_trained_cameras
from bevstack.engine.models import model_of_checkpoint, precision_of
from bevstack.engine.prediction import BEVPrediction
from bevstack.engine.stored_config import data_settings, stored_config
from bevstack.engine.streaming import Streams, require_streams
from bevstack.errors import InputError
from bevstack.evaluation.submission import MAX_BOXES_PER_SAMPLE
from bevstack.files import atomic_write
from bevstack.models.inference_form import inference_form
from bevstack.registry import DATASETS
from bevstack.structures import BEVDataSample
from bevstack.structures.poses import global_from_augmented


@dataclass(frozen=True)
class FleetJob:
    """What every worker is told; plain values.

    Args:
        model: checkpoint, or a work directory.
        root: of the data, in the format of the checkpoint's dataset.
        out: folder of the results, the same one for every worker.
        version, split, index_root: instead of the dataset's of the checkpoint's config; None for these.
        min_score: least score of a box that is kept.
        dtype: instead of the config's.
        threads: of each worker; 0 leaves torch's.
    """

    model: str
    root: str
    out: str
    version: str | None = None
    split: str | None = None
    index_root: str | None = None
    min_score: float = 0.0
    dtype: str | None = None
    threads: int = 0


@dataclass(frozen=True)
class ScenePlan:
    """A scene to predict: its number in the dataset, its name, and its samples' numbers and tokens in order of time."""

    number: int
    name: str
    samples: tuple[int, ...]
    tokens: tuple[str, ...]

    @property
    def file_name(self) -> str:
        """Of its results; the number keeps apart what other names would share."""
        return f"{self.number:06d}-{re.sub(r'[^A-Za-z0-9_.-]', '_', self.name)[:80]}.json"


def job_dataset(job: FleetJob, cfg: Config) -> BEVDataset:
    """The dataset that a checkpoint's config tests on, of a job's root.

    Raises:
        InputError: the config names no dataset, or the root has no such data.
    """
    settings = dict(data_settings(cfg))
    if not settings.get("type"):
        raise InputError(job.model, "test_dataloader", "absent: the checkpoint's config names no dataset to read")
    settings |= {"data_root": job.root, "test_mode": True}
    given = {"version": job.version, "split": job.split, "index_root": job.index_root}
    settings |= {name: value for name, value in given.items() if value is not None}
    init_default_scope(cfg.get("default_scope", "bevstack"))
    with building(cfg):
        return DATASETS.build(settings)


def scene_plans(dataset: BEVDataset) -> list[ScenePlan]:
    """The dataset's scenes, in its order."""
    numbers, names = np.asarray(dataset.scene_rows), dataset.scene_names
    if not len(numbers):
        return []
    parts = np.split(np.arange(len(numbers)), np.flatnonzero(numbers[1:] != numbers[:-1]) + 1)
    return [
        ScenePlan(n, str(names[part[0]]), tuple(part.tolist()), tuple(_token(dataset, int(i)) for i in part))
        for n, part in enumerate(parts)
    ]


def _token(dataset: Any, sample: int) -> str:
    return (
        dataset.token(int(dataset.rows[sample])) if hasattr(dataset, "rows") else dataset.clip(sample).frames[-1].token
    )


class ScenePredictor:
    """A model and a dataset, ready for scenes. Made once in every worker; nothing passes from one scene to another.

    Args:
        job: what to predict by what.

    Raises:
        InputError: the checkpoint cannot be read or carries no config, or the data are not there or do not fit it.
    """

    def __init__(self, job: FleetJob) -> None:
        if job.threads:
            torch.set_num_threads(job.threads)
        file = checkpoint_of(job.model)
        content = read_checkpoint(file)
        model = model_of_checkpoint(content, file)
        self.job, self.cfg = job, model.config
        self.dataset = job_dataset(job, self.cfg)
        cameras = (getattr(self.dataset, "metainfo", None) or {}).get("cameras", ())
        check_trained_cameras(model, content.get("meta") or {}, cameras, file)
        self.model = inference_form(model)
        device = next(model.parameters()).device
        self.precision = precision_of(self.cfg, device, job.dtype, self.model)
        kind = str((self.cfg.get("test_cfg") or self.cfg.get("val_cfg") or {}).get("type", ""))
        self.streams = "Streaming" in kind

    def predict(self, plan: ScenePlan) -> Path:
        """Predict a scene from its first sample on and write its results, whole or not at all.

        Returns:
            The file: ``scene``, ``samples`` (token, ``timestamp_s``, ``boxes`` as a submission to nuScenes has them),
            and who was how long at it.

        Raises:
            InputError: an image cannot be read, or a prediction is not finite; names the sample.
        """
        began, samples = time.time(), []
        for sample in self._predicted(plan):
            boxes = BEVPrediction.of_sample(sample).nuscenes_boxes(global_from_augmented(sample).numpy(), sample.token)
            kept = np.flatnonzero(boxes.scores >= self.job.min_score)
            numbers = (boxes.translation, boxes.size_wlh, boxes.rotation, boxes.velocity, boxes.scores)
            if not all(np.isfinite(values).all() for values in numbers):
                raise InputError(self.job.model, f"sample {sample.token}", "the model's boxes are not finite")
            kept = kept[np.argsort(-boxes.scores[kept], kind="stable")[:MAX_BOXES_PER_SAMPLE]]
            records = boxes.records()
            chosen = [records[row] for row in sorted(kept.tolist())]
            seconds = float(sample.get("timestamp_s", 0.0))
            samples.append({"token": sample.token, "timestamp_s": seconds, "boxes": chosen})
        path = Path(self.job.out) / "scenes" / plan.file_name
        worker = {"host": socket.gethostname(), "pid": os.getpid(), "began": began, "ended": time.time()}
        with atomic_write(path) as temporary:
            content = {"scene": plan.name, "worker": worker, "samples": samples}
            temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
        return path

    @torch.no_grad()
    def _predicted(self, plan: ScenePlan) -> Iterator[BEVDataSample]:
        """The scene's samples with predictions, as the test loop makes them one at a time."""
        module: Any = self.model
        streams = Streams()
        for number in plan.samples:
            with self.precision.autocast():
                data = module.data_preprocessor(pseudo_collate([self.dataset[number]]), False)
                if self.streams:
                    require_streams(data["data_samples"], streams)
                    answer, streams = streams.step(module, data, "predict")
                else:
                    answer = module(**data, mode="predict")
            yield from answer


def read_scene(path: Path, plan: ScenePlan) -> Mapping[str, Any] | None:
    """A scene's results; None where they are not there, or not those of its samples, each once and in order."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        tokens = tuple(sample["token"] for sample in content["samples"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return content if tokens == plan.tokens else None


def job_config(job: FleetJob) -> Config:
    """The config that a job's checkpoint carries.

    Raises:
        InputError: see :func:`bevstack.engine.stored_config.stored_config`.
    """
    file = checkpoint_of(job.model)
    return stored_config(read_checkpoint(file), file)
