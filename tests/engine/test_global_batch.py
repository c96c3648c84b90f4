"""Two processes with a sample each against one with both: the same losses and gradients, by DDP.

The whole model of the front door with boxes and a map, on a set in nuScenes' format; float32, norms in evaluation mode
(a batch of one has other statistics). Expected: the single process.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from mmengine.dataset import pseudo_collate
from torch import nn

from bevstack.engine.config import load_config
from bevstack.engine.models import build_model
from bevstack.engine.runner import BEVRunner
from bevstack.registry import DATASETS
from tests.processes import run_forked_ranks
from tests.reliability.contract import call_tool, write_config

sys.path.insert(0, str(Path(__file__).parents[1] / "datasets"))
from tables import VERSION, build_root  # noqa: E402 - its folder is on the path now

PAIR = (0, 2)  # samples with different numbers of boxes


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("global_batch")
    root = build_root(folder / "root")
    assert call_tool("create_data", "nuscenes", "--root", root, "--version", VERSION, "--no-maps") == 0
    return write_config(folder / "config.py", root, VERSION)


def losses_of(config: Path, samples: tuple[int, ...], wrap=None) -> tuple[nn.Module, dict[str, float]]:
    """The model after a backward pass of the mean loss over all ranks, and the losses averaged over the ranks."""
    cfg = load_config(config)
    torch.manual_seed(0)
    model = build_model(cfg, "cpu")
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    data = model.data_preprocessor(pseudo_collate([dataset[n] for n in samples]), True)
    wrapped = model if wrap is None else wrap(cfg, model)
    wrapped.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    loss, log = model.parse_losses(wrapped(**data, mode="loss"))
    loss.backward()
    found = {name: value.detach() for name, value in log.items()}
    if dist.is_initialized():
        for value in found.values():
            dist.all_reduce(value)
            value /= dist.get_world_size()
    return wrapped, {name: float(value) for name, value in found.items()}


def by_runner(cfg, model: nn.Module) -> nn.Module:
    """Wrapped as :class:`BEVRunner` wraps it by ``model_wrapper_cfg`` of the config."""
    runner = BEVRunner.__new__(BEVRunner)
    runner.cfg, runner._distributed, runner._launcher = cfg, True, "pytorch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return runner.wrap_model(cfg.get("model_wrapper_cfg"), model)


def as_rank(rank: int, config: Path, out: Path) -> None:
    def wrap(cfg, model: nn.Module) -> nn.Module:
        cfg.find_unused_parameters = True  # without memory, some of the temporal attention's weights have no gradient
        return by_runner(cfg, model)

    wrapped, losses = losses_of(config, PAIR[rank : rank + 1], wrap)
    gradients = {name: p.grad for name, p in wrapped.module.named_parameters() if p.grad is not None}
    if rank == 0:
        (out / "losses.json").write_text(json.dumps(losses))
        torch.save(gradients, out / "gradients.pth")
    dist.barrier()


def test_two_processes_are_one_with_their_global_batch(config, tmp_path) -> None:
    run_forked_ranks(tmp_path, as_rank, config, tmp_path)
    model, expected = losses_of(config, PAIR)
    found = json.loads((tmp_path / "losses.json").read_text())
    assert expected["loss"] > 0 and set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name
    gradients = torch.load(tmp_path / "gradients.pth", weights_only=True)
    theirs = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert set(gradients) == set(theirs)
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6 * largest, msg=name)
