"""Runs that are stopped, killed or damaged must end as if nothing had happened (expected: the uninterrupted run)."""

from __future__ import annotations

import itertools
import json
import random
import shutil
import signal
import zipfile
from pathlib import Path

import pytest
import torch

from bevstack.engine.checkpoint import read_checkpoint
from bevstack.errors import InputError
from tests.engine.toy import exit_code_of, toy_config, train_toy

STEPS = 16  # two epochs of eight


def same(first, second, place: str = "") -> list[str]:
    """Places where two nested states differ in any bit."""
    if isinstance(first, torch.Tensor):
        equal = isinstance(second, torch.Tensor) and torch.equal(first.nan_to_num(7e7), second.nan_to_num(7e7))
        return [] if equal else [place]
    if isinstance(first, dict):
        if not isinstance(second, dict) or set(first) != set(second):
            return [place]
        return list(itertools.chain.from_iterable(same(first[key], second[key], f"{place}.{key}") for key in first))
    if isinstance(first, (list, tuple)):
        if len(first) != len(second):
            return [place]
        pairs = enumerate(zip(first, second, strict=True))
        return list(itertools.chain.from_iterable(same(a, b, f"{place}.{i}") for i, (a, b) in pairs))
    return [] if first == second else [place]


def end_state(work_dir: Path, iteration: int = STEPS) -> dict:
    """What must be bit-identical at the end: weights, averages, optimizer, schedulers, generators, logged losses."""
    checkpoint = read_checkpoint(work_dir / f"iter_{iteration}.pth")
    scalars = checkpoint["message_hub"]["log_scalars"]
    logged = {name: value for name, value in scalars.items() if name.startswith("train/") and "time" not in name}
    parts = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers")
    kept = {part: checkpoint[part] for part in parts if part in checkpoint}
    return {**kept, "logged": logged, "rank_states": checkpoint["meta"]["rank_states"]}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """Work directory of an uninterrupted run with some settings, trained once."""
    known: dict[str, Path] = {}

    def run(**changes) -> Path:
        key = json.dumps(changes, sort_keys=True)
        if key not in known:
            known[key] = tmp_path_factory.mktemp("straight")
            train_toy(str(known[key]), **changes)
        return known[key]

    return run


WORKERS = {"train_dataloader__num_workers": 2}
STREAMS = {"streaming": True}


@pytest.mark.parametrize(
    ("changes", "stopped_at"),
    [
        ({}, 5),
        ({}, 8),
        (WORKERS, 5),
        (WORKERS, 9),
        (STREAMS, 5),
        ({**STREAMS, **WORKERS, "optim_wrapper__dtype": "bfloat16"}, 7),
    ],
    ids=["mid-epoch", "epoch-end", "workers-mid-epoch", "workers-epoch-start", "streams", "streams-workers-bf16"],
)
def test_stop_and_resume_is_exact(tmp_path, run_process, straight, changes, stopped_at) -> None:
    """R1, R4: SIGTERM in mid-epoch, at an epoch's last step and at its first; then resume."""
    hook = {"type": "KillAt", "iteration": stopped_at, "number": signal.SIGTERM}
    code = run_process(exit_code_of, str(tmp_path), extra_hooks=[hook], **changes)
    assert code == 128 + signal.SIGTERM
    assert (tmp_path / f"iter_{stopped_at}.pth").is_file(), "the step under way is finished and saved"
    # the hook that stopped the run is a changed setting; nothing else is
    train_toy(str(tmp_path), "auto", resume_changed=True, **changes)
    assert same(end_state(straight(**changes)), end_state(tmp_path)) == []


def test_resume_between_accumulated_steps(tmp_path, straight) -> None:
    """R1: a checkpoint taken after one of two accumulated batches holds the gradients so far."""
    changes = {"optim_wrapper__accumulative_counts": 2}
    work_dir = tmp_path / "run"
    work_dir.mkdir()
    shutil.copy(straight(**changes) / "iter_3.pth", work_dir)
    assert read_checkpoint(work_dir / "iter_3.pth")["meta"]["rank_states"][0]["gradients"]
    train_toy(str(work_dir), "auto", **changes)
    assert same(end_state(straight(**changes)), end_state(work_dir)) == []


def test_sigint_exits_130(tmp_path, run_process) -> None:
    """R4: exit code 128 + 2, as a shell has it."""
    hook = {"type": "KillAt", "iteration": 2, "number": signal.SIGINT}
    assert run_process(exit_code_of, str(tmp_path), extra_hooks=[hook]) == 130
    assert "SIGINT" in json.loads(Path(f"{tmp_path}-message.json").read_text())


@pytest.mark.parametrize(("seed", "kills"), [(0, 13), (1, 12)])
def test_killed_25_times(tmp_path, run_process, straight, seed, kills) -> None:
    """R2: kill -9 at 25 seeded moments, a third of them inside a checkpoint write; one run, resumed after each."""
    rng = random.Random(seed)
    changes = {"default_hooks__checkpoint__interval": 1}
    for _ in range(kills):
        done = max((int(path.stem.split("_")[1]) for path in tmp_path.glob("iter_*.pth")), default=0)
        inside = rng.random() < 0.34
        moment = done + rng.choice([1, 2])
        hook = {"type": "KillAt", "iteration": moment, "inside_save": inside}
        code = run_process(exit_code_of, str(tmp_path), "auto", extra_hooks=[hook], resume_changed=True, **changes)
        assert code == -signal.SIGKILL
        for path in tmp_path.glob("iter_*.pth"):
            read_checkpoint(path)  # every file under its own name is whole
    train_toy(str(tmp_path), "auto", resume_changed=True, **changes)
    assert same(end_state(straight(**changes)), end_state(tmp_path)) == []
    assert not list(tmp_path.glob(".*.tmp*")), "leftovers of killed writes are removed"


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    """A bit of what the file holds, not of the gaps between its records."""
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        record = archive.read(max(archive.infolist(), key=lambda info: info.file_size))
    content[content.index(record) + len(record) // 2] ^= 1
    path.write_bytes(bytes(content))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_truncate, _flip, _empty])
