"""Streams, the NaN guard and the number formats of the loops."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import loops

from bevstack.engine.checkpoint import read_checkpoint
from bevstack.engine.evaluation_loops import AutocastTestLoop
from bevstack.engine.faults import NonFiniteError
from bevstack.engine.streaming import Streams, require_streams
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.registry import MODELS
from bevstack.structures import BEVDataSample, BEVMemory
from tests.engine.toy import SCENE_LENGTH, ToyDataset, exit_code_of, toy_config, train_toy


def sample(token: str, prev_token: str = "") -> BEVDataSample:
    return BEVDataSample(metainfo={"token": token, "prev_token": prev_token})


def streams_of(*tokens: str) -> Streams:
    """Streams whose memory's features are 0, 1, ... by slot."""
    count = len(tokens)
    features = torch.arange(count, dtype=torch.float32).view(count, 1, 1, 1, 1)
    poses = torch.eye(4).expand(count, 1, 4, 4)
    return Streams(BEVMemory(features, BEVGrid((1, 1)), poses, torch.ones(count, 1, dtype=torch.bool)), tokens)


def test_memory_stays_with_its_stream() -> None:
    """Slot 0 goes on, slot 1 starts a scene, slot 2 takes up the stream that slot 1 held."""
    samples = [sample("a2", "a1"), sample("d1"), sample("b2", "b1")]
    carried = streams_of("a1", "b1", "c1").carried(samples)
    assert carried.valid[:, 0].tolist() == [True, False, True]
    assert carried.features.flatten()[[0, 2]].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("chosen", [[1], [1, 0, 2]])
def test_batch_sizes_may_change(chosen) -> None:
    """A smaller last batch, or a larger one after it."""
    samples = [sample("a2", "a1"), sample("b2", "b1"), sample("c1")]
    carried = streams_of("a1", "b1").carried([samples[i] for i in chosen])
    assert carried.valid[:, 0].tolist() == [True, True, False][: len(chosen)]
    assert carried.features.flatten()[:2].tolist() == [1.0, 0.0][: len(chosen)]
    assert carried.features.shape[0] == len(chosen)


@pytest.mark.parametrize("samples", [[sample("c1")], [sample("c2", "c1")]])
def test_no_memory_of_other_scenes(samples) -> None:
    assert streams_of("a1", "").carried(samples) is None
    assert Streams().carried(samples) is None


def test_streams_survive_a_checkpoint(tmp_path) -> None:
    """As plain data, read with ``weights_only``: every field as it was; also where nothing is remembered."""
    frames = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    for streams in (replace(streams_of("a1", "b1"), augmented_from_bev=frames), Streams(None, ("a1",))):
        torch.save(streams.plain(), tmp_path / "streams.pth")
        again = Streams.from_plain(torch.load(tmp_path / "streams.pth", weights_only=True), "cpu")
        assert again.tokens == streams.tokens and (again.memory is None) == (streams.memory is None)
        if streams.memory is not None:
            assert again.memory.grid == streams.memory.grid
            assert torch.equal(again.augmented_from_bev, frames)
            for name in ("features", "now_from_frame", "valid"):
                assert torch.equal(getattr(again.memory, name), getattr(streams.memory, name))


def test_consecutive_frames_in_one_batch_are_refused() -> None:
    with pytest.raises(InputError, match="a1 and a2 follow each other but lie in one batch"):
        require_streams([sample("a1"), sample("a2", "a1")], Streams())


