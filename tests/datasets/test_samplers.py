"""Samplers: who gets which sample when. Expected values follow from counting on a hand-made list of scenes."""

from __future__ import annotations

import pickle
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from bevstack.datasets import samplers
from bevstack.datasets.clips import ClipIndex
from bevstack.datasets.samplers import (
    ClipSampler,
    SceneBatchSampler,
    SceneShardedSampler,
    StreamingSampler,
    repeat_factors,
)


class Scenes:
    """Stands for a dataset: scenes of given lengths, a gap in the middle of scene ``gap``."""

    def __init__(self, lengths: tuple[int, ...], gap: int | None = None) -> None:
        self.scene_rows = np.repeat(np.arange(len(lengths)), lengths)
        self.stream_starts = np.r_[True, self.scene_rows[1:] != self.scene_rows[:-1]]
        if gap is not None:
            self.stream_starts[np.flatnonzero(self.scene_rows == gap)[lengths[gap] // 2]] = True

    def __len__(self) -> int:
        return len(self.scene_rows)


@pytest.fixture
def ranks(monkeypatch):
    """Build a sampler as if on one of several ranks."""

    def build(rank: int, world_size: int, make):
        monkeypatch.setattr(samplers, "get_dist_info", lambda: (rank, world_size))
        return make()

    return build


LENGTHS = (5, 3, 8, 1, 6, 4, 7, 2)


def batches(sampler: StreamingSampler) -> np.ndarray:
    return np.array(list(sampler)).reshape(-1, sampler.batch_size)


def test_streaming_slots_walk_their_scenes_frame_by_frame():
    dataset = Scenes(LENGTHS, gap=2)
    sampler = StreamingSampler(dataset, batch_size=3, seed=1)
    order = batches(sampler)
    assert len(order) == sampler.steps_per_epoch == -(-sum(LENGTHS) // 3)
    for slot in order.T:
        for before, after in zip(slot[:-1], slot[1:], strict=True):
            # Either the next frame of the same stream, or a stream's first frame after a stream's last one.
            ends = before + 1 == len(dataset) or dataset.stream_starts[before + 1]
            assert (after == before + 1 and not ends) or (ends and dataset.stream_starts[after])


def test_streaming_slots_never_hold_the_same_stream_at_once():
    order = batches(StreamingSampler(Scenes((6,) * 8), batch_size=4, seed=0))
    assert all(len(set(batch)) == 4 for batch in order.tolist())


def test_streaming_covers_nearly_everything_and_another_part_each_epoch():
    dataset = Scenes((20,) * 12)
    sampler = StreamingSampler(dataset, batch_size=4, seed=0)
    # 12 scenes of 20 frames on 4 slots fill 60 steps exactly: every sample once.
    assert Counter(map(int, sampler)) == Counter(range(240))
    first = list(sampler)
    sampler.set_epoch(1)
    assert list(sampler) != first and Counter(map(int, sampler)) == Counter(range(240))


def test_streaming_depends_on_seed_and_epoch_alone():
    dataset = Scenes(LENGTHS)
    one, two = (StreamingSampler(dataset, batch_size=2, seed=7) for _ in range(2))
    one.set_epoch(3)
    list(one)
    two.set_epoch(3)
    assert list(one) == list(two)
    assert list(one) != list(StreamingSampler(dataset, batch_size=2, seed=8))


def test_streaming_ranks_share_no_stream_and_are_equally_long(ranks):
    dataset = Scenes((10,) * 8)
    parts = [ranks(r, 2, lambda: StreamingSampler(dataset, batch_size=2, seed=0)) for r in range(2)]
    seen = [list(map(int, part)) for part in parts]
    assert len(seen[0]) == len(seen[1]) == len(parts[0]) == 40
    assert Counter(seen[0] + seen[1]) == Counter(range(80))


def test_streams_are_cut_to_length():
    dataset = Scenes((10,) * 6)
    order = batches(StreamingSampler(dataset, batch_size=1, seed=0, max_stream_length=4))[:, 0]
    begins = order[np.flatnonzero(np.r_[True, np.diff(order) != 1])]
    # Scenes of 10 cut into 4 + 4 + 2: pieces begin at frames 0, 4 and 8.
    assert set((begins % 10).tolist()) == {0, 4, 8} and len(begins) > 6


@pytest.mark.parametrize(
    "make", [lambda d: StreamingSampler(d, batch_size=3, seed=2), lambda d: ClipSampler(d, seed=2)]
)
def test_start_in_the_middle_of_an_epoch(make):
    sampler = make(Scenes(LENGTHS))
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.start_at(6)
    assert list(sampler) == whole[6:]
    assert list(sampler) == whole  # only the next pass is cut
    with pytest.raises(ValueError, match="start_at"):
        sampler.start_at(len(whole) + 1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 11])
def test_scene_shards_cut_no_scene_and_repeat_no_sample(ranks, world_size):
    dataset = Scenes(LENGTHS)
    parts = [list(ranks(r, world_size, lambda: SceneShardedSampler(dataset))) for r in range(world_size)]
    assert Counter(int(i) for part in parts for i in part) == Counter(range(len(dataset)))
    owners = [{int(dataset.scene_rows[i]) for i in part} for part in parts]
    assert sum(len(owner) for owner in owners) == len(LENGTHS)
    assert all(part == sorted(part) for part in parts)
    if world_size == 3:
        # Longest first, each to the least loaded rank: 8 + 3 + 2, 7 + 4 + 1, 6 + 5.
        assert [len(part) for part in parts] == [13, 12, 11]


def test_scene_shards_with_more_ranks_than_scenes(ranks):
    assert len(ranks(3, 4, lambda: SceneShardedSampler(Scenes((2, 2))))) == 0


@pytest.mark.parametrize("batch_size", [1, 3, 20])
@pytest.mark.parametrize("world_size", [1, 3])
def test_scene_batches_hold_every_sample_once_right_after_its_predecessor(ranks, world_size, batch_size):
    dataset = Scenes(LENGTHS, gap=2)
    sampled = []
    for rank in range(world_size):
        sampler = ranks(rank, world_size, lambda: SceneBatchSampler(SceneShardedSampler(dataset), batch_size))
        rows = list(sampler)
        sampled += [int(i) for row in rows for i in row]
        assert len(rows) == len(sampler) and max(map(len, rows)) <= batch_size
        sizes = [len(row) for row in rows]
        assert sizes == sorted(sizes, reverse=True)  # batches are full until no stream is left to begin
        for before, row in zip([[], *rows], rows, strict=False):
            for index in row:
                assert dataset.stream_starts[index] or index - 1 in before
    assert sorted(sampled) == list(range(len(dataset)))


def test_scene_batches_of_one_keep_the_samplers_order():
    sampler = SceneShardedSampler(Scenes(LENGTHS))
    assert list(SceneBatchSampler(sampler, 1)) == [[index] for index in sampler]
    with pytest.raises(ValueError, match="batch_size"):
        SceneBatchSampler(sampler, 0)


def test_scene_batches_of_a_rank_without_scenes(ranks):
    sampler = ranks(3, 4, lambda: SceneShardedSampler(Scenes((2, 2))))
    assert list(SceneBatchSampler(sampler, 2)) == []


@pytest.mark.parametrize(("round_up", "expected"), [(True, [4, 4, 4]), (False, [4, 3, 3])])
def test_clip_sampler_shares(ranks, round_up, expected):
    dataset = Scenes((10,))
    parts = [ranks(r, 3, lambda: ClipSampler(dataset, seed=0, round_up=round_up)) for r in range(3)]
    assert [len(p) for p in parts] == [len(list(p)) for p in parts] == expected
    assert {int(i) for p in parts for i in p} == set(range(10))


def test_clip_index_is_an_int_that_keeps_its_epoch_when_pickled():
    index = pickle.loads(pickle.dumps(ClipIndex(5, epoch=9)))
    assert index == 5 and index.epoch == 9 and [10, 20, 30, 40, 50, 60][index] == 60


def test_mmengine_builds_them_by_name():
    from mmengine.registry import init_default_scope

    from bevstack.registry import DATA_SAMPLERS

    init_default_scope("bevstack")
    dataset = Scenes(LENGTHS)
    # The Runner hands dataset and seed to every sampler.
    for config in (
        dict(type="ClipSampler"),
        dict(type="StreamingSampler", batch_size=2),
        dict(type="SceneShardedSampler"),
    ):
        assert len(DATA_SAMPLERS.build(config, default_args=dict(dataset=dataset, seed=3))) == len(dataset)


class LabelledScenes(Scenes):
    """The same with one object a sample: class 1 in the samples of scene ``rare``, class 0 elsewhere."""

    def __init__(self, lengths: tuple[int, ...], rare: int) -> None:
        super().__init__(lengths)
        self.labels = (self.scene_rows == rare).astype(int)

    def clip(self, i: int) -> SimpleNamespace:
        return SimpleNamespace(objects=SimpleNamespace(labels=np.array([self.labels[i], -1])))


def test_pieces_with_rare_classes_come_more_often() -> None:
    """Expected, by hand: class 1 is in 4 of 36 samples, so that balance 1 lets its scene come 3 times for each of the
    others'; then 3 * 4 of 3 * 4 + 32 * sqrt(36 / 32) samples are of it. Every epoch is as long as without."""
    dataset = LabelledScenes((4,) * 9, rare=2)
    factors = repeat_factors(dataset, 1.0)
    np.testing.assert_allclose(factors, np.where(dataset.labels, 3.0, np.sqrt(36 / 32)))
    np.testing.assert_allclose(repeat_factors(dataset, 1 / 9), 1.0)
    counts, epochs = Counter(), 200
    for epoch in range(epochs):
        sampler = StreamingSampler(dataset, batch_size=2, seed=0, max_stream_length=2, balance=1.0)
        order = sampler.order(epoch)
        assert len(order) == 36
        for first, second in zip(order[0::4], order[2::4], strict=True):
            assert second == first + 1 and first % 2 == 0, "pieces stay whole"
        counts.update(int(dataset.labels[i]) for i in order)
    assert counts[1] / (36 * epochs) == pytest.approx(12 / (12 + 32 * np.sqrt(36 / 32)), abs=0.02)
    with pytest.raises(ValueError, match="balance: 2"):
        StreamingSampler(dataset, batch_size=2, balance=2)


def test_without_balance_no_object_is_read() -> None:
    """Expected: each sample once an epoch; ``Scenes`` has no objects to read."""
    order = StreamingSampler(Scenes((4,) * 9), batch_size=2, seed=0, max_stream_length=2).order(0)
    assert sorted(order) == list(range(36))
