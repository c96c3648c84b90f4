"""Number formats, gradient checks, accumulation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bevstack.engine.faults import NonFiniteError
from bevstack.engine.optim_wrapper import AutocastOptimWrapper
from bevstack.precision import choose_precision, cpu_bfloat16_support
from tests.engine.toy import train_toy


def wrapper_of(model: nn.Module, **kwargs) -> AutocastOptimWrapper:
    return AutocastOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.1), **kwargs)


@pytest.mark.parametrize(
    ("amx", "avx", "expected"),
    [(True, True, torch.bfloat16), (False, True, torch.bfloat16), (False, False, torch.float32)],
)
def test_auto_takes_what_the_cpu_has(monkeypatch, amx, avx, expected) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx)
    assert choose_precision("auto", "cpu").dtype == expected


def test_support_agrees_with_the_kernel() -> None:
    """Expected: the CPU flags that Linux lists."""
    try:
        flags = open("/proc/cpuinfo").read()
    except OSError:
        pytest.skip("no /proc/cpuinfo here")
    assert (cpu_bfloat16_support() == "AMX") <= ("amx_tile" in flags)
    assert (cpu_bfloat16_support() == "AVX512-BF16") <= ("avx512_bf16" in flags)


@pytest.mark.parametrize(("name", "reason"), [("half", "dtype must be one of"), ("float16", "needs a GPU")])
def test_formats_that_do_not_work(name, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        choose_precision(name, "cpu")


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_forward_runs_in_the_format(dtype, expected) -> None:
    model = nn.Linear(4, 4)
    wrapper = wrapper_of(model, dtype=dtype)
    with wrapper.optim_context(model):
        assert model(torch.ones(2, 4)).dtype == expected
    assert model.weight.dtype == torch.float32


def test_gradient_that_is_not_finite_is_named() -> None:
    """R12: raised before the optimizer steps."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    before = model[0].weight.clone()
    wrapper = wrapper_of(model, dtype="float32")
    with wrapper.optim_context(model):
        loss = model(torch.ones(1, 2)).sum()
    model[1].bias.register_hook(lambda grad: grad * torch.nan)
    with pytest.raises(NonFiniteError, match="1 parameters, first: 1.bias"):
        wrapper.update_params(loss)
    assert torch.equal(model[0].weight, before)


def test_accumulation_equals_one_large_batch() -> None:
    """Two half batches of equal size: the mean of their gradients is the whole batch's (expected: plain torch)."""
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    model, reference = nn.Linear(3, 1), nn.Linear(3, 1)
    reference.load_state_dict(model.state_dict())
    wrapper = wrapper_of(model, dtype="float32", accumulative_counts=2)
    wrapper.initialize_count_status(model, 0, 2)
    for half in data.split(4):
        with wrapper.optim_context(model):
            loss = model(half).pow(2).mean()
        wrapper.update_params(loss)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    reference(data).pow(2).mean().backward()
    optimizer.step()
    torch.testing.assert_close(model.weight, reference.weight)


def test_bfloat16_losses_are_near_float32(tmp_path) -> None:
    """R13: within 2 % of each other over the steps (the toy has dropout off, so that both see the same)."""
    from bevstack.engine.checkpoint import read_checkpoint

    losses = []
    for dtype in ("float32", "bfloat16"):
        folder = tmp_path / dtype
        train_toy(str(folder), optim_wrapper__dtype=dtype, model__dropout=0.0, optim_wrapper__optimizer__lr=1e-3)
        scalars = read_checkpoint(folder / "iter_16.pth")["message_hub"]["log_scalars"]
        losses.append(scalars["train/loss"]["history"][0])
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=0.02)
    assert not torch.equal(losses[0], losses[1])