def _stream(model: torch.nn.Module, dataset: ToyDataset, scenes: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Losses and gradients of scenes streamed side by side, the loss of each step summed over samples."""
    model.zero_grad()
    streams, losses = Streams(), []
    for frame in range(SCENE_LENGTH):
        items = [dataset[scene * SCENE_LENGTH + frame] for scene in scenes]
        batch = {key: [item[key] for item in items] for key in ("inputs", "data_samples")}
        loss, streams = streams.step(model, model.data_preprocessor(batch, True), "loss")
        (loss["loss_toy"] * len(scenes)).backward()
        losses.append(loss["loss_toy"].detach() * len(scenes))
    return torch.stack(losses), [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_two_slots_equal_two_streams_of_one() -> None:
    """A batch of two scenes gives the summed losses and gradients of each alone (expected: the runs of one)."""
    torch.manual_seed(0)
    model = MODELS.build({"type": "ToyModel", "dropout": 0.0})
    model.norm.eval()  # batch statistics mix samples by definition
    dataset = ToyDataset(8)
    both_losses, both = _stream(model, dataset, [0, 1])
    first_losses, first = _stream(model, dataset, [0])
    second_losses, second = _stream(model, dataset, [1])
    torch.testing.assert_close(both_losses, first_losses + second_losses)
    for together, one, other in zip(both, first, second, strict=True):
        torch.testing.assert_close(together, one + other, rtol=1e-5, atol=1e-6)


def test_nan_loss_stops_with_the_tokens(tmp_path, run_process) -> None:
    """R12: exit code 1, tokens named, the last checkpoint is finite and no later one exists."""
    changes = {"train_dataloader__dataset__nan_at": 6, "default_hooks__checkpoint__interval": 1}
    code = run_process(exit_code_of, str(tmp_path), **changes)
    message = json.loads(Path(f"{tmp_path}-message.json").read_text())
    assert code == 1
    assert "loss is not finite: loss_toy" in message and "s6" in message and "no weight was changed" in message
    for path in tmp_path.glob("iter_*.pth"):
        state = read_checkpoint(path)["state_dict"]
        assert all(torch.isfinite(value).all() for value in state.values() if value.is_floating_point())


def test_nan_loss_raises_in_process(tmp_path) -> None:
    with pytest.raises(NonFiniteError, match="s3"):
        train_toy(str(tmp_path), train_dataloader__dataset__nan_at=3)


@pytest.mark.parametrize("streaming", [False, True])
def test_test_loop_scores_every_sample_once(tmp_path, streaming) -> None:
    """Batches of two against batches of one, both streaming or both not: the same mean score, in 32 bits."""
    from bevstack.engine.test import test

    train_toy(str(tmp_path), streaming=streaming)
    means = []
    for batch in (1, 2):
        cfg = toy_config(tmp_path, streaming=streaming, batch_size=batch)
        cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
        cfg.test_cfg = {"type": "StreamingTestLoop" if streaming else "AutocastTestLoop"}
        metrics = test(cfg, tmp_path / "iter_16.pth", tmp_path / f"out{batch}")
        assert metrics["count"] == 16
        means.append(metrics["mean"])
        written = json.loads((tmp_path / f"out{batch}" / "metrics.json").read_text())
        assert written["mean"] == pytest.approx(metrics["mean"]) and written["train_seconds"] > 0
    assert means[0] == pytest.approx(means[1], rel=1e-5)


def test_a_checkpoint_is_read_once(tmp_path, monkeypatch) -> None:
    """Large files are read from slow disks; expected: one reading a test."""
    from bevstack.engine.test import test

    train_toy(str(tmp_path))
    read, load = [], torch.load
    monkeypatch.setattr(torch, "load", lambda path, **options: read.append(path) or load(path, **options))
    cfg = toy_config(tmp_path)
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.test_cfg = {"type": "AutocastTestLoop"}
    test(cfg, tmp_path / "iter_16.pth", tmp_path / "out")
    assert read == [tmp_path / "iter_16.pth"]


def test_memory_matters_in_streaming_test(tmp_path) -> None:
    """With and without streams the toy model answers differently, so that the test above can fail. Streams that rest on
    one frame are as good as none."""
    from bevstack.engine.test import test

    train_toy(str(tmp_path), streaming=True)
    means = []
    for number, loop in enumerate(({}, {"type": "AutocastTestLoop"}, {"frames": 1})):
        cfg = toy_config(tmp_path, streaming=True)
        cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
        cfg.test_cfg = {"type": "StreamingTestLoop", **loop}
        means.append(test(cfg, tmp_path / "iter_16.pth", tmp_path / str(number))["mean"])
    assert means[0] != pytest.approx(means[1], rel=1e-4)
    assert means[2] == pytest.approx(means[1], rel=1e-6)


def test_the_newest_frames_of_streams() -> None:
    """Expected: of three remembered frames two stay, tokens and features are as they were; nothing of nothing."""
    memory = streams_of("a1", "b1").memory
    features = memory.features.expand(2, 3, 1, 1, 1)
    poses, valid = memory.now_from_frame.expand(2, 3, 4, 4), torch.tensor([[True] * 3, [True, False, True]])
    streams = Streams(BEVMemory(features, memory.grid, poses, valid), ("a1", "b1"))
    kept = streams.newest(2)
    assert kept.memory.valid.tolist() == [[True, True, False], [True, False, False]] and kept.tokens == streams.tokens
    assert streams.memory.valid.tolist()[0] == [True] * 3 and torch.equal(kept.memory.features, features)
    assert not streams.newest(0).memory.valid.any() and Streams().newest(1).memory is None


def test_the_test_loop_asks_one_form_of_the_model(monkeypatch) -> None:
    """Expected: a copy around the same weights in evaluation mode, made at the first batch; a new one at each run."""
    model, loop = MODELS.build({"type": "ToyModel"}).train(), AutocastTestLoop.__new__(AutocastTestLoop)
    loop._runner = SimpleNamespace(model=model, cfg=Config())
    form = loop.asked_model()
    assert form is loop.asked_model() and form is not model and model.training and not form.training
    assert form.out.weight is model.out.weight
    for name in ("check_metrics", "start_streams"):
        monkeypatch.setattr(loop, name, lambda: None)
    monkeypatch.setattr(loops.TestLoop, "run", lambda self: {})
    loop.run()
    assert loop.asked_model() is not form


def test_average_weights_are_tested(tmp_path) -> None:
    """A checkpoint's ``state_dict`` holds the average where EMA ran; expected: recomputed from the saved steps."""
    train_toy(str(tmp_path), default_hooks__checkpoint__interval=1)
    average = None
    for step in range(1, 17):
        checkpoint = read_checkpoint(tmp_path / f"iter_{step}.pth")
        raw = checkpoint["ema_state_dict"]["module.out.weight"]  # mmengine swaps the two on saving
        average = raw if average is None else average + 0.1 * (raw - average)
    torch.testing.assert_close(checkpoint["state_dict"]["out.weight"], average)
