"""A model, a dataset and a config small enough to train twenty steps in a fraction of a second.

The dataset draws its numbers from (seed, epoch, index); the model has dropout (torch's generator), a running buffer
and a memory that travels along scenes: everything that exact resuming must bring back.
"""

from __future__ import annotations

import copy
import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # noqa: F401 - every optimizer imports it; once, before processes fork
from mmengine.config import Config
from mmengine.dist import get_dist_info
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import nn
from torch.utils.data import Dataset, get_worker_info

import bevstack.engine.runner  # noqa: F401 - imported once, before processes fork
from bevstack.geometry import BEVGrid
from bevstack.registry import DATA_SAMPLERS, DATASETS, HOOKS, METRICS, MODELS
from bevstack.structures import BEVDataSample, BEVMemory, CameraRig, Clip, EgoMotion, Frame

SCENE_LENGTH = 4

for _registry in (DATASETS, HOOKS, METRICS, MODELS):
    _registry.import_from_location()  # once, before processes fork


def sample_of(index: int) -> BEVDataSample:
    """Sample ``index`` of scenes of SCENE_LENGTH frames."""
    first = index % SCENE_LENGTH == 0
    return BEVDataSample(metainfo={"token": f"s{index}", "prev_token": "" if first else f"s{index - 1}"})


@DATASETS.register_module()
class ToyDataset(Dataset):
    """Scenes of four frames of random images; ``nan_at`` poisons one sample's target, ``die_at`` kills its worker."""

    metainfo = {"classes": ["car"]}

    def __init__(self, length: int = 16, seed: int = 0, nan_at: int = -1, die_at: int = -1) -> None:
        self.length, self.seed, self.nan_at, self.die_at = length, seed, nan_at, die_at
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        self._epoch[0] = epoch

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        if index == self.die_at and get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        rng = np.random.default_rng([self.seed, int(self._epoch), index])
        image = torch.from_numpy(rng.standard_normal((1, 3, 2, 2)).astype(np.float32))
        sample = sample_of(index)
        target = float("nan") if index == self.nan_at else float(image.sum()) + index % SCENE_LENGTH
        sample.set_metainfo({"target": target})
        return {"inputs": image, "data_samples": sample}


@DATA_SAMPLERS.register_module()
class ToySlotBatchSampler:
    """Batch b holds, in slot k, the next frame of slot k's scenes; scenes are dealt to slots (and ranks) in turn."""

    def __init__(self, sampler, batch_size: int) -> None:
        self.sampler, self.batch_size = sampler, batch_size
        self.rank, self.world_size = get_dist_info()

    def __len__(self) -> int:
        scenes = len(self.sampler.dataset) // SCENE_LENGTH
        return scenes // (self.batch_size * self.world_size) * SCENE_LENGTH

    def __iter__(self):
        for step in range(len(self)):
            row, frame = divmod(step, SCENE_LENGTH)
            slots = self.batch_size * self.world_size
            first = row * slots + self.rank * self.batch_size
            yield [(first + slot) * SCENE_LENGTH + frame for slot in range(self.batch_size)]


@DATA_SAMPLERS.register_module()
class ForgetfulBatchSampler(ToySlotBatchSampler):
    """Every scene backwards: no sample comes after its predecessor."""

    def __iter__(self):
        return reversed(list(super().__iter__()))


@MODELS.register_module()
class ToyPreprocessor(BaseDataPreprocessor):
    """Stacks images into a clip of one frame."""

    def forward(self, data: dict, training: bool = False) -> dict:
        images = torch.stack([self.cast_data(image) for image in data["inputs"]])
        batch = len(images)
        rig = CameraRig(torch.eye(3).expand(batch, 1, 3, 3), torch.eye(4).expand(batch, 1, 4, 4), torch.ones(1), (2, 2))
        motion = EgoMotion(torch.eye(4).expand(batch, 4, 4), torch.ones(batch, dtype=torch.bool), torch.ones(batch))
        return {"inputs": Clip((Frame(images, rig, motion),)), "data_samples": data["data_samples"]}


