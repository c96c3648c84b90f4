"""Checkpoint files: whole, checked, plain data."""

from __future__ import annotations

import os
import pickle
import random
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from torch import nn

from bevstack.engine.checkpoint import (
    load_weights,
    message_hub_state,
    plain,
    read_checkpoint,
    restore_rng_state,
    rng_state,
    without_parts,
    write_checkpoint,
)
from bevstack.errors import InputError

CHECKPOINT = {"state_dict": {"weight": torch.arange(50_000.0)}, "meta": {"iter": 1, "epoch": 0}}


class _Bomb:
    """Pickles to a call that would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_that_runs_code_does_not_run(tmp_path, legacy) -> None:
    path = tmp_path / "epoch_1.pth"
    torch.save({"state_dict": _Bomb(tmp_path / "owned")}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match="epoch_1.pth: checkpoint: refused"):
        read_checkpoint(path)
    assert not (tmp_path / "owned").exists()


def test_plain_pickle_is_refused(tmp_path) -> None:
    path = tmp_path / "infos.pkl"
    path.write_bytes(pickle.dumps(_Bomb(tmp_path / "owned")))
    with pytest.raises(InputError, match="infos.pkl: checkpoint"):
        read_checkpoint(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such file"), (b"", "the file is empty"), (b"hello world, not a checkpoint", "checkpoint")],
)
def test_not_a_checkpoint(tmp_path, content, reason) -> None:
    path = tmp_path / "a.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=reason):
        read_checkpoint(path)


def test_every_flipped_byte_is_found_or_harmless(tmp_path) -> None:
    """Whatever byte is flipped, reading either raises InputError or gives the very same weights."""
    path = tmp_path / "a.pth"
    write_checkpoint({"state_dict": {"weight": torch.arange(64.0)}}, path)
    content = path.read_bytes()
    rng = random.Random(0)
    found = 0
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(damaged))
        try:
            weight = read_checkpoint(path)["state_dict"]["weight"]
        except InputError:
            found += 1
        else:
            assert torch.equal(weight, torch.arange(64.0))
    assert found > 20


def test_full_disk_leaves_the_earlier_file(tmp_path) -> None:
    """R5; the limit on file sizes stands for the disk: the system refuses the write in the same place."""
    path = tmp_path / "epoch_1.pth"
    write_checkpoint(CHECKPOINT, path)
    before = path.read_bytes()
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(InputError) as raised:
            write_checkpoint(CHECKPOINT, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert "the checkpoint before it is intact" in str(raised.value) and "\n" not in str(raised.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["epoch_1.pth"]


def test_what_could_not_be_read_back_is_not_written(tmp_path) -> None:
    with pytest.raises(InputError, match="not plain data: .*_Bomb|not plain data: .*mkdir"):
        write_checkpoint({"state_dict": {}, "meta": {"extra": _Bomb(tmp_path / "owned")}}, tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []


def test_checkpoint_of_mmengine_with_numpy_scalars(tmp_path) -> None:
    """What mmengine's own save puts beside tensors: numpy scalars and arrays."""
    path = tmp_path / "a.pth"
    meta = {"score": np.float64(0.5), "count": np.int64(3), "array": np.arange(3)}
    torch.save({"state_dict": {"w": torch.ones(1)}, "meta": meta}, path)
    assert read_checkpoint(path)["meta"]["score"] == 0.5


def test_history_survives_plain(tmp_path) -> None:
    history = HistoryBuffer()
    for value in (1.0, 0.1, 3.0):
        history.update(value)
    path = tmp_path / "a.pth"
    write_checkpoint({"state_dict": {}, "hub": plain({"log_scalars": {"loss": history}, "runtime_info": {}})}, path)
    again = message_hub_state(read_checkpoint(path)["hub"])["log_scalars"]["loss"]
    assert again.data[0].tolist() == [1.0, 0.1, 3.0] and again.mean() == history.mean()


def test_generators_continue_where_they_were(tmp_path) -> None:
    path = tmp_path / "a.pth"
    np.random.standard_normal()  # leaves a cached second value behind
    write_checkpoint({"state_dict": {}, "rng": rng_state()}, path)
    expected = (random.random(), np.random.standard_normal(3).tolist(), torch.rand(3).tolist())
    restore_rng_state(read_checkpoint(path)["rng"])
    assert (random.random(), np.random.standard_normal(3).tolist(), torch.rand(3).tolist()) == expected


def test_bare_state_dict(tmp_path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.ones(2)}, path)
    assert list(read_checkpoint(path)["state_dict"]) == ["a"]


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        ({"weight": torch.ones(2, 3)}, r"f.pth: weight: the file has shape \(2, 3\), the model needs \(3, 2\)"),
        ({"weight": torch.full((3, 2), torch.nan), "bias": torch.zeros(3)}, "f.pth: weight: weights are not finite"),
        ({"weight": torch.ones(3, 2)}, "f.pth: state_dict: 1 missing key: bias"),
        ({"weight": torch.ones(3, 2), "bias": torch.ones(3), "x": torch.ones(1)}, "1 unexpected key: x"),
        ({"x": torch.ones(1)}, "no key fits the model; the first is 'x'"),
    ],
)
def test_weights_that_do_not_fit(weights, reason) -> None:
    model = nn.Linear(2, 3)
    before = model.weight.clone()
    with pytest.raises(InputError, match=reason):
        load_weights(model, weights, "f.pth", strict=True)
    assert torch.equal(model.weight, before)


def test_prefix_of_the_distributed_wrapper_is_dropped() -> None:
    model = nn.Linear(2, 3)
    weights = {"module.weight": torch.ones(3, 2), "module.bias": torch.zeros(3)}
    assert load_weights(model, weights, "f.pth", strict=True) == ""
    assert torch.equal(model.weight, torch.ones(3, 2))


def test_weights_that_are_new_are_counted_by_part() -> None:
    # A model with one head more than the file, and a file with a part that the model lacks.
    heads = nn.ModuleDict({"a": nn.Linear(2, 1), "b": nn.Linear(2, 1)})
    model = nn.ModuleDict({"trunk": nn.Linear(2, 2), "heads": heads})
    weights = {"trunk.weight": torch.ones(2, 2), "trunk.bias": torch.ones(2), "old.weight": torch.ones(1)}
    weights |= {"heads.a.weight": torch.ones(1, 2), "heads.a.bias": torch.ones(1)}
    new = heads["b"].weight.clone()
    message = load_weights(model, weights, "f.pth", strict=False)
    assert message == "new weights, not in the file: heads.b (2); weights of the file without a place: old (1)"
    assert torch.equal(model["trunk"].weight, torch.ones(2, 2)) and torch.equal(heads["b"].weight, new)


def test_layers_of_another_shape_start_new(tmp_path) -> None:
    """What the refusal advises is enough: the named layers stay as they are, the others are the file's."""
    model, other = (nn.ModuleDict({"trunk": nn.Linear(2, 3), "head": nn.Linear(3, size)}) for size in (5, 4))
    with pytest.raises(InputError, match="head.weight: the file has shape .*--cfg-options new_parts=head$"):
        load_weights(model, other.state_dict(), "f.pth", strict=False)
    new = model["head"].weight.clone()
    message = load_weights(model, without_parts(other.state_dict(), ("head",), "f.pth"), "f.pth", strict=False)
    assert torch.equal(model["trunk"].weight, other["trunk"].weight) and torch.equal(model["head"].weight, new)
    assert message == "new weights, not in the file: head (2)"
    with pytest.raises(InputError, match="f.pth: new_parts: the file has no part 'hea'"):
        without_parts(other.state_dict(), ["head", "hea"], "f.pth")
