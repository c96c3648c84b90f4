"""FSDP by config: parameters, gradients and the optimizer's state divided among the processes of a training.

``model_wrapper_cfg = dict(type="MMFullyShardedDataParallel", use_orig_params=True)`` of a config asks for it. Whoever
needs whole weights (checkpoints, validation, loading) asks here; every process has to ask, as each brings its part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType

from bevstack.errors import InputError


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's parameters are divided among processes."""
    return isinstance(model, FullyShardedDataParallel)


def shardable(cfg: Config, wrapper: Mapping[str, Any]) -> dict[str, Any]:
    """A wrapper's config, where it is FSDP's with what FSDP has to be told, and without what does not go with it.

    What reads a model's weights beside its forward pass would find parts of them, and is refused. Without a GPU, FSDP
    asks for an accelerator unless it is told that the CPU is meant.

    Args:
        cfg: of the training.
        wrapper: its ``model_wrapper_cfg``.

    Raises:
        InputError: names what to leave out.
    """
    settings = dict(wrapper)
    if "FullySharded" not in str(wrapper.get("type", "")):
        return settings
    file, place = cfg.filename or "config", "model_wrapper_cfg"
    if not wrapper.get("use_orig_params"):
        raise InputError(file, f"{place}.use_orig_params", "has to be True: optimizers ask parameters for their names")
    hooks = [str(hook.get("type", "")).rpartition(".")[2] for hook in cfg.get("custom_hooks") or ()]
    for name, wanted in (("EMAHook", "EMAHook" in hooks), ("train_cfg.kept_features", _keeps_features(cfg))):
        if wanted:
            raise InputError(file, place, f"FSDP divides the weights, which {name} needs whole: leave one of them out")
    if not torch.cuda.is_available():
        settings.setdefault("device_id", torch.device("cpu"))
    return settings


def _keeps_features(cfg: Config) -> bool:
    return (cfg.get("train_cfg") or {}).get("kept_features") is not None


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """State dict of a sharded model as if it were whole, on the host: name -> tensor, each in its whole shape (...)."""
    whole = FullStateDictConfig(offload_to_cpu=True, rank0_only=False)
    with FullyShardedDataParallel.state_dict_type(model, StateDictType.FULL_STATE_DICT, whole):
        return dict(model.state_dict())


@contextlib.contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """While it lasts, a sharded model has all its parameters, which may be changed; another model is left alone."""
    if not is_sharded(model):
        yield
        return
    with FullyShardedDataParallel.summon_full_params(model, writeback=True):
        yield
