"""``tools/benchmark.py``: how long one step of a config takes, and how much memory."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence

import torch
from mmengine.dataset import pseudo_collate
from mmengine.optim import build_optim_wrapper
from tqdm import tqdm

from bevstack.engine.arguments import benchmark_parser
from bevstack.engine.config import building, load_config
from bevstack.engine.cpu_memory import keep_freed_memory
from bevstack.engine.models import build_model
from bevstack.engine.train import device_name
from bevstack.errors import InputError
from bevstack.models.inference_form import inference_form
from bevstack.registry import DATASETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point: build the model and one batch, repeat one step, print median, spread and peak memory."""
    args = benchmark_parser().parse_args(arguments)
    if args.repeats < 1:
        raise InputError("benchmark", "--repeats", f"{args.repeats} must be at least 1")
    cfg = load_config(args.config, args.cfg_options)
    if not torch.cuda.is_available():
        keep_freed_memory()
    step = step_of(cfg, args.train, args.sample)
    seconds = [timed(step) for _ in tqdm(range(args.repeats + 1), desc="steps")][1:]
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
    kind = "training step" if args.train else "inference"
    print(f"{args.config}: {kind} {statistics.median(seconds):.2f} s (median of {args.repeats}, {spread}), ", end="")
    print(f"peak memory {peak_gb:.2f} GB, {device_name()}")
    return 0


def step_of(cfg, train: bool, first_sample: int) -> Callable[[], object]:
    """One step on a fixed batch of the config's own data, as a function without arguments.

    A training step runs in the precision of the config's ``optim_wrapper``, an inference in float32.

    Raises:
        InputError: the config has no such data, or the data is too small.
    """
    part = "train_dataloader" if train else "test_dataloader"
    if cfg.get(part) is None:
        raise InputError(cfg.filename or "config", part, "absent: nothing to take a batch from")
    model = build_model(cfg)
    with building(cfg):
        dataset = DATASETS.build(cfg[part]["dataset"])
    size = cfg[part]["batch_size"]
    if first_sample + size > len(dataset):
        raise InputError("benchmark", "--sample", f"{len(dataset)} samples do not hold {size} from {first_sample} on")
    batch = pseudo_collate([dataset[first_sample + i] for i in range(size)])
    if not train:
        form = inference_form(model)
        return torch.no_grad()(lambda: form.test_step(batch))
    model.train()
    wrapper = build_optim_wrapper(model, cfg["optim_wrapper"].copy())
    return lambda: model.train_step(batch, wrapper)


def timed(step: Callable[[], object]) -> float:
    """Wall seconds of one step, with the device idle before and after."""
    _wait()
    started = time.perf_counter()
    step()
    _wait()
    return time.perf_counter() - started


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
