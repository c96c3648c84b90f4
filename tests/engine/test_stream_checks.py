"""The pieces that carry memory along streams, compared at start and watched while running."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from torch import nn

from bevstack.engine.config import load_config
from bevstack.engine.processes import process_count
from bevstack.engine.stream_checks import check_memory, check_streams
from bevstack.engine.streaming import Streams, require_streams
from bevstack.engine.test import test as run_test
from bevstack.errors import InputError
from bevstack.geometry import BEVGrid
from bevstack.structures import BEVDataSample, BEVMemory
from tests.engine.toy import toy_config, train_toy

ROOT = Path(__file__).resolve().parents[2]
DATA = "train_dataloader.dataset"
CLIP_SAMPLER = "train_dataloader.sampler={'_delete_':True,'type':'ClipSampler'}"
SHUFFLED = "test_dataloader.sampler={'_delete_':True,'type':'DefaultSampler','shuffle':True}"
BY_SAMPLE = "test_dataloader.sampler={'_delete_':True,'type':'DefaultSampler','shuffle':False}"
ONE_BATCH = "test_dataloader.batch_sampler=None"
AUGMENTATION = "train_dataloader.dataset.pipeline.2={'type':'BEVRotateScaleFlip'}"
CONSTANT = "train_dataloader.dataset.pipeline.2={'type':'BEVRotateScaleFlip','constant_along_stream':True}"


def demo(*options: str) -> Config:
    return load_config(ROOT / "configs" / "demo.py", options)


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("train", ["train_dataloader.batch_size=2"], r"train_dataloader.batch_size: 2, but .*sampler.batch_size is 4"),
        ("train", ["train_dataloader.sampler.batch_size=3"], r"batch_size: 4, but .*sampler.batch_size is 3"),
        ("train", [CLIP_SAMPLER], r"train_dataloader.batch_size: 4, but .*ClipSampler"),
        ("train", [CLIP_SAMPLER, "train_dataloader.batch_size=1"], r"sampler.type: ClipSampler shuffles"),
        ("train", ["train_dataloader.sampler.type=SceneShardedSampler"], "batch_size: 4, but .*SceneShardedSampler"),
        ("train", ["train_dataloader.batch_sampler={'type':'SceneBatchSampler'}"], "StreamingSampler, but batch_samp"),
        ("train", [AUGMENTATION], r"dataset.pipeline.2.constant_along_stream: False, but train_cfg.type is Streaming"),
        ("train", [f"{DATA}.num_frames=2"], r"dataset.num_frames: 2, but train_cfg.type is StreamingTrainLoop"),
        ("test", ["test_dataloader.dataset.num_frames=3"], r"num_frames: 3, but test_cfg.type is StreamingTestLoop"),
        ("test", [BY_SAMPLE], "DefaultSampler, but batch_sampler.type is SceneBatchSampler"),
        ("test", [SHUFFLED, ONE_BATCH], "DefaultSampler shuffles samples, but the loop is StreamingTestLoop"),
        ("test", [BY_SAMPLE, ONE_BATCH], "DefaultSampler deals samples to 2 processes"),
        ("test", [BY_SAMPLE, ONE_BATCH, "test_dataloader.batch_size=2"], "batch_size: 2, but .*DefaultSampler"),
        ("test", [ONE_BATCH, "test_dataloader.batch_size=2"], "batch_size: 2, but .*SceneShardedSampler"),
    ],
)
def test_pieces_that_disagree_are_refused(part, options, message) -> None:
    """In one line that names config, field and both values (expected: what each piece does by its documentation)."""
    with pytest.raises(InputError, match=message) as raised:
        check_streams(demo(*options), part, processes=2)
    assert raised.value.file.endswith("demo.py") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ("train", []),
        ("train", ["train_dataloader.batch_size=2", "train_dataloader.sampler.batch_size=2"]),
        ("train", [CONSTANT]),
        ("train", [CLIP_SAMPLER, AUGMENTATION, "train_cfg.type=ResumableTrainLoop"]),
        ("test", []),
        ("test", ["test_dataloader.batch_size=3"]),
        ("test", [ONE_BATCH]),
        ("test", [BY_SAMPLE, ONE_BATCH]),
    ],
)
def test_pieces_that_agree_pass(part, options) -> None:
    """What the refusals advise, and what the samplers' own tests show to keep streams together."""
    check_streams(demo(*options), part)


class Remembering(nn.Module):
    memory_frames = 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train_cfg.type=EpochBasedTrainLoop"], "train_cfg.type: EpochBasedTrainLoop carries no memory and .* is 1"),
        (["test_cfg={'_delete_':True}"], "test_cfg.type: TestLoop carries no memory .*set it to StreamingTestLoop"),
        (["test_cfg.type=AutocastTestLoop"], "AutocastTestLoop .* without .*StreamingTrainLoop with clips of 1 frame"),
        (["train_cfg.type=ResumableTrainLoop"], "StreamingTestLoop .* with their history, .*set it to Autocast"),
    ],
)
def test_loops_that_forget_are_refused(options, message) -> None:
    """A model that remembers, in a loop that does not, or tested otherwise than trained; a static model may."""
    with pytest.raises(InputError, match=message):
        check_memory(demo(*options), Remembering(), tests=True)
    assert check_memory(demo(*options), nn.Module(), tests=True) == []