@MODELS.register_module()
class ToyModel(BaseModel):
    """A linear layer over the image and the memory; the loss is the squared error to the sample's target."""

    def __init__(self, dropout: float = 0.5, channels: int = 4, unused: bool = False, batch_norm: bool = True) -> None:
        super().__init__(data_preprocessor=MODELS.build({"type": "ToyPreprocessor"}))
        self.embed = nn.Linear(12, channels)
        self.mix = nn.Linear(channels, channels)
        self.norm = nn.BatchNorm1d(channels) if batch_norm else nn.Identity()
        self.out = nn.Linear(channels, 1)
        self.dropout = nn.Dropout(dropout)
        self.spare = nn.Linear(2, 2) if unused else None

    def forward(self, inputs: Clip, data_samples=None, mode: str = "tensor"):
        """Modes as the perception model has them."""
        images, memory = inputs.frames[-1].images, inputs.memory
        features = self.embed(images.flatten(1))
        valid = torch.zeros(len(features), 1, dtype=torch.bool) if memory is None else memory.valid[:, :1]
        before = self.mix(torch.zeros_like(features) if memory is None else memory.features[:, 0, :, 0, 0])
        features = features + torch.where(valid, before, torch.zeros_like(before))  # every parameter gets a gradient
        after = BEVMemory(
            features[:, None, :, None, None].detach().float(),
            BEVGrid((1, 1)),
            torch.eye(4).expand(len(features), 1, 4, 4),
            torch.ones(len(features), 1, dtype=torch.bool),
        )
        scores = self.out(self.dropout(self.norm(features)))[:, 0]
        if mode in ("loss", "stream_loss"):
            targets = torch.tensor([sample.target for sample in data_samples])
            result = {"loss_toy": ((scores.float() - targets) ** 2).mean()}
        else:
            result = [_with_score(sample, score) for sample, score in zip(data_samples, scores.tolist(), strict=True)]
        return (result, after) if mode.startswith("stream_") else result