def test_damaged_newest_checkpoint(tmp_path, straight, damage, capsys) -> None:
    """R3: ``--resume`` falls back to the one before and says so; an explicit path is an error."""
    work_dir = tmp_path / "run"
    shutil.copytree(straight(), work_dir)
    newest = work_dir / "iter_16.pth"
    damage(newest)
    with pytest.raises(InputError, match="iter_16.pth: checkpoint: "):
        train_toy(str(work_dir), str(newest))
    train_toy(str(work_dir), "auto")
    printed = capsys.readouterr().out
    assert "passed over" in printed and "iter_16.pth" in printed and "resuming" in printed and "iter_15.pth" in printed
    assert same(end_state(straight()), end_state(work_dir)) == []


def test_changed_settings_are_refused(tmp_path, straight) -> None:
    """R7: what changed is listed; nothing runs unless told."""
    work_dir = tmp_path / "run"
    shutil.copytree(straight(), work_dir)
    changes = {"optim_wrapper__optimizer__lr": 0.02, "train_dataloader__dataset__length": 32}
    with pytest.raises(InputError) as raised:
        train_toy(str(work_dir), "auto", **changes)
    message = str(raised.value)
    assert "optim_wrapper.optimizer.lr: 0.01 -> 0.02" in message
    assert "number of training samples: 16 -> 32" in message
    assert "resume_changed=True" in message


def _without(*place: str | int):
    """A change that takes an entry out of a nested checkpoint."""

    def change(checkpoint: dict) -> None:
        *way, last = place
        for key in way:
            checkpoint = checkpoint[key]
        del checkpoint[last]

    return change


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (_without("meta", "batch_in_epoch"), "batch_in_epoch"),
        (_without("meta", "epoch"), "epoch"),
        (lambda checkpoint: checkpoint["meta"].update(batch_in_epoch="two"), "batch_in_epoch"),
        (_without("message_hub"), "message_hub"),
        (_without("message_hub", "log_scalars"), "message_hub"),
        (_without("param_schedulers"), "param_schedulers"),
        (_without("param_schedulers", 1), "param_schedulers"),
        (_without("meta", "rank_states", 0, "rng", "torch"), "rank_states"),
        (_without("meta", "rank_states", 0, "streams", "augmented_from_bev"), "rank_states"),
        (_without("ema_state_dict", "module.out.bias"), "ema_state_dict"),
        (_without("optimizer", "param_groups"), "optimizer"),
        (_without("optimizer"), "--resume"),
    ],
)
def test_checkpoints_of_other_versions_are_one_line(tmp_path, straight, change, field) -> None:
    """What a run goes on from and is not there, or of another form, is named; nothing is trained."""
    run = straight(streaming=True, default_hooks__checkpoint__interval=3)
    checkpoint = read_checkpoint(run / "iter_6.pth")
    change(checkpoint)
    path = tmp_path / "iter_6.pth"
    torch.save(checkpoint, path)
    with pytest.raises(InputError) as raised:
        train_toy(str(tmp_path), str(path), streaming=True)
    assert str(raised.value).startswith(f"{path}: {field}: ") and "load_from=" in str(raised.value)
    assert sorted(file.name for file in tmp_path.glob("*.pth")) == ["iter_6.pth"]


def test_one_run_per_work_dir(tmp_path, run_process) -> None:
    """R17: the second refuses and names the first; a dead one's lock file means nothing."""
    from bevstack.engine.work_dir import LOCK_NAME, WorkDirLock

    (tmp_path / LOCK_NAME).write_text("999999\n")
    with WorkDirLock(tmp_path):
        assert run_process(exit_code_of, str(tmp_path)) == 2
        assert "in use by another run" in json.loads(Path(f"{tmp_path}-message.json").read_text())
    assert not (tmp_path / LOCK_NAME).exists()


def test_work_dir_that_cannot_be_made(tmp_path) -> None:
    """R6: said before anything is built."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--work-dir: cannot be written"):
        train_toy(str(tmp_path / "file" / "run"))


def test_same_seed_same_weights(tmp_path, run_process, straight) -> None:
    """R16: another process ends with the same bits."""
    assert run_process(exit_code_of, str(tmp_path)) == 0
    assert same(end_state(straight()), end_state(tmp_path)) == []


def test_another_seed_other_weights(tmp_path, straight) -> None:
    """The comparison above can fail."""
    train_toy(str(tmp_path), randomness__seed=4)
    assert any(place.startswith(".state_dict") for place in same(end_state(straight()), end_state(tmp_path)))


def test_validation_does_not_change_training(tmp_path, straight) -> None:
    """The toy metric draws from every generator; without validation the weights must be the same."""
    cfg = toy_config(tmp_path)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    from bevstack.engine.train import train

    train(cfg, tmp_path)
    assert same(end_state(straight())["state_dict"], end_state(tmp_path)["state_dict"]) == []


def test_older_checkpoints_are_removed_after_the_newer_is_whole(tmp_path) -> None:
    """``max_keep_ckpts`` of mmengine, in the safe order."""
    train_toy(str(tmp_path), default_hooks__checkpoint__max_keep_ckpts=2)
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == ["iter_15.pth", "iter_16.pth"]
    assert (tmp_path / "last_checkpoint").read_text() == str(tmp_path / "iter_16.pth")