def test_training_without_memory_is_told() -> None:
    """Single frames are a way to train; the notes name the loops, clip length and memory."""
    first, second = check_memory(demo("train_cfg.type=ResumableTrainLoop"), Remembering())
    assert "ResumableTrainLoop carries no memory" in first and "remembers 1 frame(s) and sees none" in first
    assert second.startswith("test_cfg.type: StreamingTestLoop shows samples with their history")
    clips = ["train_cfg.type=ResumableTrainLoop", f"{DATA}.num_frames=2"]
    assert check_memory(demo(*clips), Remembering()) == []


def test_number_of_processes_of_a_launcher(monkeypatch) -> None:
    """What torchrun and slurm put into the environment."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("SLURM_NTASKS", "5")
    assert [process_count(launcher) for launcher in ("none", "pytorch", "slurm")] == [1, 3, 5]


def sample(token: str, prev_token: str = "", yaw: float = 0.0) -> BEVDataSample:
    frame = np.eye(4)
    frame[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    return BEVDataSample(metainfo={"token": token, "prev_token": prev_token, "augmented_from_bev": frame})


def after(*samples: BEVDataSample) -> Streams:
    """What a batch leaves whose memory's features are 0, 1, ... by slot."""
    count = len(samples)
    features = torch.arange(count, dtype=torch.float32).view(count, 1, 1, 1, 1)
    valid = torch.ones(count, 1, dtype=torch.bool)
    memory = BEVMemory(features, BEVGrid((1, 1)), torch.eye(4).expand(count, 1, 4, 4), valid)
    frames = torch.from_numpy(np.stack([entry.augmented_from_bev for entry in samples]))
    return Streams(memory, tuple(entry.token for entry in samples), frames)


def test_memory_of_another_bev_frame_is_none() -> None:
    """A similarity that is drawn anew for every sample: memory would lie elsewhere, so it counts as missing."""
    streams, turned = after(sample("a1")), sample("a2", "a1", yaw=0.1)
    assert streams.carried([turned]) is None and streams.without_memory([turned]) == [turned]
    same = sample("a2", "a1")
    assert streams.carried([same]) is not None and streams.without_memory([same]) == []


def test_a_scene_twice_goes_on_in_its_own_slot() -> None:
    """A repeated set runs one scene in two slots at once, each augmented in its own way."""
    streams = after(sample("a1"), sample("a1", yaw=0.1))
    carried = streams.carried([sample("a2", "a1"), sample("a2", "a1", yaw=0.1)])
    assert carried.features.flatten().tolist() == [0.0, 1.0]
    streams = after(sample("a1"), sample("a1"))
    assert streams.carried([sample("a2", "a1"), sample("a2", "a1")]).features.flatten().tolist() == [0.0, 1.0]


def test_prediction_without_memory_is_refused() -> None:
    """A predecessor of the set that was not predicted just before, and one whose BEV frame lies otherwise."""
    with pytest.raises(InputError, match="a1 comes before a2 in the set but was not predicted just before it"):
        require_streams([sample("a2", "a1")], after(sample("b1")))
    with pytest.raises(InputError, match="BEV frames of samples a1 and a2 are augmented differently"):
        require_streams([sample("a2", "a1", yaw=0.1)], after(sample("a1")))
    require_streams([sample("a2", "a1"), sample("c1")], after(sample("b1"), sample("a1")))


def test_missing_memory_is_counted_in_the_log(tmp_path) -> None:
    """Streams in order: none is missing; batches of single scenes in two slots by an own sampler that forgets: all."""
    from bevstack.engine.checkpoint import read_checkpoint

    shares = {}
    for kind in ("ToySlotBatchSampler", "ForgetfulBatchSampler"):
        train_toy(str(tmp_path / kind), streaming=True, train_dataloader__batch_sampler__type=kind)
        scalars = read_checkpoint(tmp_path / kind / "iter_16.pth")["message_hub"]["log_scalars"]
        shares[kind] = scalars["train/without_memory"]["history"][0]
    assert shares["ToySlotBatchSampler"].tolist() == [0.0] * 12, "6 of 8 batches an epoch have predecessors"
    assert shares["ForgetfulBatchSampler"].tolist() == [1.0] * len(shares["ForgetfulBatchSampler"])


def test_evaluation_that_lost_its_memory_ends(tmp_path) -> None:
    """An own batch sampler cannot be judged at start; the first sample whose memory is missing is an error."""
    train_toy(str(tmp_path), streaming=True)
    cfg = toy_config(tmp_path, streaming=True, val_dataloader__batch_sampler__type="ForgetfulBatchSampler")
    cfg.test_dataloader, cfg.test_evaluator = cfg.val_dataloader, cfg.val_evaluator
    cfg.test_cfg = {"type": "StreamingTestLoop"}
    with pytest.raises(InputError, match="was not predicted just before it"):
        run_test(cfg, tmp_path / "iter_16.pth", tmp_path / "out")