def _with_score(sample: BEVDataSample, score: float) -> BEVDataSample:
    answer = BEVDataSample(metainfo={"token": sample.token, "target": sample.target})
    answer.score = torch.tensor([score])
    return answer


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Mean score, and the tokens that were scored; draws random numbers to show that training does not mind."""

    def process(self, data_batch, data_samples) -> None:
        random.random(), np.random.rand(), torch.rand(1)
        self.results.extend((sample["token"], float(sample["score"][0])) for sample in data_samples)

    def compute_metrics(self, results: list) -> dict:
        return {"mean": sum(score for _, score in results) / len(results), "count": len(results)}


@HOOKS.register_module()
class KillAt(Hook):
    """Sends this process a signal at an iteration, before its step (``step``) or inside a checkpoint write.

    With ``marker``, a file that comes to be then, once only: a process that is started again goes on.
    """

    priority = "LOWEST"

    def __init__(
        self,
        iteration: int,
        number: int = 9,
        inside_save: bool = False,
        rank: int | None = None,
        marker: str | None = None,
    ) -> None:
        self.iteration, self.number, self.inside_save, self.rank = iteration, number, inside_save, rank
        self.marker = None if marker is None else Path(marker)

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        if self.rank not in (None, runner.rank):
            return
        if runner.iter + 1 == self.iteration and not self.inside_save:
            if self.marker is not None:
                if self.marker.exists():
                    return
                self.marker.touch()
            os.kill(os.getpid(), self.number)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        if self.inside_save and runner.iter + 1 >= self.iteration:
            real = os.fsync

            def die(descriptor: int) -> None:  # the temporary file is written, in part on disk, and not renamed
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
                real(descriptor)
                os.kill(os.getpid(), self.number)

            os.fsync = die


def toy_config(work_dir: Path, **changes) -> Config:
    """Two epochs of eight steps; ``changes`` are dotted keys with ``__`` for the dot."""
    streaming = changes.pop("streaming", False)
    batch = changes.pop("batch_size", 2)
    loader = {
        "dataset": {"type": "ToyDataset"},
        "sampler": {"type": "DefaultSampler", "shuffle": not streaming},
        "batch_size": batch,
        "num_workers": 0,
    }
    if streaming:
        loader["batch_sampler"] = {"type": "ToySlotBatchSampler"}
    kind = "Streaming" if streaming else "Autocast"
    cfg = Config(
        {
            "default_scope": "bevstack",
            "work_dir": str(work_dir),
            "model": {"type": "ToyModel"},
            "train_dataloader": loader,
            "train_cfg": {"type": "StreamingTrainLoop" if streaming else "ResumableTrainLoop", "max_epochs": 2},
            "val_dataloader": {**loader, "dataset": {"type": "ToyDataset", "seed": 7}},
            "val_cfg": {"type": f"{kind}ValLoop"},
            "val_evaluator": {"type": "ToyMetric"},
            "optim_wrapper": {
                "type": "AutocastOptimWrapper",
                "dtype": "float32",
                "optimizer": {"type": "AdamW", "lr": 0.01},
                "clip_grad": {"max_norm": 5.0},
            },
            "param_scheduler": [
                {"type": "LinearLR", "start_factor": 0.1, "by_epoch": False, "end": 4},
                {"type": "CosineAnnealingLR", "T_max": 12, "by_epoch": False, "begin": 4, "end": 16},
            ],
            "default_hooks": {"checkpoint": {"type": "CheckpointHook", "interval": 3, "by_epoch": False}},
            "custom_hooks": [{"type": "EMAHook", "momentum": 0.1}],
            "randomness": {"seed": 3},
            "log_level": "WARNING",
        },
        format_python_code=False,
    )
    cfg.merge_from_dict({key.replace("__", "."): copy.deepcopy(value) for key, value in changes.items()})
    return cfg


def train_toy(work_dir: str, resume: str | None = None, **changes) -> dict:
    """Train; returns the summary. Runs in a process of its own (see ``conftest.py``)."""
    from bevstack.engine.train import train

    torch.set_num_threads(1)
    extra = changes.pop("extra_hooks", [])
    launcher = changes.pop("launcher", "none")
    cfg = toy_config(Path(work_dir), **changes)
    cfg.custom_hooks = [*cfg.custom_hooks, *extra]
    return train(cfg, work_dir, resume, launcher=launcher)


def train_as_rank(rank: int, world_size: int, port: int, work_dir: str, resume: str | None = None, **changes) -> None:
    """:func:`exit_code_of` as one process of a gloo group."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    exit_code_of(work_dir, resume, launcher="pytorch", **changes)


def join_once(rank: int, port: int, late_s: float) -> None:
    """Rank 0 or 1 of two that torchrun's agent started, its store at a port: joins over gloo, agrees and is killed.

    Rank 0 comes so many seconds after the other one has come.
    """
    from datetime import timedelta

    from bevstack.engine.processes import join_gloo

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    time.sleep(0 if rank else late_s)
    join_gloo("pytorch", timedelta(seconds=30))
    torch.distributed.barrier()
    os.kill(os.getpid(), signal.SIGKILL)


def exit_code_of(work_dir: str, resume: str | None = None, **changes) -> None:
    """:func:`train_toy` as a command: leaves with its exit code and writes what it would print to ``message.json``."""
    from bevstack.engine.faults import RunError
    from bevstack.errors import InputError

    try:
        train_toy(work_dir, resume, **changes)
    except (InputError, RunError) as error:
        Path(f"{work_dir}-message.json").write_text(json.dumps(str(error)))
        raise SystemExit(2 if isinstance(error, InputError) else error.exit_code) from None
